"""What a user types wrong: each mistake is one line with a proposal, and is found before torch is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrum.checkpoint.disk import fingerprint
from spectrum.checkpoint.local import ResolvedModel
from spectrum.cli.console import options
from spectrum.compute import devices
from spectrum.records import LayerSnr, ModelInfo, Parameter, Provenance, ScanResult
from spectrum.scanning import request
from spectrum.scanning.store import ScanStore
from tests.helpers.command import Finished, assert_refused, run, tiny_llama
from tests.helpers.paths import files_below
from tests.helpers.processes import quiet_environment

TYPES = ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj")
LIST = "unfrozen_parameters:\n- model.layers.0.mlp.up_proj\n"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory with a model, its cached scan, and a list."""
    tiny_llama(tmp_path / "models" / "tiny")
    layers = tuple(
        LayerSnr(f"model.layers.{i}.{layer_type}", layer_type, i + 1.5) for layer_type in TYPES for i in range(4)
    )
    parameters = {f"{layer.name}.weight": Parameter((4, 4), "float32") for layer in layers}
    info = ModelInfo("LlamaForCausalLM", parameters, TYPES, None, None)
    digest = fingerprint.fingerprint(ResolvedModel(tmp_path / "models" / "tiny", None).headers)
    made = Provenance(None, None, digest, None, {"transformers": "5"}, info)
    ScanStore(tmp_path / "model_snr_results", "models/tiny").save(ScanResult("models/tiny", layers, (), TYPES, made))
    (tmp_path / "list.yaml").write_text(LIST)
    return tmp_path


# Misspelt options.


@pytest.mark.parametrize(
    ("arg", "meant"),
    [
        ("--top-pct", "--top-percent"),
        ("--top_pct=25", "--top-percent"),
        ("--percent", "--top-percent"),
        ("--model", "--model-name"),
        ("--model_path", "--model-name"),
        ("--model_name_or_path=m", "--model-name"),
        ("-m", "--model-name"),
        ("-model-name", "--model-name"),
        ("-yes", "--yes"),
        ("--Device", "--device"),
        ("--layer-type", "--layer-types"),
        ("--bottom-percent", "--order"),
        ("--seed", "--order"),
        ("--outputdir", "--output-dir"),
        ("-o", "--output-dir"),
        ("--cache_dir", "--results-dir"),
        ("--force", "--rescan"),
        ("--trust", "--trust-remote-code"),
        ("--embeddings", "--no-embeddings"),
        ("--top-p", "--top-params or --top-percent"),
        ("--plots", "--plot"),
        ("--compare-to", "--compare"),
        ("--num-training-gpus", "--training-gpus"),
    ],
)
@pytest.mark.parametrize("before", [["--model-name", "m"], ["--layer-types", "mlp.*"], ["m"]], ids=" ".join)
def test_an_option_that_is_none_gets_a_proposal(arg: str, meant: str, before: list[str], tmp_path: Path) -> None:
    name = arg.partition("=")[0]
    expected = f"spectrum: error: there is no option {name}; did you mean {meant}? (see spectrum --help)\n"
    assert run(tmp_path, *before, arg, "25") == Finished(2, "", expected)


@pytest.mark.parametrize("dash", ["\N{EN DASH}", "\N{EM DASH}", "\N{MINUS SIGN}\N{MINUS SIGN}"])
def test_an_option_that_a_web_page_has_changed_gets_a_proposal(dash: str, tmp_path: Path) -> None:
    done = run(tmp_path, "m", f"{dash}top-percent", "25")
    assert_refused(done, f"{dash}top-percent does not begin with a hyphen; did you mean --top-percent?", status=2)


def test_what_is_like_no_option_is_refused_without_a_proposal(tmp_path: Path) -> None:
    assert_refused(run(tmp_path, "m", "--zzz"), "there is no option --zzz (see", status=2)


def test_values_that_begin_with_a_dash_and_clusters_are_no_misspelling(tmp_path: Path) -> None:
    assert_refused(run(tmp_path, "m", "--top-percent", "-5"), "at most 100 is expected", status=2)
    given = options.parse(["m", "-yq", "--output-dir=-lists", "--plot", "\N{EN DASH}x.png"])
    assert isinstance(given.mode, options.SelectOptions)
    assert (given.yes, given.quiet, given.mode.plot) == (True, True, Path("\N{EN DASH}x.png"))
    assert options.parse(["--", "-m"]).model.model_name == "-m"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_is_shown_beside_a_misspelling(option: str, tmp_path: Path) -> None:
    assert run(tmp_path, "--top-pct", "25", option).status == 0


# The model.


@pytest.mark.parametrize(
    "args",
    [
        ["org/m"],
        ["org/m/"],
        ["--model-name", "org/m"],
        ["--model-name=org/m", "org/m"],
        ["--yes", "org/m"],
        ["--top-percent", "25", "org/m", "--yes"],
        ["--model-name", "org/m", "--model-name", "org/m/"],
        ["https://huggingface.co/org/m"],
    ],
    ids=" ".join,
)
def test_a_model_needs_no_option(args: list[str]) -> None:
    assert options.parse(args).model == options.ModelOptions("org/m")


def test_an_address_may_hold_a_revision_and_the_option_comes_first() -> None:
    address = "https://huggingface.co/org/m/tree/v2"
    assert options.parse([address]).model == options.ModelOptions("org/m", "v2")
    assert options.parse([address, "--revision", "v3"]).model == options.ModelOptions("org/m", "v3")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a", "b"], ["one model is expected, not 'a', 'b'", "quotes"]),
        (["--model-name", "my", "model"], ["not 'my', 'model'"]),
        (["--model-name", "a", "--model-name", "b"], ["not 'a', 'b'"]),
        ([""], ["the model's name is empty"]),
        (["--model-name", ""], ["--model-name", "the model's name is empty"]),
        (["--model-name="], ["the model's name is empty"]),
        (["m", "--compare", ""], ["--compare", "the model's name is empty"]),
        (["m", "--compare", "https://hf.co/org/m/tree/v2"], ["--compare", "revision"]),
        (["https://huggingface.co/datasets/org/text"], ["is the address of a data set"]),
        (["--layer-types", "mlp.*", "org/m"], ["--model-name", "write it before --layer-types", "'org/m'"]),
        (["--layer-types", "mlp.*"], ["are required: --model-name (see"]),
        (["m", "--layer-types", ","], ["--layer-types: a layer type is expected"]),
        (["m", "--format", "swfit"], ["no format 'swfit'; did you mean swift?"]),
        (["m", "--format", "AXOLOTL"], ["did you mean axolotl?"]),
        (["m", "--format", "gguf"], ["no format 'gguf'; there are 'axolotl', "]),
        (["m", "--format", "trl"], ["no format 'trl'; TRL reads axolotl or trl-lora"]),
        (["m", "--format", "LLaMA_Factory"], ["no format 'LLaMA_Factory'; LLaMA-Factory reads llamafactory"]),
        (["m", "--format", "x"], ["no format 'x'; there are 'axolotl', "]),
        (["m", "--format", "h2o"], ["no format 'h2o'; H2O LLM Studio reads frozen"]),
        (["m", "--output-dir", ""], ["--output-dir: the path is empty"]),
        (["m", "--output-dir=~no-such-user/x"], ["'~no-such-user/x' begins with a user"]),
        (["m", "--plot-spectrum", "lm_head", ""], ["the path is empty"]),
        (["m", "--plot-spectrum", "x.png", "lm_head"], ["the layer comes first", "x.png"]),
        (["m", "--device", "gpu0"], ["--device: 'gpu0' is not a device; did you mean cuda:0?"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_usage_says_what_is_right(args: list[str], words: list[str], tmp_path: Path) -> None:
    assert_refused(run(tmp_path, *args), *words, "(see spectrum --help)", status=2)
    assert files_below(tmp_path) == []


# Values.


@pytest.mark.parametrize("value", ["25%", "25 %"])
def test_a_percentage_may_have_its_sign(value: str, work: Path) -> None:
    done = run(work, "models/tiny", "--top-percent", value, "-q")
    assert (done.status, done.out) == (0, "snr_results_models-tiny_unfrozenparameters_25percent.yaml\n")


@pytest.mark.parametrize(
    ("option", "value", "meant"),
    [("--top-percent", "0.25", "25"), ("--top-params", ".5", "50"), ("--top-percent", "0.125%", "12.5")],
)
def test_a_fraction_is_taken_as_a_percentage_with_a_warning(option: str, value: str, meant: str, work: Path) -> None:
    (warning,) = options.parse(["m", option, value]).warnings
    assert warning.endswith(f"is less than one percent; write {option} {meant} for {meant} percent")
    assert warning in run(work, "models/tiny", option, value).err
    assert options.parse(["m", option, "1"]).warnings == ()
    assert options.parse(["m", option, "0.009"]).warnings == ()  # 0.9 percent would be as odd


def test_layer_types_may_have_commas_between_them(work: Path) -> None:
    done = run(work, "models/tiny", "-q", "--layer-types", "mlp.up_proj,mlp.down_proj", "self_attn.*,")
    assert done.status == 0, done.err
    assert options.parse(["m", "--layer-types", "a,b", "c"]).mode == options.SelectOptions(["a", "b", "c"])


def test_patterns_that_the_shell_has_replaced_by_files_need_quotes(work: Path) -> None:
    for name in ("mlp.md", "mlp.txt", "self_attn.py", "zebra.txt"):
        (work / name).touch()
    done = run(work, "models/tiny", "--layer-types", "mlp.md", "mlp.txt", "self_attn.py")
    assert_refused(done, "'mlp.md', 'mlp.txt', 'self_attn.py'; did you mean 'mlp.*' self_attn.q_proj?")
    done = run(work, "models/tiny", "--layer-types", "zebra.txt")
    assert_refused(done, "no layer type matches 'zebra.txt'. Put a pattern in quotes")


def test_the_home_directory_is_found_behind_an_equals_sign(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(work))
    done = run(work, "models/tiny", "-q", "--output-dir=~/lists", "--results-dir=~/model_snr_results")
    assert done.out == f"{work}/lists/snr_results_models-tiny_unfrozenparameters_50percent.yaml\n"
    assert options.parse(["m", "--check", "~/list.yaml"]).mode == options.CheckOptions(work / "list.yaml")
    drawn = options.PlotSpectrumOptions(("lm_head", str(work / "x.png")))
    assert options.parse(["m", "--plot-spectrum", "lm_head", "~/x.png"]).mode == drawn


# What is found before torch is imported.

PROBE = """
import contextlib, io, json, sys
from spectrum.cli.entry import main
found = []
for args in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            status = main(args)
        except SystemExit as stop:
            status = stop.code
    found.append([status, out.getvalue(), err.getvalue(), sorted({"torch", "transformers"} & sys.modules.keys())])
print(json.dumps(found))
"""

CHEAP: list[tuple[list[str], int, str]] = [
    (["--top-pct", "25"], 2, "did you mean --top-percent?"),
    (["models/tiny", "--device", "gpu"], 2, "'gpu' is not a device; did you mean cuda?"),
    (["./models/tinny"], 1, "there is no directory './models/tinny'; did you mean models/tiny?"),
    (["./model/tiny"], 1, "did you mean models/tiny?"),
    (["/nowhere/at/all"], 1, "there is no directory '/nowhere/at/all'"),
    (["models/tiny/config.json"], 1, "is a file; give the directory"),
    (["./models"], 1, "models has no model itself, but its directory tiny does"),
    (["broken"], 1, "broken/config.json is not valid JSON"),
    (["empty"], 1, "empty has no weight files"),
    (["lacking"], 1, "lacks the shard"),
    (["models/tiny", "--rescan", "--results-dir", "list.yaml"], 1, "cannot write to list.yaml"),
    (["models/tiny", "--results-dir", "list.yaml"], 1, "cannot write to list.yaml"),
    (["models/tiny", "--output-dir", "list.yaml"], 1, "cannot write to list.yaml"),
    (["models/tiny", "--output-dir", "list.yaml/sub"], 1, "cannot write to list.yaml/sub"),
    (["models/tiny", "--plot", "list.yaml/x.png"], 1, "cannot write to list.yaml"),
    (["models/tiny", "--plot", "x.jpg"], 1, ".png, .svg or .pdf; x.jpg does not"),
    (["models/tiny", "--layer-types", "mlp", "self_attn"], 1, "did you mean 'mlp.*' self_attn.q_proj?"),
    (["models/tiny", "--layer-types", "mlp.upproj"], 1, "did you mean mlp.up_proj?"),
    (["models/tiny", "--compare", "missing.json"], 1, "no scan missing.json"),
    (["models/tiny", "--rescan", "--yes", "--compare", "./models/tinny"], 1, "did you mean models/tiny?"),
    (["models/tiny", "--compare", "list.yaml"], 2, "list.yaml is a list"),
    (["broken", "--compare", "models/tiny"], 1, "broken/config.json is not valid JSON"),
    (["models/tiny", "--check", "missing.yaml"], 1, "cannot read missing.yaml"),
    (["models/tiny", "--check", "models"], 1, "cannot read models"),
    (["./models/tinny", "--check", "list.yaml"], 1, "did you mean models/tiny?"),
    (["broken", "--check", "list.yaml"], 1, "broken/config.json is not valid JSON"),
    (["models/tiny", "--plot-spectrum", "model.layers.0.mlp.up_proj", "x.jpg"], 1, ".png, .svg or .pdf"),
    (["models/tiny", "--plot-spectrum", "lm_head", "list.yaml/x.png"], 1, "cannot write to list.yaml"),
    (["./models/tinny", "--plot-spectrum", "lm_head", "x.png"], 1, "did you mean models/tiny?"),
    (
        ["models/tiny", "--plot-spectrum", "model.layers.0.mlp.upproj", "x.png"],
        1,
        "models/tiny has no layer 'model.layers.0.mlp.upproj'; did you mean model.layers.0.mlp.up_proj?",
    ),
    (
        ["models/tiny", "--plot-spectrum", "model.layers.1.mlp.up_proj.weight", "x.png"],
        1,
        "did you mean model.layers.1.mlp.up_proj?",
    ),
]


def test_cheap_mistakes_are_found_before_torch_is_imported(work: Path) -> None:
    (work / "broken").mkdir()
    (work / "broken" / "config.json").write_text('{"model_type": ')
    (work / "empty").mkdir()
    (work / "empty" / "config.json").write_text("{}")
    shutil.copytree(work / "empty", work / "lacking")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (work / "lacking" / "model.safetensors.index.json").write_text(json.dumps(index))
    before = files_below(work)

    found = probed(work, [args for args, _, _ in CHEAP])

    for (args, status, words), (found_status, out, err, imported) in zip(CHEAP, found, strict=True):
        assert_refused(Finished(found_status, out, err), words, status=status)
        assert imported == [], args
    assert files_below(work) == before


def probed(directory: Path, commands: list[list[str]], **environment: str) -> Any:
    """For each command, all in one process: its status, what it printed, and whether it imported torch."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=directory,
        env=quiet_environment(directory) | environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Layers that the cached scan does not know.


@pytest.mark.parametrize("cache", ["missing", "damaged", "of other weights", "without provenance"])
def test_a_cached_scan_that_cannot_be_trusted_refuses_no_layer(cache: str, work: Path) -> None:
    pytest.importorskip("matplotlib")
    store = ScanStore(work / "model_snr_results", "models/tiny")
    if cache == "missing":
        store.scan_path.unlink()
    elif cache == "damaged":
        store.scan_path.write_text("{")
    elif cache == "of other weights":
        loaded = store.load()
        assert loaded is not None
        made = loaded.result.provenance
        assert made is not None
        store.save(replace(loaded.result, provenance=replace(made, fingerprint="0" * 64)))
    else:
        store.sidecar_path.unlink()
    done = run(work, "models/tiny", "--plot-spectrum", "model.norm", "x.svg", "--device", "cpu")
    assert (done.status, done.out, done.err) == (0, "x.svg\n", "")


def test_the_cached_scan_is_read_where_scans_are_cached(work: Path) -> None:
    # The scan there has no norm, which the model has: that this is an error shows which scan was read.
    (work / "model_snr_results").rename(work / "elsewhere")
    done = run(work, "models/tiny", "--plot-spectrum", "model.norm", "x.svg", "--results-dir", "elsewhere")
    assert_refused(done, "models/tiny has no layer 'model.norm'")


# Devices.


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:5"])
def test_an_absent_gpu_is_refused_with_a_cached_scan_too(
    name: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    before = files_below(work)
    assert_refused(run(work, "models/tiny", "--device", name), f"there is no device {name!r}")
    assert files_below(work) == before
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert run(work, "models/tiny", "--device", name).status == 0


DRIVER = """
import ctypes
from types import SimpleNamespace

def count(pointer):
    pointer._obj.value = 2
    return 0

ctypes.CDLL = lambda name: SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=count)
"""


def test_a_gpu_that_the_driver_has_needs_no_torch(work: Path) -> None:
    (work / "code").mkdir()
    (work / "code" / "sitecustomize.py").write_text(DRIVER)
    command = ["models/tiny", "-q", "--device"]
    found = probed(
        work, [[*command, name] for name in ("cpu", "auto", "cuda", "cuda:1")], PYTHONPATH=str(work / "code")
    )
    assert [(status, imported) for status, _, _, imported in found] == [(0, [])] * 4


def test_a_gpu_that_the_driver_lacks_is_for_torch_to_decide(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "num_driver_gpus", lambda: 1)
    monkeypatch.delitem(sys.modules, "torch")
    asked: list[str] = []
    monkeypatch.setattr(devices, "devices_for", lambda name, warn: asked.append(name))
    for name in ("cpu", "auto", "mps", "cuda", "cuda:0", "cuda:1"):
        request.check_device(name)
    assert asked == ["cuda:1"]
