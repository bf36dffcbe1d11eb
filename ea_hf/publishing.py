# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a finished run gives to others: a model card, and the push to the Hub."""

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
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
import ea_hf
from {module} import {auto_class}, {processor_class}

model = {auto_class}.from_pretrained("{location}")
{processor_name} = {processor_class}.from_pretrained("{location}")
```

## Results

{results}

Measured with

```
{command}
```

## Evolving attention

{evolution}

## Training

{training}
"""


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
    module: str = "transformers",
    license: str | None = None,
    language: str | list[str] | None = None,
) -> None:
    """Writes the README.md of a finished run.

    Args:
        auto_class: the class that loads the model.
        task_type: the Hub's name of the task, such as "text-classification".
        task_name: a person's name of the task, such as "GLUE MRPC".
        dataset_name: the data set on the Hub, or the name of a local file.
        base_model: what was fine-tuned; `None` if the model was trained from scratch.
        metrics: the results of the final evaluation.
        module: where the classes are.
        license: of the weights; `None` if the base model's is not known.
    """
    name = args.hub_model_id or output_dir.resolve().name
    is_hub_model = base_model is not None and not Path(base_model).exists()
    if base_model is None:
        origin = "trained from scratch"
    elif is_hub_model:
        origin = f"fine-tuned from [{base_model}](https://huggingface.co/{base_model})"
    else:
        origin = f"fine-tuned from `{base_model}`"
    card_data = ModelCardData(
        model_name=name,
        library_name="transformers",
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
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in metrics.items()
            if isinstance(value, float)
        ]
        or None,
    )
    arguments = {
        key: getattr(value, "value", value)
        for key, value in sorted(vars(args).items())
        if value is not None and value is not False and key != "hub_token"
    }
    card = ModelCard(
        CARD.format(
            card_data=card_data.to_yaml(),
            name=name,
            model_class=config.architectures[0],
            origin=origin,
            dataset=task_name,
            module=module,
            auto_class=auto_class,
            processor_class=processor_class,
            processor_name="tokenizer" if processor_class == "AutoTokenizer" else "processor",
            location=args.hub_model_id or output_dir,
            results=_table(("metric", "value"), metrics) if metrics else "This run evaluated nothing.",
            command=command_line(),
            evolution=_table(("setting", "value"), {k: v for k, v in config.to_dict().items() if k.startswith("ea_")}),
            training=_table(("argument", "value"), arguments),
        )
    )
    card.save(output_dir / "README.md")


def command_line() -> str:
    """The command that runs this process, without a token."""
    words = list(sys.argv)
    for i, word in enumerate(words[:-1]):
        if word == "--hub_token":
            words[i + 1] = "..."
    return shlex.join(["python", *("--hub_token=..." if w.startswith("--hub_token=") else w for w in words)])


def push_to_hub(output_dir: Path, args: argparse.Namespace) -> None:
    """Pushes a finished run, without its checkpoints and logs.

    Raises:
        SystemExit: with status 1 and what to do, if the push fails; the local model stays as it is.
    """
    repo_id = args.hub_model_id or output_dir.resolve().name
    try:
        api = HfApi(token=args.hub_token)
        repo = api.create_repo(repo_id, private=args.hub_private_repo or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=output_dir,
            commit_message="Fine-tuned with ea_hf",
            ignore_patterns=["checkpoint-*/**", "logs/**", ".*"],
        )
    except Exception as error:  # whatever the network, the server or the token brought about
        sys.exit(
            f"The model is finished and saved in {output_dir}, but pushing it to {repo_id} failed:\n{error}\n"
            f"Check the network and `hf auth whoami`, then push it with: hf upload {repo_id} {output_dir}"
            ' --exclude "checkpoint-*/**" --exclude "logs/**"'
        )
    logger.info(f"Pushed to {repo.repo_id}.")


def _table(header: tuple[str, str], rows: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return (f"{value:.4f}" if isinstance(value, float) and abs(value) >= 1e-3 else str(value)).replace("|", "\\|")

    lines = [header, ("---", "---"), *((name, text(value)) for name, value in rows.items())]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)
