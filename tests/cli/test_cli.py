"""The command: its grammar, a scan of the sample checkpoint, the cache, what it says where, how it ends."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import spectrum
from spectrum.checkpoint import reader
from spectrum.cli import select as select_mode
from spectrum.cli.console import dialogs, grammar, options
from spectrum.cli.entry import main
from spectrum.cli.outcome import ModeOutcome
from spectrum.compute import snr
from spectrum.errors import LayerTypeError
from spectrum.files import slug
from spectrum.scanning.request import ScanCallbacks
from spectrum.scanning.store import ScanStore
from tests.helpers.changes import change_header, train_one_layer
from tests.helpers.command import Finished, run
from tests.helpers.forks import Forks
from tests.helpers.oracle import oracle_edge, oracle_snr
from tests.helpers.paths import TINY_LLAMA, files_below
from tests.helpers.processes import Spectrum

# The slug of `tiny_llama` has a hyphen.
SCAN = "model_snr_results/snr_results_tiny-llama.json"
SIDECAR = "model_snr_results/snr_results_tiny-llama.meta.json"
SORTED = "snr_results_tiny-llama_sorted.json"

TYPES = [
    "input_layernorm",
    "lm_head",
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "model.embed_tokens",
    "model.norm",
    "post_attention_layernorm",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
]
EMBEDDINGS = ["^lm_head.weight$", "^model.embed_tokens.weight$"]


def scan(directory: Path, *args: str | Path) -> Finished:
    done = run(directory, "--model-name", "tiny_llama", *args)
    assert done.status == 0, done.err
    return done


def refused(done: Finished, *words: str, status: int = 1) -> None:
    """It failed with one line on stderr that has these words."""
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("spectrum: error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


def yaml_of(percent: str) -> str:
    return f"snr_results_tiny-llama_unfrozenparameters_{percent}percent.yaml"


def content(path: Path) -> Any:
    text = path.read_text()
    return yaml.safe_load(text)["unfrozen_parameters"] if path.suffix == ".yaml" else json.loads(text)


def headers(path: Path) -> list[str]:
    return re.findall(r"^# (.*) layers$", path.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """What the sample checkpoint stores, by module."""
    stored = {k: v for file in sorted(TINY_LLAMA.glob("*.safetensors")) for k, v in load_file(file).items()}
    return {key.removesuffix(".weight"): value for key, value in stored.items()}


def type_of(module: str) -> str:
    return re.sub(r"^model\.layers\.\d+\.", "", module)


@dataclass(frozen=True)
class FirstScan:
    directory: Path
    done: Finished


@pytest.fixture(scope="module")
def first_scan(tmp_path_factory: pytest.TempPathFactory) -> FirstScan:
    directory = tmp_path_factory.mktemp("first")
    shutil.copytree(TINY_LLAMA, directory / "tiny_llama")
    return FirstScan(directory, scan(directory))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A working directory with the model and nothing else."""
    shutil.copytree(TINY_LLAMA, tmp_path / "tiny_llama")
    return tmp_path


@pytest.fixture
def scanned(first_scan: FirstScan, tmp_path: Path) -> Path:
    """A copy of the working directory that the first scan left."""
    return Path(shutil.copytree(first_scan.directory, tmp_path / "work"))


@pytest.fixture
def cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a checkpoint, fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the checkpoint was opened")

    monkeypatch.setattr(reader, "open_checkpoint", refuse)


# Grammar.


@pytest.mark.parametrize("option", ["--top-percent", "--top_percent"])
@pytest.mark.parametrize(
    "value",
    [
        "0",
        "0.0",
        "-5",
        "101",
        "100.1",
        "abc",
        "1e1",
        "nan",
        "inf",
        "",
        " ",
        "%",
        "50%%",
        "1_0",
        "\N{ARABIC-INDIC DIGIT FIVE}",
    ],
)
def test_a_percentage_that_is_none_is_wrong_usage(option: str, value: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--model-name", TINY_LLAMA, option, value)
    refused(done, "--top-percent", repr(value), "over 0 and at most 100", "--help", status=2)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "abc", "", "1e3", "Auto"])
def test_a_batch_size_that_is_none_is_wrong_usage(value: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--model-name", TINY_LLAMA, "--batch-size", value)
    refused(done, "--batch-size", repr(value), "from 1 up", "auto", "--help", status=2)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--model-name"]),
        (["--top-percent", "25"], ["--model-name"]),
        (["--model-name"], ["--model-name", "expected one argument"]),
        (["--model-name", "m", "--frobnicate"], ["--frobnicate"]),
        (["--model-name", "m", "--top_p", "25"], ["--top"]),
        (["--model-name", "m", "stray"], ["stray"]),
        (["--model-name", "m", "--layer-types"], ["--layer-types"]),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(args: list[str], words: list[str], tmp_path: Path) -> None:
    refused(run(tmp_path, *args), *words, "--help", status=2)
    assert files_below(tmp_path) == []


@pytest.mark.usefixtures("cache_only")
def test_options_may_have_underscores_and_values_keep_theirs(scanned: Path) -> None:
    (scanned / "model_snr_results").rename(scanned / "my_results")
    args = ["--model_name=tiny_llama", "--top_percent=25", "--results_dir", "my_results", "--output_dir=my_lists"]
    done = run(scanned, *args, "--no_embeddings", "--layer_types", "self_attn.k_proj")
    assert done.status == 0, done.err
    assert headers(scanned / "my_lists" / yaml_of("25")) == ["self_attn.k_proj"]


def test_version(tmp_path: Path) -> None:
    assert run(tmp_path, "--version") == Finished(0, f"spectrum {spectrum.__version__}\n", "")


@pytest.mark.parametrize(
    "option",
    [
        "--model-name",
        "--top-percent",
        "--batch-size",
        "--layer-types",
        "-y, --yes",
        "--results-dir",
        "--output-dir",
        "--rescan",
        "--device",
        "--revision",
        "--model-class",
        "--trust-remote-code",
        "--no-embeddings",
        "-q, --quiet",
        "--version",
        "--help",
    ],
)
def test_help_names_every_option(option: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert (done.status, done.err) == (0, "")
    assert re.search(rf"^ +(-h, )?{option}( |$)", done.out, re.MULTILINE)


# What a mode does not use.

CHECK, SPECTRUM = ("--check", "list.yaml"), ("--plot-spectrum", "lm_head", "x.png")
VERIFY, VERIFY_LIST = ("--verify", "trained"), ("--verify", "trained", "--list", "list.yaml")
OF_EVERY_MODE = {"--model-name", "--revision", "--model-class", "--trust-remote-code", "--yes", "--quiet"}
USED = {
    CHECK: {*OF_EVERY_MODE, "--training-gpus"},
    SPECTRUM: {*OF_EVERY_MODE, "--device", "--download", "--results-dir"},
    VERIFY: {
        *OF_EVERY_MODE,
        *("--layer-types", "--rescan", "--top-percent", "--top-params", "--order", "--no-embeddings", "--results-dir"),
        *("--device", "--batch-size", "--download"),
    },
    VERIFY_LIST: OF_EVERY_MODE,
}
VALUES = {
    "--revision": ["main"],
    "--model-class": ["LlamaModel"],
    "--trust-remote-code": [],
    "--layer-types": ["all"],
    "--rescan": [],
    "--top-percent": ["50"],
    "--top-params": ["5"],
    "--order": ["random:07"],
    "--no-embeddings": [],
    "--compare": ["other"],
    "--format": ["axolotl"],
    "--output-dir": ["."],
    "--results-dir": ["model_snr_results"],
    "--plot": ["x.png"],
    "--training-gpus": ["8"],
    "--device": ["auto"],
    "--batch-size": ["auto"],
    "--download": [],
    "--yes": [],
    "--quiet": [],
}


def named(mode: Sequence[str]) -> str:
    return " with ".join(word for word in mode if word.startswith("--"))


def test_every_option_is_tried_in_every_mode() -> None:
    long = {action.option_strings[-1] for action in grammar.parser()._actions}
    modes = {option for mode in USED for option in mode if option.startswith("--")}
    assert long - modes - {"--help", "--version", "--model-name", "--gpus"} == VALUES.keys()


@pytest.mark.parametrize("mode", USED, ids=named)
@pytest.mark.parametrize("option", VALUES)
def test_a_mode_refuses_an_option_that_it_would_ignore(mode: tuple[str, ...], option: str, tmp_path: Path) -> None:
    # The default, too, where it is given.
    args = ["--model-name", "m", *mode, option, *VALUES[option]]
    if option in USED[mode]:
        assert isinstance(options.parse(args), options.Options)
    else:
        refused(run(tmp_path, *args), f"{named(mode)} does not use {option}; leave it out", status=2)


def test_a_mode_names_all_options_that_it_would_ignore_and_no_other(tmp_path: Path) -> None:
    args = ("--model-name", "m", "--device=cpu", *CHECK, "--top_percent", "50", "-q", "--no_embeddings")
    done = run(tmp_path, *args)
    refused(done, "--check does not use --device, --top-percent, --no-embeddings; leave them out", status=2)


@pytest.mark.parametrize("option", ["--training-gpus", "--gpus"])
def test_adapters_take_no_number_of_gpus(option: str, tmp_path: Path) -> None:
    args = ("--model-name", "m", option, "4", "--format")
    for name in ("peft", "trl-lora"):
        refused(run(tmp_path, *args, name), f"--format {name} does not use --training-gpus", status=2)
    for name in ("axolotl", "json"):
        mode = options.parse([*args, name]).mode
        assert isinstance(mode, options.SelectOptions)
        assert (mode.training_gpus, mode.format) == (4, name)


# Typed options.


def test_options_that_are_not_given_have_their_defaults() -> None:
    given = options.parse(["--model-name", "m"])
    assert given == options.Options(options.ModelOptions("m"), options.SelectOptions(), yes=False, quiet=False)


def test_help_and_options_agree_on_defaults() -> None:
    helps = {action.dest: action.help or "" for action in reversed(grammar.parser()._actions)}
    own = options.SelectOptions()
    for name in ("top_percent", "order", "format", "results_dir", "training_gpus", "device"):
        assert f"(default: {getattr(own, name)})" in helps[name]


def test_each_option_reaches_its_field() -> None:
    args = [word for option, values in VALUES.items() if option != "--top-params" for word in (option, *values)]
    assert options.parse(["--model-name", "m/", *args]) == options.Options(
        options.ModelOptions("m", "main", "LlamaModel", True),
        options.SelectOptions(
            ["all"],
            True,
            order="random:7",
            embeddings=False,
            compare="other",
            plot=Path("x.png"),
            download=True,
            batch_size="auto",
        ),
        yes=True,
        quiet=True,
    )
    model = ["--model-name", "m"]
    assert options.parse([*model, *CHECK, "--gpus", "3"]).mode == options.CheckOptions(Path("list.yaml"), 3)
    spectrum = options.PlotSpectrumOptions(("lm_head", "x.png"), "cpu", download=True)
    assert options.parse([*model, *SPECTRUM, "--device", "cpu", "--download"]).mode == spectrum


def test_help_shows_groups_and_ends_with_examples_that_are_right(tmp_path: Path) -> None:
    shown = run(tmp_path, "--help").out
    assert re.findall(r"^(\w.*):$", shown, re.MULTILINE) == [
        "what to scan",
        "what to select",
        "what to write",
        "where to run",
        "how the model is opened",
        "other things to do, in place of a selection",
        "general",
        "formats of the list",
        "examples",
    ]
    assert "--gpus" not in shown
    examples = shown.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) == 4
    for example in examples:
        program, *args = shlex.split(example)
        assert program == "spectrum"
        options.parse(args)


# A first scan.


def test_every_weight_scores_as_by_a_float64_svd(first_scan: FirstScan, weights: dict[str, torch.Tensor]) -> None:
    scores = content(first_scan.directory / SCAN)
    expected = {
        name: oracle_snr(weight.double().numpy().reshape(-1, weight.shape[-1])) for name, weight in weights.items()
    }
    assert {name: entry["snr"] for name, entry in scores.items()} == pytest.approx(expected, rel=1e-8)
    assert {name: entry["type"] for name, entry in scores.items()} == {name: type_of(name) for name in weights}
    assert all(entry.keys() == {"snr", "type"} for entry in scores.values())


def test_files_are_in_display_order_then_model_order(first_scan: FirstScan) -> None:
    scores = content(first_scan.directory / SCAN)
    layers = {kind: [name for name in scores if type_of(name) == kind] for kind in TYPES}
    assert list(scores) == [name for kind in TYPES for name in layers[kind]]
    assert layers["mlp.up_proj"] == [f"model.layers.{i}.mlp.up_proj" for i in range(8)]
    assert list(content(first_scan.directory / SORTED)) == TYPES


def test_the_top_half_of_each_type_is_selected(first_scan: FirstScan) -> None:
    scores = content(first_scan.directory / SCAN)
    expected = list(EMBEDDINGS)
    for kind in TYPES:
        layers = [name for name in scores if type_of(name) == kind]
        ranked = sorted(layers, key=lambda name: -scores[name]["snr"])
        expected += ranked[: len(ranked) // 2]
        assert list(content(first_scan.directory / SORTED)[kind]) == ranked
    assert content(first_scan.directory / yaml_of("50")) == expected
    assert headers(first_scan.directory / yaml_of("50")) == TYPES


def test_stdout_says_what_was_scanned_where_and_how_long(first_scan: FirstScan) -> None:
    line = first_scan.done.out.splitlines()[0]
    where = r"(cpu|cuda:\d+(, cuda:\d+)*)"
    assert re.fullmatch(rf"Scanned 75 layers of tiny_llama \(LlamaForCausalLM\) on {where} in \d+\.\d s\.", line)


def test_stdout_has_a_row_for_each_layer_type(first_scan: FirstScan) -> None:
    ranked = content(first_scan.directory / SORTED)
    rows = [line.split() for line in first_scan.done.out.splitlines()]
    for kind in TYPES:
        snrs = list(ranked[kind].values())
        (row,) = [row for row in rows if row[:1] == [kind]]
        assert row[1:4] == [str(len(snrs) // 2), "of", str(len(snrs))]
        assert [float(cell) for cell in row[4:6]] == pytest.approx([snrs[-1], snrs[0]], rel=1e-3)
    assert ["total", "36", "of", "75"] in rows


def test_stdout_names_the_three_files(first_scan: FirstScan) -> None:
    named = [line.split()[-1] for line in first_scan.done.out.split("\n\n")[-2].splitlines()]
    assert named == [SCAN, SORTED, yaml_of("50")]
    written = [name for name in files_below(first_scan.directory) if not name.startswith("tiny_llama/")]
    assert written == sorted([*named, SIDECAR])


def test_stderr_has_the_defaults_and_the_progress(first_scan: FirstScan) -> None:
    defaults, _, progress = first_scan.done.err.partition("\n")
    assert defaults == "spectrum: no terminal to ask on: batch size auto, layer types all"
    assert "0/75" in progress
    assert re.search(r"100%.*75/75 weights", progress)


def module_of(name: str) -> dict[str, str]:
    """What the sidecar says of the module: Llama's norms are of no class of torch's."""
    if name.endswith("norm"):
        return {}
    return {"module": "Embedding" if name == "model.embed_tokens" else "Linear"}


def test_the_sidecar_says_what_lies_at_the_edge_of_each_weight(
    first_scan: FirstScan, weights: dict[str, torch.Tensor]
) -> None:
    edges = content(first_scan.directory / SIDECAR)["edges"]
    assert edges.keys() == weights.keys()
    for name, weight in weights.items():
        expected = oracle_edge(weight.double().numpy().reshape(-1, weight.shape[-1]))
        assert edges[name] == pytest.approx(expected, rel=1e-8, abs=1e-10), name


def test_the_sidecar_says_which_weights_were_scanned(first_scan: FirstScan, weights: dict[str, torch.Tensor]) -> None:
    made = content(first_scan.directory / SIDECAR)
    assert made["model"] == "tiny_llama"
    assert made["model_class"] == "LlamaForCausalLM"
    assert made["versions"] == {
        "spectrum": spectrum.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    assert (made["head"], made["embedding"]) == ("lm_head.weight", "model.embed_tokens.weight")
    assert made["parameters"] == {
        f"{name}.weight": {"shape": list(weight.shape), "dtype": "bfloat16", "layer_type": type_of(name)}
        | module_of(name)
        for name, weight in weights.items()
    }
    assert made["scanned"] == made["layer_types"] == TYPES
    assert (made["revision"], made["commit"], made["left_out"]) == (None, None, [])
    assert re.fullmatch(r"[0-9a-f]{64}", made["fingerprint"])


def test_quiet_prints_the_yaml_alone(fresh: Path) -> None:
    assert scan(fresh, "--quiet") == Finished(0, f"{yaml_of('50')}\n", "")
    assert scan(fresh, "-q", "--top-percent", "25", "--output-dir", "out") == Finished(0, f"out/{yaml_of('25')}\n", "")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "no terminal to ask on: batch size auto, layer types all"),
        (["--yes"], "--yes: batch size auto, layer types all"),
        (["--batch-size", "3"], "no terminal to ask on: layer types all"),
        (["--batch-size", "auto", "--layer-types", "mlp.*"], None),
        (["-y", "--layer-types", "all"], "--yes: batch size auto"),
    ],
)
def test_defaults_taken_are_said(args: list[str], line: str | None, fresh: Path) -> None:
    said = [text for text in scan(fresh, *args).err.splitlines() if text.startswith("spectrum: ")]
    assert said == ([f"spectrum: {line}"] if line else [])


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_time_that_a_question_stands_is_no_scanning_time(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def ask_batch_size() -> None:
        nonlocal now
        now += 3600

    monkeypatch.setattr("spectrum.scanning.scan.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(dialogs, "ask_batch_size", ask_batch_size)
    out = Tty()
    for name, stream in {"stdin": Tty(), "stdout": out, "stderr": Tty()}.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.chdir(fresh)
    assert main(["--model-name", "tiny_llama", "--layer-types", "mlp.*"]) == 0
    assert now == 3600
    assert out.getvalue().partition("\n")[0].endswith(" in 0.0 s.")


def test_the_wait_for_another_run_is_no_scanning_time(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    locked = ScanStore.locked

    def waiting(self: ScanStore, *told: Any) -> Any:
        nonlocal now
        now += 3600
        return locked(self, *told)

    monkeypatch.setattr("spectrum.scanning.scan.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(ScanStore, "locked", waiting)
    done = run(fresh, "--model-name", "tiny_llama", "--yes")
    assert now == 3600
    assert done.out.partition("\n")[0].endswith(" in 0.0 s.")


@pytest.mark.parametrize("size", ["1", "3", "auto", "007"])
def test_the_batch_size_reaches_the_kernel(size: str, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    score = snr.score

    def spy(batch: torch.Tensor) -> snr.Scores:
        sizes.append(len(batch))
        return score(batch)

    monkeypatch.setattr(snr, "score", spy)
    scan(fresh, "--batch-size", size, "--layer-types", "self_attn.q_proj", "--device", "cpu")
    assert sizes == {"1": [1] * 8, "3": [3, 3, 2], "auto": [8], "007": [7, 1]}[size]


# The cache.


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize(("percent", "of_eight"), [("25", 2), ("12.5", 1), ("99.9", 7), ("100", 8), ("37.50", 3)])
def test_a_second_run_is_served_from_the_cache(percent: str, of_eight: int, scanned: Path) -> None:
    done = scan(scanned, "--top-percent", percent)
    assert done.out.splitlines()[0] == "75 layers of tiny_llama (LlamaForCausalLM), from the cached scan."
    assert f"\nlist           {yaml_of(percent)}\n" in done.out
    assert done.err == ""
    ranked = content(scanned / SORTED)["mlp.up_proj"]
    assert [name for name in content(scanned / yaml_of(percent)) if "up_proj" in name] == list(ranked)[:of_eight]


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize("name", ["tiny_llama", "./tiny_llama"])  # the second can be no repository's id
def test_the_cache_is_enough_without_the_model(name: str, scanned: Path) -> None:
    shutil.rmtree(scanned / "tiny_llama")
    files = [scanned / file.replace("tiny-llama", slug(name)) for file in (SCAN, SIDECAR)]
    for file, renamed in zip((SCAN, SIDECAR), files, strict=True):
        (scanned / file).rename(renamed)
    files[1].write_text(files[1].read_text().replace('"model": "tiny_llama"', f'"model": "{name}"'))
    before = [file.read_bytes() for file in files]
    done = run(scanned, "--model-name", name)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"75 layers of {name} (LlamaForCausalLM), from the cached scan.")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("change", [change_header, train_one_layer])
def test_a_scan_of_other_weights_is_not_used_silently(change: Callable[[Path], None], scanned: Path) -> None:
    change(scanned / "tiny_llama")
    made = content(scanned / SIDECAR)["fingerprint"]
    done = scan(scanned)
    for words in (SCAN, "is not used", "tiny_llama are not those that were scanned", "scanning again"):
        assert words in done.err.partition("\n")[0]
    assert done.out.startswith("Scanned 75 layers")
    assert content(scanned / SIDECAR)["fingerprint"] != made
    assert scan(scanned).out.startswith("75 layers of tiny_llama (LlamaForCausalLM), from the cached scan.")


def test_a_scan_under_the_names_of_another_class_is_not_used_silently(scanned: Path) -> None:
    done = scan(scanned, "--model-class", "LlamaModel")
    for words in (SCAN, "is not used", "LlamaForCausalLM, not of LlamaModel", "scanning again"):
        assert words in done.err.partition("\n")[0]
    assert set(content(scanned / SCAN)) >= {"layers.0.mlp.up_proj", "embed_tokens", "norm"}
    assert content(scanned / SIDECAR)["class_asked"] == "LlamaModel"
    assert content(scanned / yaml_of("50"))[0] == "^embed_tokens.weight$"  # there is no head


@pytest.mark.usefixtures("cache_only")
def test_the_class_that_a_scan_was_made_with_may_be_named(scanned: Path) -> None:
    assert scan(scanned, "--model-class", "LlamaForCausalLM").err == ""


def test_rescan_ignores_the_cache(scanned: Path) -> None:
    # Not even looked at: an empty one would otherwise be an error.
    expected = content(scanned / SCAN)
    (scanned / SCAN).write_text("")
    done = scan(scanned, "--rescan")
    assert done.out.startswith("Scanned 75 layers of tiny_llama")
    assert "is not used" not in done.err
    assert {name: entry["snr"] for name, entry in content(scanned / SCAN).items()} == pytest.approx(
        {name: entry["snr"] for name, entry in expected.items()}
    )


def test_types_scanned_apart_are_merged_and_each_run_selects_its_own(first_scan: FirstScan, fresh: Path) -> None:
    mlp = [kind for kind in TYPES if kind.startswith("mlp.")]
    attention = [kind for kind in TYPES if kind.startswith("self_attn.")]

    # The later ones first, so that merging has to put types in order.
    assert scan(fresh, "--layer-types", "self_attn.*").out.startswith("Scanned 32 layers")
    assert headers(fresh / yaml_of("50")) == attention
    assert content(fresh / SIDECAR)["scanned"] == attention

    assert scan(fresh, "--layer-types", "mlp.*").out.startswith("Scanned 24 layers")
    assert headers(fresh / yaml_of("50")) == mlp
    assert content(fresh / SIDECAR)["scanned"] == [*mlp, *attention]

    scores, whole = content(fresh / SCAN), content(first_scan.directory / SCAN)
    assert list(scores) == [name for name in whole if type_of(name) in (*mlp, *attention)]
    for name, entry in scores.items():
        assert entry["snr"] == pytest.approx(whole[name]["snr"], rel=1e-10)

    assert scan(fresh).out.startswith("56 layers of tiny_llama (LlamaForCausalLM), from the cached scan.")
    assert headers(fresh / yaml_of("50")) == [*mlp, *attention]
    assert list(content(fresh / SORTED)) == [*mlp, *attention]


def test_a_run_that_needs_one_more_type_scans_that_alone(fresh: Path) -> None:
    scan(fresh, "--layer-types", "mlp.*")
    done = scan(fresh, "--layer-types", "mlp.up_proj", "lm_head", "--top-percent", "100")
    assert done.out.startswith("Scanned 1 layer of tiny_llama")
    assert headers(fresh / yaml_of("100")) == ["lm_head", "mlp.up_proj"]


@pytest.mark.parametrize("early", [False, True])
def test_a_pattern_means_layers_by_their_paths_whether_or_not_their_types_are_scanned(fresh: Path, early: bool) -> None:
    scan(fresh, "--layer-types", "*.up_proj")
    if early:  # as versions wrote it that recorded no types of layers
        meta = content(fresh / SIDECAR)
        for parameter in meta["parameters"].values():
            del parameter["layer_type"]
        (fresh / SIDECAR).write_text(json.dumps(meta))
    before = files_below(fresh)
    done = run(fresh, "--model-name", "tiny_llama", "--layer-types", "model.layers.[0-3].mlp.*")
    refused(done, "ranked within their whole type", "mlp.down_proj, mlp.gate_proj, mlp.up_proj")
    assert files_below(fresh) == before
    assert scan(fresh, "--layer-types", "model.layers.*.mlp.*").out.startswith("Scanned 16 layers")
    assert headers(fresh / yaml_of("50")) == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]


@pytest.mark.usefixtures("cache_only")
def test_patterns_that_are_paths_are_answered_from_the_cache(scanned: Path) -> None:
    assert scan(scanned, "--layer-types", "model.layers.*").err == ""
    outside = ("lm_head", "model.embed_tokens", "model.norm")
    assert headers(scanned / yaml_of("50")) == [name for name in TYPES if name not in outside]


@pytest.mark.usefixtures("cache_only")
def test_types_that_the_cache_has_are_selected_without_the_model(scanned: Path) -> None:
    assert scan(scanned, "--layer-types", "*norm", "mlp.up_proj").err == ""
    assert headers(scanned / yaml_of("50")) == [
        "input_layernorm",
        "mlp.up_proj",
        "model.norm",
        "post_attention_layernorm",
    ]


@pytest.mark.parametrize("state", ["fresh", "scanned"])
@pytest.mark.parametrize("pattern", ["mlp.gate", "attention.*", ""])
def test_a_layer_type_that_is_not_there_is_answered_with_those_that_are(
    state: str, pattern: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(state)
    before = files_below(directory)
    args = ("--model-name", "tiny_llama", "--top-percent", "75", "--layer-types", "mlp.up_proj", pattern)
    refused(run(directory, *args), repr(pattern), ", ".join(TYPES))
    assert files_below(directory) == before


# What is selected, and what is not.


@pytest.mark.usefixtures("cache_only")
def test_no_embeddings_leaves_head_and_embedding_frozen(scanned: Path) -> None:
    scan(scanned, "--top-percent", "100", "--no-embeddings")
    unfrozen = content(scanned / yaml_of("100"))
    assert set(unfrozen) == set(content(scanned / SCAN)) - {"lm_head", "model.embed_tokens"}
    assert len(unfrozen) == 73
    assert headers(scanned / yaml_of("100")) == TYPES


@pytest.mark.usefixtures("cache_only")
def test_a_list_of_embeddings_alone_is_warned_of(scanned: Path) -> None:
    done = scan(scanned, "--top-percent", "100", "--layer-types", "*embed*", "lm_head")
    assert done.err.startswith("spectrum: warning: nothing but input embedding and output head trains: no other layer")
    assert not scan(scanned, "--top-percent", "100", "--layer-types", "model.layers.*").err


@pytest.mark.usefixtures("cache_only")
def test_a_percentage_under_a_whole_layer_is_warned_of(scanned: Path) -> None:
    done = scan(scanned, "--top-percent", "12.4")
    assert done.err == (
        "spectrum: warning: nothing but input embedding and output head trains: "
        "12.4 percent is less than one layer of every type; the largest types have 8, so 13 percent is the least that "
        "selects a layer\n"
    )
    assert content(scanned / yaml_of("12.4")) == EMBEDDINGS
    assert headers(scanned / yaml_of("12.4")) == TYPES


@pytest.mark.usefixtures("cache_only")
def test_a_list_of_nothing_is_refused_and_not_written(scanned: Path) -> None:
    (scanned / SORTED).unlink()
    before = files_below(scanned)
    args = ("--model-name", "tiny_llama", "--top-percent", "12.4", "--no-embeddings")
    refused(run(scanned, *args), "12.4 percent is less than one layer", "13 percent is the least")
    assert run(scanned, *args[:-2], "13", args[-1]).status == 0  # what it says to do
    (scanned / yaml_of("13")).unlink()
    (scanned / SORTED).unlink()
    assert files_below(scanned) == before


# How it ends.


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize("option", ["--output-dir", "--results-dir"])
def test_a_directory_that_cannot_be_made_is_found_before_the_scan(option: str, fresh: Path) -> None:
    (fresh / "in the way").write_text("a file")
    before = files_below(fresh)
    done = run(fresh, "--model-name", "tiny_llama", option, "in the way/out")
    refused(done, "in the way/out", "Not a directory")
    assert files_below(fresh) == before


@pytest.mark.usefixtures("cache_only")
def test_an_output_directory_that_cannot_be_made_with_a_cached_scan(scanned: Path) -> None:
    (scanned / "in the way").write_text("a file")
    before = files_below(scanned)
    refused(run(scanned, "--model-name", "tiny_llama", "--output-dir", "in the way/out"), "in the way/out")
    assert files_below(scanned) == before


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (LayerTypeError("one\nmessage on  two lines"), [r"one\nmessage on two lines"]),
        (ZeroDivisionError("division by zero"), ["unexpected ZeroDivisionError: division by zero", "SPECTRUM_DEBUG=1"]),
        (MemoryError(), ["there is no memory left"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_traceback_reaches_a_user_who_did_not_ask_for_it(
    failure: Exception, words: list[str], fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(reader, "open_checkpoint", fail)
    refused(run(fresh, "--model-name", "tiny_llama"), *words)
    with pytest.raises(type(failure)) as caught:
        run(fresh, "--model-name", "tiny_llama", debug=True)
    assert caught.value is failure


@pytest.mark.slow
def test_the_debugging_switch_shows_the_traceback(run_spectrum: Spectrum, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for switch, shown in (("", False), ("0", False), ("1", True)):
        done = run_spectrum("--model-name", TINY_LLAMA, "--output-dir", "file/out", SPECTRUM_DEBUG=switch)
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) is shown
        assert "cannot write to file/out" in done.stderr


@pytest.mark.slow
def test_a_closed_stdout_is_harmless(scanned: Path) -> None:
    (scanned / yaml_of("50")).unlink()
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "spectrum", "--model-name", "tiny_llama"]
    done = subprocess.run(command, cwd=scanned, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert (scanned / yaml_of("50")).exists()


def write_large_model(directory: Path, side: int = 2048, layers: int = 3) -> int:
    """A Llama that takes seconds to scan; return its number of weights. They are zeros: its file is one long hole."""
    names = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    norms = ["input_layernorm", "post_attention_layernorm"]
    shapes = {f"model.layers.{i}.{name}": [side, side] for i in range(layers) for name in names}
    shapes |= {f"model.layers.{i}.{name}": [side] for i in range(layers) for name in norms}
    shapes |= {"model.norm": [side], "model.embed_tokens": [8, side], "lm_head": [8, side]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    directory.mkdir()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = content(TINY_LLAMA / "config.json")
    config |= {"hidden_size": side, "intermediate_size": side, "head_dim": side // 4, "num_key_value_heads": 4}
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers, "vocab_size": 8}))
    return len(shapes)


@pytest.mark.slow
def test_an_interrupt_ends_the_scan_at_once_and_leaves_nothing(forks: Forks, tmp_path: Path) -> None:
    count = write_large_model(tmp_path / "large")
    before = files_below(tmp_path)
    with forks.piped("--model-name", "large", "--batch-size", "1", "--device", "cpu", cwd=tmp_path) as process:
        said = process.said_until(f"0/{count} ")  # the bar's first state: the scan is about to start
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
        assert process.stdout.read() == b""
        assert process.wait() == 130
    assert f"{count}/{count}".encode() not in said
    assert said.endswith(b"spectrum: interrupted; nothing is scored yet\n")
    assert b"spectrum: error" not in said
    assert b"Traceback" not in said
    assert files_below(tmp_path) == before


def test_an_interrupt_is_reported_below_the_progress_bar(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(batch: torch.Tensor) -> snr.Scores:
        raise KeyboardInterrupt

    monkeypatch.setattr(snr, "score", interrupt)
    before = files_below(fresh)
    done = run(fresh, "--model-name", "tiny_llama", "--yes")
    assert (done.status, done.out) == (130, "")
    _, progress, error, _ = done.err.split("\n")
    assert "0/75" in progress
    assert error == "spectrum: interrupted; nothing is scored yet"
    assert files_below(fresh) == before


def test_a_scan_of_another_model_of_the_same_file_name_is_not_used_silently(scanned: Path) -> None:
    (scanned / "tiny_llama").rename(scanned / "tiny-llama")
    done = run(scanned, "--model-name", "tiny-llama", "--yes")
    assert "is not used: it is of 'tiny_llama', whose files have the same name" in done.err
    assert done.out.startswith("Scanned 75 layers of tiny-llama")


def test_types_are_added_under_the_class_of_the_cached_scan(fresh: Path) -> None:
    first = ("--model-name", "tiny_llama", "--layer-types", "mlp.down_proj")
    assert run(fresh, *first, "--model-class", "LlamaModel", "-q").status == 0
    done = run(fresh, *first, "mlp.up_proj", "-q")
    assert done.status == 0
    assert all(name.startswith("layers.") for name in content(fresh / SCAN))
    assert {entry["type"] for entry in content(fresh / SCAN).values()} == {"mlp.down_proj", "mlp.up_proj"}


def test_types_are_not_added_to_a_scan_of_other_weights(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ("--model-name", "tiny_llama", "--layer-types", "mlp.down_proj")
    assert run(fresh, *first, "-q").status == 0
    train_one_layer(fresh / "tiny_llama")
    monkeypatch.setattr(
        "spectrum.scanning.reuse._why_stale", lambda *_: None
    )  # as when weights change between the two looks
    done = run(fresh, *first, "mlp.up_proj")
    assert "is of other weights than those found now; starting over" in done.err
    assert len(content(fresh / SCAN)) == 16
    assert "from the cached scan" in run(fresh, *first, "mlp.up_proj").out


@pytest.mark.slow
def test_a_closed_stdin_stops_no_scan(forks: Forks, fresh: Path) -> None:
    args = ("--model-name", "tiny_llama", "--yes", "--layer-types", "mlp.down_proj")
    done = forks.run(*args, cwd=fresh, streams={0: None})
    assert done.returncode == 0
    assert (fresh / yaml_of("50")).exists()


# A stderr that cannot be written.

UNWRITABLE = ["a full disk", "a pipe without a reader", "closed"]


@contextmanager
def unwritable(kind: str) -> Iterator[int | None]:
    """A descriptor to have for stderr; None for none."""
    if kind == "a full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    elif kind == "closed":
        yield None
        return
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=UNWRITABLE)
def unheard(request: pytest.FixtureRequest, forks: Forks) -> Iterator[Spectrum]:
    """Runs the command in a process of its own, in a working directory, with a stderr that cannot be written."""
    with unwritable(request.param) as descriptor:
        yield lambda directory, *args: forks.run(*args, cwd=directory, streams={2: descriptor})


@pytest.mark.slow
def test_a_scan_goes_on_unheard(unheard: Spectrum, first_scan: FirstScan, fresh: Path) -> None:
    done = unheard(fresh, "--model-name", "tiny_llama")
    assert done.returncode == 0
    assert done.stdout.partition("\n")[2] == first_scan.done.out.partition("\n")[2]
    assert files_below(fresh) == files_below(first_scan.directory)
    assert (fresh / SCAN).read_bytes() == (first_scan.directory / SCAN).read_bytes()


@pytest.mark.slow
def test_other_jobs_are_done_unheard(unheard: Spectrum, scanned: Path) -> None:
    sidecar = content(scanned / SIDECAR)  # a warning is due
    (scanned / SIDECAR).write_text(json.dumps(sidecar | {"class_asked": "LlamaForCausalLM"}))
    model = ("--model-name", "tiny_llama")
    for args in ((*model, "--top-percent", "12.4"), (*model, "--check", yaml_of("50")), ("--version",), ("--help",)):
        expected = run(scanned, *args)
        assert expected.status == 0
        done = unheard(scanned, *args)
        assert (done.returncode, done.stdout) == (0, expected.out), args


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "args"), [(1, ["--model-name", "missing"]), (2, ["--frobnicate"]), (2, [])], ids=str
)
def test_failures_keep_their_exit_status_unheard(
    status: int, args: list[str], unheard: Spectrum, tmp_path: Path
) -> None:
    done = unheard(tmp_path, *args)
    assert (done.returncode, done.stdout) == (status, "")


# What libraries write, in a process of the command's, whatever they write it with.
TALKATIVE = """
import logging, sys, warnings
from huggingface_hub.utils import tqdm as bar_of_hub
from tqdm import tqdm
from spectrum.cli import entry

def main():
    for bar in (tqdm, bar_of_hub):
        for _ in bar(range(3), mininterval=0):
            pass
    warnings.warn("of a library's")
    logging.getLogger("library").warning("another one")
    sys.stderr.write("the beginning of a line")
    sys.stderr.buffer.write(b"bytes" * 10_000)
    print("done")
    return 0

entry.main = main
entry.command()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_libraries_go_on_unheard(kind: str, tmp_path: Path) -> None:
    with unwritable(kind) as descriptor:
        closing = ["bash", "-c", 'exec "$0" "$@" 2>&-'] if descriptor is None else []
        done = subprocess.run(
            [*closing, sys.executable, "-c", TALKATIVE],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.slow
def test_no_file_takes_the_number_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    opening = "entry.main = lambda: print(os.open('file', os.O_CREAT | os.O_WRONLY)) or 0"
    program = f"import os; from spectrum.cli import entry; {opening}; entry.command()"
    command = ["bash", "-c", 'exec "$0" -c "$1" <&- 2>&-', sys.executable, program]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    assert int(done.stdout) > 2


@pytest.mark.slow
def test_a_reader_of_stderr_may_leave_in_mid_scan(forks: Forks, first_scan: FirstScan, fresh: Path) -> None:
    with forks.piped("--model-name", "tiny_llama", "--device", "cpu", cwd=fresh) as process:
        process.said_until("0/75 ")  # the bar's first state; it is drawn again at its end
        process.stderr.close()
        out = process.stdout.read().decode()
        assert process.wait() == 0
    assert out.partition("\n")[2] == first_scan.done.out.partition("\n")[2]
    assert files_below(fresh) == files_below(first_scan.directory)


# A stdout that cannot show every name.

CHINESE = "\N{CJK UNIFIED IDEOGRAPH-6A21}\N{CJK UNIFIED IDEOGRAPH-578B}"
UNDECODABLE = os.fsdecode(b"model-\xff")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "found", "environment"),
    [
        (CHINESE, r"\u6a21\u578b", {"PYTHONIOENCODING": "ascii"}),
        (CHINESE, r"\u6a21\u578b", {"PYTHONIOENCODING": "latin-1"}),
        # As UTF-8 has it, where the locale has no characters but bytes.
        (CHINESE, r"\udce6\udca8\udca1\udce5\udc9e\udc8b", {"PYTHONUTF8": "0", "LC_ALL": "C"}),
        (UNDECODABLE, r"model-\udcff", {"PYTHONIOENCODING": "utf-8"}),
    ],
    ids=["ascii", "latin-1", "C", "undecodable"],
)
def test_what_an_encoding_lacks_is_spelt_out(
    name: str, found: str, environment: dict[str, str], run_spectrum: Spectrum, tmp_path: Path
) -> None:
    try:
        (tmp_path / name).symlink_to(TINY_LLAMA)
    except OSError:
        pytest.skip("the file system has no such names")
    model = ("--model-name", name, "--layer-types", "lm_head", "--top-percent", "100")
    scanned = run_spectrum(*model, **environment)
    assert scanned.returncode == 0, scanned.stderr
    assert scanned.stdout.startswith(f"Scanned 1 layer of {found} (LlamaForCausalLM)")
    listed = f"snr_results_{found}_unfrozenparameters_100percent.yaml"
    assert f" {listed}\n" in scanned.stdout
    quiet = run_spectrum(*model, "--quiet", **environment)
    assert (quiet.returncode, quiet.stdout) == (0, f"{listed}\n"), quiet.stderr
    (written,) = tmp_path.glob("*.yaml")
    checked = run_spectrum("--model-name", name, "--check", written.name, **environment)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(f"{listed}, ")
    helped = run_spectrum("--help", **environment)
    assert (helped.returncode, helped.stderr) == (0, "")
    missing = run_spectrum("--model-name", f"{name}-missing", **environment)
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"spectrum: error: '{found}-missing' is neither ")


# Names in strangers' files.

SPOOF = "name\nspectrum: error: spoofed\r\x1b[2Kspectrum: done\N{LINE SEPARATOR}"


def test_no_name_makes_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def select(model: object, options: object, callbacks: ScanCallbacks, **_: object) -> ModeOutcome:
        callbacks.info(f"a note on {SPOOF}")
        callbacks.warn(f"of {SPOOF}")
        return ModeOutcome("", f"a problem with {SPOOF}")

    monkeypatch.setattr(select_mode, "select", select)
    done = run(tmp_path, "--model-name", "m")
    spelt = r"name\nspectrum: error: spoofed\r\x1b[2Kspectrum: done\u2028"
    note, warning, error = done.err.splitlines(keepends=True)
    assert note == f"spectrum: a note on {spelt}\n"
    assert warning == f"spectrum: warning: of {spelt}\n"
    assert error == "spectrum: error: a problem with name spectrum: error: spoofed \\x1b[2Kspectrum: done\n"


def test_no_argument_makes_a_line_of_its_own(tmp_path: Path) -> None:
    refused(run(tmp_path, "--model-name", "m", SPOOF), r"name\nspectrum: error: spoofed\r\x1b", status=2)


BUSY = """
import threading, torch
from spectrum.cli import entry

def main():
    matrix, busy = torch.ones(300, 300), threading.Event()

    def work():
        while True:
            torch.linalg.eigvalsh(matrix)
            busy.set()

    threading.Thread(target=work, daemon=True).start()
    busy.wait()
    print("interrupted")
    return entry.INTERRUPTED

entry.main = main
entry.command()
"""


@pytest.mark.slow
def test_a_thread_in_the_midst_of_a_decomposition_does_not_take_the_exit_status() -> None:
    # Python's own way out would let torch abort the process, which is status -6 here and 134 in a shell.
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


def test_a_cache_of_some_types_says_that_it_is_one(fresh: Path) -> None:
    model = ("--model-name", "tiny_llama")
    assert run(fresh, *model, "--layer-types", "mlp.*", "-q").err == ""
    partial = run(fresh, *model)
    assert "the cached scan has only 3 of the model's 12 layer types" in partial.err
    assert "--layer-types all scans them too" in partial.err
    assert run(fresh, *model, "--layer-types", "mlp.*").err == ""
    assert run(fresh, *model, "--layer-types", "all", "-q").status == 0
    assert run(fresh, *model).err == ""
    assert len({entry["type"] for entry in content(fresh / SCAN).values()}) == 12


def test_a_misspelt_option_is_named_before_one_that_is_missing(tmp_path: Path) -> None:
    refused(run(tmp_path, "--modelname", "tiny_llama"), "--modelname", status=2)
    refused(run(tmp_path, "--yes"), "--model-name", status=2)


def test_the_slash_that_completion_adds_is_no_part_of_the_name(scanned: Path) -> None:
    before = files_below(scanned)
    done = run(scanned, "--model-name", "tiny_llama/")
    assert "from the cached scan" in done.out
    assert files_below(scanned) == before


def test_a_class_that_was_asked_for_is_warned_of_when_its_scan_is_used_again(fresh: Path) -> None:
    scan(fresh, "--model-class", "LlamaModel")
    again = scan(fresh)
    assert "(LlamaModel), from the cached scan" in again.out
    assert "warning: the cached scan was made with --model-class LlamaModel" in again.err
    assert "--rescan" in again.err
    assert scan(fresh, "--model-class", "LlamaModel").err == ""
    # Its own class is no other one for having been asked for.
    scan(fresh, "--rescan", "--model-class", "LlamaForCausalLM")
    assert scan(fresh).err == ""
    assert "(LlamaForCausalLM)" in scan(fresh, "--rescan", "--yes").out


def test_memory_that_runs_out_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(select_mode, "select", fill)
    done = run(tmp_path, "--model-name", TINY_LLAMA)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("spectrum: error: there is no memory left; ")
    assert len(done.err.splitlines()) == 1
