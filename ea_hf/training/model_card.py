# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a finished run: what it is, how it was measured, on what, and how to load it."""

import argparse
import json
import logging
import math
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PretrainedConfig, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

CARD = """---
{card_data}
---

# {name}

{model_class}, {origin} on {dataset}.
Its attention maps evolve from layer to layer through a residual and a convolution
([Evolving Attention with Residual Convolutions](https://arxiv.org/abs/2102.12895),
[Convolution-enhanced Evolving Attention Networks](https://arxiv.org/abs/2212.08330)).

## How to load it

{local_note}```python
from transformers import {auto_class}, {processor_class}

model = {auto_class}.from_pretrained({location}, trust_remote_code=True)
{processor_name} = {processor_class}.from_pretrained({location}, trust_remote_code=True)
```

The model's code lies beside its weights. Where `ea_hf` is installed, no remote code is needed: after `import ea_hf`,
`{local_class}.from_pretrained({location})` loads it.

## Results

{results}

{seeds}

Measured with

```
{command}
```

## Limits

The scores hold for the data that the table names; on other data the model was not tried. Errors and prejudice in the data
that it was trained on may come back in what it predicts.

## Settings

{shown}

<details><summary>All settings</summary>

{evolution}

{arguments}

</details>

Versions: {versions}.

## License

{license}

## Citation

```bibtex
@inproceedings{{wang2021evolving,
  title = {{Evolving Attention with Residual Convolutions}},
  author = {{Wang, Yujing and Yang, Yaming and Bai, Jiangang and Zhang, Mingliang and Bai, Jing and Yu, Jing and
    Zhang, Ce and Huang, Gao and Tong, Yunhai}},
  booktitle = {{Proceedings of the 38th International Conference on Machine Learning}},
  year = {{2021}},
  url = {{https://arxiv.org/abs/2102.12895}},
}}

@article{{wang2023convolution,
  title = {{Convolution-enhanced Evolving Attention Networks}},
  author = {{Wang, Yujing and Yang, Yaming and Li, Zhuo and Bai, Jiangang and Zhang, Mingliang and Li, Xiangtai and
    Yu, Jing and Zhang, Ce and Huang, Gao and Tong, Yunhai}},
  journal = {{IEEE Transactions on Pattern Analysis and Machine Intelligence}},
  year = {{2023}},
  url = {{https://arxiv.org/abs/2212.08330}},
}}
```
"""

# Taken out again when the model is pushed.
LOCAL_NOTE = """The code runs in the folder in which this model's folder lies; anywhere else, put the model's own place for "./".

"""

# The first eight of these that a run has are not folded away.
SHOWN_SETTINGS = (
    "ea_residual_weight",
    "ea_conv_weight",
    "learning_rate",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_train_steps",
    "mixed_precision",
    "seed",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "weight_decay",
)
NUM_SHOWN = 8
LIBRARIES = ("ea_hf", "transformers", "torch", "accelerate", "datasets")
# The Hub knows no others of our tasks; what it does not know stays a tag.
PIPELINE_TAGS = ("text-classification", "translation", "image-classification", "text-generation", "fill-mask")
# Of a server's explanation, as some send whole pages.
MAX_REASON = 2000
# A directory of this machine within a text: after a blank, a quote or a sign, up to the last slash, but no URL's.
DIRECTORIES = re.compile(
    r"""(?<![^\s=,;"'\[({])(?:file:/{2,3}|[A-Za-z]:[\\/]|/)(?!/)(?:[^\s,;"'/\\]+[/\\])*(?=[^\s/\\])"""
)

# What the Hub's page lets a visitor try. No text of anyone's data.
SENTENCES = {
    "de": "Das Haus ist klein.",
    "en": "The house is small.",
    "es": "La casa es pequeña.",
    "fr": "La maison est petite.",
}
IMAGE_WIDGET = {
    "src": "https://huggingface.co/datasets/mishig/sample_images/resolve/main/tiger.jpg",
    "example_title": "Tiger",
}


@dataclass(frozen=True)
class ScoredData:
    """What some of a run's scores were measured on.

    Attributes:
        split: such as "validation".
        source: the data set, or the name of the file.
        size: how many there are of `unit`.
        prefix, suffix: how the names of these scores begin and end.
    """

    split: str
    source: str
    size: int
    unit: str = "examples"
    prefix: str = ""
    suffix: str = ""


def text_widget(tokenizer: PreTrainedTokenizerBase, num_texts: int = 1) -> dict[str, str]:
    """An example for a classifier of texts, or of pairs, which stand in the Hub's one field as the model reads them."""
    if num_texts == 1:
        return {"text": SENTENCES["en"]}
    signs = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False)
    between = " ".join([tokenizer.sep_token or tokenizer.eos_token or ""] * max(signs, 1))
    return {"text": " ".join(f"The house is small. {between} It is not large.".split())}


def language_widget(tokenizer: PreTrainedTokenizerBase, task_type: str) -> dict[str, str]:
    """An example for a language model: a text that goes on, or one with a gap."""
    if task_type == "text-generation":
        return {"text": "Once upon a time"}
    gap = tokenizer.mask_token if task_type == "fill-mask" else "<extra_id_0>"
    return {"text": f"Paris is the {gap} of France."}


def translation_widget(language: str, prefix: str = "") -> dict[str, str] | None:
    """An example for a translator; `None` if we have no sentence in its language."""
    codes = _language_codes([language]) or [""]
    return {"text": prefix + SENTENCES[codes[0]]} if codes[0] in SENTENCES else None


def save_model_card(
    output_dir: Path,
    args: argparse.Namespace,
    config: PretrainedConfig,
    *,
    auto_class: str,
    task_type: str,
    task_name: str,
    dataset_name: str,
    base_model: str | None,
    metrics: dict[str, Any],
    evaluated_on: Sequence[ScoredData],
    processor_class: str = "AutoTokenizer",
    model_class: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    hub_dataset: str | None = None,
    widget: dict[str, str] | None = None,
) -> None:
    """Writes the README.md of a finished run. No path of this machine stands there, only names.

    Args:
        auto_class: the Auto class that loads the model.
        task_type: the Hub's name of the task, such as "text-classification".
        task_name: a person's name of the task, such as "GLUE MRPC".
        dataset_name: the data set on the Hub, or the name of a local file.
        base_model: what was fine-tuned; `None` if the model was trained from scratch.
        metrics: the results of the final evaluation and of the test; texts belong to them, such as signatures.
        evaluated_on: the data of the metrics; of those that fit a metric's name, the last one has it.
        model_class: the class in `ea_hf`, if there is no Auto class for its task.
        license: of the weights; `None` for that of the base model's own card, if it names one.
        hub_dataset: the data set on the Hub that the model was trained on, or a local copy, which is not linked.
        widget: the example that the Hub's page lets a visitor try.
    """
    name = args.hub_model_id or output_dir.resolve().name
    is_hub_model = base_model is not None and not Path(base_model).exists()
    license, license_origin = _describe_license(license, base_model, args.hub_token)
    task_name, dataset_name = without_directories(task_name), without_directories(dataset_name)
    is_hub_dataset = hub_dataset is not None and not Path(hub_dataset).exists()
    card_data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=task_type if task_type in PIPELINE_TAGS else None,
        base_model=base_model if is_hub_model else None,
        datasets=[hub_dataset] if is_hub_dataset else None,
        license=license,
        language=_language_codes([language] if isinstance(language, str) else language or []) or None,
        tags=["evolving-attention", config.model_type] + ([] if task_type in PIPELINE_TAGS else [task_type]),
        eval_results=_eval_results(args, metrics, evaluated_on, task_type, task_name, dataset_name) or None,
        widget=[widget] if widget else None,
    )
    arguments = _told_arguments(args)
    evolution = {key: value for key, value in config.to_dict().items() if key.startswith("ea_")}
    settings = arguments | evolution
    shown = [(key, settings[key]) for key in SHOWN_SETTINGS if key in settings]
    card = ModelCard(
        CARD.format(
            card_data=card_data.to_yaml(),
            name=name,
            model_class=config.architectures[0],
            origin=_describe_origin(base_model),
            dataset=task_name,
            auto_class=auto_class,
            local_class=auto_class if model_class is None else f"ea_hf.{model_class}",
            processor_class=processor_class,
            processor_name="tokenizer" if processor_class == "AutoTokenizer" else "processor",
            local_note="" if args.hub_model_id else LOCAL_NOTE,
            location=json.dumps(args.hub_model_id or f"./{name}", ensure_ascii=False),
            results=_results_table(metrics, evaluated_on) if metrics else "This run evaluated nothing.",
            seeds=_describe_seeds(args),
            command=command_line(),
            shown=_table(("setting", "value"), shown[:NUM_SHOWN]),
            evolution=_table(("setting", "value"), evolution.items()),
            arguments=_table(("argument", "value"), arguments.items()),
            versions=_versions(),
            license=license_origin,
        )
    )
    card.save(output_dir / "README.md")


def _told_arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {
        key: without_directories(getattr(value, "value", value))
        for key, value in sorted(vars(args).items())
        if value is not None and value is not False and key != "hub_token"
    }


def _describe_origin(base_model: str | None) -> str:
    if base_model is None:
        return "trained from scratch"
    if Path(base_model).exists():
        return f"fine-tuned from `{Path(base_model).resolve().name}`"
    return f"fine-tuned from [{base_model}](https://huggingface.co/{base_model})"


def _describe_license(license: str | None, base_model: str | None, token: str | None) -> tuple[str | None, str]:
    """The license, that of the base model where none is given, and a sentence on it."""
    if license is not None:
        return license, f"The weights are under `{license}`."
    found = None if base_model is None else find_license(base_model, token)
    if found is not None:
        return found, f"The license is that of the base model, `{found}`."
    ending = "." if base_model is None else ", and the base model's card names none."
    return None, f"No license was given for the weights (`--license`){ending}"


def _eval_results(
    args: argparse.Namespace,
    metrics: dict[str, Any],
    evaluated_on: Sequence[ScoredData],
    task_type: str,
    task_name: str,
    dataset_name: str,
) -> list[EvalResult]:
    """The numbers as the Hub reads them; it takes finite ones alone."""
    results = []
    for metric, value in metrics.items():
        if not isinstance(value, float) or not math.isfinite(value):
            continue
        scored = _find_scored(metric, evaluated_on)
        results.append(
            EvalResult(
                task_type=task_type,
                task_name=task_name,
                dataset_type=dataset_name,
                dataset_name=task_name,
                dataset_config=getattr(args, "dataset_config_name", None) or getattr(args, "task_name", None),
                dataset_split=None if scored is None else scored.split,
                dataset_args=None if scored is None else {"size": scored.size},
                metric_type=metric if scored is None else metric.removeprefix(scored.prefix),
                metric_value=float(value),
            )
        )
    return results


def _find_scored(metric: str, evaluated_on: Sequence[ScoredData]) -> ScoredData | None:
    fitting = [data for data in evaluated_on if metric.startswith(data.prefix) and metric.endswith(data.suffix)]
    return fitting[-1] if fitting else None


def _results_table(metrics: dict[str, Any], evaluated_on: Sequence[ScoredData]) -> str:
    rows = []
    for metric, value in metrics.items():
        scored = _find_scored(metric, evaluated_on) if isinstance(value, (int, float)) else None
        measured_on = (
            (scored.split, without_directories(scored.source), f"{scored.size} {scored.unit}") if scored else ()
        )
        rows.append((metric, value, *(measured_on or ("", "", ""))))
    return _table(("metric", "value", "split", "data", "size"), rows)


def _describe_seeds(args: argparse.Namespace) -> str:
    seeds = getattr(args, "seeds", None) or [args.seed]
    others = f", one of the runs with seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    return (
        f"These are the scores of one run, with seed {args.seed}{others}. No baseline was trained in it; `ea-hf compare` "
        "trains the vanilla model with the same command and several seeds."
    )


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for library in LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:  # not installed, but run where it lies
            continue
    return ", ".join(found)


def _language_codes(languages: Sequence[str]) -> list[str]:
    """ISO's codes of languages such as "en_XX" or "eng_Latn", which are all that the Hub takes."""
    codes = [re.split("[-_]", language)[0].lower() for language in languages]
    return list(dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))


def command_line() -> str:
    """The command that runs this process, without a token and without directories of this machine."""
    words = list(sys.argv)
    for i, word in enumerate(words[:-1]):
        if word == "--hub_token":
            words[i + 1] = "..."
    words = ["--hub_token=..." if word.startswith("--hub_token=") else without_directories(word) for word in words]
    return shlex.join(["python", *words])


def without_directories(value: Any) -> Any:
    """A value of an argument without the directories of this machine: of an absolute path its name stays."""
    if isinstance(value, dict):
        return {key: without_directories(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_directories, value))
    if not isinstance(value, (str, Path)):
        return value
    option, equals, text = str(value).partition("=") if str(value).startswith("--") else ("", "", str(value))
    if Path(text).is_absolute() and ("," not in text or Path(text).exists()):
        return f"{option}{equals}{Path(text).name}"  # blanks are part of it
    return f"{option}{equals}{DIRECTORIES.sub('', text)}"


def find_license(base_model: str, token: str | None = None) -> str | None:
    """The license that a model's own card names; `None` if there is no card, or it names none.

    Args:
        base_model: a directory, or a name on the Hub.
    """
    card = Path(base_model, "README.md")
    try:
        return ModelCard.load(card if Path(base_model).is_dir() else base_model, token=token).data.license
    except (OSError, ValueError) as error:  # no card, no network, or metadata that cannot be read
        logger.info(f"The license of {base_model} is not known: {' '.join(str(error).split())[:MAX_REASON]}")
        return None


def _table(header: Sequence[str], rows: Any) -> str:
    def text(value: Any) -> str:
        number = f"{value:.4f}" if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
        return " ".join(number.replace("|", "\\|").split())

    lines = [header, ["---"] * len(header), *([text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
