"""Tiny configs of any class: the class's default config, with its sizes divided.

The default config of most classes is a published model. Every width is divided by one factor, so what was a multiple of
another width still is, and numbers of heads stay. Numbers of layers, of experts and of tokens are set.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WIDTH = re.compile(
    r"hidden|intermediate|d_model|d_latents|d_kv|d_ff|d_state|d_head|dim|dff|ffn|channels|width|embed|embd|inner|rank|n_state"
    r"|planes|filters|_size$"
)
# Sizes of what is not a weight, or whose relation to others a common factor would break.
NOT_WIDTH = re.compile(
    r"image_size|patch_size|codebook_size|window|kernel|vocab|merge|crop|chunk|stride|num_|_layers|drop|_id$|_ids$|ratio|block_size"
    r"|group_size|temporal|max_|sample|tile|pool|context|^input_size|dimension$|hop|resolution|downsample"
)
WIDTHS_OF_HEADS = ("hidden_size", "d_model", "embed_dim")
NUMBERS_OF_HEADS = ("num_attention_heads", "num_heads")
LAYERS = re.compile(r"(^|_)layers$|^n_layers?$|^depth$|^num_blocks$|_depth$|_num_layers$|num_hidden_layers|^n_blocks$")
EXPERTS = re.compile(r"num_experts$|num_local_experts$|n_routed_experts$|^num_routed_experts$|^n_experts$")
ACTIVE_EXPERTS = re.compile(r"experts_per_tok|^moe_topk$|^moe_k$|^moe_top_k$|^top_k_experts$|^top_k$")
DEPTHS = re.compile(r"depths$|^num_blocks$|^layers_per_stage$|^block_sizes$")  # of the stages
PLACES = re.compile(r"^(?!.*token).*(ind(ex|ices)|idx|layers$|_ids$)")  # of layers
GROUPS_OF_EXPERTS = re.compile(r"^n_group$|^topk_group$|num_expert_group|limited_groups")
TOKEN = re.compile(r"_token_id$|_token_index$|_token_ids$|_idx$|_token$")
NUM_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Size:
    """How far a config is shrunk.

    Args:
        factor: widths are divided by it.
        layers: the number of layers; None for the config's own.
        experts: whether to have four experts instead of the config's own number.
        tokens: whether to have `NUM_TOKENS` tokens instead of the config's own number.
    """

    factor: int
    layers: int | None
    experts: bool
    tokens: bool


def sizes() -> Iterator[Size]:
    """Sizes to try, in this order, until a model of one can be built."""
    kinds = (
        (2, True, True),
        (4, True, True),
        (2, False, True),
        (2, True, False),
        (None, True, True),
        (None, False, False),
    )
    for layers, experts, tokens in kinds:
        for factor in (32, 16, 8, 4, 2, 1):
            yield Size(factor, layers, experts, tokens)


def shrunk(config: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """A config's content, with all parts of it, in this size."""
    old_layers = {v for k, v in config.items() if LAYERS.search(k) and isinstance(v, int) and v > 2}
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key == "per_layer_config" and size.layers is not None and isinstance(value, Mapping):
            made[key] = {layer: changes for layer, changes in value.items() if int(layer) < size.layers}
        elif isinstance(value, Mapping):
            is_part = "config" in key or key in ("encoder", "decoder", "generator") or "backbone" in key
            made[key] = shrunk(value, size) if is_part else dict(value)
            if key == "rope_parameters" and "mrope_section" in value:
                made[key]["mrope_section"] = [max(1, n // size.factor) for n in value["mrope_section"]]
        elif isinstance(value, list | tuple):
            made[key] = _list(key, list(value), size, old_layers)
        else:
            made[key] = _number(key, value, size)
    return made


def has_whole_heads(config: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether heads that had a whole, even width have one in the config that was made, too."""
    for width, heads in itertools.product(WIDTHS_OF_HEADS, NUMBERS_OF_HEADS):
        pairs = [(each.get(width), each.get(heads)) for each in (config, made)]
        before, after = (isinstance(w, int) and isinstance(n, int) and n > 0 and w % (2 * n) == 0 for w, n in pairs)
        if before and not after:
            return False
    parts = [key for key, value in config.items() if isinstance(value, Mapping) and key in made]
    return all(has_whole_heads(config[key], made[key]) for key in parts)


def _number(key: str, value: Any, size: Size) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if key in ("upsample_groups", "num_filters"):  # one for each channel
        return max(1, value // size.factor)
    if re.search(r"num_groups$|norm_groups$", key):
        return 1 if size.factor > 1 else value
    if "vocab" in key or key == "num_embeddings":
        return min(value, NUM_TOKENS) if size.tokens else value
    if TOKEN.search(key):
        return value % (NUM_TOKENS - 12) if size.tokens and value >= NUM_TOKENS else value
    if EXPERTS.search(key):
        return min(value, 4) if size.experts else value
    if ACTIVE_EXPERTS.search(key):
        return min(value, 2) if size.experts else value
    if GROUPS_OF_EXPERTS.search(key):
        return 1 if size.experts else value
    if LAYERS.search(key):
        return value if size.layers is None else min(value, size.layers)
    if WIDTH.search(key) and not NOT_WIDTH.search(key) and value >= 16:
        return max(1, value // size.factor)
    return value


def _list(key: str, value: list[Any], size: Size, old_layers: set[int]) -> list[Any]:
    is_numbers = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if size.layers is not None:
        if len(value) in old_layers:
            return value[: size.layers]
        if is_numbers and key in (
            "depths",
            "num_blocks",
            "layers_per_stage",
            "block_sizes",
            "encoder_depths",
            "decoder_depths",
        ):
            return [min(item, 2) for item in value]
        if (
            is_numbers
            and old_layers
            and re.search(r"ind(ex|ices)|idx|layers$|_ids$|features", key)
            and "token" not in key
        ):
            return sorted({min(item, size.layers - 1) for item in value})
    return [_number(key, item, size) if not isinstance(item, list) else item for item in value]
