"""Tiny configurations of multimodal models, each of which transformers can load as a language model as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers

from tests.helpers.architectures import llama4, llama_sizes, qwen_vision, vision

t: Any = transformers

_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def emu3() -> Any:
    image = {
        "codebook_size": 16,
        "embed_dim": 8,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
    }
    return t.Emu3Config(
        text_config=llama_sizes(), vq_config=image, vocabulary_map={f"<|visual token {i:06}|>": i for i in range(16)}
    )


def mllama() -> Any:
    image = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    return t.MllamaConfig(
        text_config=llama_sizes(cross_attention_layers=[1], num_hidden_layers=3),
        vision_config=image,
        image_token_index=5,
    )


def _qwen_text(**changes: Any) -> dict[str, Any]:
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    layers = ["linear_attention", "full_attention"]
    return llama_sizes(head_dim=16, layer_types=layers, **linear | changes)


def qwen3_5() -> Any:
    return t.Qwen3_5Config(text_config=_qwen_text(), vision_config=qwen_vision(num_position_embeddings=16))


def qwen3_5_moe() -> Any:
    text = _qwen_text(**_MIXTURE, shared_expert_intermediate_size=40)
    return t.Qwen3_5MoeConfig(text_config=text, vision_config=qwen_vision(num_position_embeddings=16))


def qwen4_exp() -> Any:
    text = _qwen_text(**_MIXTURE, shared_expert_intermediate_size=40, hc_count=2, hc_lowrank=8)
    text["layer_types"] = ["linear_attention", "indexed_attention"]
    indexer = {"n_heads": 2, "kv_heads": 1, "head_dim": 16, "budget": 8, "compress_ratio": 2}
    text |= {f"indexer_{name}": value for name, value in indexer.items()}
    return t.Qwen4ExpConfig(text_config=text, vision_config=qwen_vision(num_position_embeddings=16))


def dots3_note() -> Any:
    text = llama_sizes(
        num_key_value_heads=4,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        shared_experts_intermediate_size=24,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        head_dim=16,
        v_head_dim=8,
        index_head_dim=16,
        index_n_heads=2,
        index_topk=4,
    )
    image = vision(mlp_layer_types=["dense", "dense"], adapter_in_dim=32, adapter_out_dim=32, moe_intermediate_size=24)
    audio = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "feature_size": 16,
        "downsample_hidden_size": 8,
        "adapter_input_size": 32,
        "adapter_out_dim": 32,
    }
    return t.Dots3NoteConfig(text_config=text, vision_config=image, audio_config=audio)


# By the name of the config's class: all of transformers 5 whose multimodal class and language model are two classes.
MULTIMODAL: Mapping[str, Callable[[], Any]] = {
    "Dots3NoteConfig": dots3_note,
    "Emu3Config": emu3,
    "Llama4Config": llama4,
    "MllamaConfig": mllama,
    "Qwen3_5Config": qwen3_5,
    "Qwen3_5MoeConfig": qwen3_5_moe,
    "Qwen4ExpConfig": qwen4_exp,
}
