# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a finished run gives to others: a model card, and the push to the Hub."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Container
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token
from transformers import PretrainedConfig


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

```python
from transformers import {auto_class}, {processor_class}

model = {auto_class}.from_pretrained("{location}", trust_remote_code=True)
{processor_name} = {processor_class}.from_pretrained("{location}", trust_remote_code=True)
```

The model's code lies beside its weights. Where `ea_hf` is installed, no remote code is needed: after `import ea_hf`,
`{local_class}.from_pretrained("{location}")` loads it.

## Results

{evaluated_on}{results}

Measured with

```
{command}
```

## Limits

The scores are of one run and one seed, on the data that are named. On other kinds of data the model was not tried. What its
data hold of errors and prejudice, it may repeat.

## Settings

{training}

<details><summary>All settings</summary>

{evolution}

{all_training}

</details>

Versions: {versions}.

## License

{license}

## Citation

```bibtex
@inproceedings{{wang2021evolving,
  title = {{Evolving Attention with Residual Convolutions}},
  author = {{Wang, Yujing and Yang, Yaming and Bai, Jiangang and Zhang, Mingliang and Bai, Jing and Yu, Jing and Zhang, Ce
    and Huang, Gao and Tong, Yunhai}},
  booktitle = {{International Conference on Machine Learning}},
  year = {{2021}},
}}
```
"""

# The settings that are not folded away.
SHOWN_SETTINGS = (
    "ea_residual_weight",
    "ea_conv_weight",
    "learning_rate",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_train_steps",
    "mixed_precision",
    "seed",
)
LIBRARIES = ("ea_hf", "transformers", "torch", "accelerate", "datasets")
# What the Hub's page lets a visitor try.
WIDGETS = {
    "text-classification": "A film that never quite finds its feet.",
    "translation": "Open the file.",
    "text-generation": "In the beginning",
}

# What stays here when a run is pushed; hidden files too.
NOT_PUSHED = ("checkpoint-*/**", "logs/**", ".*")
# Of a server's explanation, as some send whole pages.
MAX_REASON = 2000

OTHER_REMEDY = "Look at the message above, and check `hf auth whoami`."
REMEDIES_BY_STATUS: tuple[tuple[Container[int], str], ...] = (
    (
        (401,),
        "The token is missing, wrong or expired: run `hf auth login` with a token that may write, or pass --hub_token.",
    ),
    (
        (403,),
        "The token may not write there, or the account's storage is full: take a token that may write (`hf auth login`), "
        "free some storage, or choose another --hub_model_id.",
    ),
    (
        (404,),
        "There is no such account or repository, or the token does not see it: check the name (--hub_model_id) and "
        "`hf auth whoami`.",
    ),
    (
        (402, 413, 507),
        "The files are too large for the storage that the account has left: delete what is no longer needed, or get more "
        "storage (https://huggingface.co/settings/billing).",
    ),
    ((429,), "The Hub has had too many requests: wait some minutes."),
    (range(500, 600), "The Hub is out of order: wait, and look at https://status.huggingface.co."),
)
# By the name of the error or of one of its bases: the HTTP library's own differ among versions of huggingface_hub.
UNREACHABLE = "The Hub cannot be reached: check the network, proxies, and HF_ENDPOINT if it is set."
REMEDIES_BY_ERROR = {
    "LocalTokenNotFoundError": "There is no token: run `hf auth login`, or pass --hub_token.",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids the network: unset it.",
    "HFValidationError": "The name is not one that the Hub takes: choose another --hub_model_id.",
    "LocalProtocolError": "The token has characters that no token has: run `hf auth login`, or look at --hub_token.",
    "TransportError": UNREACHABLE,
    "ConnectionError": UNREACHABLE,
    "TimeoutError": UNREACHABLE,
}


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
    metrics: dict[str, float],
    processor_class: str = "AutoTokenizer",
    model_class: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    evaluated_on: str | None = None,
) -> None:
    """Writes the README.md of a finished run.

    Args:
        auto_class: the Auto class that loads the model.
        task_type: the Hub's name of the task, such as "text-classification".
        task_name: a person's name of the task, such as "GLUE MRPC".
        dataset_name: the data set on the Hub, or the name of a local file.
        base_model: what was fine-tuned; `None` if the model was trained from scratch.
        metrics: the results of the final evaluation.
        model_class: the class in `ea_hf`, if there is no Auto class for its task.
        evaluated_on: the split of the scores and its size, such as "validation, 408 examples".
        license: of the weights; `None` for that of the base model's own card, if it names one.
    """
    name = args.hub_model_id or output_dir.resolve().name
    is_hub_model = base_model is not None and not Path(base_model).exists()
    if base_model is None:
        origin = "trained from scratch"
    elif is_hub_model:
        origin = f"fine-tuned from [{base_model}](https://huggingface.co/{base_model})"
    else:
        origin = f"fine-tuned from `{Path(base_model).name}`"  # where it lay is nobody's business
    license_origin = f"The weights are under `{license}`."
    if license is None and base_model is not None:
        license = find_license(base_model, args.hub_token)
        license_origin = f"The license is that of the base model, `{license}`."
    if license is None:
        license_origin = "No license was given for the weights (`--license`)"
        license_origin += "." if base_model is None else ", and the base model's card names none."
    card_data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=task_type,
        base_model=base_model if is_hub_model else None,
        license=license,
        language=language,
        tags=["evolving-attention", config.model_type],
        eval_results=[
            EvalResult(
                task_type=task_type,
                task_name=task_name,
                dataset_type=dataset_name,
                dataset_name=task_name,
                dataset_split=None if evaluated_on is None else evaluated_on.partition(",")[0],
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in metrics.items()
            if isinstance(value, float)
        ]
        or None,
        widget=[{"text": WIDGETS[task_type]}] if task_type in WIDGETS else None,
    )
    arguments = {
        key: without_places(getattr(value, "value", value))
        for key, value in sorted(vars(args).items())
        if value is not None and value is not False and key != "hub_token"
    }
    fields = config.to_dict() | arguments
    shown = {key: fields[key] for key in SHOWN_SETTINGS if fields.get(key) is not None}
    card = ModelCard(
        CARD.format(
            card_data=card_data.to_yaml(),
            name=name,
            model_class=config.architectures[0],
            origin=origin,
            dataset=task_name,
            auto_class=auto_class,
            local_class=auto_class if model_class is None else f"ea_hf.{model_class}",
            processor_class=processor_class,
            processor_name="tokenizer" if processor_class == "AutoTokenizer" else "processor",
            location=args.hub_model_id or name,
            evaluated_on=f"On {evaluated_on}.\n\n" if evaluated_on and metrics else "",
            results=_table(("metric", "value"), metrics) if metrics else "This run evaluated nothing.",
            command=command_line(),
            evolution=_table(("setting", "value"), {k: v for k, v in config.to_dict().items() if k.startswith("ea_")}),
            training=_table(("setting", "value"), shown),
            all_training=_table(("argument", "value"), arguments),
            versions=", ".join(f"{library} {version(library)}" for library in LIBRARIES),
            license=license_origin,
        )
    )
    card.save(output_dir / "README.md")


def command_line() -> str:
    """The command that runs this process, without a token."""
    words = list(sys.argv)
    for i, word in enumerate(words[:-1]):
        if word == "--hub_token":
            words[i + 1] = "..."
    words = ["--hub_token=..." if word.startswith("--hub_token=") else without_places(word) for word in words]
    return shlex.join(["python", *words])


def without_places(value: Any) -> Any:
    """A value of an argument without the directories of this machine: of an absolute path its name stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_places, value))
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", "--"))):
        option, equals, path = str(value).rpartition("=") if str(value).startswith("--") else ("", "", str(value))
        return f"{option}{equals}{Path(path).name}" if Path(path).is_absolute() else value
    return value


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


def push_to_hub(output_dir: Path, args: argparse.Namespace) -> None:
    """Pushes a finished run, without its checkpoints and logs.

    Raises:
        SystemExit: with status 1 and what to do, if the push fails; the local model stays as it is.
    """
    repo_id = args.hub_model_id or output_dir.resolve().name
    try:
        api = HfApi(token=args.hub_token)
        repo = api.create_repo(repo_id, private=args.hub_private_repo or None, exist_ok=True)
        _name_repository_in_card(output_dir, repo.repo_id)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=output_dir,
            commit_message="Fine-tuned with ea_hf",
            ignore_patterns=list(NOT_PUSHED),
        )
    except Exception as error:  # whatever the network, the server or the token brought about
        reason, remedy = _explain(error)
        for token in filter(None, (args.hub_token, get_token())):
            for written in (token, repr(token)[1:-1]):
                reason = reason.replace(written, "...")
        exclude = " ".join(f"--exclude {shlex.quote(pattern)}" for pattern in NOT_PUSHED)
        private = " --private" if args.hub_private_repo else ""
        sys.exit(
            f"The model is finished and saved in {output_dir}, but pushing it to {repo_id} failed:\n"
            f"{reason[:MAX_REASON]}\n{remedy} Then push it with:\n"
            f"hf upload {shlex.quote(repo_id)} {shlex.quote(str(output_dir))} . {exclude}{private}"
        )
    logger.info(f"Pushed to {repo.repo_id}.")


def _name_repository_in_card(output_dir: Path, repo_id: str) -> None:
    """Lets the card load the model by its full name on the Hub, which only the Hub knows."""
    card = output_dir / "README.md"
    if card.exists():
        code = re.sub(r'(?<=from_pretrained\(")[^"]*(?=")', lambda _: repo_id, card.read_text(encoding="utf-8"))
        card.write_text(code, encoding="utf-8")


def _explain(error: BaseException) -> tuple[str, str]:
    """What happened, and what to do, by the status that the server gave or by what else lies below the error."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            remedies = (remedy for statuses, remedy in REMEDIES_BY_STATUS if status in statuses)
        else:
            names = (kind.__name__ for kind in type(cause).__mro__)
            remedies = (REMEDIES_BY_ERROR[name] for name in names if name in REMEDIES_BY_ERROR)
        remedy = next(remedies, None)
        if remedy is not None:
            messages = dict.fromkeys(str(e).strip() or type(e).__name__ for e in (error, cause))
            return "\n".join(messages), remedy
        cause = cause.__cause__ or cause.__context__
    return str(error).strip() or type(error).__name__, OTHER_REMEDY


def _table(header: tuple[str, str], rows: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return (f"{value:.4f}" if isinstance(value, float) and abs(value) >= 1e-3 else str(value)).replace("|", "\\|")

    lines = [header, ("---", "---"), *((name, text(value)) for name, value in rows.items())]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)
