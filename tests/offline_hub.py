# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny stand-ins for what the documentation loads from the Hub, in the cache where the Hub's libraries look first."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import tiny_bert
import tiny_images
import tiny_roberta
import tiny_t5
import tiny_translators
from datasets import Dataset, DatasetInfo
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)


REVISION = 40 * "0"


def write_bert(directory: Path) -> None:
    tiny_bert.write_checkpoint(directory, max_position_embeddings=512)
    BertForMaskedLM(BertConfig.from_pretrained(directory)).save_pretrained(directory)


def write_roberta(directory: Path) -> None:
    tiny_roberta.write_checkpoint(directory, max_position_embeddings=514)


def write_electra(directory: Path) -> None:
    write_bert(directory)
    values = BertConfig.from_pretrained(directory).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = ElectraConfig(**{name: values[name] for name in names}, embedding_size=values["hidden_size"])
    ElectraForMaskedLM(config).save_pretrained(directory)


def write_t5(directory: Path) -> None:
    tiny_t5.write_checkpoint(directory, feed_forward_proj="relu")


def write_mbart(directory: Path) -> None:
    tiny_translators.write_model(directory, "mbart")


def write_vit(directory: Path) -> None:
    config = ViTConfig(
        **{**tiny_images.TINY_VIT, "image_size": 224, "patch_size": 56, "encoder_stride": 56, "num_channels": 3}
    )
    ViTModel(config).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(directory)


# By their names on the Hub.
MODELS: dict[str, Callable[[Path], None]] = {
    "FacebookAI/roberta-base": write_roberta,
    "facebook/mbart-large-cc25": write_mbart,
    "google-bert/bert-base-uncased": write_bert,
    "google/electra-small-generator": write_electra,
    "google-t5/t5-small": write_t5,
    "google/vit-base-patch16-224-in21k": write_vit,
}


def glue_task(task: str, columns: Sequence[str]) -> dict[str, Dataset]:
    labels = datasets.ClassLabel(names=list(tiny_bert.GLUE_LABELS[task]))
    rows = tiny_bert.pairs()
    splits = {}
    for split in ("train", "validation", "test"):
        content = {column: [row[f"sentence{side}"] for row in rows] for side, column in enumerate(columns, start=1)}
        content["label"] = [-1 if split == "test" else index % 2 for index in range(len(rows))]
        content["idx"] = list(range(len(rows)))
        text = dict.fromkeys(columns, datasets.Value("string"))
        features = datasets.Features({**text, "label": labels, "idx": datasets.Value("int32")})
        splits[split] = Dataset.from_dict(content, features=features)
    return splits


def parallel_text(languages: tuple[str, str]) -> dict[str, Dataset]:
    rows = [{"translation": dict(zip(languages, row.values(), strict=True))} for row in tiny_t5.pairs(24)]
    features = datasets.Features({"translation": datasets.Translation(languages=list(languages))})
    return {split: Dataset.from_list(rows, features=features) for split in ("train", "validation", "test")}


def photographs() -> dict[str, Dataset]:
    names = list(tiny_images.CLASSES)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [Image.fromarray(tiny_images.digits(label)[0]).convert("RGB") for label in range(len(names))]
    encoded = [{"bytes": tiny_images.encode(image), "path": None} for image in images]
    rows = {"image": 4 * encoded, "label": 4 * list(range(len(names)))}
    return {split: Dataset.from_dict(rows, features=features) for split in ("train", "validation", "test")}


# By name on the Hub and configuration.
DATASETS: dict[tuple[str, str], Callable[[], dict[str, Dataset]]] = {
    ("nyu-mll/glue", "mrpc"): lambda: glue_task("mrpc", ("sentence1", "sentence2")),
    ("nyu-mll/glue", "rte"): lambda: glue_task("rte", ("sentence1", "sentence2")),
    ("ILSVRC/imagenet-1k", "default"): photographs,
    ("wmt16", "ro-en"): lambda: parallel_text(("en", "ro")),
}


def write_cached_dataset(cache: Path, name: str, config: str, splits: dict[str, Dataset]) -> None:
    """Writes what `load_dataset(name, config)` leaves in its cache."""
    short_name = name.split("/")[-1]
    directory = cache / name.replace("/", "___") / config / "0.0.0" / REVISION
    directory.mkdir(parents=True)
    sizes = datasets.splits.SplitDict(dataset_name=short_name)
    for split, dataset in splits.items():
        path = directory / f"{short_name}-{split}.arrow"
        with ArrowWriter(path=str(path), features=dataset.features) as writer:
            writer.write_table(dataset.data.table)
            examples, size = writer.finalize()
        sizes.add(datasets.SplitInfo(name=split, num_bytes=size, num_examples=examples, dataset_name=short_name))
    features = next(iter(splits.values())).features
    info = DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name=short_name,
        config_name=config,
        version=datasets.Version("0.0.0"),
        splits=sizes,
    )
    info.write_to_directory(str(directory))


def write_offline_hub(home: Path) -> dict[str, str]:
    """Writes all stand-ins below `home`; returns the environment in which they are found, and nothing else is."""
    for name, write in MODELS.items():
        repository = home / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(REVISION)
        write(repository / "snapshots" / REVISION)
    for (name, config), make in DATASETS.items():
        write_cached_dataset(home / "datasets", name, config, make())
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def write_folders(directory: Path) -> None:
    """Writes photographs' stand-ins into `train` and `validation`, a folder for each class."""
    for split, start in (("train", 0), ("validation", 8)):
        tiny_images.write_folders(directory / split, count=8, start=start)
        for path in (directory / split).rglob("*.png"):
            Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
            path.unlink()


def write_files(root: Path) -> None:
    """Writes the files of their own that the documentation's users are thought to have."""
    write_folders(root / "flowers")
    tiny_images.write_mnist(root / "fashion-mnist")
    rows = tiny_bert.sentences("sign")
    for split in ("train", "validation"):
        tiny_bert.write_rows(root / f"{split}.csv", rows)


def link_repository(repository: Path, root: Path) -> None:
    """Makes `root` look like the repository, without what its commands write."""
    for path in repository.iterdir():
        if path.name not in ("output", "data", "build") and not path.name.startswith("."):
            (root / path.name).symlink_to(path)


def executable(name: str) -> str:
    """Of the environment that this Python belongs to, or of the machine."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        raise FileNotFoundError(f"{name} is not installed.")
    return path
