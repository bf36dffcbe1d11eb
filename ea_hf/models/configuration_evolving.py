# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the configurations of all families share."""

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any, ClassVar

from transformers import (
    FEATURE_EXTRACTOR_MAPPING,
    IMAGE_PROCESSOR_MAPPING,
    PROCESSOR_MAPPING,
    TOKENIZER_MAPPING,
    PreTrainedConfig,
)

from .evolution_layer import check_evolution
from .presets import expand_preset
from .remote_code import CODE_REFERENCES, code_file, save_config_with_code


logger = logging.getLogger(__name__)

# Fields that came later, with their defaults.
LATER_FIELDS = {
    "ea_conv_groups": 1,
    "ea_conv_every": None,
    "ea_conv_init": "normal",
    "ea_post_mixing": "none",
    "ea_head_kernel_size": None,
    "ea_kernels": "torch",
}
# Without layers or heads there is no attention.
LEAST_ONE = ("num_layers", "num_decoder_layers", "num_hidden_layers", "num_heads", "num_attention_heads")
# Names under which configurations say the number of heads.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head")


@dataclasses.dataclass(kw_only=True, repr=False, eq=False)
class EvolvingConfig:
    """What the configuration of every family has beside its vanilla fields.

    Args:
        ea_residual_weight (`float`): share of the previous layer's map, equation (1), in [0, 1], and with another
            `ea_mixing` than "convex" its factor, any number. The default is the family's, 0.1 in most, and 0 in "learned".
        ea_conv_weight (`float`): share of the convolution, equation (2); otherwise as `ea_residual_weight`.
        ea_kernel_size (`int`, or (rows, columns), default 3): side of the kernel, odd. Rows may be even where all chains that
            evolve are causal: a kernel of R rows sees the current row and the R - 1 above it.
        ea_activation (`str`, default "relu"): activation after the convolution.
        ea_memory_efficient (`bool`, default False): save about one map per layer for the backward pass instead of two
            and a half, and compute the rest again.
        ea_mixing (`str`, default "convex"): "convex", equations (1) and (2); "additive", (1') and (2'), which with (1, 0)
            is RealFormer's residual attention; or "learned", the same with a parameter per layer and head for each weight,
            which starts as `ea_residual_weight` and `ea_conv_weight` say: with (0, 0) a vanilla checkpoint is vanilla at first.

        ea_conv_groups (`int` or "heads", default 1): 1, each head's kernel sees all heads; "heads" or their number, each its own.
        ea_conv_every (`int`, optional): one layer of so many has a convolution, the middle one: 1 means each, 4 the third, the
            seventh and so on. By default every layer but the first.
        ea_conv_init (`str`, default "normal"): how new kernels start, as noise or as the "identity".
        ea_post_mixing (`str`, default "none"): "heads" mixes the attention weights of the heads after the softmax, cell by
            cell, in every layer, with a matrix that is learned and starts as the identity.
        ea_head_kernel_size (`int`, optional): how many neighboring heads are mixed with each other there; by default all.
        ea_kernels (`str`, default "torch"): with what maps are computed on a GPU: PyTorch's operations, or kernels in Triton,
            "triton", which do the same with less traffic; see `evolution_triton`. Where these cannot run, PyTorch's do.

    `ea_preset`, given to `from_pretrained` or `from_dict`, stands for the fields of one of `ea_hf.PRESETS`.

    With both weights 0 a model is its vanilla counterpart; (r, 0) passes scores on without a convolution, (0, c)
    convolves each layer's own scores only.

    Raises:
        ValueError: see `check_evolution`.
    """

    ea_residual_weight: float | int | None = None
    ea_conv_weight: float | int | None = None
    ea_kernel_size: int | list[int] | tuple[int, int] = 3
    ea_activation: str = "relu"
    ea_memory_efficient: bool = False
    ea_mixing: str = "convex"
    ea_conv_groups: int | str = 1
    ea_conv_every: int | None = None
    ea_conv_init: str = "normal"
    ea_post_mixing: str = "none"
    ea_head_kernel_size: int | None = None
    ea_kernels: str = "torch"

    # Model types whose checkpoints have the same layout but for the evolution modules.
    vanilla_model_types: ClassVar[tuple[str, ...]] = ()

    # Of `ea_residual_weight` and `ea_conv_weight` where nothing else is said.
    default_weights = (0.1, 0.1)

    # In which file that travels with a checkpoint Auto classes and pipelines find their classes, for `auto_map` and
    # `custom_pipelines` of the configuration's file. Set where the family is registered. In remote code they are empty, and
    # the configuration has `auto_map` and `custom_pipelines` as attributes, read from its file.
    family_auto_map: ClassVar[dict[str, str]] = {}
    family_pipelines: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self, **kwargs: Any) -> None:
        if "ea_preset" in kwargs:
            raise ValueError(
                f"`ea_preset` is {kwargs['ea_preset']!r}, which a configuration does not take itself. Give it the fields, "
                f"`{type(self).__name__}(**ea_hf.preset_fields({kwargs['ea_preset']!r}))`, or call `from_pretrained`."
            )
        if isinstance(self.ea_kernel_size, list):  # as JSON has it
            self.ea_kernel_size = tuple(self.ea_kernel_size)
        defaults = (0.0, 0.0) if self.ea_mixing == "learned" else self.default_weights
        for name, default in zip(("ea_residual_weight", "ea_conv_weight"), defaults, strict=True):
            if getattr(self, name) is None:
                setattr(self, name, default)
        self.forget_foreign_code(kwargs)
        super().__post_init__(**kwargs)
        self.check()

    @classmethod
    def forget_foreign_code(cls, attributes: dict[str, Any]) -> None:
        """Takes references to code out of a configuration's attributes, and tells of those to code of others.

        Beside `ea_hf`'s own code nobody else's was loaded, and references to it must not go on into what is saved.
        """
        for name in CODE_REFERENCES if cls.family_auto_map else ():
            references = attributes.pop(name, None) or {}
            modules = {cls._module_of(reference) for reference in references.values()}
            if not modules <= {cls._module_of(own) for own in cls._all_references()}:
                logger.info(f"The checkpoint refers to code of others, which is not saved: {name} {references}")

    def __getattr__(self, name: str) -> Any:
        # Trainers of others look into `auto_map` for the Auto class of a model that is none of Transformers'.
        if name == "auto_map" and self.family_auto_map:
            return self._with_saved_class(self._family_references())[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def check(self) -> None:
        """Checks the values, also those that were set after the configuration was made."""
        # Of the configurations that `evolve` makes, some have 0 as a default of what their models do not use.
        for name in () if self.has_only_causal_maps is None else LEAST_ONE:
            value = getattr(self, name, None)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"`{name}` is {value}; choose a positive integer.")
        # Where only the model tells, its layers may differ.
        heads = None if self.has_only_causal_maps is None else getattr(self, "num_attention_heads", None)
        check_evolution(
            self.ea_residual_weight,
            self.ea_conv_weight,
            self.ea_kernel_size,
            self.ea_activation,
            self.ea_mixing,
            *(getattr(self, name) for name in LATER_FIELDS),
            num_heads=heads if isinstance(heads, int) else None,
            is_causal=self.has_only_causal_maps,
        )

    @property
    def has_only_causal_maps(self) -> bool | None:
        """Whether all maps that evolve are causal; `None` if only the model tells."""
        return False

    def to_diff_dict(self) -> dict[str, Any]:
        # What a checkpoint's file says remains as it was before there were these fields.
        fields = super().to_diff_dict()
        return {name: value for name, value in fields.items() if LATER_FIELDS.get(name, ...) != value}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # Transformers sets overriding values only after it has checked the configuration.
        kwargs = expand_preset(kwargs)
        names = {field.name for field in dataclasses.fields(cls)}
        overrides = {name: value for name, value in kwargs.items() if name in names}
        check_evolution_fits(config_dict, overrides)
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") in cls.vanilla_model_types:
            config_dict = cls.from_vanilla(config_dict)
        return config_dict, kwargs

    @classmethod
    def from_vanilla(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """What the file of a vanilla configuration says, as this class says it."""
        return {**config_dict, "model_type": cls.model_type}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves the configuration and the code of its family, so that Auto classes load it where `ea_hf` is not installed.

        Models call this when they are saved.
        """
        in_remote_code = {name: vars(self)[name] for name in CODE_REFERENCES if name in vars(self)}
        references = in_remote_code | self._family_references()
        save_config_with_code(self, self._with_saved_class(references), save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def _with_saved_class(self, references: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """`AutoModel` loads the class that is saved, if there is no Auto class for its task."""
        auto_map = references.get("auto_map", {})
        paths = [path.rpartition(".")[0] for name, path in auto_map.items() if name != "AutoConfig"]
        if not self.architectures or not paths:
            return references
        path, architecture = paths[0], self.architectures[0]
        known = {reference.split(".")[-1] for reference in auto_map.values()}
        if architecture in known or not self._has_class(path, architecture):
            return references
        return {**references, "auto_map": {**auto_map, "AutoModel": f"{path}.{architecture}"}}

    def _has_class(self, path: str, name: str) -> bool:
        """Whether a module that travels with the configuration has a class; a vanilla checkpoint's is Transformers'.

        Args:
            path: "module", or "user/model--module".
        """
        repository, _, module = path.rpartition("--")
        source = code_file(self, module, repository or None).read_text(encoding="utf-8")
        return re.search(rf"^class {re.escape(name)}\b", source, re.MULTILINE) is not None

    @classmethod
    def _all_references(cls) -> list[Any]:
        return [*cls.family_auto_map.values(), *cls.family_pipelines.values()]

    @staticmethod
    def _module_of(reference: Any) -> str:
        """Of "module.Class" or "user/model--module.Class", which a pipeline has under "impl"."""
        path = reference.get("impl") if isinstance(reference, dict) else reference
        return str(path).rpartition("--")[2].split(".")[0]

    @classmethod
    def _family_references(cls) -> dict[str, dict[str, Any]]:
        references = {"auto_map": cls.family_auto_map, "custom_pipelines": cls.family_pipelines}
        return {name: value for name, value in references.items() if value}

    # Transformers allows attention outputs with "eager" only; "evolving" returns them as well.
    @property
    def output_attentions(self) -> bool | None:
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None) -> None:
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        pass


def check_evolution_fits(saved: dict[str, Any], fields: dict[str, Any]) -> None:
    """Checks that the weights of a checkpoint's evolving attention are those that a configuration asks for.

    Args:
        saved: the checkpoint's configuration.
        fields: those of the model to be, or some of them.

    Raises:
        ValueError: one mixing is "learned" and the other is not, gates that the checkpoint has are to start anew, or its
            kernels or head mixing have another shape, or are in other layers.
    """
    if "ea_residual_weight" not in saved:  # a vanilla checkpoint
        return
    saved_mixing = saved.get("ea_mixing", "convex")  # older checkpoints do not say it
    mixing = fields.get("ea_mixing", saved_mixing)
    if mixing != saved_mixing and "learned" in (mixing, saved_mixing):
        raise ValueError(
            f'`ea_mixing` is {mixing!r}, but the checkpoint\'s is {saved_mixing!r}. Only "learned" has gates, which would be '
            "dropped or made up. Leave `ea_mixing` out, or start from the vanilla checkpoint."
        )
    for name in ("ea_residual_weight", "ea_conv_weight"):
        if saved_mixing == "learned" and fields.get(name, saved[name]) != saved[name]:
            raise ValueError(
                f"`{name}` is {fields[name]!r}, but it only says where gates start, and the checkpoint's have started from "
                f"{saved[name]!r}. Leave it out."
            )
    names = ["ea_post_mixing", "ea_head_kernel_size"]
    if has_kernels(saved) and has_kernels({**saved, **fields}):
        names += ["ea_kernel_size", "ea_conv_groups", "ea_conv_every"]
    for name in names:
        default = {"ea_kernel_size": 3, **LATER_FIELDS}[name]
        before = saved.get(name, default)
        value = fields.get(name, before)
        if _shape_of(name, value, saved) != _shape_of(name, before, saved):
            raise ValueError(
                f"`{name}` is {value!r}, but the checkpoint's is {before!r}, and its kernels or head mixing would be dropped or "
                "made up. Leave it out, or start from the vanilla checkpoint."
            )


def has_kernels(fields: dict[str, Any]) -> bool:
    """Whether a model of a configuration with these fields has kernels at all."""
    return fields.get("ea_mixing") == "learned" or fields["ea_conv_weight"] != 0


def _shape_of(name: str, value: Any, saved: dict[str, Any]) -> Any:
    """A field's value as it compares: several values mean the same."""
    heads = next((saved[key] for key in HEAD_COUNTS if isinstance(saved.get(key), int)), None)
    if name == "ea_kernel_size":
        return (value, value) if isinstance(value, int) else tuple(value)
    if name == "ea_conv_groups" and value == "heads":
        return heads or value
    if name == "ea_head_kernel_size" and value is None:
        return heads
    return value


def register_processors(config_class: type[EvolvingConfig], vanilla_class: type[PreTrainedConfig]) -> None:
    """Makes the Auto classes of tokenizers and the like give an evolving configuration what they give the vanilla one."""
    for mapping in (TOKENIZER_MAPPING, IMAGE_PROCESSOR_MAPPING, FEATURE_EXTRACTOR_MAPPING, PROCESSOR_MAPPING):
        if vanilla_class in mapping:
            mapping.register(config_class, mapping[vanilla_class], exist_ok=True)


class EvolvingEncoderConfig(EvolvingConfig):
    """What the configurations of encoders share whose vanilla model can also be a decoder.

    Raises:
        ValueError: see `EvolvingConfig`; also for `is_decoder=True` or `add_cross_attention=True`.
    """

    def check(self) -> None:
        super().check()
        for name in ("is_decoder", "add_cross_attention"):
            if getattr(self, name):
                family = self.model_type.upper().replace("_", "-")
                raise ValueError(f"`{name}` is True, but {family} is an encoder. Set {name}=False.")
