"""What a scan says of where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from spectrum.records import LayerSnr, ModelInfo, Parameter, Provenance, ScanResult

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


def scan_of(
    parameters: Mapping[str, Parameter], *layers: str, head: str | None = None, embedding: str | None = None
) -> ScanResult:
    """A scan of a model of these parameters, in which these layers are scored, each of a type of its own."""
    info = replace(PROVENANCE.info, parameters=parameters, layer_types=layers, head=head, embedding=embedding)
    scored = tuple(LayerSnr(name, name, 1.0) for name in layers)
    return ScanResult("m", scored, (), layers, replace(PROVENANCE, info=info))
