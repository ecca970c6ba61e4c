"""Build a tiny model of any class that transformers knows by a config."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
import transformers

from tests.sweep.sizes import has_whole_heads, shrunk, sizes

# Parameters of a model: the first size that has at most `SMALL` is taken, else the smallest if it has at most `LARGE`.
SMALL = 30_000_000
LARGE = 400_000_000


MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1]}

# What the default config of a type or a class lacks, or has wrong, so that transformers itself does not build it.
SPECIAL: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 8},
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": MROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": MROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 11, "num_experts_per_tok": 2}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 704}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [16, 16, 32]}}},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "esm": {"vocab_size": 64, "pad_token_id": 1, "mask_token_id": 3},
    "gemma4_assistant": {
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "enable_moe_block": False,
            "use_double_wide_mlp": False,
        }
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "hy_v4_vl": {"text_config": {"rope_parameters": {"mrope_section": [16, 8, 8]}}},
    "hy_v4_vl_text": {"rope_parameters": {"mrope_section": [16, 8, 8]}},
    "informer": {"prediction_length": 8},
    "time_series_transformer": {"prediction_length": 8},
    "T5Gemma2Encoder": {"text_config": {"dropout_rate": 0.0}},
    "ministral": {"head_dim": 128},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "ReformerModelWithLMHead": {"is_decoder": True},
    "perceiver": {"num_cross_attention_heads": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
}

# Settings that a config derives from others if they are missing.
DERIVED = ("layer_types", "mlp_layer_types", "per_layer_config", "out_features", "out_indices", "stage_names")


class NotBuiltError(Exception):
    """No tiny config was found with which transformers builds the class."""


def build(name: str) -> Any:
    """A model of a class in bfloat16, every value of every parameter random: two that were mixed up would differ.

    Raises ImportError if a package is missing, and NotBuiltError if no config is found.
    """
    model_class = getattr(transformers, name)
    config_class = model_class.config_class
    errors: list[str] = []
    smallest: tuple[int, dict[str, Any]] | None = None
    for heads, content, size in itertools.product((True, False), _contents(model_class), sizes()):
        settings = shrunk(content, size)
        if not heads and smallest is not None and smallest[0] <= LARGE:
            break
        if has_whole_heads(content, settings) != heads:  # those with whole heads come first
            continue
        try:
            with torch.device("meta"):
                model = model_class(config_class.from_dict(settings))
        except ImportError:
            raise
        except Exception as error:  # of any kind: constructors of models check what they like
            errors.append(_line(error))
            continue
        num_elements = sum(parameter.numel() for parameter in model.parameters())
        if smallest is None or num_elements < smallest[0]:
            smallest = num_elements, settings
        if num_elements <= SMALL:
            break
    if smallest is None or smallest[0] > LARGE:
        raise NotBuiltError(" | ".join(dict.fromkeys(errors)) if smallest is None else f"{smallest[0]} parameters")
    return _filled(model_class, config_class.from_dict(smallest[1]))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _merged(content: Any, changes: Any) -> Any:
    if not isinstance(content, dict) or not isinstance(changes, dict):
        return changes
    return content | {key: _merged(content.get(key), value) for key, value in changes.items()}


def _contents(model_class: Any) -> list[dict[str, Any]]:
    """Configs of a class to shrink: its default config, and the same without what may be derived."""
    config_class = model_class.config_class
    changes = SPECIAL.get(model_class.__name__) or SPECIAL.get(config_class.model_type, {})
    try:
        content = _merged(config_class().to_dict(), changes)
    except Exception as error:
        if not changes:
            raise NotBuiltError(f"no default config: {_line(error)}") from error
        content = dict(changes)
    for key in ("dtype", "architectures", "transformers_version", "_name_or_path"):
        content.pop(key, None)
    return [content, _without(content, DERIVED[3:]), _without(content, DERIVED)]


def _without(content: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {k: _without(v, keys) if isinstance(v, dict) else v for k, v in content.items() if k not in keys}


def _filled(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(config)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.05).bfloat16()
    model.config.dtype = torch.bfloat16
    return model
