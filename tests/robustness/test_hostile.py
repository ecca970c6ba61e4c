"""Checkpoints and scans made to do harm: to read, write or run something else, to fill the memory or the terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
import yaml

from spectrum.scanning.store import ScanStore
from tests.helpers.command import Finished, tiny_llama
from tests.helpers.paths import ROOT, files_below
from tests.robustness.fuzz import YAML_TRAPS, assert_decent, assert_printable

pytestmark = pytest.mark.slow

INDEX = "model.safetensors.index.json"
UP_PROJ = "model.layers.0.mlp.up_proj.weight"

Run = Callable[..., Finished]
Change = Callable[[Path], object]

# Above what the imports take, as `bounded.ADDRESS_SPACE`, which is more.
RESIDENT = 400 << 20


@pytest.fixture(scope="module")
def sound_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer in one file: what every case here is made from."""
    return tiny_llama(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(sound_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_model, tmp_path / "model"))


def assert_refused(done: Finished, *words: str) -> None:
    assert done.status == 1, done.out
    assert_decent(done)
    for word in words:
        assert word in done.err, f"{word!r} is not in {done.err!r}"


def config_set(**changes: object) -> Change:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def state_of(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "model.safetensors")


def save(directory: Path, state: Mapping[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(dict(state), directory / "model.safetensors")


def in_two_shards(directory: Path) -> None:
    state = state_of(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        safetensors.torch.save_file({key: state[key] for key in keys}, directory / file)
    places = {key: file for file, keys in parts.items() for key in keys}
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))


def header_of(entries: Mapping[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


# What an index or a link points at.


@pytest.mark.parametrize("outside", ["{}/elsewhere.safetensors", "../elsewhere.safetensors", "x/../../elsewhere"])
def test_an_index_that_leads_elsewhere_is_refused_though_the_file_is_there(
    run: Run, model: Path, tmp_path: Path, outside: str
) -> None:
    name = outside.format(tmp_path)
    shutil.copy(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    places = dict.fromkeys(safetensors.torch.load_file(model / "model-1.safetensors"), "model-1.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": places | {UP_PROJ: name}}))
    assert_refused(run("--model-name", model), INDEX, repr(name), "not a file of the model's directory")


@pytest.mark.parametrize("name", ["..\\elsewhere", "C:\\elsewhere", "a\0b", "model-1.safetensors\0", "\x1b[2J", "\n"])
def test_an_index_of_names_that_are_none_is_refused(run: Run, model: Path, name: str) -> None:
    in_two_shards(model)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"][UP_PROJ] = name
    (model / INDEX).write_text(json.dumps(index))
    assert_refused(run("--model-name", model))


@pytest.mark.parametrize("file", ["model.safetensors", "model-2.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_weight_file_that_is_a_link_out_of_the_directory_is_refused(
    run: Run, model: Path, tmp_path: Path, file: str, relative: bool
) -> None:
    if file == "pytorch_model.bin":
        torch.save(state_of(model), model / file)
        (model / "model.safetensors").unlink()
    elif file != "model.safetensors":
        in_two_shards(model)
    (model / file).rename(tmp_path / "secret")
    target = Path("..", "secret") if relative else tmp_path / "secret"
    (model / file).symlink_to(target)
    assert_refused(run("--model-name", model), file, "a link out of its directory", str(tmp_path / "secret"))


def test_a_link_out_of_the_directory_by_way_of_another_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(tmp_path / "secret")
    (model / "hop").symlink_to(tmp_path / "secret")
    (model / "model.safetensors").symlink_to("hop")
    assert_refused(run("--model-name", model), "a link out of its directory")


def test_a_directory_called_blobs_does_not_open_its_neighbours(run: Run, model: Path, tmp_path: Path) -> None:
    # Only the blobs of a snapshot's own repository belong to it, not those beside just any directory.
    (tmp_path / "blobs").mkdir()
    (model / "model.safetensors").rename(tmp_path / "blobs" / "secret")
    (model / "model.safetensors").symlink_to(tmp_path / "blobs" / "secret")
    assert_refused(run("--model-name", model), "a link out of its directory")


def test_links_within_the_directory_are_followed(run: Run, model: Path) -> None:
    (model / "files").mkdir()
    (model / "model.safetensors").rename(model / "files" / "weights")
    (model / "model.safetensors").symlink_to(Path("files", "weights"))
    assert run("--model-name", model).status == 0


def test_a_directory_that_is_itself_a_link_is_followed(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    assert run("--model-name", tmp_path / "link").status == 0


@pytest.fixture
def snapshot(model: Path, tmp_path: Path) -> Path:
    """The model as the Hub's cache has it: links to blobs named by their hashes."""
    repository = tmp_path / "hub" / "models--org--model"
    directory = repository / "snapshots" / ("0123456789" * 4)
    directory.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(("config.json", "model.safetensors")):
        (model / file).rename(repository / "blobs" / f"{number:064x}")
        (directory / file).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    return directory


def test_a_snapshot_of_the_hubs_cache_is_a_directory_like_any_other(run: Run, snapshot: Path) -> None:
    # As an absolute path its name is too long to name files by; from within its repository, as here, it is not.
    os.chdir(snapshot.parent)
    assert run("--model-name", snapshot.name).status == 0


# What would take a machine's memory, or for ever: in processes that may have only so much of either.


@dataclass(frozen=True)
class Bounded(Finished):
    """A run within limits. grown: its resident memory at its peak, over that of the imports."""

    grown: int


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process that has the imports behind it, and makes a copy of itself for each run."""
    environment = {k: v for k, v in os.environ.items() if k != "SPECTRUM_DEBUG"} | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.robustness.bounded"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def run_bounded(server: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Bounded]:
    (tmp_path / "work").mkdir(exist_ok=True)

    def run(*args: str | Path) -> Bounded:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([str(tmp_path / "work"), [*map(str, args)]]) + "\n")
        server.stdin.flush()
        status, grown = json.loads(server.stdout.readline())
        out, err = ((tmp_path / "work" / name).read_text() for name in ("out", "err"))
        return Bounded(status, out, err, grown)

    return run


def assert_refused_soon_and_in_little_memory(done: Bounded, *words: str) -> None:
    assert done.status == 1, f"ended with {done.status}: {done.err}"
    assert_refused(done, *words)
    assert "allocate" not in done.err  # which is what it says where the limit was met
    assert done.grown < RESIDENT, f"took {done.grown >> 20} MiB"


def test_a_sound_model_is_scanned_within_the_limits(run_bounded: Callable[..., Bounded], model: Path) -> None:
    # Were the limits too tight for this one, the cases below would prove nothing.
    done = run_bounded("--model-name", model)
    assert done.status == 0, done.err
    assert done.grown < RESIDENT


def sparse(name: str, head: bytes, size: int) -> Change:
    """A file of a few bytes that claims to have many."""

    def change(directory: Path) -> None:
        with (directory / name).open("wb") as file:
            file.write(head)
            file.truncate(size)

    return change


def only_index(change: Change) -> Change:
    def both(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        change(directory)

    return both


def weights(content: bytes) -> Change:
    return lambda directory: (directory / "model.safetensors").write_bytes(content)


def with_entry(dtype: object, shape: object, offsets: object) -> Change:
    return weights(header_of({UP_PROJ: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, bytes(64)))


def with_an_unused_tensor_and(**changes: object) -> Change:
    def change(directory: Path) -> None:
        save(directory, state_of(directory) | {"unused": torch.ones(1)})
        config_set(**changes)(directory)

    return change


def only_an_unused_tensor_and(**changes: object) -> Change:
    def change(directory: Path) -> None:
        save(directory, {"unused": torch.ones(1)})
        config_set(**changes)(directory)

    return change


def archive_of_zeros(directory: Path) -> None:
    """A torch archive whose pickle unpacks to far more than it is."""
    (directory / "model.safetensors").unlink()
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
        archive.writestr("archive/version", "3\n")


experts_in_every_layer = config_set(
    model_type="switch_transformers",
    architectures=["SwitchTransformersModel"],
    num_experts=20_000,
    num_layers=1_000,
    num_sparse_encoder_layers=1_000,
)


def many_empty_tensors(directory: Path) -> None:
    """So many that a model of millions of modules might be theirs."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    weights(header_of({f"t{i}": entry for i in range(200_000)}))(directory)
    experts_in_every_layer(directory)


def one_header_under_many_names(directory: Path) -> None:
    """Twelve shards that are one file, whose header is long."""
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    weights(header_of({f"{i}{'x' * 90}": entry for i in range(150_000)}))(directory)
    names = [f"model-{number}.safetensors" for number in range(12)]
    (directory / "model.safetensors").rename(directory / names[0])
    for name in names[1:]:
        (directory / name).symlink_to(names[0])
    (directory / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))


def index_of_many_files(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": {f"k{i}": f"m{i}.safetensors" for i in range(300_000)}}))


def shards_of_many_tensors(directory: Path) -> None:
    """Many more tensors than any model has, though no file holds too many."""
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    (directory / "model.safetensors").unlink()
    content = header_of({f"t{i}": entry for i in range(180_000)})
    names = [f"model-{number}.safetensors" for number in range(4)]
    for name in names:
        (directory / name).write_bytes(content)
    (directory / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))


def bin_of(pickled: bytes) -> Change:
    """A torch archive with this pickle."""

    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")

    return change


def bin_that_repeats(directory: Path) -> None:
    """Seven kilobytes that are a matrix of six gigabytes, by a stride of zero."""
    state = state_of(directory)
    (directory / "model.safetensors").unlink()
    torch.save(state | {UP_PROJ: torch.ones(1).expand(40_000, 40_000)}, directory / "pytorch_model.bin")


def _tuples_in_tuples(depth: int) -> bytes:
    """A dictionary whose key takes 2^depth steps to hash, as the same tuple is in each twice."""
    twice = b"".join(b"h%c" % i + b"h%c" % i + b"\x86q%c" % (i + 1) + b"0" for i in range(depth))
    return b"\x80\x02)q\x000" + twice + b"}h%cK\1s." % depth


DEEP = '{"a":' * 500_000
DAMAGED = "model.safetensors is damaged"

TOO_MUCH: Mapping[str, tuple[Change, tuple[str, ...]]] = {
    # Weight files
    "shape-of-2-62": (with_entry("F32", [2**62], [0, 64]), (DAMAGED, UP_PROJ)),
    "shape-of-2-62-and-its-bytes": (with_entry("U8", [2**62], [0, 2**62]), (DAMAGED,)),
    "product-that-wraps-to-64-bytes": (with_entry("U8", [2**32, 2**32 + 1], [0, 64]), (DAMAGED, UP_PROJ)),
    "product-that-wraps-to-nothing": (with_entry("U8", [2**32, 2**32], [0, 0]), (DAMAGED, UP_PROJ)),
    "product-of-very-many": (with_entry("U8", [2**62] * 600_000, [0, 64]), (DAMAGED, UP_PROJ)),
    "shape-negative": (with_entry("U8", [-8, -8], [0, 64]), (DAMAGED, UP_PROJ)),
    "shape-boolean": (with_entry("U8", [True, 64], [0, 64]), (DAMAGED, UP_PROJ)),
    "offset-boolean": (with_entry("U8", [64], [False, 64]), (DAMAGED, UP_PROJ)),
    "offset-past-2-63": (with_entry("U8", [64], [2**64, 2**64 + 64]), (DAMAGED, UP_PROJ)),
    "of-an-unknown-dtype": (with_entry("F4", [2**62, 2**62], [0, 64]), (DAMAGED, UP_PROJ)),
    "length-of-2-63": (weights((2**63).to_bytes(8, "little") + b"{}"), ("truncated, or not a safetensors file",)),
    "length-of-a-terabyte": (
        sparse("model.safetensors", (1 << 40).to_bytes(8, "little"), 8 + (1 << 40)),
        ("not a safe",),
    ),
    "header-too-deep": (weights(len(DEEP).to_bytes(8, "little") + DEEP.encode()), ("header is not valid JSON",)),
    "archive-that-unpacks-to-much": (archive_of_zeros, ("pytorch_model.bin",)),
    "archive-of-a-terabyte": (only_index(sparse("pytorch_model.bin", b"PK", 1 << 40)), ("pytorch_model.bin",)),
    "archive-with-a-key-that-hashes-forever": (bin_of(_tuples_in_tuples(100)), ("pytorch_model.bin",)),
    "archive-with-3-gb-of-zeros": (
        bin_of(b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R."),
        ("pytorch_model.bin", "builtins.bytearray"),
    ),
    "archive-that-repeats-a-number": (bin_that_repeats, ("pytorch_model.bin", "repeats elements of its storage")),
    "key-of-60000-characters": (
        weights(
            header_of({"quant_state" * 6000 + "\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
        ),
        (DAMAGED,),
    ),
    "dimensions-whose-product-has-many-digits": (with_entry("F4", [2**62] * 64, [0, 64]), (DAMAGED, UP_PROJ)),
    "many-empty-tensors": (many_empty_tensors, ("modules, more than its weights explain",)),
    "one-header-under-many-names": (one_header_under_many_names, ("one and the same file",)),
    "shards-of-many-tensors": (shards_of_many_tensors, ("more tensors than any model has",)),
    # Other files
    "index-of-many-files": (index_of_many_files, (INDEX, "names 300000 files")),
    "index-of-lists": (
        only_index(lambda d: (d / INDEX).write_text('{"weight_map":[' + "[]," * 20_000_000 + "[]]}")),
        (INDEX, "more values"),
    ),
    "index-of-65-mib": (only_index(sparse(INDEX, b'{"weight_map":', 65 << 20)), (INDEX, "over 64 MiB")),
    "index-of-a-terabyte": (only_index(sparse(INDEX, b'{"weight_map":', 1 << 40)), (INDEX, "over 64 MiB")),
    "index-too-deep": (only_index(lambda d: (d / INDEX).write_text(DEEP)), (INDEX, "not valid JSON")),
    "config-of-17-mib": (sparse("config.json", b"{", 17 << 20), ("config.json: it is over 16 MiB",)),
    "config-of-a-terabyte": (sparse("config.json", b"{", 1 << 40), ("config.json: it is over 16 MiB",)),
    "config-too-deep": (lambda d: (d / "config.json").write_text(DEEP), ("config.json is not valid JSON",)),
    # Sizes in a config
    "layers": (config_set(num_hidden_layers=10**9), ("config.json", "1000000000 as num_hidden_layers")),
    "layers-as-a-fraction": (config_set(num_hidden_layers=1e9), ("config.json", "num_hidden_layers")),
    "layers-as-text": (config_set(num_hidden_layers="1000000000"), ("config.json", "num_hidden_layers")),
    "depths-of-many-stages": (
        config_set(model_type="swin", architectures=["SwinModel"], depths=[2000] * 50_000),
        ("config.json", "as depths"),
    ),
    "labels": (config_set(num_labels=10**9), ("config.json", "1000000000 as num_labels")),
    "vocabulary": (config_set(vocab_size=10**15), ("as [8, 8]", "1000000000000000")),
    "vocabulary-past-64-bits": (config_set(vocab_size=10**30), ("model",)),
    "width": (config_set(hidden_size=10**12), ("[8, 8]", "1000000000000")),
    "width-squared-past-64-bits": (config_set(hidden_size=10**12, intermediate_size=10**12), ("model",)),
    "heads": (config_set(num_attention_heads=10**9, head_dim=10**9), ("model",)),
    "experts": (
        config_set(model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=10**9),
        ("config.json", "1000000000 as num_local_experts"),
    ),
    "experts-of-another-name": (
        config_set(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=10**9),
        ("config.json", "1000000000 as num_experts"),
    ),
    "text-layers": (config_set(text_config={"num_hidden_layers": 10**9}), ("1000000000 as num_hidden_layers",)),
    "text-layers-deeper": (config_set(a={"b": {"text_config": {"num_hidden_layers": 10**9}}}), ("as num_hidden_la",)),
    "text-experts": (config_set(text_config={"num_experts": 10**9}), ("1000000000 as num_experts",)),
    "text-labels": (config_set(text_config={"num_labels": 10**9}), ("1000000000 as num_labels",)),
    # Checkpoint and config disagree: what the loader would fill up must not be made.
    "vocabulary-and-an-unused-tensor": (with_an_unused_tensor_and(vocab_size=10**8), ()),
    "missing-layer-and-an-unused-tensor": (
        with_an_unused_tensor_and(num_hidden_layers=2, intermediate_size=10**8),
        (),
    ),
    "nothing-but-an-unused-tensor": (only_an_unused_tensor_and(vocab_size=6 * 10**7), ("no place for the key unused",)),
    # Counts that go by other names, in other models
    "groups-of-layers": (config_set(model_type="albert", architectures=["AlbertModel"], num_hidden_groups=10**9), ()),
    "adapters-of-languages": (
        config_set(
            model_type="xmod",
            architectures=["XmodModel"],
            num_hidden_layers=100,
            languages=[f"l{i}" for i in range(100_000)],
        ),
        (),
    ),
    "repeats-of-a-list": (
        config_set(model_type="gpt_neo", architectures=["GPTNeoModel"], attention_types=[[["global"], 10**10]]),
        (),
    ),
    "positions-that-are-computed": (
        config_set(
            model_type="distilbert",
            architectures=["DistilBertModel"],
            sinusoidal_pos_embds=True,
            max_position_embeddings=10**9,
            n_layers=1,
        ),
        (),
    ),
    "depth-as-a-factor": (
        config_set(model_type="efficientnet", architectures=["EfficientNetModel"], depth_coefficient=1e9),
        (),
    ),
    "experts-in-every-layer": (experts_in_every_layer, ()),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_would_take_all_resources_is_refused(run_bounded: Callable[..., Bounded], model: Path, case: str) -> None:
    change, words = TOO_MUCH[case]
    change(model)
    assert_refused_soon_and_in_little_memory(run_bounded("--model-name", model), *words)


# What would run.


class RunsCode:
    """Unpickled without care, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_a_pickle_does_not_run_its_code(run: Run, model: Path, tmp_path: Path, zipped: bool, sharded: bool) -> None:
    marker = tmp_path / "marker"
    file = model / ("pytorch_model-1.bin" if sharded else "pytorch_model.bin")
    content: dict[str, Any] = {**state_of(model), "payload": RunsCode(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    if sharded:
        index = {"weight_map": dict.fromkeys(content, file.name)}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()
    assert_refused(run("--model-name", model), file.name)
    assert not marker.exists()


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = {model_type!r}
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.mark.parametrize("model_type", ["llama", "of-its-own"])
@pytest.mark.parametrize("more", [[], ["--model-class", "AutoModelForCausalLM"]])
def test_code_of_the_repository_runs_only_where_that_is_allowed(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, more: list[str]
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    marker = tmp_path / "marker"
    (model / "stranger.py").write_text(CODE.format(marker=str(marker), model_type=model_type))
    auto_map = {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"}
    config_set(model_type=model_type, auto_map=auto_map)(model)
    done = run("--model-name", model, *more)
    assert_decent(done)
    assert not marker.exists()
    assert not (tmp_path / "modules").exists()
    assert done.status == (0 if model_type == "llama" else 1)
    # The same code does run where it is allowed, or its not running would prove nothing.
    run("--model-name", model, "--trust-remote-code", "--rescan", *more)
    assert marker.exists()


# Names that would be something else on a terminal, in YAML or as a pattern.

ODD_NAMES = {
    "newline": "a\n- b",
    "return": "a\rspectrum: done",
    "colon": "a: b",
    "dash": "- a",
    "comment": "a #b",
    "quotes": "a'b\"c",
    "regular-expression": "(a|[b])*+$",
    "escape": "\x1b[2J\x1b[31m",
    "title": "\x1b]0;title\x07",
    "control-of-one-character": "\x9b31m",
    "backspace": "a\b\b\b",
    "delete": "\x7f",
    "right-to-left": "\u202egnp",
    "line-separator": "a\u2028b",
    "accent": "é",
    "nothing-printable": "\u200b",
}


def assert_harmless(done: Finished, name: str) -> None:
    """Nothing of it was obeyed; what is not printable of a name is spelt out."""
    assert_decent(done)
    for text in (done.out, done.err):
        assert_printable(text, "\n\r")
        assert not any(part in text for part in ("\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\u200b"))
    assert "\rspectrum: done" not in done.err


@pytest.mark.parametrize("case", ODD_NAMES)
def test_modules_that_the_config_names_are_refused_by_name(run: Run, tmp_path: Path, case: str) -> None:
    name = ODD_NAMES[case]
    config = transformers.XmodConfig(
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=8,
        max_position_embeddings=8,
        languages=["en_XX"],
        default_language="en_XX",
    )
    with redirect_stderr(io.StringIO()):  # a progress bar
        transformers.XmodModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "xmod")
    saved = tmp_path / "xmod" / "config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"languages": [name], "default_language": name}))
    state = {key.replace("en_XX", name): value for key, value in state_of(tmp_path / "xmod").items()}
    assert any(name in key for key in state)
    save(tmp_path / "xmod", state)
    done = run("--model-name", tmp_path / "xmod")
    assert_refused(done, "adapter_modules.", "is not a module path")
    assert_harmless(done, name)
    assert files_below(Path()) == []


@pytest.mark.parametrize("case", ODD_NAMES)
@pytest.mark.parametrize("where", ["unused", "missing", "damaged", "misplaced", "twice", "scale"])
def test_keys_of_stored_tensors_reach_no_terminal_as_they_are(run: Run, model: Path, case: str, where: str) -> None:
    name = ODD_NAMES[case]
    if where == "unused":
        save(model, state_of(model) | {name: torch.ones(2)})
    elif where == "missing":
        save(model, {name if key == UP_PROJ else key: value for key, value in state_of(model).items()})
    elif where == "damaged":
        weights(header_of({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)))(model)
    elif where == "misplaced":
        in_two_shards(model)
        index = json.loads((model / INDEX).read_text())
        index["weight_map"][name] = "model-1.safetensors"
        (model / INDEX).write_text(json.dumps(index))
    elif where == "twice":
        entry = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
        weights(header_of({name: entry, f"{name}2": entry}, bytes(2)))(model)
    else:
        save(model, state_of(model) | {f"{name}.weight_scale": torch.ones(2)})
    done = run("--model-name", model)
    assert done.status == (0 if where in ("unused", "scale") else 1), done.err  # a scale beside no weight does no harm
    assert_harmless(done, name)


@pytest.mark.parametrize("case", ODD_NAMES)
@pytest.mark.parametrize(
    "key", ["model_type", "architectures", "hidden_act", "dtype", "quantization_config", "auto_map"]
)
def test_words_of_a_config_reach_no_terminal_as_they_are(run: Run, model: Path, case: str, key: str) -> None:
    name = ODD_NAMES[case]
    value: object = {
        "architectures": [name],
        "quantization_config": {"quant_method": name},
        "auto_map": {"AutoConfig": name, name: name},
    }.get(key, name)
    config_set(**{key: value})(model)
    assert_harmless(run("--model-name", model), name)


def cached(content: object, sidecar: object = None) -> None:
    """A scan of a model that is not there, as somebody published it."""
    results = Path("model_snr_results")
    results.mkdir()
    ScanStore(results, "org/model").scan_path.write_text(json.dumps(content))
    if sidecar is not None:
        ScanStore(results, "org/model").sidecar_path.write_text(json.dumps(sidecar))


@pytest.mark.parametrize("case", ODD_NAMES)
@pytest.mark.parametrize("where", ["layer", "type", "nested"])
def test_names_in_a_cached_scan_are_refused(run: Run, case: str, where: str) -> None:
    name = ODD_NAMES[case]
    cached(
        {
            "layer": {name: {"snr": 1.0, "type": "up"}},
            "type": {"h.0.up": {"snr": 1.0, "type": name}},
            "nested": {"up": {name: 1.0}},
        }[where]
    )
    done = run("--model-name", "org/model")
    assert_refused(done, "not a module path", "--rescan")
    assert_harmless(done, name)
    assert list(Path().glob("*.yaml")) == []


@pytest.fixture
def scanned(run: Run, model: Path) -> tuple[Path, Path]:
    """A scan and its sidecar, of a model that is there."""
    assert run("--model-name", model).status == 0
    results = Path("model_snr_results")
    return ScanStore(results, str(model)).scan_path, ScanStore(results, str(model)).sidecar_path


@pytest.mark.parametrize("case", ODD_NAMES)
@pytest.mark.parametrize(
    "key", ["head", "embedding", "scanned", "left_out", "layer_types", "parameters", "model", "model_class", "commit"]
)
def test_names_in_a_sidecar_are_refused_or_shown_spelt_out(
    run: Run, model: Path, scanned: tuple[Path, Path], case: str, key: str
) -> None:
    name = ODD_NAMES[case]
    meta = json.loads(scanned[1].read_text())
    value: object = {
        "scanned": [name],
        "left_out": [name],
        "layer_types": [name],
        "parameters": {name: {"shape": [8], "dtype": "float32"}},
    }.get(key, name)
    scanned[1].write_text(json.dumps(meta | {key: value}))
    done = run("--model-name", model)
    assert_harmless(done, name)
    if key not in ("model", "model_class", "commit"):
        assert_refused(done, "not a module path", "--rescan")


ODD_MODELS = [
    "\x1b[2Jm",
    "a\nb",
    "a\rb",
    "..",
    "../..",
    "a/../../b",
    "~",
    "~root",
    "~nobody-of-this-name",
    "a\0b",
    "\0",
]
ODD_MODELS += [
    "-",
    "*",
    "%s",
    "{}",
    "$HOME",
    "a b",
    "\\",
    "..\\..",
    "C:\\x",
    "\u202egnp",
    "é",
    "\udcff",
    "m" * 5000,
    "/",
]
ODD_MODELS += ["a/" * 200, "https://example.org/m", "file:///etc/passwd", "org/model@main", "CON", ".hidden", "org/.."]


@pytest.mark.parametrize("name", ODD_MODELS, ids=lambda name: ascii(name)[:30])
def test_a_model_of_an_odd_name_puts_files_nowhere_else(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("there is no network here")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(ROOT / "tests" / "data", tmp_path / "home")  # so that ~ is a directory, though of no model
    before = files_below(tmp_path)
    done = run("--model-name", name, "--results-dir", "r", "--output-dir", "o")
    if name.startswith("https:"):  # an address that is not of the Hub is wrong usage
        assert (done.status, done.out) == (2, "")
        assert_printable(done.err, "\n")
        assert "is not the address of a model" in done.err
    else:
        assert done.status == 1
        assert_harmless(done, name)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["\x1b[2Jm", "a b", "a\rb", "é", "\u202egnp", "-m", "*", "{}", "%s", "a\\b", "..", "m'\""]
)
def test_a_model_in_a_directory_of_an_odd_name_is_scanned_into_its_own_files(
    run: Run, model: Path, tmp_path: Path, name: str
) -> None:
    if name == "..":
        os.chdir(shutil.copytree(model, tmp_path / "deep" / "model"))
        Path("below").mkdir()
        os.chdir("below")
    else:
        model.rename(name)
    before = set(files_below(tmp_path))
    for source in ("scanned", "from the cache"):
        done = run(f"--model-name={name}", "--results-dir", "r", "--output-dir", "o", "--top-percent", "100")
        assert done.status == 0, f"{source}: {done.err}"
        assert_harmless(done, name)
    new = {tmp_path / file for file in set(files_below(tmp_path)) - before}
    assert {file.parent for file in new} == {Path("r").resolve(), Path("o").resolve()}
    assert len(new) == 4


# Names that are sound as such, and YAML takes for something else.


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_names_that_yaml_takes_for_something_else_are_read_from_it_as_names(run: Run, form: str) -> None:
    names = [*YAML_TRAPS]
    if form == "flat":
        cached({name: {"snr": 1.0, "type": "up"} for name in names})
    else:
        cached({"up": dict.fromkeys(names, 1.0)})
    done = run("--model-name", "org/model", "--top-percent", "100", "--no-embeddings")
    assert done.status == 0, done.err
    assert_decent(done)
    (written,) = Path().glob("*.yaml")
    entries = yaml.safe_load(written.read_text())["unfrozen_parameters"]
    assert all(isinstance(entry, str) for entry in entries)
    # One that begins another is no prefix that stands for itself alone, and nothing is left unselected here.
    assert entries == names


@pytest.mark.parametrize("name", YAML_TRAPS)
def test_each_of_these_names_is_read_from_yaml_as_it_is(run: Run, name: str) -> None:
    cached({name: {"snr": 1.0, "type": name}})
    done = run("--model-name", "org/model", "--top-percent", "100", "--no-embeddings", "--quiet")
    assert done.status == 0, done.err
    assert yaml.safe_load(Path(done.out.strip()).read_text()) == {"unfrozen_parameters": [name]}
