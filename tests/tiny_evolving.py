# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny evolving checkpoints with tokenizer or image processor, their weights large enough that the mechanism matters."""

from pathlib import Path

import tiny_bert
import tiny_images
import tiny_t5
from models import randomize
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

import ea_hf


WEIGHTS = {"ea_residual_weight": 0.3, "ea_conv_weight": 0.4}
RESNET = {
    "num_channels": 1,
    "stem_stride": 1,
    "layer_type": "basic",
    "num_attention_heads": 2,
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [2, 2],
    "attention_poolings": [0, 0],
    "image_size": 8,
}


def save(model: PreTrainedModel, directory: Path, weight_std: float, *processors) -> str:
    randomize(model, weight_std).save_pretrained(directory)
    for processor in processors:
        processor.save_pretrained(directory)
    return str(directory)


def write_bert(directory: Path) -> str:
    vanilla = tiny_bert.write_checkpoint(directory / "vanilla")
    model = ea_hf.EABertForSequenceClassification.from_pretrained(vanilla, **WEIGHTS)
    return save(model, directory / "ea_bert", 0.3, AutoTokenizer.from_pretrained(vanilla))


def write_t5(directory: Path) -> str:
    vanilla = tiny_t5.write_checkpoint(directory / "vanilla_t5")
    model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(vanilla, **WEIGHTS)
    model.generation_config.max_new_tokens = 8
    return save(model, directory / "ea_t5", 0.2, tiny_t5.tiny_tokenizer())


def write_vit(directory: Path) -> str:
    vanilla = tiny_images.write_checkpoint(directory / "vanilla_vit")
    model = ea_hf.EAViTModel.from_pretrained(vanilla, **WEIGHTS)
    return save(model, directory / "ea_vit", 0.3, AutoImageProcessor.from_pretrained(vanilla))


def write_resnet(directory: Path) -> str:
    processor = AutoImageProcessor.from_pretrained(tiny_images.write_checkpoint(directory / "vanilla_vit"))
    model = ea_hf.EAResNetForImageClassification(ea_hf.EAResNetConfig(**RESNET, **WEIGHTS))
    return save(model, directory / "ea_resnet", 0.3, processor)


def write_image(path: Path) -> str:
    Image.fromarray(tiny_images.digits(2)[3]).save(path)
    return str(path)
