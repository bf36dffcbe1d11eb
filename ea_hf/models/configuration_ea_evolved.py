# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration of any model of Transformers that `evolve` has made evolving.

For each vanilla configuration class there is an evolving one, made when it is first needed: `EvolvedElectraConfig` is an
`ElectraConfig` with the fields of `EvolvingConfig`. They share the model type "ea_evolved", which no vanilla class
takes; which model it is, `vanilla_model_type` says.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .configuration_evolving import EvolvingConfig, register_processors
from .evolution_cache import EvolvingDynamicLayer


PREFIX = "Evolved"


class MadeFromVanilla:
    """A class that is made at run time. Its instances are pickled by the vanilla class, which can be imported."""

    vanilla_class: type

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        return self._new, (self.vanilla_class,), *state


@strict
class EvolvedConfig(MadeFromVanilla, EvolvingConfig, PreTrainedConfig):
    """What the evolving configurations have in common. Its `from_pretrained` finds the class of a checkpoint.

    Args:
        vanilla_model_type (`str`): model type of the vanilla configuration.

    Raises:
        ValueError: see `EvolvingConfig`; the checkpoint is no evolving one, or its `vanilla_model_type` is none of
            Transformers'.
    """

    model_type = "ea_evolved"
    vanilla_model_type: str = ""

    @property
    def has_only_causal_maps(self) -> None:
        return None  # the model tells

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "EvolvedConfig":
        if cls is not EvolvedConfig:
            return super().from_dict(config_dict, **kwargs)
        model_type, vanilla_model_type = config_dict.get("model_type"), config_dict.get("vanilla_model_type")
        if model_type != cls.model_type and model_type in CONFIG_MAPPING:
            raise ValueError(
                f"This is the configuration of a {model_type!r} model, which does not evolve. Load that model, and call "
                "`ea_hf.evolve`."
            )
        if vanilla_model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"`vanilla_model_type` is {vanilla_model_type!r}, which this version of Transformers "
                f"({transformers.__version__}) does not know. Load the checkpoint with the version that saved it."
            )
        return evolved_config_class(CONFIG_MAPPING[vanilla_model_type]).from_dict(config_dict, **kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        config = super().get_text_config(*args, **kwargs)
        decoder = args[0] if args else kwargs.get("decoder")
        layers = getattr(config, "num_hidden_layers", None)
        if decoder and not kwargs.get("encoder") and isinstance(layers, int):
            # From this Transformers makes caches, of layers that can hold map rows from the first token on.
            config = copy.deepcopy(config)
            with contextlib.suppress(AttributeError):  # a property, of models without attention or with some only
                config.layer_types = [EvolvingDynamicLayer._layer_type] * layers
        return config

    def _has_class(self, path: str, name: str) -> bool:
        # The module makes it when it is asked for.
        return name.startswith(PREFIX) and hasattr(transformers, name.removeprefix(PREFIX))

    @staticmethod
    def _new(vanilla_class: type[PreTrainedConfig]) -> "EvolvedConfig":
        evolved_class = evolved_config_class(vanilla_class)
        return evolved_class.__new__(evolved_class)


_config_classes: dict[type[PreTrainedConfig], type[EvolvedConfig]] = {}
_followers: list[Callable[[type[EvolvedConfig]], None]] = []


def evolved_config_class(vanilla_class: type[PreTrainedConfig]) -> type[EvolvedConfig]:
    """The evolving configuration class of a vanilla one. Whoever follows `for_every_config_class` learns of a new one."""
    if vanilla_class in _config_classes:
        return _config_classes[vanilla_class]
    namespace = {
        "__module__": __name__,
        "__doc__": f"Configuration of an evolving {vanilla_class.__name__.removesuffix('Config')}; see `evolve`.",
        "__annotations__": {"vanilla_model_type": str},
        "vanilla_class": vanilla_class,
        "vanilla_model_types": (vanilla_class.model_type,),
        "vanilla_model_type": vanilla_class.model_type,
        "model_type": EvolvedConfig.model_type,
    }
    # Fields that both bases have would take the defaults of `EvolvedConfig`, and so those of `PreTrainedConfig`.
    for field in dataclasses.fields(vanilla_class):
        if field.init and field.name not in namespace:
            namespace["__annotations__"][field.name] = field.type
            if field.default is not dataclasses.MISSING:
                namespace[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                namespace[field.name] = dataclasses.field(default_factory=field.default_factory)
    name = PREFIX + vanilla_class.__name__
    evolved_class = strict(type(EvolvedConfig)(name, (EvolvedConfig, vanilla_class), namespace))
    _config_classes[vanilla_class] = evolved_class
    register_processors(evolved_class, vanilla_class)
    for function in _followers:
        function(evolved_class)
    return evolved_class


def for_every_config_class(function: Callable[[type[EvolvedConfig]], None]) -> None:
    """Calls a function with each evolving configuration class, those that there are and those that will be made."""
    _followers.append(function)
    for config_class in list(_config_classes.values()):
        function(config_class)


def vanilla_class_of(module: str, name: str) -> type:
    """The vanilla class of the evolving one that a module is asked for, as by the Hub's remote code."""
    vanilla_class = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if vanilla_class is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return vanilla_class


def __getattr__(name: str) -> type[EvolvedConfig]:
    return evolved_config_class(vanilla_class_of(__name__, name))


__all__ = ["EvolvedConfig"]
