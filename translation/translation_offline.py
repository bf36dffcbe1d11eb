# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an EA-T5 from English to German from scratch, without the Hugging Face Hub: what `make translation` runs.

    python translation/translation_offline.py                         # about a quarter of an hour on two cores
    python translation/translation_offline.py --long                  # up to two hours
    python translation/translation_offline.py --ea_residual_weight 0 --ea_conv_weight 0 --output_dir output/t5    # vanilla attention

Further arguments go to run_translation.py. The data are sentences of the LibreOffice help. The last lines compare the
held-out test pages with copying the source, and show translations.
"""

import json
from pathlib import Path

import prepare_data
import run_translation
import train_tokenizer

from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.output_dir import RESULTS_FILE
from ea_hf.training.script import has_bfloat16


SOURCE, TARGET = "en", "de"
LANGUAGES = ["--source_lang", SOURCE, "--target_lang", TARGET]
VOCAB_SIZE = 4000  # small, as suits some thirty thousand sentences (https://arxiv.org/abs/1905.11901)
MODEL = "d_model=256,d_kv=32,d_ff=768,num_layers=3,num_heads=8"
# Later arguments override earlier ones.
ARGUMENTS = [
    "--group_by_length",
    *("--config_overrides", MODEL),
    *("--per_device_train_batch_size", "32"),
    *("--per_device_eval_batch_size", "64"),
    # Steps in proportion to a weight's size, as T5 was trained: its embeddings start with a standard deviation of 1.
    *("--optim", "adafactor", "--optim_args", "scale_parameter=true"),
    *("--learning_rate", "0.03"),
    *("--lr_scheduler_type", "cosine"),
    *("--num_warmup_steps", "200"),
    *("--label_smoothing_factor", "0.1"),
    *("--max_source_length", "128"),
    *("--max_target_length", "128"),
    *("--num_beams", "4"),
    *("--mixed_precision", "bf16" if has_bfloat16() else "no"),
    *("--max_eval_samples", "300"),
    *("--logging_steps", "100"),
    *("--checkpointing_steps", "no"),
]
SHORT = ["--num_train_epochs", "4", "--eval_steps", "no"]
LONG = ["--num_train_epochs", "10", "--eval_steps", "no", "--checkpointing_steps", "epoch"]
EXAMPLES = 10


def prepare(data_dir: Path) -> None:
    """Splits the data, and trains the tokenizer on the training sentences."""
    prepare_data.main(["--output_dir", str(data_dir)])
    train_tokenizer.main(
        [
            *LANGUAGES,
            *("--train_file", str(data_dir / "train.jsonl"), "--output_dir", str(data_dir / "tokenizer")),
            *("--vocab_size", str(VOCAB_SIZE), "--extra_ids", "0", "--normalization_rule_name", "identity"),
        ]
    )


def train(data_dir: Path, output_dir: Path, extra: list[str]) -> dict[str, float]:
    """Trains the model; returns the results of the run, those of the test set among them."""
    files = {split: str(data_dir / f"{split}.jsonl") for split in prepare_data.SPLITS}
    return run_translation.main(
        [
            *LANGUAGES,
            *("--tokenizer_name", str(data_dir / "tokenizer"), *ARGUMENTS),
            *(word for split, path in files.items() for word in (f"--{split}_file", path)),
            *("--do_predict", "--output_dir", str(output_dir), "--overwrite_output_dir", *extra),
        ]
    )


def is_finished(output_dir: Path) -> bool:
    return (output_dir / RESULTS_FILE).exists()


def report(output_dir: Path, results: dict[str, float]) -> str:
    """BLEU and chrF beside those of the untranslated source, and translations spread over the test set."""
    with (output_dir / "predictions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sources, references = [row["source"] for row in rows], [[row["reference"] for row in rows]]
    metrics = run_translation.make_metrics(TARGET)
    lines = [f"{len(rows)} held-out sentences", f"  {'':<20}{'BLEU':>8}{'chrF':>8}"]
    copied = [metrics[name].corpus_score(sources, references).score for name in ("bleu", "chrf")]
    lines += [f"  {'copied source':<20}{copied[0]:>8.1f}{copied[1]:>8.1f}"]
    lines += [f"  {'model':<20}{results['test_bleu']:>8.1f}{results['test_chrf']:>8.1f}"]
    lines += [f"  {results['bleu_signature']}", f"  {results['chrf_signature']}", ""]
    for row in rows[:: -(-len(rows) // EXAMPLES)]:
        lines += [f"source      {row['source']}", f"reference   {row['reference']}"]
        lines += [f"translation {row['prediction']}", ""]
    lines += [
        f"The model is in {output_dir}, with a model card (README.md). Translate with it:",
        "",
        f'  echo "Click the icon to open the dialog." | python translation/translate.py {output_dir}',
    ]
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data/libreoffice_help"))
    parser.add_argument("--output_dir", type=directory, default=Path("output/translation"))
    parser.add_argument("--long", action="store_true", help="Train longer.")
    args, extra = parser.parse_known_args()
    prepare(args.data_dir)
    recipe = LONG if args.long else SHORT
    results = train(args.data_dir, args.output_dir, [*recipe, *extra])
    print("\n" + report(args.output_dir, results))
    print(
        f"\nTraining took {results['train_runtime'] / 60:.1f} minutes; all figures: {args.output_dir / RESULTS_FILE}"
    )


if __name__ == "__main__":
    run_main(main)
