"""check_keys: refuses a Hugging Face config with a key that may change the maths and that no family reads.

Some keys never change the maths, and some do not change it at one value. Every other key that was not read is refused.
It may stand for logit soft-capping, a multiplier or another norm, and a model that is silently a little wrong is worse
than one that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.config_fields import ConfigFields

__all__ = ["check_keys"]

_FIXED_KEYS: Mapping[str, tuple[object, ...]] = {
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, 1, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "use_bidirectional_attention": (False, None),
    "layer_types": (None,),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, True, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "qk_norm": (False, None),
    "use_qk_norm": (False, None),
    "qkv_bias": (False, None),
    "mlp_bias": (False, None),
    "lm_head_bias": (False, None),
    "full_attn_mod": (1, None),
    "interpolate_factor": (1, None),
    "clip_qkv": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0, 1),
    "num_experts": (None, 0),
    "shared_expert_intermediate_size": (None, 0),
    "n_shared_experts": (None, 0),
    "num_local_experts": (None, 0),
    "auto_map": (None,),
    "use_mrope": (False, None),
    "pruned_heads": ({}, None),
}
"""Keys that change the maths unless a family reads them, with the values that do not."""

_HARMLESS_KEYS = frozenset(
    {
        # The file, or the library that wrote it.
        "_name_or_path", "name_or_path", "transformers_version", "transformers.js_config", "_commit_hash",
        "is_llama_config",
        "unsloth_version", "unsloth_fixed", "tokenizer_class", "tokenizer_name", "use_cache",
        "cache_implementation", "_attn_implementation", "attn_implementation",
        "_attn_implementation_autoset", "_flash_attn_2_enabled", "_experts_implementation", "torchscript",
        "use_bfloat16",
        "tf_legacy_loss", "gradient_checkpointing", "pretraining_tp",
        # Training only.
        "router_aux_loss_coef", "output_router_logits", "router_jitter_noise",
        "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range",
        "neftune_noise_alpha",
        "mlp_dropout",
        # Heads and tasks other than the language model's.
        "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
        "return_dict", "output_attentions",
        "output_hidden_states", "chunk_size_feed_forward", "tie_encoder_decoder", "classifier_dropout",
        # Token ids that generation reads elsewhere, or not at all.
        "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "forced_bos_token_id",
        "forced_eos_token_id", "prefix",
        # Generation defaults of old configs. Requests bring their own.
        "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
        "diversity_penalty", "temperature", "top_k",
        "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
        "remove_invalid_values",
        "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "max_sequence_length",
        "model_max_length",
    }
)  # fmt: skip
"""Keys that do not change the forward pass, at any value."""


def check_keys(fields: ConfigFields) -> None:
    """Refuses a config with a key that was not read, unless it is known not to change the maths.

    Call it after everything else was read.

    Raises:
      UnsupportedModelError: Such a key is present; the message names it.
    """
    for key, value in fields.raw.items():
        if key in fields.asked or key in _HARMLESS_KEYS:
            continue
        if key not in _FIXED_KEYS:
            raise fields.fail(
                key,
                "only keys that are known for this architecture",
                remedy="It may change the maths, so the model is refused; remove the key if you know that it does not.",
            )
        if not any(type(value) is type(allowed) and value == allowed for allowed in _FIXED_KEYS[key]):
            allowed = " or ".join(repr(v) for v in _FIXED_KEYS[key])
            raise fields.fail(key, allowed, remedy="Other values are not supported for this architecture.")
