"""Whether a cached scan is used: scans of other tools that name experts one by one, beside what the model has today."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import transformers

from spectrum import api
from spectrum.errors import LayerTypeError
from spectrum.layer_types import layer_types
from spectrum.records import LayerSnr
from spectrum.scanning.request import ScanCallbacks, ScanOutcome, ScanRequest
from spectrum.scanning.reuse import add_to_cached, outcome_from_cache, refuse_unknown_layer
from spectrum.scanning.store import ScanStore
from tests.helpers.architectures import llama_like

ONE_BY_ONE = [
    f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
    for layer in range(2)
    for expert in range(4)
    for name in ("w1", "w2", "w3")
]
FUSED_EXAMPLE = "model.layers.0.mlp.experts.gate_up_proj"


def cache(directory: Path, layers: list[str]) -> ScanStore:
    """A scan of another tool, of a model in this directory, perhaps a missing one."""
    store = ScanStore(directory / "results", str(directory / "model"))
    store.results_dir.mkdir()
    types = layer_types(layers)
    scores = {name: {"snr": 1.0 + place, "type": types[name]} for place, name in enumerate(layers)}
    store.scan_path.write_text(json.dumps(scores))
    return store


def warnings_of(store: ScanStore, model_class: str | None = None) -> list[str]:
    """What is warned of where the cached scan is used."""
    warned: list[str] = []
    callbacks = ScanCallbacks(info=warned.append, warn=warned.append, choose=never, progress=never)
    request = request_for(store, model_class)
    cached = store.load()
    assert cached is not None
    assert outcome_from_cache(cached.result, request, callbacks) is not None
    return warned


def request_for(store: ScanStore, model_class: str | None = None, layer_types: list[str] | None = None) -> ScanRequest:
    return ScanRequest(
        model=store.model,
        results_dir=store.results_dir,
        revision=None,
        model_class=model_class,
        trust_remote_code=False,
        layer_types=layer_types,
        device="auto",
        rescan=False,
        download=False,
        also_written=(),
    )


def never(*_: object) -> NoReturn:
    raise AssertionError("a cached scan asks and shows nothing")


def save_config(directory: Path, config: transformers.PreTrainedConfig, architecture: str) -> None:
    config.architectures = [architecture]
    config.save_pretrained(directory)


def test_experts_that_the_model_has_fused_today_are_told_by_its_config(tmp_path: Path) -> None:
    store = cache(tmp_path, ["lm_head", *ONE_BY_ONE])
    config = llama_like(transformers.MixtralConfig, num_local_experts=4)
    save_config(tmp_path / "model", config, "MixtralForCausalLM")
    (warning,) = warnings_of(store)
    assert "names experts one by one, as transformers 4 did (model.layers.0.block_sparse_moe.experts.0.w1 " in warning
    assert f"MixtralForCausalLM has them fused ({FUSED_EXAMPLE}), so 24 names match nothing: --rescan" in warning
    with torch.device("meta"):
        assert FUSED_EXAMPLE in dict(transformers.MixtralForCausalLM(config).named_parameters())


def test_without_the_config_the_names_tell(tmp_path: Path) -> None:
    (warning,) = warnings_of(cache(tmp_path, ONE_BY_ONE))
    assert "transformers 5 keeps the experts of most models fused" in warning
    assert "(--check)" in warning
    assert "(--rescan)" in warning


def test_a_dense_model_is_not_said_to_have_fused_experts(tmp_path: Path) -> None:
    store = cache(tmp_path, ONE_BY_ONE)
    save_config(tmp_path / "model", llama_like(transformers.LlamaConfig), "LlamaForCausalLM")
    (warning,) = warnings_of(store)
    assert "; LlamaForCausalLM has no such modules, so 24 names match nothing: --rescan" in warning


def test_a_config_that_cannot_be_used_leaves_it_to_the_names(tmp_path: Path) -> None:
    store = cache(tmp_path, ONE_BY_ONE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (warning,) = warnings_of(store)
    assert "of most models" in warning


def test_experts_that_are_modules_today_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [f"model.layers.{layer}.mlp.experts.{expert}.up" for layer in range(2) for expert in range(4)]
    store = cache(tmp_path, modules)
    save_config(tmp_path / "model", llama_like(transformers.LlamaConfig), "LlamaForCausalLM")

    class OneByOne(torch.nn.Module):  # as remote code may have them
        def __init__(self, *_: object) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(
                torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8), "down": torch.nn.Linear(8, 8)}) for _ in range(4)
            )

    modeling = sys.modules[transformers.LlamaForCausalLM.__module__]
    monkeypatch.setattr(modeling, "LlamaMLP", OneByOne)
    assert warnings_of(store) == []


@pytest.mark.parametrize("layers", [["model.layers.0.mlp.experts.down_proj"], ["model.layers.0.mlp.expert_gate"]])
def test_other_names_are_no_matter(tmp_path: Path, layers: list[str]) -> None:
    assert warnings_of(cache(tmp_path, layers)) == []


# Names of layers: that of a weight under weight normalization is its module's.

CONV = "encoder.layers.0.conv"


@pytest.fixture(scope="module")
def normalized(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    """A scan of the recurrent layers of a model whose convolutions are under weight normalization."""
    directory = tmp_path_factory.mktemp("encodec")
    config = transformers.EncodecConfig(num_filters=2, hidden_size=8, codebook_size=8, codebook_dim=8)
    transformers.EncodecModel(config).save_pretrained(directory / "model")
    store = ScanStore(directory / "results", str(directory / "model"))
    api.scan(store.model, layer_types=["*lstm*"], results_dir=store.results_dir)
    return store


@pytest.mark.parametrize("layer", [CONV, "decoder.layers.1.lstm.weight_hh_l1"])
def test_a_layer_is_known_whether_it_is_scanned_or_not(layer: str, normalized: ScanStore) -> None:
    refuse_unknown_layer(request_for(normalized), layer)


@pytest.mark.parametrize(
    "parameter", [f"{CONV}.bias", f"{CONV}.parametrizations.weight.original0", "encoder.layers.13.lstm.bias_hh_l0"]
)
def test_a_parameter_that_is_no_layer_is_refused_and_no_such_is_proposed(parameter: str, normalized: ScanStore) -> None:
    with pytest.raises(LayerTypeError) as refused:
        refuse_unknown_layer(request_for(normalized), parameter)
    assert "bias" not in str(refused.value).partition("did you mean")[2]


def test_a_layer_under_weight_normalization_in_a_scan_of_another_tool_is_one_that_the_model_has(
    normalized: ScanStore,
) -> None:
    cached = normalized.load()
    assert cached is not None
    layers = tuple(LayerSnr(name, "conv", 1.0) for name in (CONV, "encoder.layers.0.convolution"))
    of_other = replace(cached.result, layers=layers, scanned=("conv",), provenance=None)
    scanned = ScanOutcome(cached.result, normalized.scan_path, "")
    warned: list[str] = []
    add_to_cached(of_other, scanned, request_for(normalized, layer_types=["*lstm*"]), warned.append)
    (warning,) = warned
    assert "has layers that EncodecModel does not: encoder.layers.0.convolution;" in warning
