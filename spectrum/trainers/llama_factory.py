"""Which modules does LLaMA-Factory leave out of models with a vision or audio tower?

As its version 0.9.5, `model/model_utils/visual.py`. In such a model, it searches for names anywhere in the paths of
modules, and leaves out the paths in which certain words occur. In all other models, PEFT's rule applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Composite:
    """Words that tell the parts of a model with towers by the paths of their modules.

    Args:
        towers: of what `freeze_vision_tower` keeps frozen, as it does by default.
        projectors: of what `freeze_multi_modal_projector` keeps frozen, as it does by default.
        never: of modules that get no adapter in any case.
    """

    towers: frozenset[str] = frozenset({"vision_tower"})
    projectors: frozenset[str] = frozenset({"multi_modal_projector"})
    never: frozenset[str] = frozenset()


_LLAVA_LIKE = Composite()
_WITH_VISION_MODEL = Composite(frozenset({"vision_model"}))
_VISUAL = frozenset({"visual.patch_embed", "visual.blocks"})
_QWEN_LIKE = Composite(_VISUAL, frozenset({"visual.merger"}), frozenset({"patch_embed"}))
_QWEN3 = Composite(
    _VISUAL | {"visual.pos_embed", "visual.deepstack_merger_list"}, _QWEN_LIKE.projectors, _QWEN_LIKE.never
)
_QWEN3_5 = Composite(_VISUAL | {"visual.pos_embed"}, frozenset({"model.visual.merger"}), _QWEN_LIKE.never)
_OF_OMNI = frozenset({"visual.merger", "audio_tower.proj"})
_TWO_TOWERS = frozenset({"vision_tower", "audio_tower"})

_COMPOSITES: Mapping[str, Composite] = {
    **dict.fromkeys(
        ("Gemma3", "InternVL", "Llava", "LlavaNext", "LlavaNextVideo", "PaliGemma", "VideoLlava"), _LLAVA_LIKE
    ),
    **dict.fromkeys(("Llama4", "Mllama"), _WITH_VISION_MODEL),
    **dict.fromkeys(("Glm4v", "Glm4vMoe", "GlmOcr", "Qwen2VL", "Qwen2_5_VL"), _QWEN_LIKE),
    **dict.fromkeys(("Qwen3VL", "Qwen3VLMoe"), _QWEN3),
    **dict.fromkeys(("Qwen3_5", "Qwen3_5Moe"), _QWEN3_5),
    "Qwen2_5OmniThinker": Composite(_VISUAL | {"audio_tower"}, _OF_OMNI, _QWEN_LIKE.never),
    "Qwen3OmniMoeThinker": Composite(_QWEN3.towers | {"audio_tower"}, _OF_OMNI, _QWEN_LIKE.never),
    "Gemma3n": Composite(_TWO_TOWERS, never=frozenset({"timm_model", "subsample_conv_projection"})),
    "Gemma4": Composite(
        _TWO_TOWERS, frozenset({"model.embed_vision", "model.embed_audio"}), frozenset({"per_layer_projection_norm"})
    ),
    "MiniCPMV4_6": Composite(frozenset({"model.vision_tower"}), frozenset({"model.merger"})),
    "Mistral3": Composite(projectors=frozenset({"model.multi_modal_projector"})),
    "Qwen2Audio": Composite(frozenset({"audio_tower"})),
}

# Of all models, those outside transformers too.
NEVER = frozenset({"audio_projection_layer"}).union(*(composite.never for composite in _COMPOSITES.values()))


def composite(model_class: str) -> Composite | None:
    """What LLaMA-Factory knows of the towers of a class of transformers; None if it knows of none."""
    return _COMPOSITES.get(model_class.removesuffix("ForConditionalGeneration"))
