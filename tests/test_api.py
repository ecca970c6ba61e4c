"""Scan and select from Python: what is cached, what is in memory, what is said where, and in several processes."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import spectrum
import spectrum.checkpoint.checkpoint
import spectrum.checkpoint.reader
from spectrum.errors import CheckpointError, DeviceError, LayerTypeError, SelectionError
from spectrum.records import ScanResult
from tests.helpers.architectures import built, with_signal
from tests.helpers.command import run
from tests.helpers.forks import Forks
from tests.helpers.oracle import oracle_snr
from tests.helpers.paths import ROOT, TINY_LLAMA, files_below
from tests.helpers.wrappers import FILTERS, checkpointed, compiled, layers_compiled, with_fsdp, with_fsdp2

pytestmark = FILTERS

_GUARD = 150  # seconds, against hangs; a quiet machine needs ten

PUBLIC = {
    *("ScanResult", "Selection", "SpectrumError", "Unfrozen", "Verification", "__version__"),
    *("scan", "select", "unfreeze", "verify"),
}


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the model and nothing else, and no network."""
    shutil.copytree(TINY_LLAMA, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def sample() -> ScanResult:
    """The scan of the sample checkpoint, from memory."""
    return scanned(loaded())


def loaded(**settings: Any) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(TINY_LLAMA, **settings)


def scanned(model: str | Path | nn.Module, *args: Any, **settings: Any) -> ScanResult:
    quiet: dict[str, Any] = {"show_progress": False, "device": "cpu"}
    return spectrum.scan(model, *args, **quiet | settings)


def refuse_reading(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("weights are read")

    patch.setattr(spectrum.checkpoint.reader, "open_checkpoint", refuse)
    patch.setattr(spectrum.checkpoint.checkpoint.Checkpoint, "read", refuse)


# On disk.


def test_a_scan_writes_what_the_command_writes(fresh: Path) -> None:
    scanned("model")
    command = fresh / "command"
    shutil.copytree(TINY_LLAMA, command / "model")
    assert run(command, "--model-name", "model", "--device", "cpu", "--yes").status == 0
    ours, theirs = fresh / "model_snr_results", command / "model_snr_results"
    assert files_below(ours) == files_below(theirs) == ["snr_results_model.json", "snr_results_model.meta.json"]
    for name in files_below(ours):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    # Lists are the caller's: none is written beside it.
    assert [path.name for path in fresh.iterdir() if path.is_file()] == []


def test_a_selection_writes_the_list_that_the_command_writes(fresh: Path) -> None:
    assert run(fresh, "--model-name", "model", "--top-percent", "25", "--device", "cpu", "--yes").status == 0
    (theirs,) = fresh.glob("*.yaml")
    ours = spectrum.select(scanned("model"), 25).to_yaml(fresh / "ours.yaml")
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("kind", [str, Path])
def test_the_second_scan_reads_no_weight(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], str | Path]
) -> None:
    first = scanned(kind("model"))
    refuse_reading(monkeypatch)
    assert scanned(kind("model")) == first
    with pytest.raises(AssertionError, match="weights are read"):
        scanned(kind("model"), rescan=True)


def test_a_scan_of_the_commands_is_used(fresh: Path, monkeypatch: pytest.MonkeyPatch, sample: ScanResult) -> None:
    assert run(fresh, "--model-name", "model", "--device", "cpu", "--results-dir", "r", "--yes").status == 0
    refuse_reading(monkeypatch)
    assert scanned("model", results_dir="r").layers == sample.layers


def test_a_cached_scan_is_enough_where_the_model_is_gone(fresh: Path) -> None:
    first = scanned("model")
    shutil.rmtree(fresh / "model")
    assert scanned("model") == first


def test_changed_weights_are_scanned_anew_which_the_log_says(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = scanned("model")
    file = sorted((fresh / "model").glob("*.safetensors"))[0]
    stored = load_file(file)
    name = next(name for name in stored if "down_proj" in name)
    save_file(stored | {name: stored[name].flip(0) * 2 + 1}, file, metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, "spectrum"):
        second = scanned("model")
    assert [record.name for record in caplog.records] == ["spectrum"]
    assert "is not used: the weights in model are not those that were scanned" in caplog.text
    changed = {new.name for old, new in zip(first.layers, second.layers, strict=True) if old != new}
    assert changed == {name.removesuffix(".weight")}


# Layer types.


def kept(result: ScanResult, *types: str) -> ScanResult:
    return replace(result, layers=tuple(one for one in result.layers if one.layer_type in types), scanned=tuple(types))


@pytest.mark.parametrize(
    ("asked", "types"),
    [
        (["self_attn.q_proj"], ["self_attn.q_proj"]),
        (["mlp.*", "lm_head"], ["lm_head", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]),
    ],
)
def test_layer_types_limit_the_scan(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, sample: ScanResult, asked: list[str], types: list[str]
) -> None:
    wanted = kept(sample, *types)
    assert scanned(loaded(), asked).layers == wanted.layers
    first = scanned("model", asked)
    assert (first.layers, first.scanned) == (wanted.layers, wanted.scanned)
    stored = json.loads((fresh / "model_snr_results" / "snr_results_model.json").read_text())
    assert stored.keys() == {layer.name for layer in wanted.layers}
    refuse_reading(monkeypatch)
    assert scanned("model", asked) == first


def test_layer_types_of_a_cache_that_has_more_are_those_asked_for(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, sample: ScanResult
) -> None:
    scanned("model")
    refuse_reading(monkeypatch)
    found = scanned("model", ["lm_head", "self_attn.k_proj"])
    assert (found.layers, found.scanned) == (
        kept(sample, "lm_head", "self_attn.k_proj").layers,
        ("lm_head", "self_attn.k_proj"),
    )


def test_layer_types_that_a_cache_lacks_are_added_to_it(fresh: Path, sample: ScanResult) -> None:
    scanned("model", ["lm_head"])
    assert scanned("model", ["self_attn.k_proj"]).scanned == ("self_attn.k_proj",)
    with pytest.warns(UserWarning, match="2 of the model's 12 layer types"):
        both = scanned("model")
    assert both.layers == kept(sample, "lm_head", "self_attn.k_proj").layers
    assert scanned("model", ["all"]).layers == sample.layers


@pytest.mark.parametrize("source", ["disk", "memory", "cache"])
def test_a_layer_type_that_the_model_does_not_have_is_an_error(fresh: Path, source: str) -> None:
    if source == "cache":
        scanned("model")
    with pytest.raises(LayerTypeError, match=r"no layer type matches 'mlp\.gate'; .*mlp\.gate_proj"):
        scanned(loaded() if source == "memory" else "model", ["mlp.gate"])


def test_no_layer_types_are_the_same_before_and_after_the_cache(fresh: Path) -> None:
    assert scanned("model", []) == scanned("model", [])


# In memory.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_in_memory_scores_as_its_checkpoint_does(fresh: Path, dtype: torch.dtype) -> None:
    model = loaded(dtype=dtype)
    on_disk, in_memory = scanned("model"), scanned(model)
    assert in_memory.layers == on_disk.layers
    assert in_memory.scanned == on_disk.scanned
    assert in_memory.model == str(TINY_LLAMA)
    assert spectrum.select(in_memory, 25).trained() == spectrum.select(on_disk, 25).trained()


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "qwen3-moe", "gpt-oss", "gemma3", "t5", "mamba"])
def test_other_architectures_in_memory_score_as_their_checkpoints_do(tmp_path: Path, architecture: str) -> None:
    model = with_signal(built(architecture))
    model.save_pretrained(tmp_path / "model")
    on_disk = scanned(tmp_path / "model", results_dir=tmp_path / "results")
    in_memory = scanned(model)
    assert in_memory.layers == on_disk.layers
    assert on_disk.provenance is not None
    assert in_memory.provenance == replace(on_disk.provenance, fingerprint=None)


def test_a_model_in_memory_is_not_cached_and_left_as_it_is(fresh: Path) -> None:
    model = loaded()
    for i, value in enumerate(model.parameters()):
        value.requires_grad_(i % 2 == 0)
    model.train()
    before = {name: (value.requires_grad, value.detach().clone()) for name, value in model.named_parameters()}
    shutil.rmtree(fresh / "model")
    scanned(model)
    assert list(fresh.iterdir()) == []
    assert model.training
    for name, value in model.named_parameters():
        assert value.requires_grad == before[name][0]
        assert value.grad is None
        assert torch.equal(value, before[name][1])


def test_a_model_in_memory_is_scanned_as_it_is_now(sample: ScanResult) -> None:
    model = loaded(dtype=torch.float32)
    layer = model.model.layers[3].mlp.up_proj
    with torch.no_grad():
        layer.weight += torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    changed = {new.name: new.snr for old, new in zip(sample.layers, scanned(model).layers, strict=True) if old != new}
    assert changed == {"model.layers.3.mlp.up_proj": pytest.approx(oracle_snr(layer.weight.detach().numpy()), rel=1e-8)}


class Plain(nn.Module):
    """No model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 16)
        self.blocks = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
        self.norm = nn.LayerNorm(16)
        self.conv = nn.Conv1d(4, 8, 3)


def test_a_module_of_torchs_own_is_scanned() -> None:
    torch.manual_seed(0)
    model = Plain()
    result = scanned(model)
    assert (result.model, result.scanned) == ("Plain", ("blocks", "conv", "first", "norm"))
    weights = {
        "first": model.first.weight,
        "blocks.0": model.get_parameter("blocks.0.weight"),
        "blocks.1": model.get_parameter("blocks.1.weight"),
        "norm": model.norm.weight[None],
        "conv": model.conv.weight.reshape(8, 12),
    }
    expected = {name: pytest.approx(oracle_snr(w.detach().numpy()), rel=1e-8) for name, w in weights.items()}
    assert {layer.name: layer.snr for layer in result.layers} == expected
    assert result.provenance is not None
    assert (result.provenance.info.head, result.provenance.info.embedding) == (None, None)
    selection = spectrum.select(result, 50)
    best = max((0, 1), key=lambda i: oracle_snr(weights[f"blocks.{i}"].detach().numpy()))
    assert spectrum.unfreeze(model, selection).names == (f"blocks.{best}.weight",)


def test_layers_that_are_not_finite_are_left_out_with_a_warning() -> None:
    model = Plain()
    with torch.no_grad():
        model.first.weight[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="left out for NaN or infinity in their weights: first"):
        result = scanned(model)
    assert result.left_out == ("first",)
    assert "1 left out" in repr(result)
    assert "first" not in spectrum.select(result, 100).trained()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    "wrapper",
    [DistributedDataParallel, compiled, lambda model: compiled(DistributedDataParallel(model))],
    ids=["ddp", "compiled", "compiled-ddp"],
)
def test_wrappers_around_a_model_are_no_part_of_its_names(
    wrapper: Callable[[nn.Module], nn.Module], sample: ScanResult
) -> None:
    result = scanned(wrapper(loaded()))
    assert (result.layers, result.model) == (sample.layers, sample.model)
    assert result.provenance is not None
    assert result.provenance.info.model_class == "LlamaForCausalLM"


def tiny() -> Any:
    return built("llama")


def with_int8(model: Any) -> nn.Module:
    packed = torch.zeros(48, 32, dtype=torch.int8)
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(packed, requires_grad=False)
    return model  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "meta": (lambda model: model.to("meta"), "as a whole in memory"),
    "fsdp": (lambda model: with_fsdp(model, layers=False), "scan it before"),
    "fsdp-flat": (lambda model: with_fsdp(model, original=False, layers=False), "scan it before"),
    "fsdp2": (with_fsdp2, "as a whole in memory"),
    "checkpointed": (checkpointed, "scan it before"),
    "layers-compiled": (layers_compiled, "scan it before"),
    "adapters": (lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"])), "scan it before"),
    "adapted-embedding": (
        lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])),
        "scan it before",
    ),
    "int8": (with_int8, "int8"),
    "nothing": (lambda model: nn.ReLU(), "no weight matrices"),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_whose_weights_are_not_its_own_is_refused(kind: str) -> None:
    change, words = REFUSED[kind]
    with pytest.raises(CheckpointError, match=words) as refused:
        scanned(change(tiny()))
    assert "\n" not in str(refused.value)


def test_a_model_whose_adapters_are_merged_is_scanned() -> None:
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"]))
    merged: Any = model
    assert scanned(merged.merge_and_unload()).layers == scanned(tiny()).layers


# Selecting.


def counts(selection: spectrum.Selection) -> dict[str, int]:
    return {kind.layer_type: kind.num_selected for kind in selection.types}


@pytest.mark.parametrize(
    ("percent", "as_typed", "of_eight"),
    [
        ((), "50", 4),
        ((25,), "25", 2),
        ((25.0,), "25.0", 2),
        (("25",), "25", 2),
        ((12.5,), "12.5", 1),
        (("37.50",), "37.50", 3),
        ((100 / 3,), str(100 / 3), 2),
        ((100,), "100", 8),
    ],
)
def test_a_percentage_may_be_a_number_or_as_typed(
    sample: ScanResult, percent: tuple[Any, ...], as_typed: str, of_eight: int
) -> None:
    selection = spectrum.select(sample, *percent)
    assert selection.percent == as_typed
    one = int(as_typed == "100")  # a type of one layer
    assert counts(selection) == {
        kind: one if kind in ("lm_head", "model.embed_tokens", "model.norm") else of_eight for kind in sample.scanned
    }


@pytest.mark.filterwarnings("ignore:.* percent is less than one layer of every type:UserWarning")
@pytest.mark.parametrize("percent", [1e-5, 0.1 + 0.2, 100 - 1e-13, 1 / 700], ids=repr)
def test_any_number_in_the_range_is_a_percentage(sample: ScanResult, percent: float) -> None:
    selection = spectrum.select(sample, percent)
    assert float(selection.percent) == percent
    assert set(counts(selection).values()) <= {0, 7}


@pytest.mark.parametrize("percent", [0, -1, 100.1, 101, float("nan"), float("inf"), "", "x", "25%%", "1_0", True])
@pytest.mark.parametrize("argument", ["top_percent", "top_params"])
def test_what_is_no_percentage_is_a_value_error(sample: ScanResult, argument: str, percent: Any) -> None:
    with pytest.raises(ValueError, match=r"over 0 and at most 100"):
        spectrum.select(sample, **{argument: percent})


def test_a_selection_without_a_layer_is_warned_of(sample: ScanResult) -> None:
    with pytest.warns(
        UserWarning,
        match="trains: 1 percent is less than one layer of every type; .* so 13 percent is the least",
    ) as told:
        spectrum.select(sample, 1)
    assert told[0].filename == __file__


def test_a_selection_of_embeddings_alone_is_warned_of(sample: ScanResult) -> None:
    alone = sample.only(["lm_head", "model.embed_tokens"])
    with pytest.warns(UserWarning, match="nothing but input embedding and output head trains: no other layer"):
        spectrum.select(alone, 100)
    spectrum.select(sample, 100)


def test_both_percentages_are_a_value_error(sample: ScanResult) -> None:
    with pytest.raises(ValueError, match="not both"):
        spectrum.select(sample, 25, top_params=25)


@pytest.mark.parametrize("share", [30, 30.0, "30"])
@pytest.mark.parametrize("embeddings", [True, False])
def test_a_share_of_all_parameters_is_filled_and_not_exceeded(
    sample: ScanResult, share: float | str, embeddings: bool
) -> None:
    model = loaded()
    total = sum(value.numel() for value in model.parameters())

    def trained(selection: spectrum.Selection) -> int:
        return sum(model.get_parameter(name).numel() for name in selection.trained())

    selection = spectrum.select(sample, top_params=share, embeddings=embeddings)
    assert trained(selection) <= 0.30 * total
    # One more layer of each of the types that have eight is too much; those with one take all, or none.
    count = counts(selection)["mlp.up_proj"]
    more = spectrum.select(sample, 12.5 * (count + 1), embeddings=embeddings)
    assert trained(more) > 0.30 * total
    assert selection == spectrum.select(sample, selection.percent, embeddings=embeddings)


@pytest.mark.parametrize("order", ["lowest", "random:7"])
def test_a_control_trains_as_many_layers_of_each_type(sample: ScanResult, order: str) -> None:
    highest, control = spectrum.select(sample, 25), spectrum.select(sample, 25, order=order)
    assert (highest.order, control.order) == ("highest", order)
    assert counts(control) == counts(highest)
    assert control.layers() != highest.layers()
    # The layers of a type are of one size here, so that as many parameters train.
    model = loaded()
    assert spectrum.unfreeze(model, control).trained == spectrum.unfreeze(model, highest).trained
    shared = spectrum.select(sample, top_params=30, order=order)
    assert shared == spectrum.select(sample, shared.percent, order=order)
    assert shared.percent == spectrum.select(sample, top_params=30).percent


@pytest.mark.parametrize("order", ["random", "random:-1", "top", 7, None])
def test_what_is_no_order_is_a_value_error(sample: ScanResult, order: Any) -> None:
    for select in (partial(spectrum.select, sample, 25), partial(spectrum.select, sample, top_params=30)):
        with pytest.raises(ValueError, match=r"such as random:1|highest, lowest or random:SEED"):
            select(order=order)


def test_the_list_of_a_control_is_unfrozen_as_it_says(sample: ScanResult, tmp_path: Path) -> None:
    control = spectrum.select(sample, 25, order="random:7")
    path = control.to_yaml(tmp_path / "list.yaml")
    assert "\n# control: random 25 percent (seed 7) of each layer type\n" in path.read_text()
    model = loaded()
    assert spectrum.unfreeze(model, path).names == spectrum.unfreeze(model, control).names


def test_results_are_drawn_from_python(sample: ScanResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, result in (("scan", sample), ("selection", spectrum.select(sample, 25))):
        path = tmp_path / f"{name}.png"
        assert result.plot(path) == path
        assert result.plot()._repr_png_()[0] == path.read_bytes()
    assert (tmp_path / "scan.png").read_bytes() != (tmp_path / "selection.png").read_bytes()


def test_a_share_that_no_selection_fits_in_is_an_error(sample: ScanResult) -> None:
    with pytest.raises(SelectionError, match="the smallest selection trains"):
        spectrum.select(sample, top_params=0.01)


# What is said, and where.


def test_the_bar_goes_to_stderr_and_nothing_to_stdout(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scanned("model", show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "75/75 weights" in err
    scanned("model", show_progress=True)
    assert capfd.readouterr() == ("", "")


def test_without_a_bar_nothing_is_said(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = scanned("model")
    scanned(loaded())
    capfd.readouterr()  # transformers has shown how it loads
    scanned("model", rescan=True)
    spectrum.unfreeze(model := tiny(), spectrum.select(scanned(model), 50))
    spectrum.select(result, 25).to_yaml(fresh / "list.yaml")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(("progress", "words"), [(True, "75/75 weights"), (False, "")])
def test_on_a_terminal_nothing_is_asked(forks: Forks, fresh: Path, progress: bool, words: str) -> None:
    script = f"import spectrum; r = spectrum.scan('model', show_progress={progress}); print('layers', len(r.layers))"
    with forks.of(script).on_terminal(cwd=fresh, environment={"TERM": "xterm"}) as (process, screen):
        status = process.wait()
        screen.expect(r"layers \d+\r\n")
        shown = f"{screen.before}{screen.after}"
    assert status == 0, shown
    assert words in shown
    assert shown.endswith("layers 75\r\n") if progress else shown == "layers 75\r\n"


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": "many"}, {"batch_size": 1.5}])
def test_a_batch_size_that_is_none_is_a_value_error(fresh: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        scanned("model", **wrong)
    assert not (fresh / "model_snr_results").exists()


@pytest.mark.parametrize("size", [1, 3, "2", "auto"])
def test_scores_do_not_depend_on_the_batch_size(sample: ScanResult, size: int | str) -> None:
    found = scanned(loaded(), batch_size=size)
    assert [layer.snr for layer in found.layers] == pytest.approx([layer.snr for layer in sample.layers], rel=1e-8)


@pytest.mark.parametrize("source", ["disk", "memory"])
def test_a_device_that_is_not_there_is_an_error(fresh: Path, source: str) -> None:
    with pytest.raises(DeviceError, match="'abacus' is not a device"):
        scanned(loaded() if source == "memory" else "model", device="abacus")


@pytest.mark.parametrize("name", ["./nowhere", "nobody/nothing"])
def test_a_model_that_is_not_there_is_an_error_of_ours(fresh: Path, name: str) -> None:
    with pytest.raises(spectrum.SpectrumError, match=f"no directory '{re.escape(name)}'"):
        scanned(name)


# Imports.


def test_the_package_shows_its_interface_and_nothing_is_hidden() -> None:
    assert set(spectrum.__all__) == PUBLIC
    assert set(dir(spectrum)) >= PUBLIC
    assert all(hasattr(spectrum, name) for name in dir(spectrum))
    names: dict[str, Any] = {}
    exec("from spectrum import *", names)
    assert names.keys() - {"__builtins__"} == PUBLIC
    assert all(names[name] is getattr(spectrum, name) for name in PUBLIC)
    with pytest.raises(AttributeError, match="module 'spectrum' has no attribute 'scann'"):
        spectrum.scann  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "import spectrum",
        "import spectrum; dir(spectrum)",
        "import spectrum; r = spectrum.scan('model'); spectrum.select(r, 25).to_yaml('list.yaml'); repr(r)",
        "import spectrum; spectrum.select(spectrum.scan('model'), top_params=30)._repr_html_()",
        "from spectrum import *",
    ],
)
def test_torch_is_not_imported_before_weights_are_read(fresh: Path, script: str) -> None:
    scanned("model")
    heavy = "[name for name in ('torch', 'transformers', 'accelerate', 'matplotlib', 'IPython') if name in sys.modules]"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; {script}; print({heavy})"],
        cwd=fresh,
        capture_output=True,
        text=True,
        timeout=_GUARD,
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


# In several processes.

TRAINING = """
import logging, os, pickle, sys
import torch
from torch import distributed
import spectrum, spectrum.checkpoint.checkpoint

# Whoever reads first goes on once the other one waits for it, which it says on a pipe; so none finds the cache made.
read, first = spectrum.checkpoint.checkpoint.Checkpoint.read, True

def reading(*args):
    global first
    if first:
        first = False
        open("pipe").close()
        open(f"read-{os.environ['RANK']}", "w").close()
    return read(*args)

class Waiting(logging.Handler):
    def emit(self, record):
        if "waiting for it" in record.getMessage():
            open("pipe", "w").close()

spectrum.checkpoint.checkpoint.Checkpoint.read = reading
logger = logging.getLogger("spectrum")
logger.addHandler(Waiting())
logger.setLevel(logging.INFO)

distributed.init_process_group("gloo")
rank = distributed.get_rank()
group = distributed.new_group([0, 1])
result = spectrum.scan("model", device="cpu", show_progress=False)
with open(f"result-{rank}", "wb") as file:
    pickle.dump(result, file)
total = torch.tensor([rank + 1])
distributed.all_reduce(total)
distributed.all_reduce(total, group=group)
assert distributed.is_initialized() and distributed.get_world_size() == 2 and total.item() == 6, total
distributed.destroy_process_group()
os._exit(0)  # a thread of gloo's may still let go of a tensor, which aborts a Python that is shutting down
"""


@pytest.mark.slow
def test_of_two_processes_that_train_one_scans_and_both_have_its_result(fresh: Path, sample: ScanResult) -> None:
    os.mkfifo(fresh / "pipe")
    (fresh / "train.py").write_text(TRAINING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    done = subprocess.run(launcher, cwd=fresh, env=environment, capture_output=True, text=True, timeout=_GUARD)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    results = [pickle.loads((fresh / f"result-{rank}").read_bytes()) for rank in (0, 1)]
    assert results[0].layers == results[1].layers == sample.layers
    assert len(list(fresh.glob("read-*"))) == 1
    assert files_below(fresh / "model_snr_results") == ["snr_results_model.json", "snr_results_model.meta.json"]


def test_a_process_of_several_scans_a_model_in_memory_by_itself(
    monkeypatch: pytest.MonkeyPatch, sample: ScanResult
) -> None:
    # As torchrun tells the first of two; a scan in step with the other would wait for it here.
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert scanned(loaded()).layers == sample.layers


# What results look like.


def test_a_scan_shows_a_row_for_each_layer_type() -> None:
    torch.manual_seed(0)
    model = Plain()
    first = oracle_snr(model.first.weight.detach().numpy())
    blocks = sorted(oracle_snr(block.detach().numpy()) for block in model.blocks.parameters())
    lines = repr(scanned(model)).splitlines()
    assert lines[:2] == ["Scan of Plain (Plain): 5 layers", ""]
    assert lines[2].split() == ["layer", "type", "layers", *["lowest", "SNR", "median", "SNR", "highest", "SNR"]]
    assert lines[3].split() == [
        "blocks",
        "2",
        *(f"{value:.4g}" for value in (blocks[0], (blocks[0] + blocks[1]) / 2, blocks[1])),
    ]
    assert lines[5].split() == ["first", "1", *[f"{first:.4g}"] * 3]
    assert lines[6].split() == ["norm", "1", "1", "1", "1"]
    assert len(lines) == 7


def test_a_selection_shows_how_many_of_each_type_train(sample: ScanResult) -> None:
    lines = repr(spectrum.select(sample, 25, embeddings=False)).splitlines()
    assert lines[0] == f"Top 25 percent of {TINY_LLAMA}, without input embedding and output head"
    assert "with input embedding and output head" in repr(spectrum.select(sample, 25)).splitlines()[0]
    end = lines.index("", 2)
    rows = {line.split()[0]: " ".join(line.split()[1:4]) for line in lines[3:end]}
    assert rows.keys() == {*sample.scanned, "total"}
    assert rows["mlp.up_proj"] == "2 of 8"
    assert rows["lm_head"] == "0 of 1"
    assert rows["total"] == "18 of 75"
    assert [line.split(":")[0] for line in lines[end + 1 :]] == ["margin"]


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]


def test_in_a_notebook_both_are_tables_of_the_same_rows(sample: ScanResult) -> None:
    for shown in (sample, spectrum.select(sample, 25)):
        html = shown._repr_html_()
        title, table, *below = repr(shown).split("\n\n")
        assert html.startswith(f"<p>{title}</p>\n<table>")
        after = "".join(["</table>", *(f"\n<p>{text}</p>" for text in below), '\n<img alt="Heat map of '])
        assert html.partition("</table>")[2].startswith(after.removeprefix("</table>"))
        rows = [" ".join(row).split() for row in cells(html)]
        assert rows == [line.split() for line in table.splitlines()]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '<img src=x onerror="a()">', "a&b", "</p></table>"])
def test_a_models_name_is_text_in_a_notebook(name: str) -> None:
    model = tiny()
    model.name_or_path = name
    result = scanned(model)
    assert result.model == name
    for shown in (result, spectrum.select(result, 50)):
        html = shown._repr_html_()
        tags = set(re.findall(r"<(/?\w+)", html))
        assert tags == {"p", "/p", "table", "/table", "tr", "/tr", "th", "/th", "td", "/td", "img"}
        assert html.count("<img") == 1  # the heat map
        assert name not in html
        assert name in repr(shown)


def test_a_layer_type_is_text_in_a_notebook(sample: ScanResult) -> None:
    # Of a file of another tool, whose types are any text.
    layers = tuple(replace(layer, layer_type="<b>t</b>") for layer in sample.layers)
    result = replace(sample, layers=layers, scanned=("<b>t</b>",), provenance=None)
    for shown in (result, spectrum.select(result, 50)):
        assert "<b>" not in shown._repr_html_()
        assert "&lt;b&gt;t&lt;/b&gt;" in shown._repr_html_()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_results_can_be_copied_and_sent_to_other_processes(sample: ScanResult, copied: Callable[[Any], Any]) -> None:
    for value in (sample, spectrum.select(sample, 25), spectrum.unfreeze(loaded(), spectrum.select(sample, 25))):
        assert copied(value) == value


def test_warnings_point_at_the_caller(fresh: Path) -> None:
    scanned("model", ["lm_head"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spectrum.scan("model", show_progress=False)
    assert [(one.category, one.filename) for one in caught] == [(UserWarning, __file__)]


@pytest.mark.parametrize("wrong", [None, 3, transformers.LlamaForCausalLM], ids=["None", "number", "class"])
def test_what_is_no_model_is_a_value_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a name, a path or a model is expected"):
        spectrum.scan(wrong)


@pytest.mark.parametrize("wrong", [",", " , ", [","]])
def test_layer_types_without_a_type_are_a_value_error(wrong: Any, fresh: Path) -> None:
    with pytest.raises(ValueError, match="a layer type is expected, or a pattern, or all"):
        spectrum.scan("model", wrong)


def test_arguments_in_the_wrong_place_are_value_errors(sample: ScanResult) -> None:
    wrong: Any = "model"
    with pytest.raises(ValueError, match="what scan"):
        spectrum.select(wrong)
    wrong = sample
    with pytest.raises(ValueError, match=r"what select\(\) returns, or the path of a list"):
        spectrum.unfreeze(tiny(), wrong)


def test_parameters_that_deepspeed_has_taken_apart_are_refused() -> None:
    model = tiny()
    for parameter in model.parameters():
        parameter.ds_id = 0
    with pytest.raises(CheckpointError, match="as a whole in memory"):
        scanned(model)
