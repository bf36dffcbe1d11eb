# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the models of all families share: a vanilla model becomes an evolving one without a copied `forward`."""

import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from .configuration_evolving import EvolvingConfig, check_evolution_fits, has_kernels
from .evolution import (
    ATTENTION_NAME,
    AttentionEvolution,
    MapConvolution,
    check_built_with,
    evolution_fields,
    is_evolving_name,
)
from .evolution_layer import HeadMixing
from .evolution_state import EvolutionState, is_traced, running_state
from .undocumented import COUNTING_LOSSES, model_mapping, name_model_class, record_outputs


# Of a forward's code, a call of the loss function that gets what the caller gave beside the inputs.
LOSS_WITH_KEYWORDS = re.compile(r"self\.loss_function\((?:[^()]|\([^()]*\))*\*\*")


def evolving_forward(forward: Callable) -> Callable:
    """Gives each call of a model's forward a fresh `EvolutionState`, which its attention modules find.

    With `output_attention_maps=True` (argument, or attribute of the configuration of the model that is called) the output
    also has the maps of each chain under the name that the class gives it in `attention_map_names`, `attention_maps` if
    there is but one chain: a tuple with A_l of each layer, before mask and softmax, (batch, heads, query, key).
    """

    @functools.wraps(forward)
    def forward_with_state(self, *args, output_attention_maps=None, **kwargs):
        generated = _generation.maps_of(self) if running_state() is None else None
        if output_attention_maps is None:
            by_default = generated is not None or getattr(self.config, "output_attention_maps", False)
            output_attention_maps = running_state() is None and by_default
        keep_weights = kwargs.get("output_attentions")
        if keep_weights is None:
            keep_weights = self.config.output_attentions
        if torch.is_grad_enabled() and not is_traced():
            carry_state_through_checkpoints(self)
        state = EvolutionState(bool(output_attention_maps), bool(keep_weights))
        outputs = state.run(forward, self, *args, **kwargs)
        state.hand_out()
        if generated is not None:
            generated.append(_named_maps(state, self.attention_map_names))
            return outputs
        return add_maps(outputs, state, self.attention_map_names) if output_attention_maps else outputs

    forward_with_state.makes_state = True
    return forward_with_state


def add_maps(outputs: Any, state: EvolutionState, names: dict[str, str]) -> Any:
    """The output of a model with the maps of each chain, under the names that belong to the chains."""
    maps = _named_maps(state, names)
    if isinstance(outputs, tuple):
        return (*outputs, *maps.values())
    for name, chain_maps in maps.items():
        outputs[name] = chain_maps
    return outputs


def _named_maps(state: EvolutionState, names: dict[str, str]) -> dict[str, tuple[torch.Tensor, ...]]:
    maps: dict[str, tuple[torch.Tensor, ...]] = {}
    for chain, name in names.items():
        if state.maps(chain):
            maps[name] = maps.get(name, ()) + state.maps(chain)
    return maps


class _Generation(threading.local):
    """Where the maps go of a model that generates in this thread."""

    def __init__(self):  # once for each thread
        self.model: PreTrainedModel | None = None
        self.encoder: nn.Module | None = None
        self.maps: list[dict[str, tuple[torch.Tensor, ...]]] = []
        self.encoder_maps: list[dict[str, tuple[torch.Tensor, ...]]] = []

    def maps_of(self, model: PreTrainedModel) -> list[dict[str, tuple[torch.Tensor, ...]]] | None:
        """The list for the maps of a call of a model; `None` if it is not the one that generates."""
        if self.model is None:
            return None
        return self.maps if model is self.model else self.encoder_maps if model is self.encoder else None


_generation = _Generation()


def evolving_generate(generate: Callable) -> Callable:
    """`generate`, which with `output_attention_maps=True` and `return_dict_in_generate=True` also returns the maps.

    They are as `attentions`: of the encoder a tuple with the map of each layer, otherwise a tuple for each call of the
    decoder, the first one the prompt's, (batch, heads, query, key).

    Raises:
        ValueError: `output_attention_maps=True` without `return_dict_in_generate=True`.
    """

    @functools.wraps(generate)
    def generate_with_maps(self, *args, output_attention_maps=None, **kwargs):
        if not output_attention_maps:
            return generate(self, *args, **kwargs)
        config = kwargs.get("generation_config") or self.generation_config
        if not kwargs.get("return_dict_in_generate", config.return_dict_in_generate):
            raise ValueError(
                "`output_attention_maps=True` returns nothing without `return_dict_in_generate=True`; add it, and find the maps "
                "in the output."
            )
        before = dict(vars(_generation))
        _generation.model, _generation.maps, _generation.encoder_maps = self, [], []
        _generation.encoder = self.get_encoder() if self.config.is_encoder_decoder else None
        try:
            outputs = generate(self, *args, **kwargs)
            for maps in _generation.encoder_maps:
                outputs["encoder_attention_maps"] = next(iter(maps.values()))
            for name in dict.fromkeys(name for maps in _generation.maps for name in maps):
                outputs[name] = tuple(maps[name] for maps in _generation.maps)
            return outputs
        finally:
            vars(_generation).clear()
            vars(_generation).update(before)

    generate_with_maps.returns_maps = True
    return generate_with_maps


def _check_attn_implementation(attn_implementation: str | None) -> str:
    if attn_implementation not in (None, "eager") and not is_evolving_name(attn_implementation):
        raise ValueError(
            f"`attn_implementation` is {attn_implementation!r}, but evolving attention hands the attention scores "
            "from layer to layer, and fused kernels never write them out. Leave it out, or choose "
            '"evolving" ("eager" means the same).'
        )
    return "eager" if attn_implementation == "eager" else ATTENTION_NAME


def _name_to_pipelines(config: EvolvingConfig) -> None:
    """Enters a family's class names into the tables of Transformers' own models, to which `AutoModel.register` adds nothing."""
    auto_map = config.family_auto_map or getattr(config, "auto_map", {})
    for auto_name, reference in auto_map.items():
        name_model_class(getattr(transformers, auto_name), config.model_type, reference.split(".")[-1])


def auto_classes_of(vanilla_class: type[PreTrainedConfig]) -> Iterator[tuple[type, tuple[type[PreTrainedModel], ...]]]:
    """The Auto classes that know models of a vanilla configuration, each with those models' classes."""
    for name, auto_class in vars(modeling_auto).items():
        mapping = model_mapping(auto_class) if name.startswith("Auto") else None
        if mapping is not None and vanilla_class in mapping:
            models = mapping[vanilla_class]
            yield auto_class, models if isinstance(models, tuple) else (models,)


def check_gradient_checkpointing(function: Callable | None) -> None:
    """Raises ValueError if a checkpointing function is reentrant."""
    # torch.utils.checkpoint takes a missing value for True.
    if getattr(function, "keywords", {}).get("use_reentrant", True):
        raise ValueError(
            "`use_reentrant=True` cuts the gradient that flows through the attention maps. Use "
            'gradient_checkpointing_kwargs={"use_reentrant": False}.'
        )


def carry_state_through_checkpoints(model: nn.Module) -> None:
    """Lets layers that gradient checkpointing runs again find the state of their forward pass.

    Transformers' own way and the wrappers that FSDP puts around layers, each with its checkpointing function.

    Raises:
        ValueError: see `check_gradient_checkpointing`.
    """
    for module in model.modules():
        for name in ("_gradient_checkpointing_func", "checkpoint_fn"):
            checkpoint = vars(module).get(name)
            if checkpoint is None or getattr(checkpoint, "func", None) is _checkpoint:
                continue
            if name == "checkpoint_fn":
                check_gradient_checkpointing(checkpoint)
            setattr(module, name, functools.partial(_checkpoint, checkpoint))


@torch.compiler.disable(
    reason="A graph that gradient checkpointing runs again may not hand on maps; such layers are not compiled."
)
def _checkpoint(checkpoint: Callable, function: Callable, *args: Any, **kwargs: Any) -> Any:
    state = running_state()
    if state is not None and not is_traced():
        function = state.replayable(function)
    return checkpoint(function, *args, **kwargs)


class EvolvingPreTrainedModel:
    """What the model base class of every family has beside its vanilla methods. Comes first among the bases."""

    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False

    # Vanilla classes, each with the evolving class that takes its place. That of a model or stack with attention layers
    # has a method `make_chains`, which calls `attach_evolution`.
    evolving_classes: dict[type, type] = {}

    # Under which name the maps of a chain are returned.
    attention_map_names: dict[str, str] = {"self": "attention_maps"}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward = getattr(cls, "forward", nn.Module.forward)
        if forward is not nn.Module.forward and not getattr(forward, "makes_state", False):
            cls.forward = evolving_forward(forward)
        generate = getattr(cls, "generate", None)
        if generate is not None and not getattr(generate, "returns_maps", False):
            cls.generate = evolving_generate(generate)

    def __init__(self, config: EvolvingConfig, *args: Any, **kwargs: Any):
        config.check()
        super().__init__(config, *args, **kwargs)
        _name_to_pipelines(config)

    def post_init(self) -> None:
        """Makes what the vanilla constructor has built evolving, before new weights are initialized.

        A vanilla head has built its vanilla base model, all of whose state an evolving one shares; so the base model
        changes its class in place (as PyTorch's parametrizations and FSDP do), and nothing is built twice.
        """
        for module in list(self.modules()):
            if type(module) in self.evolving_classes:
                module.__class__ = self.evolving_classes[type(module)]
                if isinstance(module, PreTrainedModel):
                    record_outputs(module)
            if hasattr(module, "make_chains") and not getattr(module, "has_chains", False):
                module.make_chains()
                module.has_chains = True
        super().post_init()

    @functools.cached_property  # not a property, so that it can be set
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss is divided by `num_items_in_batch`, the labels of all micro-batches of an accumulation.

        `Trainer` asks, and otherwise divides by the number of micro-batches itself. Without an answer it would take each
        forward with `**kwargs` for one that divides, and multiply the gradient of all others.
        """
        if not getattr(super(), "accepts_loss_kwargs", True):
            return False
        try:
            source = inspect.getsource(type(self).forward)
        except (OSError, TypeError):  # there is no source
            return False
        return LOSS_WITH_KEYWORDS.search(source) is not None and self.loss_function in COUNTING_LOSSES

    @classmethod
    def is_custom_code(cls) -> bool:
        # For custom code Transformers leaves out modules that have no parameter of their own, in case it initializes
        # weights by other means. T5's heads and feed-forward layers are such modules, and would get std 1.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MapConvolution):
            # A family's own rule for convolutions is for another purpose (T5's standard deviation would be 1).
            std = module.initial_std or getattr(self.config, "initializer_range", 0.02)
            if module.starts_as_identity:
                init.copy_(module.weight, module.identity())
            else:
                init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, HeadMixing):
            init.copy_(module.weight, module.identity())
        elif isinstance(module, AttentionEvolution):
            if module.residual_gate is not None:
                init.constant_(module.residual_gate, module.residual_weight)
            if module.conv_gate is not None:
                init.constant_(module.conv_gate, module.conv_weight)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: a field of evolving attention was changed in the configuration after the model was built.
        """
        check_built_with(self.config, self.modules())
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Loads an evolving checkpoint, or a vanilla one, whose evolution modules are then new and listed as missing.

        Raises:
            ValueError: the configuration's number of heads is not the checkpoint's. The weights alone would not show
                it: the shapes of the projections do not depend on it. Or see `check_evolution_fits`; or an evolving checkpoint
                has fewer or more weights of evolving attention than the model.
        """
        checkpoint: dict[str, Any] = {}
        if pretrained_model_name_or_path is not None:
            hub_arguments = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
            checkpoint, _ = PreTrainedConfig.get_config_dict(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in hub_arguments if name in kwargs}
            )
            if isinstance(config, EvolvingConfig):  # before weights of another shape are found
                check_evolution_fits(checkpoint, evolution_fields(config))
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
        )
        if pretrained_model_name_or_path is not None:
            check_evolution_fits(checkpoint, evolution_fields(model.config))
            _check_evolution_is_whole(model, checkpoint, info)
            name = model.config.attribute_map.get("num_attention_heads", "num_attention_heads")
            heads = getattr(model.config, name, None)
            if checkpoint.get(name, heads) != heads:
                raise ValueError(
                    f"The configuration has {name}={heads}, but the checkpoint "
                    f"{pretrained_model_name_or_path} was trained with {checkpoint[name]}. Load the configuration "
                    f"with `{type(model.config).__name__}.from_pretrained({str(pretrained_model_name_or_path)!r})`."
                )
        return (model, info) if wants_info else model

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # so that the two checks below answer, and not a warning of Transformers

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        return _check_attn_implementation(requested_attention)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, allow_all_kernels: bool = False
    ) -> str:
        return _check_attn_implementation(attn_implementation)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        if enable:
            check_gradient_checkpointing(kwargs.get("gradient_checkpointing_func"))
        super()._set_gradient_checkpointing(enable, **kwargs)
        if enable:
            carry_state_through_checkpoints(self)


def _check_evolution_is_whole(model: PreTrainedModel, checkpoint: dict[str, Any], info: dict[str, Any]) -> None:
    """Checks that an attention module of an evolving checkpoint has the weights of evolving attention that the model's has.

    Layers that only one of them has may be new or left out, and so may kernels that `ea_conv_weight` brings or takes away.

    Raises:
        ValueError: weights are missing, or left over.
    """
    if "ea_residual_weight" not in checkpoint:
        return
    keeps_kernels = has_kernels(checkpoint) == has_kernels(evolution_fields(model.config))
    missing, left_over = set(info["missing_keys"]), set(info["unexpected_keys"])
    prefix = f"{model.base_model_prefix}."
    # Modules with a weight of the checkpoint.
    loaded = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name not in missing}
    wrong = []
    for name in sorted(missing | left_over):
        owner, found, own = name.partition(".evolution.")
        if not found or (own.startswith("conv.") and not keeps_kernels):
            continue
        owners = (owner, owner.removeprefix(prefix), prefix + owner)
        if any(
            f"{module}.".startswith(f"{one}.") and ".evolution" not in module for one in owners for module in loaded
        ):
            wrong.append(name)
    if wrong:
        raise ValueError(
            f"The checkpoint {model.name_or_path} is of an evolving model, but {len(wrong)} of the weights of its evolving attention are "
            f"missing or left over, such as {wrong[0]!r}. Its weights and its configuration are not of one model; load it as it was saved."
        )
