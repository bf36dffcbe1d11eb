# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes EA-BERT on real text without the Hugging Face Hub: what `make glue` runs.

    python glue/glue_offline.py                                      # film reviews, positive or negative (as SST-2)
    python glue/glue_offline.py --task film_rating                   # the same reviews, rated from -4 to 4 (as STS-B)
    python glue/glue_offline.py --task verse_pairs                   # two wordings of the same verse, or not (as MRPC)

Further arguments go to run_glue.py. The last lines compare the held-out test set with the majority class and with
TF-IDF, and tell how to load the model.
"""

import json
from pathlib import Path

import prepare_data
import run_glue
from baselines import baselines
from datasets import load_dataset
from task_data import KNOWN_COLUMNS

from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.output_dir import RESULTS_FILE


# What suits all three tasks with MiniLM; later arguments override earlier ones.
ARGUMENTS = [
    "--group_by_length",
    *("--num_train_epochs", "2"),
    *("--per_device_train_batch_size", "32"),
    *("--per_device_eval_batch_size", "64"),
    *("--learning_rate", "1e-4"),
    *("--weight_decay", "0.01"),
    *("--num_warmup_steps", "50"),
    *("--logging_steps", "25"),
]
REGRESSION_TASKS = ("film_rating",)


def task_files(data_dir: Path, task: str) -> dict[str, str]:
    return {split: str(data_dir / task / f"{split}.csv") for split in ("train", "validation", "test")}


def fine_tune(
    data_dir: Path, task: str, output_dir: Path, extra: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Trains on a task, choosing nothing by the test set.

    Returns:
        The results of the run, and the metrics on the test set.
    """
    files = task_files(data_dir, task)
    results = run_glue.main(
        [
            *("--model_name_or_path", str(data_dir / prepare_data.MODEL_NAME), *ARGUMENTS, *extra),
            *("--train_file", files["train"], "--validation_file", files["validation"]),
            *("--output_dir", str(output_dir), "--overwrite_output_dir"),
        ]
    )
    test = run_glue.main(
        [
            *("--eval_only", "--model_name_or_path", str(output_dir), "--validation_file", files["test"]),
            *("--per_device_eval_batch_size", "64"),
            *("--output_dir", str(output_dir / "test"), "--overwrite_output_dir"),
        ]
    )
    return results, {name.removeprefix("eval_"): value for name, value in test.items()}


def report(data_dir: Path, task: str, output_dir: Path, test: dict[str, float]) -> str:
    """A table of the test set: the fine-tuned model beside the baselines."""
    tables = {
        split: load_dataset("csv", data_files=path, split="train", keep_default_na=False)
        for split, path in task_files(data_dir, task).items()
    }
    columns = next(names for names in KNOWN_COLUMNS if all(name in tables["train"].column_names for name in names))
    metric = "pearson" if task in REGRESSION_TASKS else "accuracy"
    rows = {name: values[metric] for name, values in baselines(tables["train"], tables["test"], columns).items()}
    rows["EA-BERT"] = test[metric]
    lines = [f"{task}, {len(tables['test'])} held-out examples", f"  {'':<16}{metric:>10}"]
    lines += [f"  {name:<16}{value:>10.3f}" for name, value in rows.items()]
    lines += [
        "",
        f"The model is in {output_dir}, with a model card (README.md). Load it with",
        "",
        "  import ea_hf",
        "  from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        f'  model = AutoModelForSequenceClassification.from_pretrained("{output_dir}")',
        f'  tokenizer = AutoTokenizer.from_pretrained("{output_dir}")',
    ]
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=prepare_data.TASKS, default="film_sentiment")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--output_dir", type=directory, help="Default: output/TASK.")
    args, extra = parser.parse_known_args()
    output_dir = args.output_dir or Path("output") / args.task
    prepare_data.main(["--output_dir", str(args.data_dir), "--tasks", args.task])
    results, test = fine_tune(args.data_dir, args.task, output_dir, extra)
    print("\n" + report(args.data_dir, args.task, output_dir, test))
    print(f"\nTraining took {results['train_runtime'] / 60:.1f} minutes; all figures: {output_dir / RESULTS_FILE}")
    print(json.dumps({"task": args.task, **test}))


if __name__ == "__main__":
    run_main(main)
