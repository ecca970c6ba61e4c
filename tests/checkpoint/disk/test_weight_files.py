"""Weight files: every tensor bit for bit as its own library reads it, and damage of any kind refused by file name."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spectrum.checkpoint.disk import fingerprint, safetensors_header, weight_files
from spectrum.checkpoint.disk.tensors import WeightHeaders, read_tensor
from spectrum.checkpoint.disk.weight_files import StoredTensor, WeightFile
from spectrum.checkpoint.local import resolve_local
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import CheckpointError
from tests.helpers.paths import TINY_LLAMA

FLOATS = ("float64", "float32", "float16", "bfloat16")
LATER_FLOATS = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")  # later than the legacy format
OTHERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "complex64")
DTYPES = {"safetensors": FLOATS + LATER_FLOATS + OTHERS, "zip": FLOATS + LATER_FLOATS, "legacy": FLOATS}
SHAPES = {"matrix": (5, 3), "stack": (3, 2, 4), "row": (7,), "scalar": (), "nothing": (0, 4)}

State = dict[str, torch.Tensor]
Writer = Callable[[Path, State], None]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))


def random_bits(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Any value that the dtype has, NaN payloads, infinities and negative zeros among them."""
    kind: torch.dtype = getattr(torch, dtype)
    values = torch.randint(0, 256, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8)
    return values.view(kind).reshape(shape)


def stored_tensors(directory: Path) -> Mapping[str, StoredTensor]:
    return WeightHeaders(directory).tensors()


def sample_state() -> State:
    torch.manual_seed(0)
    return {
        "layers.0.weight": torch.randn(4, 6),
        "layers.1.weight": torch.randn(3, 2).bfloat16(),
        "scale": torch.ones(()),
    }


def save_safetensors(file: Path, state: State) -> None:
    safetensors.torch.save_file(state, file)


def save_zip(file: Path, state: State) -> None:
    torch.save(state, file)


def save_legacy(file: Path, state: State) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def load_bin(file: Path) -> State:
    loaded: State = torch.load(file, weights_only=True)
    return loaded


def save_sharded(directory: Path, save: Writer, stem: str, shard: Callable[[int], str], state: State) -> None:
    """One shard for each tensor, and the index that names them."""
    names = {key: shard(i) for i, key in enumerate(state)}
    for key, name in names.items():
        save(directory / name, {key: state[key]})
    (directory / f"{stem}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


LAYOUTS: Mapping[str, Callable[[Path, State], None]] = {
    "safetensors": lambda d, s: save_safetensors(d / "model.safetensors", s),
    "safetensors-sharded": lambda d, s: save_sharded(
        d, save_safetensors, "model.safetensors", lambda i: f"model-{i}.safetensors", s
    ),
    "zip": lambda d, s: save_zip(d / "pytorch_model.bin", s),
    "zip-sharded": lambda d, s: save_sharded(d, save_zip, "pytorch_model.bin", lambda i: f"pytorch_model-{i}.bin", s),
    "legacy": lambda d, s: save_legacy(d / "pytorch_model.bin", s),
    "legacy-sharded": lambda d, s: save_sharded(
        d, save_legacy, "pytorch_model.bin", lambda i: f"pytorch_model-{i}.bin", s
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_reads_back_bit_for_bit(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(1)
    dtypes = DTYPES[layout.partition("-")[0]]
    state = {f"{name}.{dtype}": random_bits(dtype, shape) for dtype in dtypes for name, shape in SHAPES.items()}
    state["flags.bool"] = torch.tensor([True, False, True])
    LAYOUTS[layout](tmp_path, state)
    files = [file for file in tmp_path.iterdir() if file.suffix != ".json"]
    load = safetensors.torch.load_file if layout.startswith("safetensors") else load_bin
    expected = {key: value for file in files for key, value in load(file).items()}

    stored = stored_tensors(tmp_path)

    assert set(stored) == set(expected) == set(state)
    for key, tensor in stored.items():
        assert (tensor.shape, tensor.dtype) == (tuple(state[key].shape), str(state[key].dtype)[len("torch.") :])
        assert same(read_tensor(tensor), expected[key]), key
        for row in range(tensor.shape[0] if tensor.shape else 0):
            assert same(read_tensor(tensor, row), expected[key][row]), f"{key}[{row}]"


def test_a_file_of_no_tensors_reads_as_none(tmp_path: Path) -> None:
    safetensors.torch.save_file({}, tmp_path / "model.safetensors")
    assert stored_tensors(tmp_path) == {}


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"format": "pt", "note": "Übergröße " * 20}])
def test_metadata_in_the_header_is_no_tensor(tmp_path: Path, metadata: dict[str, str]) -> None:
    state = sample_state()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata=metadata)
    stored = stored_tensors(tmp_path)
    assert set(stored) == set(state)
    assert all(same(read_tensor(stored[key]), state[key]) for key in state)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_views_and_parameters_in_a_torch_archive_read_as_plain_tensors(tmp_path: Path, save: Writer) -> None:
    base = torch.arange(12.0)
    state = {"transposed": base.reshape(3, 4).T, "part": base[3:5], "parameter": torch.nn.Parameter(base.clone())}
    save(tmp_path / "pytorch_model.bin", state)
    stored = stored_tensors(tmp_path)
    for key, value in state.items():
        read = read_tensor(stored[key])
        assert same(read, value.detach())
        assert not read.requires_grad  # or everything computed from it is kept for a backward pass
        assert read.untyped_storage().nbytes() == read.nbytes  # and no more of the file than this tensor


@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
def test_a_tensor_read_is_memory_of_its_own(tmp_path: Path, layout: str) -> None:
    state = sample_state()
    LAYOUTS[layout](tmp_path, state)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    stored = stored_tensors(tmp_path)
    for key in state:
        read_tensor(stored[key]).zero_()
    assert file.read_bytes() == before
    assert all(same(read_tensor(stored[key]), state[key]) for key in state)


def test_files_are_chosen_in_the_order_of_transformers(tmp_path: Path) -> None:
    first_file = {
        "safetensors": "model.safetensors",
        "safetensors-sharded": "model.safetensors.index.json",
        "zip": "pytorch_model.bin",
        "zip-sharded": "pytorch_model.bin.index.json",
    }
    for i, layout in enumerate(first_file):
        LAYOUTS[layout](tmp_path, {"w": torch.full((2,), float(i))})
    for i, file in enumerate(first_file.values()):
        stored = stored_tensors(tmp_path)
        assert read_tensor(stored["w"]).tolist() == [i, i]
        assert [*weight_files.locate_weights(tmp_path).files] == [stored["w"].file]
        (tmp_path / file).unlink()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_has_weights_whatever_their_state(tmp_path: Path, layout: str) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    assert not weight_files.has_weights(tmp_path)
    LAYOUTS[layout](tmp_path, sample_state())
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    assert weight_files.has_weights(tmp_path)


# Damage to a file. Whatever it is, the one exception that may leave names the file.


def refuses(directory: Path, file: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        stored_tensors(directory)
    assert str(file) in str(refusal.value)


def reads_or_refuses(directory: Path, file: Path) -> State | None:
    """All tensors, or None where the file was refused. No other exception leaves, however odd the content."""
    try:
        return {key: read_tensor(tensor) for key, tensor in stored_tensors(directory).items()}
    except CheckpointError as error:
        message = str(error)
    assert str(file) in message
    return None


@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
def test_a_file_truncated_anywhere_is_refused_by_name(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, sample_state())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    step = 1 if layout == "safetensors" else 7  # torch is slow to say so
    for length in {*range(0, len(content), step), len(content) - 1}:
        file.write_bytes(content[:length])
        refuses(tmp_path, file)


def test_the_truncated_one_of_many_shards_is_named(tmp_path: Path) -> None:
    LAYOUTS["safetensors-sharded"](tmp_path, sample_state())
    shard = tmp_path / "model-1.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    refuses(tmp_path, shard)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_refused_with_the_command_that_fetches_the_file(tmp_path: Path, name: str) -> None:
    oid = "sha256:" + 64 * "0"
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid {oid}\nsize 123456\n")
    refuses(tmp_path, tmp_path / name)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        stored_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        fingerprint.fingerprint(tmp_path)


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = bytes(range(8))

DAMAGED_HEADERS: Mapping[str, bytes] = {
    "not-json": safetensors_bytes(b'{"w": {', EIGHT),
    "not-utf-8": safetensors_bytes(b'{"\xff": {}}', EIGHT),
    "no-header": safetensors_bytes(b"", EIGHT),
    "nested-too-deep": safetensors_bytes(b"[" * 200_000),
    "a-list": safetensors_bytes([entry()], EIGHT),
    "a-number": safetensors_bytes(b"7", EIGHT),
    "length-of-all-ones": safetensors_bytes({"w": entry()}, EIGHT, length=2**64 - 1),
    "length-over-the-limit": safetensors_bytes({"w": entry()}, EIGHT, length=safetensors_header.MAX_HEADER_BYTES + 1),
    "length-past-the-end": safetensors_bytes({"w": entry()}, EIGHT, length=10_000),
    "one-byte-too-long": safetensors_bytes({"w": entry()}, EIGHT + b"\0"),
    "one-byte-too-short": safetensors_bytes({"w": entry()}, EIGHT[:-1]),
    "no-tensors-but-data": safetensors_bytes({}, EIGHT),
    "entry-is-a-list": safetensors_bytes({"w": ["F32", [2], [0, 8]]}, EIGHT),
    "entry-is-null": safetensors_bytes({"w": None}, EIGHT),
    "no-dtype": safetensors_bytes({"w": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "no-shape": safetensors_bytes({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT),
    "no-offsets": safetensors_bytes({"w": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "dtype-is-a-list": safetensors_bytes({"w": entry(dtype=["F32"])}, EIGHT),
    "shape-is-a-number": safetensors_bytes({"w": entry(shape=2)}, EIGHT),
    "shape-is-a-string": safetensors_bytes({"w": entry(shape="2")}, EIGHT),
    "shape-of-floats": safetensors_bytes({"w": entry(shape=[2.0])}, EIGHT),
    "shape-of-booleans": safetensors_bytes({"w": entry("F64", shape=[True])}, EIGHT),
    "shape-negative": safetensors_bytes({"w": entry(shape=[-1, -2])}, EIGHT),
    "shape-too-large-for-its-bytes": safetensors_bytes({"w": entry(shape=[3])}, EIGHT),
    "shape-too-small-for-its-bytes": safetensors_bytes({"w": entry(shape=[1])}, EIGHT),
    "dtype-too-wide-for-its-bytes": safetensors_bytes({"w": entry("F64")}, EIGHT),
    "offsets-are-one": safetensors_bytes({"w": entry(offsets=[8])}, EIGHT),
    "offsets-are-three": safetensors_bytes({"w": entry(offsets=[0, 4, 8])}, EIGHT),
    "offsets-of-floats": safetensors_bytes({"w": entry(offsets=[0.0, 8.0])}, EIGHT),
    "offsets-of-strings": safetensors_bytes({"w": entry(offsets=["0", "8"])}, EIGHT),
    "offsets-negative": safetensors_bytes({"w": entry(offsets=[-8, 0])}, EIGHT),
    "offsets-backwards": safetensors_bytes({"w": entry(shape=[0], offsets=[8, 0])}, EIGHT),
    "offsets-backwards-to-where-the-data-ends": safetensors_bytes({"a": entry(), "b": entry("F5", [0], [8, 0])}),
    "offsets-out-of-range": safetensors_bytes({"w": entry(offsets=[8, 16])}, EIGHT),
    "offsets-past-any-file": safetensors_bytes({"w": entry(shape=[2**60], offsets=[0, 2**62])}, EIGHT),
    "overlap": safetensors_bytes({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT + EIGHT[:4]),
    "same-bytes-twice": safetensors_bytes({"a": entry(), "b": entry()}, EIGHT),
    "hole": safetensors_bytes({"a": entry(), "b": entry(offsets=[12, 20])}, EIGHT + EIGHT + EIGHT[:4]),
    "shape-past-any-tensor": safetensors_bytes({"w": entry(shape=[0, 2**63], offsets=[0, 0])}),
}


@pytest.mark.parametrize("damage", DAMAGED_HEADERS)
def test_a_damaged_safetensors_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(DAMAGED_HEADERS[damage])
    refuses(tmp_path, file)


def test_the_smallest_sound_file_is_not_refused(tmp_path: Path) -> None:
    # What the damaged ones above are made from: were this refused too, they would prove nothing.
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"w": entry()}, EIGHT))
    stored = stored_tensors(tmp_path)["w"]
    assert same(read_tensor(stored), torch.frombuffer(bytearray(EIGHT), dtype=torch.float32))


def test_a_header_over_the_formats_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_bytes({"w": entry()}, EIGHT))
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", file.stat().st_size - 8 - len(EIGHT))
    assert set(stored_tensors(tmp_path)) == {"w"}
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", safetensors_header.MAX_HEADER_BYTES - 1)
    refuses(tmp_path, file)


# Torch's own name, which says nothing of the bytes that were counted; of other things in torch; and of nothing at all.
@pytest.mark.parametrize("dtype", ["float32", "load", "SUM", "F5_E1M3"])
def test_a_dtype_that_the_format_lacks_is_refused_at_the_latest_on_reading(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_bytes({"w": entry(dtype, [1])}, EIGHT))
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        read_tensor(stored_tensors(tmp_path)["w"])


NOT_TENSORS: Mapping[str, Any] = {
    "a-list": [torch.ones(2)],
    "a-number": 7,
    "a-training-state": {"model": {"w": torch.ones(2)}, "step": 3},
    "names-that-are-numbers": {0: torch.ones(2)},
    "a-sparse-tensor": {"w": torch.eye(2).to_sparse()},
    "a-tensor-without-values": {"w": torch.empty(2, device="meta")},
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("content", NOT_TENSORS)
def test_an_archive_of_other_things_than_named_dense_tensors_is_refused(
    tmp_path: Path, content: str, save: Callable[[Path, Any], None]
) -> None:
    file = tmp_path / "pytorch_model.bin"
    save(file, NOT_TENSORS[content])
    refuses(tmp_path, file)


class RunsCode:
    """Unpickled without care, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, save: Callable[[Path, Any], None]
) -> None:
    file, marker = tmp_path / "pytorch_model.bin", tmp_path / "marker"
    save(file, {"w": torch.ones(2), "payload": RunsCode(marker)})
    refuses(tmp_path, file)
    assert not marker.exists()


NOT_ARCHIVES: Mapping[str, bytes] = {
    "random": bytes(range(256)),
    "a-zip-of-something-else": b"PK\x05\x06" + bytes(18),
    "a-zip-whose-directory-lies-before-it": b"PK\x05\x06" + bytes(6) + b"\1\0" + b"\xff\xff\0\0" + bytes(6),
    "html": b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("content", NOT_ARCHIVES)
def test_a_bin_file_that_is_no_torch_archive_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(NOT_ARCHIVES[content])
    refuses(tmp_path, file)


@pytest.mark.parametrize("layout", ["safetensors", "zip"])
def test_a_shard_cut_while_it_is_being_read_is_named(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, sample_state())
    (file,) = tmp_path.iterdir()
    tensors = stored_tensors(tmp_path).values()
    os.truncate(file, 16)
    for tensor in tensors:
        with pytest.raises(CheckpointError, match=file.name):
            read_tensor(tensor)
    file.unlink()
    for tensor in tensors:
        with pytest.raises(CheckpointError, match=file.name):
            read_tensor(tensor)


# The index of a sharded checkpoint.


def with_index(directory: Path, content: object) -> Path:
    LAYOUTS["safetensors-sharded"](directory, {"a": torch.ones(2), "b": torch.zeros(2)})
    index = directory / "model.safetensors.index.json"
    index.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return index


BROKEN_INDEXES: Mapping[str, object] = {
    "empty": b"",
    "not-json": b"{",
    "not-utf-8": b"\xff\xfe\xff",
    "nested-too-deep": b"[" * 200_000,
    "a-list": [],
    "null": None,
    "no-weight-map": {"metadata": {}},
    "an-empty-weight-map": {"weight_map": {}},
    "a-weight-map-that-is-a-list": {"weight_map": ["model-0.safetensors"]},
    "a-shard-that-is-a-number": {"weight_map": {"a": 0}},
    "a-shard-that-is-null": {"weight_map": {"a": None}},
}


@pytest.mark.parametrize("content", BROKEN_INDEXES)
def test_a_broken_index_is_refused_by_name(tmp_path: Path, content: str) -> None:
    refuses(tmp_path, with_index(tmp_path, BROKEN_INDEXES[content]))


@pytest.mark.parametrize(
    "name",
    ["../model-0.safetensors", "..", ".", "", "sub/model.safetensors", "/etc/passwd", "..\\model.safetensors", "a\0b"],
)
def test_a_shard_outside_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for there in (tmp_path / "model-0.safetensors", inside / "sub" / "model.safetensors"):
        safetensors.torch.save_file({"a": torch.ones(2)}, there)
    index = with_index(inside, {"weight_map": {"a": name}})
    with pytest.raises(CheckpointError, match="is not a file of the model's directory") as refusal:
        stored_tensors(inside)
    assert str(index) in str(refusal.value)


@pytest.mark.parametrize("name", ["model-7.safetensors", "x" * 300, "two\nlines"], ids=["absent", "too-long", "lines"])
def test_a_shard_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with_index(tmp_path, {"weight_map": {"a": "model-0.safetensors", "b": name}})
    for use in (stored_tensors, weight_files.locate_weights, fingerprint.fingerprint):
        with pytest.raises(CheckpointError) as refusal:
            use(tmp_path)
        assert name.replace("\n", r"\n") in str(refusal.value)


def test_a_shard_that_is_a_directory_or_a_dangling_link_is_named(tmp_path: Path) -> None:
    with_index(tmp_path, {"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}})
    shard = tmp_path / "model-1.safetensors"
    shard.unlink()
    shard.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=shard.name):
        stored_tensors(tmp_path)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(CheckpointError, match=shard.name):
        stored_tensors(tmp_path)


def test_a_key_that_the_index_puts_in_the_wrong_shard_is_named_with_both(tmp_path: Path) -> None:
    with_index(tmp_path, {"weight_map": {"a": "model-1.safetensors", "b": "model-0.safetensors"}})
    with pytest.raises(CheckpointError, match=r"'a' in model-1\.safetensors, but it is in model-0\.safetensors"):
        stored_tensors(tmp_path)


def test_a_key_that_is_in_no_shard_is_named(tmp_path: Path) -> None:
    with_index(tmp_path, {"weight_map": {"a": "model-0.safetensors", "c": "model-1.safetensors"}})
    with pytest.raises(CheckpointError, match=r"'c' in model-1\.safetensors, but it is in no shard"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("indexed", [0, 1, 2])
@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_a_key_in_several_shards_is_read_from_the_one_that_transformers_takes(
    tmp_path: Path, stem: str, indexed: int
) -> None:
    # The shards of an earlier save hold more keys than the index puts there.
    shutil.copy(TINY_LLAMA / "config.json", tmp_path)
    state: State = {}
    for file in TINY_LLAMA.glob("*.safetensors"):
        state |= safetensors.torch.load_file(file)
    key = "model.layers.0.self_attn.q_proj.weight"
    name, _, ending = stem.partition(".")
    weight_map: dict[str, str] = {}
    for i in range(3):
        shard = {own: value for own, value in list(state.items())[i::3] if own != key}
        weight_map |= dict.fromkeys(shard, f"{name}-{i}.{ending}")
        content = shard | {key: torch.full_like(state[key], 1.0 + i)}
        if ending == "bin":
            torch.save(content, tmp_path / f"{name}-{i}.{ending}")
        else:
            safetensors.torch.save_file(content, tmp_path / f"{name}-{i}.{ending}", metadata={"format": "pt"})
    weight_map[key] = f"{name}-{indexed}.{ending}"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto").get_parameter(key)
    assert torch.equal(read_tensor(stored_tensors(tmp_path)[key]), loaded)


# Damage that nobody thought of.

quick = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.integers(-1, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
odd_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "F5"]) | json_values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2).map(sorted) | json_values,
    },
)


@quick
@given(content=st.binary(max_size=64))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        directory = tmp_path / name.partition(".")[0]
        directory.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
        refuses(directory, directory / name)


@quick
@example(header={"w": entry(shape=[0, 2**62], offsets=[0, 0])}, data=b"")
@given(
    header=st.dictionaries(st.text(max_size=3), odd_entries | json_values, max_size=3) | json_values,
    data=st.binary(max_size=24),
)
def test_a_header_of_odd_values_is_read_or_refused(tmp_path: Path, header: object, data: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_bytes(header, data))
    assert_no_worse_than_its_library(tmp_path, file)


@quick
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_real_file_with_some_bytes_changed_is_read_or_refused(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    file = tmp_path / "model.safetensors"
    content = bytearray(safetensors.torch.save(sample_state(), metadata={"format": "pt"}))
    for place, value in edits:
        content[place % len(content)] = value
    file.write_bytes(content)
    assert_no_worse_than_its_library(tmp_path, file)


def assert_no_worse_than_its_library(directory: Path, file: Path) -> None:
    """What the format's own library reads, `shards` reads, bit for bit; anything else it may only refuse."""
    read = reads_or_refuses(directory, file)
    try:
        expected = safetensors.torch.load(file.read_bytes())
    except Exception:
        return
    assert read is not None
    assert set(read) == set(expected)
    assert all(same(read[key], expected[key]) for key in expected)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [save_zip, save_legacy])
@quick
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_real_archive_with_some_bytes_changed_is_read_or_refused(
    tmp_path: Path, save: Writer, edits: list[tuple[int, int]]
) -> None:
    file = tmp_path / "pytorch_model.bin"
    save(file, sample_state())
    content = bytearray(file.read_bytes())
    for place, value in edits:
        content[place % len(content)] = value
    file.write_bytes(content)
    reads_or_refuses(tmp_path, file)


@quick
@given(content=json_values | st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=3), st.text())}))
def test_an_index_of_odd_values_is_refused(tmp_path: Path, content: object) -> None:
    with_index(tmp_path, content)
    assert reads_or_refuses(tmp_path, tmp_path) is None


# Each header is read once.


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the safetensors files whose headers are read, as often as they are."""
    names: list[str] = []
    read_header = safetensors_header.read_header

    def recorded(file: WeightFile, *arguments: Any) -> bytes:
        names.append(file.name)
        return read_header(file, *arguments)

    monkeypatch.setattr(safetensors_header, "read_header", recorded)
    return names


@pytest.fixture
def sharded_model(tmp_path: Path) -> Path:
    transformers.LlamaForCausalLM.from_pretrained(TINY_LLAMA).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    return tmp_path


def test_opening_a_checkpoint_reads_each_header_once(sharded_model: Path, headers_read: list[str]) -> None:
    opened = open_checkpoint(str(sharded_model))
    assert sorted(headers_read) == sorted(file.name for file in sharded_model.glob("*.safetensors"))
    assert opened.provenance.fingerprint == fingerprint.fingerprint(sharded_model)


def test_a_resolved_model_reads_each_header_once(sharded_model: Path, headers_read: list[str]) -> None:
    resolved = resolve_local(str(sharded_model))
    assert resolved is not None
    expected = resolved.fingerprint  # as the check of a cached scan asks for it
    opened = [open_checkpoint(str(sharded_model), resolved=resolved) for _ in range(2)]
    assert sorted(headers_read) == sorted(file.name for file in sharded_model.glob("*.safetensors"))
    assert [checkpoint.provenance.fingerprint for checkpoint in opened] == [expected] * 2
    assert opened[0].weights == open_checkpoint(str(sharded_model)).weights


# The fingerprint.


def large_state() -> State:
    torch.manual_seed(2)
    return {f"layers.{i}.weight": torch.randn(64, 64) for i in range(16)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_elsewhere_has_the_same_fingerprint(tmp_path: Path, layout: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    LAYOUTS[layout](here, sample_state())
    shutil.copytree(here, there)
    for file in there.iterdir():
        os.utime(file, (1, 1))
    (there / "README.md").write_text("Nothing of this is a weight.")
    assert fingerprint.fingerprint(here) == fingerprint.fingerprint(there)


@pytest.mark.parametrize("layout", ["safetensors", "legacy"])
def test_the_fingerprint_sees_any_twentieth_of_the_data_change(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, large_state())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    original = fingerprint.fingerprint(tmp_path)
    data = sum(value.nbytes for value in large_state().values())
    run = data // 20
    for start in range(len(content) - data, len(content) - run + 1, run // 2):
        changed = bytes(byte ^ 1 for byte in content[start : start + run])
        file.write_bytes(content[:start] + changed + content[start + run :])
        assert fingerprint.fingerprint(tmp_path) != original, start


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype", "one-more"])
def test_the_fingerprint_sees_another_tensor(tmp_path: Path, layout: str, change: str) -> None:
    def fingerprint_of(state: State) -> str:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        LAYOUTS[layout](directory, state)
        return fingerprint.fingerprint(directory)

    state = {"a": torch.zeros(4, 6), "b": torch.zeros(3)}
    changed = {
        "value": {"a": state["a"] + 1, "b": state["b"]},
        "name": {"c": state["a"], "b": state["b"]},  # as long, and the values are the same
        "shape": {"a": state["a"].T.contiguous(), "b": state["b"]},
        "dtype": {"a": state["a"].int(), "b": state["b"]},
        "one-more": {**state, "c": torch.zeros(1)},
    }[change]
    assert fingerprint_of(state) == fingerprint_of(dict(state)) != fingerprint_of(changed)


@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded"])
def test_the_fingerprint_sees_any_one_tensor_change_however_small(tmp_path: Path, layout: str) -> None:
    state = {f"layers.{i}.weight": torch.zeros(64, 64) for i in range(4)}
    state |= {f"layers.{i}.norm": torch.ones(8, dtype=torch.bfloat16) for i in range(4)}
    LAYOUTS[layout](tmp_path, state)
    seen = {fingerprint.fingerprint(tmp_path)}
    for key, value in state.items():
        LAYOUTS[layout](tmp_path, state | {key: value + 1})
        seen.add(fingerprint.fingerprint(tmp_path))
    assert len(seen) == 1 + len(state)


def test_the_fingerprint_of_a_torch_archive_sees_one_element_change(tmp_path: Path) -> None:
    state = large_state()
    save_zip(tmp_path / "pytorch_model.bin", state)
    before = fingerprint.fingerprint(tmp_path)
    state["layers.7.weight"][3, 4] += 1  # hardly a byte of the samples, but the archive has checksums
    save_zip(tmp_path / "pytorch_model.bin", state)
    assert fingerprint.fingerprint(tmp_path) != before


def test_the_fingerprint_of_a_large_file_sees_a_name_change(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_safetensors(file, {"a": torch.zeros(1000, 1000)})
    before = fingerprint.fingerprint(tmp_path)
    save_safetensors(file, {"b": torch.zeros(1000, 1000)})
    assert fingerprint.fingerprint(tmp_path) != before


def test_the_fingerprint_names_the_shards(tmp_path: Path) -> None:
    with_index(tmp_path, {"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}})
    before = fingerprint.fingerprint(tmp_path)
    (tmp_path / "model-1.safetensors").rename(tmp_path / "model-2.safetensors")
    with_index(tmp_path, {"weight_map": {"a": "model-0.safetensors", "b": "model-2.safetensors"}})
    assert fingerprint.fingerprint(tmp_path) != before


@pytest.mark.parametrize("layout", ["safetensors", "zip"])
def test_the_fingerprint_of_a_damaged_file_is_refused_by_name(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, sample_state())
    (file,) = tmp_path.iterdir()
    os.truncate(file, 20)
    with pytest.raises(CheckpointError, match=file.name):
        fingerprint.fingerprint(tmp_path)


# Views, which a torch archive may hold: read as torch reads them, whole and by rows.

BASE = torch.arange(4 * 6 * 10, dtype=torch.float32).reshape(4, 6, 10)
VIEWS = {
    "whole": BASE,
    "transposed": BASE.transpose(1, 2),
    "experts last": BASE.permute(2, 0, 1),
    "slice": BASE[1:3, ::2, 3:],
    "row": BASE[2],
    "column": BASE[:, 1, 1],
    "scalar": BASE[3, 5, 9],
    "empty": BASE[:0],
    "bf16": BASE.to(torch.bfloat16).transpose(0, 1),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_an_archive_are_read_as_torch_reads_them(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    content = {"first": torch.ones(7), name: VIEWS[name], "same": VIEWS[name]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    stored = stored_tensors(tmp_path)
    assert stored.keys() == content.keys()
    for key, value in expected.items():
        found = read_tensor(stored[key])
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert torch.equal(found, value)
        for index in range(len(value) if value.ndim else 0):
            assert torch.equal(read_tensor(stored[key], index), value[index])
