"""A selection as text: names, arguments, configs and JSON, read back as those do who take them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml

import spectrum
from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ModelInfo, Parameter, Provenance, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers.formats import formats, trained
from spectrum.trainers.formats.lora import peft
from spectrum.trainers.formats.selected_json import selected_json
from tests.helpers.architectures import built, longformer, with_signal

# A model as it is in a scan: two layers, whose first `mlp.up` is the beginning of `mlp.up_gate`; experts with a bias.
SHAPES: dict[str, tuple[tuple[int, ...], str | None]] = {
    "emb.weight": ((8, 4), "Embedding"),
    **{
        f"model.layers.{i}.{name}": what
        for i in (0, 1)
        for name, what in {
            "norm.weight": ((4,), None),
            "mlp.up.weight": ((6, 4), "Linear"),
            "mlp.up.bias": ((6,), "Linear"),
            "mlp.up_gate.weight": ((6, 4), "Linear"),
            "experts.down": ((2, 6, 4), None),
            "experts.down_bias": ((2, 4), None),
            "router.weight": ((2, 4), None),
        }.items()
    },
    "out.weight": ((8, 4), "Linear"),
}
KINDS = ("emb", "experts.down", "mlp.up", "mlp.up_gate", "norm", "out", "router")


def layer(name: str, snr: float) -> LayerSnr:
    return LayerSnr(name, name.removeprefix("model.layers.0.").removeprefix("model.layers.1."), snr)


def scan(**changes: Any) -> ScanResult:
    """Of the two layers the second is the better one in all but the last."""
    provenance = Provenance(
        revision=None,
        commit=None,
        fingerprint="f",
        class_asked=None,
        versions={"spectrum": "1", "torch": "2", "transformers": "5"},
        info=ModelInfo(
            model_class="ToyForCausalLM",
            head="out.weight",
            embedding="emb.weight",
            parameters={
                name: Parameter(shape, "bfloat16", "emb.weight" if name == "out.weight" else None, module)
                for name, (shape, module) in SHAPES.items()
            },
            layer_types=KINDS,
        ),
    )
    layers = [layer("emb", 0.5), layer("out", 0.5)]
    for kind in ("experts.down", "mlp.up", "mlp.up_gate", "norm"):
        layers += [layer(f"model.layers.0.{kind}", 1.0), layer(f"model.layers.1.{kind}", 1.25)]
    layers += [layer("model.layers.0.router", 3.0), layer("model.layers.1.router", 2.5)]
    ordered = sorted(layers, key=lambda one: KINDS.index(one.layer_type))
    return ScanResult("org/toy", tuple(ordered), (), KINDS, replace(provenance, **changes))


HALF = [
    "model.layers.1.experts.down",
    "model.layers.1.experts.down_bias",
    "model.layers.1.mlp.up.weight",
    "model.layers.1.mlp.up.bias",
    "model.layers.1.mlp.up_gate.weight",
    "model.layers.1.norm.weight",
    "model.layers.0.router.weight",
]


@pytest.mark.parametrize("embeddings", [True, False])
def test_names_are_those_of_all_parameters_that_train_a_line_each(embeddings: bool) -> None:
    rendered = trained.names(top_percent(scan(), "50", embeddings=embeddings))
    wanted = [*(["out.weight", "emb.weight"] if embeddings else []), *HALF]
    assert rendered.text == "".join(f"{name}\n" for name in wanted)
    assert rendered.notes == ()


def test_names_of_a_scan_of_the_reference_are_its_weights() -> None:
    rendered = trained.names(top_percent(replace(scan(), provenance=None), "50", embeddings=False))
    # It knows neither of biases, nor that the experts are no module.
    assert rendered.text.splitlines() == [f"{name}.weight" for name in dict.fromkeys(map(module_of, HALF))]


def module_of(parameter: str) -> str:
    return parameter.removesuffix(".weight").removesuffix(".bias").removesuffix("_bias")


def test_the_list_for_axolotl_is_that_of_the_selection(tmp_path: Path) -> None:
    selection = top_percent(scan(), "50")
    assert trained.axolotl(selection).text == selection.to_yaml(tmp_path / "list.yaml").read_text()
    assert trained.axolotl(selection).text == (
        "unfrozen_parameters:\n"
        "- ^out.weight$\n"
        "- ^emb.weight$\n"
        "# emb layers\n"
        "# experts.down layers\n"
        "- model.layers.1.experts.down\n"
        "# mlp.up layers\n"
        "- model.layers.1.mlp.up\n"
        "# mlp.up_gate layers\n"
        "- model.layers.1.mlp.up_gate\n"
        "# norm layers\n"
        "- model.layers.1.norm\n"
        "# out layers\n"
        "# router layers\n"
        "- model.layers.0.router\n"
    )


# ms-swift: arguments of a shell command, a parameter trains whose name begins with one of them.


def swift_prefixes(selection: Selection) -> list[str]:
    arguments = shlex.split(trained.swift(selection).text)
    assert arguments[:3] == ["--freeze_parameters_ratio", "1", "--trainable_parameters"]
    return arguments[3:]


def test_arguments_for_swift_are_two_lines_that_a_shell_takes_as_they_are() -> None:
    text = trained.swift(top_percent(scan(), "50", embeddings=False)).text
    assert text == (
        "--freeze_parameters_ratio 1\n"
        "--trainable_parameters model.layers.1.experts.down model.layers.1.mlp.up model.layers.1.mlp.up_gate "
        "model.layers.1.norm model.layers.0.router\n"
    )


def test_a_name_that_begins_an_unselected_one_is_spelled_out_for_swift() -> None:
    best_up = [layer if layer.name != "model.layers.0.mlp.up" else replace(layer, snr=9.0) for layer in scan().layers]
    prefixes = swift_prefixes(top_percent(replace(scan(), layers=tuple(best_up)), "50", embeddings=False))
    up = [prefix for prefix in prefixes if "layers.0.mlp" in prefix]
    assert up == ["model.layers.0.mlp.up.weight", "model.layers.0.mlp.up.bias"]


ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    **{name: partial(built, name) for name in ("llama-tied", "gpt2", "qwen3-moe", "gpt-oss", "gemma3", "t5", "bloom")},
    "longformer": longformer,
}


@cache
def model_and_scan(architecture: str) -> tuple[Any, ScanResult]:
    model = with_signal(ARCHITECTURES[architecture]())
    return model, spectrum.scan(model, show_progress=False)


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("percent", [50, 100])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_swift_trains_what_is_selected(architecture: str, percent: int, embeddings: bool) -> None:
    model, result = model_and_scan(architecture)
    selection = spectrum.select(result, percent, embeddings=embeddings)
    prefixes = tuple(swift_prefixes(selection))
    # ms-swift asks a model for its parameters, which says a tied one once.
    activated = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    once = {id(value): name for name, value in reversed(list(model.named_parameters()))}
    assert activated == {once[id(model.get_parameter(name))] for name in selection.trained()}
    assert activated


# PEFT. What its own code makes of this is in test_peft.


def peft_of(selection: Selection) -> Any:
    return yaml.safe_load(peft(selection).text)


def test_adapters_go_on_modules_and_on_matrices_that_no_such_module_holds() -> None:
    rendered = peft(top_percent(scan(), "50", embeddings=False))
    assert yaml.safe_load(rendered.text) == {
        "target_modules": ["model.layers.1.mlp.up", "model.layers.1.mlp.up_gate"],
        "target_parameters": ["model.layers.1.experts.down", "model.layers.0.router.weight"],
    }
    assert len(rendered.notes) == 1
    assert "model.layers.1.norm" in rendered.notes[0]


def test_without_experts_there_are_no_target_parameters() -> None:
    kept = tuple(one for one in scan().layers if one.layer_type == "mlp.up")
    rendered = peft(top_percent(replace(scan(), layers=kept), "50", embeddings=False))
    assert yaml.safe_load(rendered.text) == {"target_modules": ["model.layers.1.mlp.up"]}
    assert rendered.notes == ()


def test_that_embeddings_get_no_adapter_is_said_where_they_would_train() -> None:
    (*_, note) = peft(top_percent(scan(), "50")).notes
    assert note.startswith("input embedding and output head get no adapter")


def test_experts_alone_have_no_modules_to_adapt() -> None:
    kept = tuple(one for one in scan().layers if one.layer_type == "experts.down")
    found = peft_of(top_percent(replace(scan(), layers=kept), "50"))
    assert found == {"target_modules": [], "target_parameters": ["model.layers.1.experts.down"]}


def test_a_selection_without_matrices_takes_no_adapter() -> None:
    kept = tuple(one for one in scan().layers if one.layer_type == "norm")
    with pytest.raises(SelectionError, match="no selected layer takes an adapter"):
        peft(top_percent(replace(scan(), layers=kept), "100"))


def test_adapters_want_a_scan_that_says_what_the_layers_are() -> None:
    with pytest.raises(SelectionError, match=r"org/toy .*--rescan"):
        peft(top_percent(replace(scan(), provenance=None), "50"))


# JSON.


def test_the_selection_as_json_has_layers_with_scores_and_parameters_with_sizes() -> None:
    def described(name: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "shape": list(shape), "dtype": "bfloat16"}

    first, second = "model.layers.0", "model.layers.1"
    assert json.loads(selected_json(top_percent(scan(), "50")).text) == {
        "model": "org/toy",
        "model_class": "ToyForCausalLM",
        "versions": {"spectrum": "1", "torch": "2", "transformers": "5"},
        "top_percent": 50,
        "order": "highest",
        "embeddings": [described("out.weight", 8, 4), described("emb.weight", 8, 4)],
        "layers": [
            {
                "name": f"{second}.experts.down",
                "type": "experts.down",
                "snr": 1.25,
                "parameters": [
                    described(f"{second}.experts.down", 2, 6, 4),
                    described(f"{second}.experts.down_bias", 2, 4),
                ],
            },
            {
                "name": f"{second}.mlp.up",
                "type": "mlp.up",
                "snr": 1.25,
                "parameters": [described(f"{second}.mlp.up.weight", 6, 4), described(f"{second}.mlp.up.bias", 6)],
            },
            {
                "name": f"{second}.mlp.up_gate",
                "type": "mlp.up_gate",
                "snr": 1.25,
                "parameters": [described(f"{second}.mlp.up_gate.weight", 6, 4)],
            },
            {
                "name": f"{second}.norm",
                "type": "norm",
                "snr": 1.25,
                "parameters": [described(f"{second}.norm.weight", 4)],
            },
            {
                "name": f"{first}.router",
                "type": "router",
                "snr": 3.0,
                "parameters": [described(f"{first}.router.weight", 2, 4)],
            },
        ],
    }


def test_json_of_a_scan_of_the_reference_says_what_is_known() -> None:
    result = replace(scan(), provenance=None)
    found = json.loads(selected_json(top_percent(result, "100", embeddings=False)).text)
    assert (found["model_class"], found["versions"], found["embeddings"]) == (None, None, [])
    (router, _) = (one for one in found["layers"] if one["type"] == "router")
    assert router["parameters"] == [{"name": "model.layers.0.router.weight"}]


def test_json_is_json_where_a_score_is_infinite() -> None:
    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    layers = tuple(replace(one, snr=inf) if one.layer_type == "norm" else one for one in scan().layers)
    rendered = selected_json(top_percent(replace(scan(), layers=layers, provenance=None), "50"))
    json.loads(rendered.text, parse_constant=refuse)


def test_every_format_is_one_that_can_be_asked_for() -> None:
    in_full = {"axolotl", "swift", "nemo", "frozen", "names", "json"}
    assert set(formats.FORMATS) == in_full | {"peft", "axolotl-lora", "trl-lora", "llamafactory"}
    assert {name for name, form in formats.FORMATS.items() if not form.adapters} == in_full
    kept = tuple(one for one in scan().layers if one.layer_type.startswith("mlp."))  # what every format can express
    selection = top_percent(replace(scan(), layers=kept), "50")
    texts = {name: form.render(selection).text for name, form in formats.FORMATS.items()}
    assert len({*texts.values()}) == len(texts)
    assert all(text.endswith("\n") for text in texts.values())
    files = {(form.name, form.ending) for form in formats.FORMATS.values()}
    assert len(files) == len(formats.FORMATS)
