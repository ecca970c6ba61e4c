"""Tiny configurations of the architectures under test. To have another one tested, add it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

Config = transformers.PreTrainedConfig


def llama_like(config_class: Any, *without: str, **changes: object) -> Any:
    """A config in Llama's vocabulary, which most models share."""
    return config_class(**llama_sizes(*without, **changes))


def llama_sizes(*without: str, **changes: object) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {name: value for name, value in (sizes | changes).items() if name not in without}


def mixture(config_class: Any, **changes: object) -> Any:
    """A mixture of four experts, two a token, in the vocabulary that most share."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return llama_like(config_class, **experts | changes)


def vision(**changes: object) -> dict[str, Any]:
    """A vision tower whose layers are called as the language model's are."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    }
    return sizes | changes


def deepseek(config_class: Any) -> Any:
    return llama_like(
        config_class,
        num_hidden_layers=3,
        num_key_value_heads=4,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_group=2,
        topk_group=1,
    )


def llama4_text() -> dict[str, Any]:
    return llama_sizes(
        intermediate_size=24,
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        head_dim=8,
    )


def gpt2() -> Config:
    return transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    )


def falcon() -> Config:
    return transformers.FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2
    )


def opt() -> Config:
    return transformers.OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )


def jamba() -> Any:
    return llama_like(
        transformers.JambaConfig,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
    )


def gemma3() -> Config:
    return transformers.Gemma3Config(
        text_config=llama_sizes(head_dim=8),
        vision_config=vision(),
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )


def llama4() -> Config:
    settings: dict[str, Any] = {"pad_token_id": 0}  # 5.0 does not look for it in the text config
    return transformers.Llama4Config(
        text_config=llama4_text(),
        vision_config=vision(
            intermediate_size=64, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32
        ),
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
        **settings,
    )


def llava() -> Config:
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **llama_sizes()},
        vision_config={"model_type": "clip_vision_model", **vision(projection_dim=32)},
        image_token_index=5,
    )


def mistral3() -> Config:
    return transformers.Mistral3Config(
        text_config={"model_type": "mistral", **llama_sizes()},
        vision_config={"model_type": "pixtral", **vision(head_dim=8)},
        image_token_index=5,
    )


def qwen_vision(**changes: object) -> dict[str, Any]:
    """The vision tower of a Qwen-VL."""
    sizes = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 4,
    }
    return sizes | changes


def qwen2_5_vl() -> Config:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return transformers.Qwen2_5_VLConfig(
        text_config=llama_sizes(rope_parameters=rope),
        vision_config=qwen_vision(spatial_merge_size=2, window_size=16, fullatt_block_indexes=[1]),
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )


def whisper() -> Config:
    return transformers.WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=32,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def t5() -> Config:
    return transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)


def bert() -> Config:
    return transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )


def mamba() -> Config:
    return transformers.MambaConfig(
        vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )


def vits() -> Config:
    """Speech synthesis: transposed convolutions, parametrized weights."""
    return transformers.VitsConfig(
        vocab_size=38,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=24,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        wavenet_dilation_rate=1,
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1,
        depth_separable_num_layers=1,
    )


def of(model: str, config: Callable[[], Any]) -> Callable[[], Any]:
    """How to build a model of a class of transformers."""

    def build() -> Any:
        known: Any = getattr(transformers, model)
        return known.from_config(config()) if hasattr(known, "from_config") else known(config())

    return build


def causal(config: Callable[[], Any]) -> Callable[[], Any]:
    return of("AutoModelForCausalLM", config)


t = transformers

ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    # Dense language models.
    "llama": causal(lambda: llama_like(t.LlamaConfig)),
    "llama-tied": causal(lambda: llama_like(t.LlamaConfig, tie_word_embeddings=True)),
    "mistral": causal(lambda: llama_like(t.MistralConfig)),
    "qwen2": causal(lambda: llama_like(t.Qwen2Config)),
    "qwen3-tied": causal(lambda: llama_like(t.Qwen3Config, head_dim=16, tie_word_embeddings=True)),
    "phi3": causal(lambda: llama_like(t.Phi3Config)),
    "phi": causal(lambda: llama_like(t.PhiConfig)),
    "gemma2": causal(lambda: llama_like(t.Gemma2Config, head_dim=16)),
    "gemma3-text": causal(lambda: llama_like(t.Gemma3TextConfig, head_dim=16)),
    "gpt2": causal(gpt2),
    "gpt-neox": causal(lambda: llama_like(t.GPTNeoXConfig)),
    "falcon": causal(falcon),
    "opt": causal(opt),
    "bloom": causal(lambda: t.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
    # Mixtures of experts: stored singly, stacked, or stacked and transposed.
    "mixtral": causal(lambda: mixture(t.MixtralConfig, num_local_experts=4)),
    "qwen2-moe": causal(lambda: mixture(t.Qwen2MoeConfig, shared_expert_intermediate_size=40)),
    "qwen3-moe": causal(lambda: mixture(t.Qwen3MoeConfig, head_dim=8)),
    "olmoe": causal(lambda: mixture(t.OlmoeConfig)),
    "granite-moe": causal(lambda: mixture(t.GraniteMoeConfig, num_local_experts=4)),
    "deepseek-v2": causal(lambda: deepseek(t.DeepseekV2Config)),
    "deepseek-v3": causal(lambda: deepseek(t.DeepseekV3Config)),
    "gpt-oss": causal(lambda: mixture(t.GptOssConfig, num_local_experts=4, head_dim=8)),
    "jetmoe": causal(lambda: llama_like(t.JetMoeConfig, kv_channels=8, num_local_experts=4, num_experts_per_tok=2)),
    "llama4-text": of("Llama4ForCausalLM", lambda: t.Llama4TextConfig(**llama4_text())),
    # State spaces, alone and with attention and experts.
    "mamba": causal(mamba),
    "jamba": causal(jamba),
    # Towers: vision beside language, encoder beside decoder.
    "gemma3": of("Gemma3ForConditionalGeneration", gemma3),
    "llama4": of("Llama4ForConditionalGeneration", llama4),
    "llava": of("LlavaForConditionalGeneration", llava),
    "mistral3": of("Mistral3ForConditionalGeneration", mistral3),
    "qwen2.5-vl": of("Qwen2_5_VLForConditionalGeneration", qwen2_5_vl),
    "t5": of("T5ForConditionalGeneration", t5),
    "whisper": of("WhisperForConditionalGeneration", whisper),
    # Encoders, and convolutions both ways.
    "bert": of("BertForMaskedLM", bert),
    "vits": of("VitsModel", vits),
}


def built(architecture: str) -> Any:
    """The model in bfloat16, every value of every parameter random: two that were mixed up would differ."""
    return randomized(ARCHITECTURES[architecture]())


def randomized(model: Any) -> Any:
    """The model in bfloat16, with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.05).bfloat16()
    model.config.dtype = torch.bfloat16
    return model


def dinov2() -> Any:
    """A vision model whose MLPs are stored with two projections in one tensor."""
    sizes: dict[str, Any] = vision(use_swiglu_ffn=True)
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))


def dbrx() -> Any:
    """A model whose experts lie below each other, in the rows of one parameter."""
    config = transformers.DbrxConfig(
        d_model=16,
        n_heads=2,
        n_layers=2,
        vocab_size=32,
        attn_config={"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8},
        ffn_config={"moe_num_experts": 3, "moe_top_k": 1, "ffn_hidden_size": 10, "hidden_size": 16},
    )
    return transformers.DbrxForCausalLM(config)


def longformer() -> Any:
    """A model in which `attention.self.query` is the beginning of `attention.self.query_global`."""
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LongformerConfig(**sizes, intermediate_size=48, attention_window=[4] * 4)
    torch.manual_seed(0)
    return transformers.LongformerForMaskedLM(config)


def with_signal(model: Any) -> Any:
    """The model with a different share of signal in each of its matrices, so that the best are seldom the first."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            left, right = (torch.randn(n, generator=generator) for n in (parameter.shape[-2], parameter.shape[-1]))
            strength = 0.2 * torch.rand(1, generator=generator)
            parameter.data += (strength * torch.outer(left, right)).to(parameter.dtype)
    return model
