# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The complete list of what may be skipped in Transformers' suite.

Nothing here skips a test: Transformers' tests skip themselves. This is the list of skips that we accept. `conftest.py`
turns every other one into a failure, so that no test disappears because of a forgotten attribute or registration.

Each list maps the name of a test to the reason that the test itself gives; both are regular expressions for the whole.
"""

import re


# What tests of rotary positions say of a class that `AutoModel` does not lead to.
NO_BASE_MODEL = "This model has no `base_model_class` defined in tester."
REQUIRES = "test requires (accelerator|multiple accelerators|deepspeed|the kernels library)"

# Every family may skip these.
NEEDS = {
    # The fused kernels never write out the scores, which evolving attention hands from layer to layer.
    "needs sdpa": {
        r"test_eager_matches_sdpa_inference_\w+": r"\w+ does not support SDPA",
        r"test_sdpa_can_dispatch_(non_)?composite_models": r"\w+ does not support SDPA",
        r"test_sdpa_can_(compile_dynamic|dispatch_on_flash)": ".*",
        r"test_can_set_attention_dynamically": "Parts of this model don't support sdpa",
    },
    "needs flash attention": {
        r"test_flash_attn_\w+": ".*",
    },
    "needs flex attention": {
        r"test_flex_attention_with_grads": ".*",
    },
    "needs a GPU": {
        r"test_(cpu_offload|disk_offload_(bin|safetensors))": REQUIRES,
        r"test_can_load_with_(device_context_manager|global_device_set)": REQUIRES,
        r"test_kernels_can_load_without_crashing": REQUIRES,
        r"test_resize_(tokens_embeddings|embeddings_untied)_with_deepspeed": REQUIRES,
        r"test_torch_compile_for_training": REQUIRES,
    },
    "needs several GPUs": {
        r"test_model_parallelism": REQUIRES,
        r"test_resize_(tokens_embeddings|embeddings_untied)_with_deepspeed_multi_gpu": REQUIRES,
    },
}

# A family may skip these if the model that it extends lacks the feature too; its test class lists them in `lacks`.
LACKS = {
    "sub-configurations": {
        r"test_attn_implementation_composite_models": "Model is not a composite model.",
        r"test_can_set_attention_dynamically_composite_model": "This model is not composite",
        r"test_internal_model_config_and_subconfig_are_same": "No subconfigs so the test does not make sense",
    },
    "a decoder-only head": {
        r"test_causal_lm_loss_honors_shift_labels": "No decoder-only language modeling head to check",
    },
    "an encoder-decoder head": {
        r"test_encoder_decoder_loss_no_double_shift": "No sequence-to-sequence language modeling head to check",
    },
    "hidden states of one name": {
        r"test_can_capture_specific_layers_hidden_states": r"\w+ does not propagate hidden states correctly or .*",
    },
    "a loss": {
        r"test_(training|.*gradient_checkpointing.*|torch_compile_for_training|training_.*)": ".*not configured to run.*",
    },
    "experts": {
        r"test_eager_matches_batched_and_grouped_inference_\w+": r"\w+ does not support grouped_mm",
        r"test_moe_models_record_router_logits": "This model has no sparse experts.",
        r"test_output_router_logits_from_config": "This model has no `output_router_logits` in its config.",
    },
    "rotary positions": {
        r"test_model_rope_scaling_\w+": f"This model does not support RoPE scaling|{NO_BASE_MODEL}",
        r"test_model_rope_with_partial_rotation": f"This model does not have RoPE|{NO_BASE_MODEL}",
        r"test_vision_axial_rope": f".* has no axial RoPE layer defined.|{NO_BASE_MODEL}",
    },
    "resizable position embeddings": {
        r"test_resize_position_vector_embeddings": "Model does not have position embeddings",
    },
    "embeddings of tokens": {
        r"test_inputs_embeds(_matches_input_ids)?": "This model doesn't use `inputs_embeds`",
        r"test_resize_(tokens_embeddings|embeddings_untied(_no_reinit_on_post_init)?)": ".* is set to `False`",
        r"test_enable_input_require_grads_with_gradient_checkpointing": "No model with a differentiable loss .*",
    },
    "a sliding window": {
        r"test_sliding_window_mask": "Model does not support sliding window mask",
    },
    "outputs recorded by hooks": {
        r"test_can_capture_specific_layers_hidden_states": "Cannot capture hidden states, .*",
        r"test_capture_outputs_decorator": "No usage of the `capture_outputs` decorator.",
    },
    "modules kept in float32": {
        r"test_keep_in_fp32_modules(_exist)?": ".* has no _keep_in_fp32_modules n?or .*",
    },
    "renamed weights": {
        r"test_(reverse_loading_mapping|can_load_from_already_mapped_keys)": "No conversion found for .*",
    },
    "a tensor-parallel plan": {
        r"test_(tp_plan_matches_params|tied_head_has_a_tp_plan_entry)": "Model does not have a TP plan.",
    },
}


def accepted_as(test: str, reason: str, lacks: tuple[str, ...]) -> str | None:
    """Return the heading under which a skip is accepted, or `None` if it is not."""
    headings = {**NEEDS, **{f"lacks {feature}": LACKS[feature] for feature in lacks}}
    for heading, skips in headings.items():
        for test_pattern, reason_pattern in skips.items():
            if re.fullmatch(test_pattern, test) and re.fullmatch(reason_pattern, reason):
                return heading
    return None
