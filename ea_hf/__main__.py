# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `ea-hf`, also `python -m ea_hf`: what can be done with a checkpoint without writing code.

ea-hf plan --model_name_or_path google-bert/bert-base-uncased --batch_size 32 --length 128
ea-hf maps output/film_sentiment "A film that never quite finds its feet." --output maps.html
ea-hf compare --output_dir output/compare -- python glue/run_glue.py --model_name_or_path ... --train_file train.csv
"""

import sys
from importlib import import_module

from .training.command_line import ArgumentParser, run_main


# Command, the module whose `main` takes its arguments, and what it does.
COMMANDS = {
    "plan": ("ea_hf.plan", "what a training run needs: parameters, FLOPs, memory, devices"),
    "export": ("ea_hf.export", "a checkpoint as ONNX or torch.export, checked against the model"),
    "compare": ("ea_hf.compare", "whether it helps on your data: a script's command with several variants and seeds"),
    "translate": ("ea_hf.translate", "translations of a text, line by line"),
    "maps": ("ea_hf.visualization.__main__", "a page of a model's attention maps and their parts"),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser(
        prog="ea-hf",
        description="Evolving attention for Hugging Face Transformers.",
        epilog="`ea-hf COMMAND --help` lists the arguments of a command.",
    )
    commands = "; ".join(f"{name}: {meaning}" for name, (_, meaning) in COMMANDS.items())
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=commands)
    command = parser.parse_args(argv[:1]).command
    sys.argv[0] = f"ea-hf {command}"  # which argparse puts before the usage
    import_module(COMMANDS[command][0]).main(argv[1:])


def run() -> None:
    """The entry point: an error that a user can mend is one line and exit status 2."""
    run_main(main)


if __name__ == "__main__":
    run()
