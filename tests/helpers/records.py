"""What a scan says of where it came from."""

from __future__ import annotations

from spectrum.records import Parameter, Provenance

PROVENANCE = Provenance(
    revision=None,
    commit="c0ffee",
    fingerprint=None,
    model_class="LlamaForCausalLM",
    class_asked=None,
    versions={"spectrum": "1", "torch": "2", "transformers": "5"},
    head="lm_head.weight",
    embedding="model.embed_tokens.weight",
    parameters={"lm_head.weight": Parameter((8, 4), "bfloat16")},
    layer_types=("lm_head", "mlp.down_proj"),
)
