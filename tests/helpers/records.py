"""What a scan says of where it came from."""

from __future__ import annotations

from spectrum.records import ModelInfo, Parameter, Provenance

PROVENANCE = Provenance(
    revision=None,
    commit="c0ffee",
    fingerprint=None,
    class_asked=None,
    versions={"spectrum": "1", "torch": "2", "transformers": "5"},
    info=ModelInfo(
        model_class="LlamaForCausalLM",
        parameters={"lm_head.weight": Parameter((8, 4), "bfloat16")},
        layer_types=("lm_head", "mlp.down_proj"),
        head="lm_head.weight",
        embedding="model.embed_tokens.weight",
    ),
)
