"""Torch archives: every tensor found where torch finds it; whatever torch does not write, refused at no cost."""

from __future__ import annotations

import io
import math
import pickletools
import signal
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from spectrum import dtypes
from spectrum.checkpoint.disk import torch_archive, torch_pickle, torch_pickle_machine, torch_values, torch_zip
from spectrum.checkpoint.disk.torch_archive import ArchivedTensor
from spectrum.checkpoint.disk.torch_values import ArchiveError

State = Mapping[str, torch.Tensor]

FORMATS = {"zip": True, "legacy": False}
QUANTIZED = {"qint8", "qint32", "quint8", "quint4x2", "quint2x4"}
UNSAVED = {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
TORCH_DTYPES = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
DTYPES = sorted(TORCH_DTYPES - QUANTIZED - UNSAVED)


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """What these files are made to do is to take forever."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def saved(content: object, *, layout: str = "zip", protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=FORMATS[layout])
    return stream.getvalue()


def found(content: bytes) -> dict[str, ArchivedTensor]:
    return torch_archive.read_tensors(io.BytesIO(content))


def read_at(stream: BinaryIO, tensor: ArchivedTensor) -> torch.Tensor:
    """A tensor by nothing but what was found of it."""
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride, strict=True))
    stream.seek(tensor.offset)
    content = bytearray(stream.read(0 if 0 in tensor.shape else span * dtype.itemsize))
    flat = torch.frombuffer(content, dtype=torch.uint8).view(dtype) if content else torch.empty(0, dtype=dtype)
    return flat.as_strided(tensor.shape, tensor.stride)


def read(content: bytes) -> dict[str, torch.Tensor]:
    return {name: read_at(io.BytesIO(content), tensor) for name, tensor in found(content).items()}


def loaded(content: bytes, *, weights_only: bool = True) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=weights_only)


def bits(tensor: torch.Tensor) -> bytes:
    contiguous = tensor if tensor.is_contiguous() else tensor.contiguous()
    return contiguous.detach().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(read: State, expected: State) -> None:
    assert list(read) == list(expected)
    for name, tensor in read.items():
        other = expected[name]
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (other.dtype, other.shape, other.stride()), name
        assert bits(tensor) == bits(other), name


def random_bits(dtype: str, *shape: int) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    values = torch.randint(0, 2 if dtype == "bool" else 256, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8)
    return values.view(kind).reshape(shape)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3))
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor(2.5))


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0)
    return {
        "whole": base,
        "tied": base,
        "part": base[5:9],
        "every third": base[1::3],
        "transposed": base.reshape(4, 6).T,
        "permuted": base.reshape(2, 3, 4).permute(2, 0, 1),
        "corner": base.reshape(4, 6)[2:, 3:5],
        "overlapping": base.as_strided((5, 4), (2, 1), 3),
        "of one column": base.reshape(4, 6)[:, :1],
        "scalar": base[7],
        "nothing": torch.empty(0, 3),
        "nothing at the end": base[24:],
        "nothing beyond the end": base.reshape(4, 6)[4:, 6:],
    }


def one_empty_storage_of_two_dtypes() -> dict[str, torch.Tensor]:
    nothing = torch.empty(0)
    return {"a": nothing, "b": nothing.view(torch.int32)}


SOUND: Mapping[str, Callable[[], State]] = {
    "a state dict": lambda: Network().state_dict(),
    "parameters": lambda: dict(Network().named_parameters(remove_duplicate=False)),
    "a frozen parameter": lambda: {"w": nn.Parameter(torch.ones(2), requires_grad=False)},
    "an ordered dict": lambda: OrderedDict(b=torch.ones(2), a=torch.zeros(3)),
    "views of one storage": views,
    "one empty storage of two dtypes": one_empty_storage_of_two_dtypes,
    "nothing": dict,
    "names of all kinds": lambda: {"": torch.ones(1), "Gewicht.ä.重み.😀": torch.ones(2), "a\nb": torch.ones(3)},
    "a long name": lambda: {"x" * 1000: torch.ones(1)},
    "large sizes": lambda: {"a": torch.arange(70_000.0), "b": torch.zeros(300, 300, dtype=torch.int8)[3:, 290:]},
    "all dimensions that torch has": lambda: {"w": torch.ones((1,) * 64)},
    "many": lambda: {f"layers.{i}.weight": torch.full((i % 3, 2), float(i)) for i in range(5000)},
    "a storage of several elements unused": lambda: {"w": torch.arange(100.0)[40:60:2]},
}


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("state", [slow(name) if name == "many" else name for name in SOUND])
def test_every_tensor_is_where_torch_finds_it(state: str, protocol: int, layout: str) -> None:
    torch.manual_seed(0)
    content = saved(SOUND[state](), layout=layout, protocol=protocol)
    assert_same(read(content), loaded(content, weights_only=False))  # the safe way knows protocol 2 alone
    if protocol == 2:
        assert_same(read(content), loaded(content))


@pytest.mark.filterwarnings("ignore:(ComplexHalf|BComplex32) support is experimental")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_that_torch_saves_is_read_bit_for_bit(dtype: str, layout: str) -> None:
    torch.manual_seed(0)
    state = {name: random_bits(dtype, *shape) for name, shape in {"a": (7,), "b": (3, 4), "c": (0, 2)}.items()}
    state["d"] = state["b"][1:]
    content = saved(state, layout=layout)
    assert_same(read(content), state)
    assert {tensor.dtype for tensor in found(content).values()} == {dtype}


@pytest.mark.filterwarnings("ignore:(ComplexHalf|BComplex32) support is experimental")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_that_torch_saves_is_read_as_torch_reads_it(dtype: str) -> None:
    content = saved({"w": random_bits(dtype, 3, 4)})
    assert_same(read(content), loaded(content))


def test_the_bytes_per_element_are_torchs() -> None:
    known = {name: size for name, size in dtypes.ITEM_BYTES.items() if name in TORCH_DTYPES}
    assert known == {name: getattr(torch, name).itemsize for name in known}
    assert set(DTYPES) <= set(known)


def test_views_of_several_dtypes_of_one_storage_are_read() -> None:
    # Torch writes them where all but one of the dtypes have storages of no type of their own.
    base = random_bits("uint8", 8)
    state = {"a": base, "b": base.view(torch.float8_e4m3fn), "c": base.view(torch.uint16)[1:]}
    for order in (state, dict(reversed(state.items()))):
        content = saved(order)
        assert_same(read(content), loaded(content))


def test_a_storage_whose_last_bytes_make_no_element_is_read_as_by_torch(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(saved({"w": random_bits("uint8", 10)[:8].view(torch.int32)}))
    assert_same(read(file.read_bytes()), torch.load(file, weights_only=True, mmap=True))


def test_tied_weights_lie_in_one_place() -> None:
    places = found(saved(Network().state_dict()))
    assert places["head.weight"] == places["embedding.weight"]
    assert places["block.0.weight"] != places["block.2.weight"]


@pytest.mark.parametrize("alignment", [16, 64, 4096])
def test_records_are_found_whatever_their_alignment(alignment: int) -> None:
    config = pytest.importorskip("torch.utils.serialization.config")
    if not hasattr(config.save, "storage_alignment"):
        pytest.skip("this torch aligns records to 64 bytes only")
    with config.patch({"save.storage_alignment": alignment}):
        content = saved(views())
    assert found(content)["whole"].offset % alignment == 0
    assert_same(read(content), loaded(content))


def test_the_device_on_which_a_tensor_was_saved_does_not_matter() -> None:
    content = saved({"w": torch.arange(3.0)}).replace(b"X\3\0\0\0cpu", b"X\3\0\0\0mps")
    assert_same(read(content), {"w": torch.arange(3.0)})


@pytest.mark.parametrize("layout", FORMATS)
def test_strings_of_python_2_are_read_as_torch_reads_them(layout: str) -> None:
    content = saved({"w": torch.arange(3.0)}, layout=layout)
    for word in (b"storage", b"cpu"):
        content = content.replace(b"X" + struct.pack("<L", len(word)) + word, b"U" + bytes([len(word)]) + word)
    if layout == "zip":
        content = rezipped(content)
    assert b"U\7storage" in content
    assert_same(read(content), loaded(content))


# The structure, which fingerprints in users' caches are made of.


@pytest.mark.parametrize("state", SOUND)
def test_the_structure_of_a_zip_file_is_its_directory(state: str) -> None:
    content = saved(SOUND[state]())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        expected = "\n".join(f"{r.filename} {r.file_size} {r.CRC}" for r in archive.infolist())
    assert torch_archive.read_structure(io.BytesIO(content)) == expected.encode()


def test_an_archive_whose_folder_is_named_other_than_in_ascii_is_read() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(PLAIN)) as plain, zipfile.ZipFile(stream, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name.replace("archive", "modèle"), plain.read(name))
        expected = "\n".join(f"{r.filename} {r.file_size} {r.CRC}" for r in archive.infolist())
    assert "modèle/data.pkl" in expected
    assert torch_archive.read_structure(stream) == expected.encode()
    assert_same(read(stream.getvalue()), loaded(stream.getvalue()))


def test_the_structure_of_a_file_from_before_zip_is_its_first_bytes() -> None:
    expected = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2"
    assert torch_archive.read_structure(io.BytesIO(saved(SOUND["a state dict"](), layout="legacy"))) == expected


# Archives made by hand. A pickle is written here as torch writes it, each part to be replaced by a harmful one.


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<L", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<l", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def listed(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def sizes(*values: int) -> bytes:
    return listed(*map(number, values))


NONE, TRUE, FALSE, NOTHING = b"N", b"\x88", b"\x89", b")"
HOOKS = named("collections.OrderedDict") + b")R"
FLOATS, BYTES = named("torch.FloatStorage"), named("torch.storage.UntypedStorage")
V2, V3 = (named(f"torch._utils._rebuild_tensor_v{version}") for version in (2, 3))
PARAMETER = named("torch._utils._rebuild_parameter")


def storage(
    kind: bytes = FLOATS,
    key: bytes = text("0"),
    device: bytes = text("cpu"),
    count: bytes = number(2),
    word: bytes = text("storage"),
    more: bytes = b"",
) -> bytes:
    return listed(word, kind, key, device, count, more) + b"Q"


def tensor(
    held: bytes = storage(),
    offset: bytes = number(0),
    shape: bytes = sizes(2),
    stride: bytes = sizes(1),
    requires_grad: bytes = FALSE,
    hooks: bytes = HOOKS,
    *more: bytes,
    rebuild: bytes = V2,
) -> bytes:
    return rebuild + listed(held, offset, shape, stride, requires_grad, hooks, *more) + b"R"


def mapping(**entries: bytes) -> bytes:
    return b"}" + b"".join(text(name) + value + b"s" for name, value in entries.items())


def pickled(body: bytes) -> bytes:
    return b"\x80\2" + body + b"."


VIEW = storage(more=NONE)  # as before zip
EIGHT = struct.pack("<2f", 1.5, -2.0)


def zipped(pickle: bytes, records: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive by Python's own writer: no padding, no field that torch's has for large files."""
    stream = io.BytesIO()
    usual = {"data.pkl": pickle, "byteorder": b"little", "data/0": EIGHT, "version": b"3\n"}
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in (usual | dict(records or {})).items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def rezipped(content: bytes) -> bytes:
    """The same archive, by Python's own writer, with what of it was changed in place."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, start, size in local_records(content):
            archive.writestr(name, content[start : start + size])
    return stream.getvalue()


def local_records(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of records that torch wrote, as their own headers and what follows them have it."""
    at = 0
    while content[at : at + 4] == b"PK\3\4":
        name_length, extra_length = struct.unpack_from("<2H", content, at + 26)
        name = content[at + 30 : at + 30 + name_length].decode()
        start = at + 30 + name_length + extra_length
        end = content.find(b"PK\7\x08", start) if content[at + 6] & 8 else start
        yield name, start, end - start
        at = end + (16 if content[at + 6] & 8 else 0)


def older(pickle: bytes, keys: bytes | None = None, data: bytes | None = None, **changes: bytes) -> bytes:
    parts = {
        "magic": pickled(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"),
        "version": pickled(b"M\xe9\3"),
        "system": pickled(mapping(protocol_version=number(1001), little_endian=TRUE, type_sizes=b"}")),
        "pickle": pickle,
        "keys": pickled(b"](" + text("0") + b"e") if keys is None else keys,
        "data": struct.pack("<q", 2) + EIGHT if data is None else data,
    }
    return b"".join((parts | changes).values())


def refused(content: bytes, *words: str) -> None:
    with pytest.raises(ArchiveError) as refusal:
        found(content)
    message = str(refusal.value)
    assert message.isprintable()
    assert len(message) < 300
    for word in words:
        assert word in message


def test_archives_made_by_hand_are_sound() -> None:
    # What the harmful ones are made from: were these refused too, those would prove nothing.
    expected = {"w": torch.tensor([1.5, -2.0])}
    untyped = storage(BYTES, count=number(8))
    typed = tensor(untyped, number(0), sizes(2), sizes(1), FALSE, HOOKS, named("torch.uint32"), rebuild=V3)
    parameter = PARAMETER + listed(tensor(), TRUE, HOOKS) + b"R"
    state_dict = HOOKS + text("w") + tensor() + b"s" + mapping(_metadata=mapping(version=number(1))) + b"b"
    for content in (
        zipped(pickled(mapping(w=tensor()))),
        zipped(pickled(mapping(w=parameter))),
        zipped(pickled(state_dict)),
        older(pickled(mapping(w=tensor(VIEW)))),
    ):
        assert_same(read(content), expected)
        assert_same(read(content), {name: value.detach() for name, value in loaded(content).items()})
    content = zipped(pickled(mapping(w=typed)))
    assert_same(read(content), loaded(content))


def doubled_tuple(times: int) -> bytes:
    """Ten bytes for each step to a tuple that takes twice as long to hash."""
    return NOTHING + b"".join(b"r" + struct.pack("<L", i) + b"j" + struct.pack("<L", i) + b"\x86" for i in range(times))


# Each is the body of the pickle, and what the refusal says.
HARMFUL_BODIES: Mapping[str, tuple[bytes, str]] = {
    "a key that takes 2^100 steps to hash": (b"}" + doubled_tuple(100) + tensor() + b"s", "keys are not strings"),
    "such a key among many": (b"}(" + doubled_tuple(100) + tensor() + b"u", "keys are not strings"),
    "a number as key": (b"}" + number(1) + tensor() + b"s", "keys are not strings"),
    "3 GiB": (mapping(w=named("builtins.bytearray") + listed(number(3 << 30)) + b"R"), "builtins.bytearray"),
    "a command": (named("os.system") + listed(text("true")) + b"R", "os.system"),
    "a command by a long name": (b"c" + b"x" * 2000 + b"\nsystem\n", "damaged"),
    "a global that is not ASCII": ("cös\nsystem\n".encode(), "damaged"),
    "a global that would change the terminal": (b"c\x1b[2J\nsystem\n", "names"),
    "a global on the stack": (text("os") + text("system") + b"\x93", "os.system"),
    "a global of no strings": (number(1) + text("system") + b"\x93", "damaged"),
    "a nested tensor": (named("torch._utils._rebuild_nested_tensor"), "_rebuild_nested_tensor"),
    "a call of a string": (text("os") + NOTHING + b"R", "damaged"),
    "a call with no tuple": (named("collections.OrderedDict") + b"]R", "damaged"),
    "a call of a dtype": (named("torch.float32") + NOTHING + b"R", "something other than tensors"),
    "a call of a storage": (FLOATS + listed(number(3 << 30)) + b"R", "something other than tensors"),
    "a dictionary of pairs": (named("collections.OrderedDict") + listed(b"]") + b"R", "something other than tensors"),
    "stride 0": (mapping(w=tensor(shape=sizes(1 << 30), stride=sizes(0))), "repeats elements of its storage"),
    "windows": (mapping(w=tensor(shape=sizes(2, 2), stride=sizes(1, 0))), "repeats elements of its storage"),
    "a tensor beyond its storage": (mapping(w=tensor(shape=sizes(3))), "beyond its storage"),
    "an offset beyond its storage": (mapping(w=tensor(offset=number(1))), "beyond its storage"),
    "a stride beyond its storage": (mapping(w=tensor(stride=sizes(2))), "beyond its storage"),
    "a stride beyond any storage": (mapping(w=tensor(stride=sizes(2**62))), "beyond its storage"),
    "a negative offset": (mapping(w=tensor(offset=number(-1))), "sizes make no sense"),
    "an offset past any": (mapping(w=tensor(offset=number(2**63))), "sizes make no sense"),
    "an offset that is true": (mapping(w=tensor(offset=TRUE, shape=sizes(1))), "sizes make no sense"),
    "a negative size": (mapping(w=tensor(shape=sizes(-2))), "sizes make no sense"),
    "a negative stride": (mapping(w=tensor(number(1), stride=sizes(-1))), "make"),
    "sizes that are true": (mapping(w=tensor(shape=listed(TRUE))), "sizes make no sense"),
    "sizes that are real": (mapping(w=tensor(shape=listed(b"G" + struct.pack(">d", 2.0)))), "sizes make no sense"),
    "sizes in a list": (mapping(w=tensor(shape=b"]" + number(2) + b"a")), "sizes make no sense"),
    "a size past any": (mapping(w=tensor(shape=sizes(2**63))), "sizes make no sense"),
    "sizes past any together": (mapping(w=tensor(shape=sizes(2**32, 2**32), stride=sizes(0, 0))), "larger than any"),
    "nothing of sizes past any": (
        mapping(w=tensor(shape=sizes(0, 2**62, 2), stride=sizes(0, 0, 0))),
        "larger than any",
    ),
    "fewer strides than sizes": (mapping(w=tensor(shape=sizes(2, 1))), "sizes make no sense"),
    "65 dimensions": (mapping(w=tensor(shape=sizes(*65 * [1]), stride=sizes(*65 * [1]))), "sizes make no sense"),
    "no boolean for a gradient": (mapping(w=tensor(requires_grad=number(0))), "makes no sense"),
    "hooks": (mapping(w=tensor(hooks=HOOKS + text("a") + NONE + b"s")), "hooks"),
    "hooks in a plain dictionary": (mapping(w=tensor(hooks=b"}")), "hooks"),
    "hooks of a parameter": (mapping(w=PARAMETER + listed(tensor(), TRUE, NONE) + b"R"), "hooks"),
    "a parameter of nothing": (mapping(w=PARAMETER + listed(NONE, TRUE, HOOKS) + b"R"), "makes no sense"),
    "a parameter with a state": (
        mapping(w=PARAMETER + listed(tensor(), TRUE, HOOKS, b"}") + b"R"),
        "other than tensors",
    ),
    "a tensor of no storage": (mapping(w=tensor(held=NONE)), "makes no sense"),
    "a tensor of few parts": (mapping(w=V2 + listed(storage(), number(0)) + b"R"), "makes no sense"),
    "a conjugated tensor": (
        mapping(w=tensor(storage(), number(0), sizes(2), sizes(1), FALSE, HOOKS, mapping(conj=TRUE))),
        "conjugated",
    ),
    "bytes without a dtype": (mapping(w=tensor(storage(BYTES, count=number(8)))), "makes no sense"),
    "a dtype that is none": (
        mapping(w=tensor(storage(BYTES), number(0), sizes(2), sizes(1), FALSE, HOOKS, FLOATS, rebuild=V3)),
        "makes no sense",
    ),
    "a dtype besides a typed storage": (
        mapping(w=tensor(storage(), number(0), sizes(2), sizes(1), FALSE, HOOKS, named("torch.int32"), rebuild=V3)),
        "makes no sense",
    ),
    "a dtype wider than its bytes": (
        mapping(
            w=tensor(
                storage(BYTES, count=number(8)),
                number(0),
                sizes(2),
                sizes(1),
                FALSE,
                HOOKS,
                named("torch.float64"),
                rebuild=V3,
            )
        ),
        "beyond its storage",
    ),
    "a quantized storage": (mapping(w=tensor(storage(named("torch.QInt8Storage")))), "QInt8Storage"),
    "a storage of no type": (mapping(w=tensor(storage(named("torch.float32")))), "storage that makes no sense"),
    "a storage that is a module": (mapping(w=tensor(storage(word=text("module")))), "other than a storage"),
    "a storage by a string": (mapping(w=text("0") + b"Q"), "other than a storage"),
    "a storage by a number": (mapping(w=number(0) + b"Q"), "other than a storage"),
    "a storage of no kind": (mapping(w=tensor(storage(NONE))), "storage that makes no sense"),
    "a storage whose length is true": (mapping(w=tensor(storage(count=TRUE), shape=sizes(1))), "length makes no sense"),
    "a storage whose length is text": (mapping(w=tensor(storage(count=text("2")))), "length makes no sense"),
    "a storage of a number": (mapping(w=tensor(storage(key=number(0)))), "storage that makes no sense"),
    "a storage on no device": (mapping(w=tensor(storage(device=NONE))), "storage that makes no sense"),
    "a storage of a negative length": (mapping(w=tensor(storage(count=number(-2)))), "length makes no sense"),
    "a storage past any": (mapping(w=tensor(storage(count=number(2**60)))), "length makes no sense"),
    "a storage of the wrong length": (mapping(w=tensor(storage(count=number(1)), shape=sizes(1))), "not 4 as"),
    "a storage longer than its data": (mapping(w=tensor(storage(count=number(3)))), "not 12 as"),
    "a storage that is not there": (mapping(w=tensor(storage(key=text("1")))), "lacks the data of '1'"),
    "a storage elsewhere": (mapping(w=tensor(storage(key=text("../version")))), "lacks the data"),
    "a storage of a view": (mapping(w=tensor(storage(more=NONE))), "other than a storage"),
    "a storage of two dtypes": (mapping(a=tensor(), b=tensor(storage(named("torch.IntStorage")))), "two storages '0'"),
    "a storage of two lengths": (mapping(a=tensor(), b=tensor(storage(count=number(3)))), "two storages '0'"),
    "a nested state dict": (mapping(epoch=number(1), state_dict=mapping(w=tensor())), "'state_dict' is a dictionary"),
    "a bare tensor": (tensor(), "other things"),
    "a list": (b"]" + tensor() + b"a", "other things"),
    "a number besides tensors": (mapping(w=tensor(), step=number(3)), "'step'"),
    "a storage besides tensors": (mapping(w=storage()), "'w'"),
    "two entries of one name": (b"}" + 2 * (text("w") + tensor() + b"s"), "two entries 'w'"),
    "attributes of a dictionary": (mapping(w=tensor()) + b"}b", "attributes"),
    "attributes of a tensor": (mapping(w=tensor() + b"}b"), "attributes"),
    "attributes that are none": (HOOKS + NOTHING + b"b", "attributes"),
    "a name of 1001 characters": (mapping(**{"x" * 1001: tensor()}), "over 1000 characters"),
    "a name that is not text": (b"}U\2\xff\xfe" + tensor() + b"s", "not text"),
    "a string longer than the file": (b"X\xff\xff\xff\xff", "1000 characters"),
    "a string that is cut": (b"X\x40\0\0\0abc", "ends too early"),
    "a number of 17 bytes": (b"\x8a\x11" + 17 * b"\1", "number larger"),
    "a number that is cut": (b"\x8a\x10\1", "ends too early"),
    "a million nested tuples": (NOTHING + 1_000_000 * b"\x85", "other things"),
    "a list within itself": (b"]q\0h\0a", "other things"),
    "a dictionary within itself": (b"}q\0" + text("w") + b"h\0s", "'w' is a dictionary"),
    "many values": (20_000 * NONE, "piles up"),
    "many marks": (1000 * b"(", "nests more"),
    "nothing": (b"", "damaged"),
    "two values": (mapping(w=tensor()) + NONE, "damaged"),
    "a mark left over": (mapping(w=tensor()) + b"(", "damaged"),
    "a mark left under": (b"(" + mapping(w=tensor()), "damaged"),
    "a value below a mark": (mapping(w=tensor()) + b"(\x85", "damaged"),
    "a target below a mark": (b"}(" + text("w") + tensor() + b"(u", "damaged"),
    "no mark": (b"}" + text("w") + tensor() + b"u", "damaged"),
    "a name without a value": (b"}(" + text("w") + b"u", "damaged"),
    "entries of a list": (b"](" + text("w") + tensor() + b"u", "damaged"),
    "a tuple of too many": (NONE + b"\x87", "damaged"),
    "an addition to a dictionary": (b"}" + NONE + b"a", "damaged"),
    "what was not kept": (b"h\0", "damaged"),
    "something kept far off": (b"}r\xff\xff\xff\x7f", "damaged"),
    "nothing kept": (b"q\0", "damaged"),
    "a second beginning": (b"\x80\2" + mapping(w=tensor()), "PROTO"),
    "a frame longer than the file": (b"\x95" + struct.pack("<Q", 10**6), "ends too early"),
    "a step that is none": (b"\xff", "0xff"),
}


@pytest.mark.parametrize("harm", [slow(name) if "million" in name else name for name in HARMFUL_BODIES])
def test_a_pickle_that_torch_does_not_write_is_refused(harm: str) -> None:
    body, words = HARMFUL_BODIES[harm]
    refused(zipped(pickled(body)), words)


STEPS = {step.name: step for step in pickletools.opcodes}
KNOWN_STEPS = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "SHORT_BINSTRING",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "BINGET",
    "LONG_BINGET",
    "GLOBAL",
    "STACK_GLOBAL",
    "BINPERSID",
    "REDUCE",
    "BUILD",
}


@pytest.mark.parametrize("step", sorted(STEPS.keys() - KNOWN_STEPS))
def test_every_other_step_of_a_pickle_is_refused_by_its_name(step: str) -> None:
    refused(zipped(pickled(b"((}" + STEPS[step].code.encode("latin-1") + bytes(16))), f"a step {step},")


@pytest.mark.parametrize("start", [b"", b"\x80", b"\x80\0", b"\x80\1", b"\x80\6", b"}."])
def test_a_pickle_of_an_unknown_protocol_is_refused(start: bytes) -> None:
    refused(zipped(start + mapping(w=tensor()) + b"."), "pickle")


def test_what_follows_the_pickle_is_refused() -> None:
    refused(zipped(pickled(mapping(w=tensor())) + b"."), "goes on after its end")


LIMITS = {
    "MAX_BYTES": "MiB long",
    "_MAX_DIRECTORY_BYTES": "more than any model's",
    "_MAX_RECORDS": "more than any model's",
    "_MAX_ARCHIVE_TENSORS": "over",
    "_MAX_CONTAINERS": "makes more",
    "_MAX_STEPS": "more steps",
    "_MAX_STACKED": "piles up",
    "_MAX_MARKS": "nests more",
    "_MAX_CHARACTERS": "pickle",
    "MAX_DIMENSIONS": "sizes",
    "_MAX_INTEGER_BYTES": "number larger",
}


def set_limit(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    for module in (torch_archive, torch_pickle, torch_pickle_machine, torch_values, torch_zip):
        if hasattr(module, limit):
            monkeypatch.setattr(module, limit, value)


@pytest.mark.parametrize("limit", LIMITS)
def test_there_is_a_limit_that_holds_from_one_value_on(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    content = zipped(pickled(mapping(w=tensor(offset=b"\x8a\2\0\0"))))
    least = 0
    while least < 2000:
        set_limit(monkeypatch, limit, least)
        with suppress(ArchiveError):
            found(content)
            break
        refused(content, LIMITS[limit])
        least += 1
    assert 0 < least < 2000
    for value in range(least, 2000, 100):
        set_limit(monkeypatch, limit, value)
        assert found(content)


@pytest.mark.slow
@pytest.mark.parametrize(("mib", "is_read"), [(31, True), (33, False)])
def test_a_pickle_of_more_than_32_mib_is_refused(mib: int, is_read: bool) -> None:
    strings = b"]" + mib * (b"(" + 1049 * text("x" * 995) + b"e")  # of a MiB each
    for make, held in ((zipped, storage()), (older, VIEW)):
        content = make(pickled(HOOKS + text("w") + tensor(held) + b"s" + mapping(_metadata=strings) + b"b"))
        if is_read:
            assert set(found(content)) == {"w"}
        else:
            refused(content, "over 32 MiB")


# What torch writes of things other than flat state dicts of dense tensors.

OTHER_CONTENTS: Mapping[str, tuple[Callable[[], object], str]] = {
    "a bare tensor": (lambda: torch.ones(2), "other things"),
    "a list": (lambda: [torch.ones(2)], "other things"),
    "a number": (lambda: 7, "other things"),
    "a training state": (lambda: {"step": 3, "state_dict": Network().state_dict()}, "'state_dict' is a dictionary"),
    "numbers as names": (lambda: {0: torch.ones(2)}, "keys are not strings"),
    "an expanded tensor": (lambda: {"w": torch.ones(1).expand(1000)}, "repeats elements of its storage"),
    "a sparse tensor": (lambda: {"w": torch.eye(2).to_sparse()}, "_rebuild_sparse_tensor"),
    "a tensor on no device": (lambda: {"w": torch.ones(2, device="meta")}, "_rebuild_meta_tensor_no_storage"),
    "a conjugated tensor": (lambda: {"w": torch.ones(2, dtype=torch.complex64).conj()}, "conjugated"),
    "a negated tensor": (lambda: {"w": torch.ones(2, dtype=torch.complex64).conj().imag}, "negated"),
    "a storage": (lambda: {"w": torch.ones(2).untyped_storage()}, "'w'"),
    "a module": (lambda: Network(), "names"),
    "a parameter with attributes": (lambda: {"w": with_attribute(nn.Parameter(torch.ones(2)))}, "_with_state"),
    "a tensor with attributes": (lambda: {"w": with_attribute(torch.ones(2))}, "_rebuild_from_type_v2"),
}


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = 1  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("content", OTHER_CONTENTS)
def test_other_things_that_torch_saves_are_refused(content: str, layout: str) -> None:
    make, words = OTHER_CONTENTS[content]
    refused(saved(make(), layout=layout), words)


def test_a_torchscript_program_is_refused_as_such() -> None:
    refused(zipped(pickled(mapping(w=tensor())), {"constants.pkl": pickled(NOTHING)}), "TorchScript")


# The zip file.

NAMES = ("data.pkl", "byteorder", "data/0", "version")
PLAIN = zipped(pickled(mapping(w=tensor())))
TORCHS = saved({"w": torch.tensor([1.5, -2.0])})


def entry_of(content: bytes, name: str) -> int:
    """Where the directory has a record, of which it is the last mention of its name."""
    return content.rindex(f"archive/{name}".encode()) - 46


def header_of(content: bytes, name: str) -> int:
    return content.index(f"archive/{name}".encode()) - 30


def changed(content: bytes, at: int, layout: str, *values: int | bytes) -> bytes:
    parts = bytearray(content)
    struct.pack_into(layout, parts, at, *values)
    return bytes(parts)


def end_of(content: bytes) -> int:
    return len(content) - 22


def changed_end(content: bytes, field: int, value: int) -> bytes:
    return changed(content, end_of(content) + field, "<L" if field in (12, 16) else "<H", value)


@pytest.mark.parametrize("content", [PLAIN, TORCHS])
def test_the_archives_to_be_changed_are_sound(content: bytes) -> None:
    assert_same(read(content), {"w": torch.tensor([1.5, -2.0])})


def test_compressed_records_are_refused() -> None:
    refused(zipped(pickled(mapping(w=tensor())), method=zipfile.ZIP_DEFLATED), "compressed")


@pytest.mark.parametrize("content", [PLAIN, TORCHS])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("field", "value"), [("flags", 1), ("flags", 64), ("flags", 1 << 13), ("method", 8)])
def test_a_record_called_packed_in_either_place_is_refused(content: bytes, name: str, field: str, value: int) -> None:
    within = {"flags": 8, "method": 10}[field]
    refused(changed(content, entry_of(content, name) + within, "<H", value), "compressed or encrypted")
    refused(changed(content, header_of(content, name) + within - 2, "<H", value), "compressed or encrypted")


@pytest.mark.parametrize("content", [PLAIN, TORCHS])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", [20, 24])
def test_a_record_of_two_sizes_is_refused(content: bytes, name: str, field: int) -> None:
    refused(changed(content, entry_of(content, name) + field, "<L", 1), "two sizes")
    refused(changed(content, header_of(content, name) + field - 2, "<L", 1), "two sizes")
    refused(changed(content, entry_of(content, name) + field, "<L", 2**32 - 1), "damaged")
    refused(changed(content, header_of(content, name) + field - 2, "<L", 2**32 - 1), "damaged")


def test_a_size_may_be_left_to_what_follows_only_where_that_is_said() -> None:
    refused(changed(PLAIN, header_of(PLAIN, "data/0") + 18, "<2L", 0, 0), "two sizes")
    content = changed(PLAIN, header_of(PLAIN, "data/0") + 18, "<2L", 0, 0)
    assert found(changed(content, header_of(PLAIN, "data/0") + 6, "<H", 8))


@pytest.mark.parametrize("content", [PLAIN, TORCHS])
@pytest.mark.parametrize("name", NAMES)
def test_a_record_that_is_not_where_the_directory_puts_it_is_refused(content: bytes, name: str) -> None:
    header = header_of(content, name)
    elsewhere = "not where its directory puts it"
    refused(changed(content, header_of(content, name), "<4s", b"PK\3\4" if header else b"PK\1\2")[:-1], "")
    refused(changed(content, header + 30, "<B", ord("b")), elsewhere)
    refused(changed(content, header + 26, "<H", 1), elsewhere)
    if header:
        refused(changed(content, header, "<4s", b"PK\1\2"), elsewhere)
        refused(changed(content, entry_of(content, name) + 42, "<L", header + 1), elsewhere)
    refused(changed(content, header + 28, "<H", 0xFFFF), "beyond the records")
    refused(changed(content, entry_of(content, name) + 42, "<L", len(content)), "record")
    refused(changed(content, entry_of(content, name) + 42, "<L", 2**32 - 1), "damaged")


def test_a_record_that_reaches_into_the_directory_is_refused() -> None:
    content = PLAIN
    for at in (entry_of(PLAIN, "version") + 20, header_of(PLAIN, "version") + 18):
        content = changed(content, at, "<2L", 40, 40)
    refused(content, "beyond the records")


def test_records_that_overlap_are_refused() -> None:
    inner = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 8, 8, 14, 0) + b"archive/data/1" + EIGHT
    count = number(len(inner) // 4)
    body = mapping(a=tensor(storage(count=count)), b=tensor(storage(key=text("1"))))
    content = zipped(pickled(body), {"data/0": inner, "data/1": EIGHT})
    assert set(found(content)) == {"a", "b"}
    header = content.index(inner)
    refused(changed(content, entry_of(content, "data/1") + 42, "<L", header), "overlaps")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spell", [str, str.upper])
def test_two_records_of_one_name_are_refused(name: str, spell: Callable[[str], str]) -> None:
    # Torch takes names that differ in case for the same.
    stream = io.BytesIO(PLAIN)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(spell(f"archive/{name}"), b"")
    refused(stream.getvalue(), "two records of one name")


@pytest.mark.parametrize("name", ["elsewhere/data/0", "data", "Archive/data/1", "archive"])
def test_a_record_outside_the_folder_is_refused(name: str) -> None:
    stream = io.BytesIO(PLAIN)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(name, b"")
    refused(stream.getvalue(), "not in its folder")


def test_names_of_records_that_readers_take_differently_are_refused() -> None:
    flagged, bare = (zipped(pickled(mapping()), {name: b""}) for name in ("ä", "aa"))
    assert found(flagged) == found(bare) == {}
    refused(changed(flagged, entry_of(flagged, "ä") + 8, "<H", 0), "not text")
    refused(flagged.replace("ä".encode(), b"\xff\xff"), "not text")
    refused(bare.replace(b"/aa", b"/a\0"), "cut short")


def test_an_archive_without_its_pickle_is_refused() -> None:
    refused(PLAIN.replace(b"data.pkl", b"data.pki"), "lacks data.pkl")


def test_a_zip_file_of_nothing_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w"):
        pass
    refused(stream.getvalue(), "not a torch archive")
    refused(changed_end(changed_end(b"PK\3\4" + stream.getvalue(), 16, 4), 12, 0), "empty zip")


@pytest.mark.parametrize(("order", "words"), [(b"big", "big-endian"), (b"middle", "order"), (bytes(10**6), "order")])
def test_another_byte_order_is_refused(order: bytes, words: str) -> None:
    refused(zipped(pickled(mapping(w=tensor())), {"byteorder": order}), words)


def test_an_archive_of_no_byte_order_is_read() -> None:
    # Torch before 2.1 did not write it.
    assert_same(read(PLAIN.replace(b"byteorder", b"bytereord")), {"w": torch.tensor([1.5, -2.0])})


# Files in which readers could see two directories.


@pytest.mark.parametrize("content", [PLAIN, TORCHS])
def test_a_directory_is_found_in_one_way_only(content: bytes) -> None:
    other = zipped(pickled(mapping(other=tensor())))
    for comment in (b"x", b"PK\5\6" + bytes(17), b"PK\5\6" + bytes(18), other):
        refused(changed_end(content, 20, len(comment)) + comment)
    for follows in (b"\0", b"PK\5\6", bytes(22), content[-22:], content[-1:]):
        refused(content + follows, "")
    refused(content + other, "")
    refused(other + content, "not where its")
    refused(b"PK\3\4" + content, "not where its")
    refused(bytes(8) + content, "not a torch archive")
    refused(changed(content, end_of(content), "<4s", b"PK\5\7"), "something follows")
    refused(b"PK\3\4" + b"PK\6\7" + bytes(16) + content[-22:], "locator")


def test_an_archive_behind_another_is_refused_though_its_directory_is_right() -> None:
    other = zipped(pickled(mapping(other=tensor())))
    content = other + PLAIN
    moved = changed_end(content, 16, len(other) + struct.unpack_from("<L", PLAIN, end_of(PLAIN) + 16)[0])
    for name in NAMES:
        moved = changed(moved, entry_of(moved, name) + 42, "<L", len(other) + header_of(PLAIN, name))
    with zipfile.ZipFile(io.BytesIO(moved)) as archive:
        assert archive.testzip() is None
    refused(moved, "does not begin where it should")


@pytest.mark.parametrize("content", [PLAIN, TORCHS])
@pytest.mark.parametrize("field", [4, 6, 8, 10, 12, 16, 20])
@pytest.mark.parametrize("value", [1, 3, 0xFFFF])
def test_an_end_record_that_disagrees_is_refused(content: bytes, field: int, value: int) -> None:
    refused(changed_end(content, field, value), "")


# Of the end record for large files, which torch always writes: each field's offset before the end of the file.
@pytest.mark.parametrize("field", [98, 94, 82, 78, 74, 66, 58, 50, 42, 34, 38, 26])
def test_an_end_record_for_large_files_that_disagrees_is_refused(field: int) -> None:
    content = bytearray(TORCHS)
    content[-field] ^= 3 if field == 26 else 1
    if field == 42:  # no locator: then the directory does not end where it should
        refused(bytes(content), "not where its end record")
    refused(bytes(content), "")


@pytest.mark.parametrize("count", [0, 3, 5, 70_000])
def test_a_directory_of_another_number_of_records_is_refused(count: int) -> None:
    content = TORCHS
    for at, layout in ((82 - 8, "<Q"), (66, "<Q")):
        content = changed(content, len(content) - at, layout, count)
    small = min(count, 0xFFFF)
    refused(changed_end(changed_end(content, 8, small), 10, small), "")


@pytest.mark.parametrize("field", [28, 30, 32])
@pytest.mark.parametrize("value", [1, 200, 0xFFFF])
def test_a_directory_whose_entries_do_not_fill_it_is_refused(field: int, value: int) -> None:
    for name in NAMES:
        refused(changed(PLAIN, entry_of(PLAIN, name) + field, "<H", value), "")
    refused(changed(PLAIN, entry_of(PLAIN, "version") + 34, "<H", 1), "directory is damaged")
    refused(changed(PLAIN, entry_of(PLAIN, "version"), "<4s", b"PK\1\3"), "directory is damaged")


def write_wide(file: Path, gap: int) -> None:
    """An archive as torch writes one beyond 4 GiB: a hole of so many bytes, and a tensor beyond it."""
    count = number(gap // 4)
    body = mapping(a=tensor(storage(count=count), number(gap // 4 - 2)), b=tensor(storage(key=text("1"))))
    records = {"data.pkl": pickled(body), "version": b"3\n", "data/0": None, "data/1": EIGHT}
    directory = b""
    ones = 2**32 - 1
    with file.open("wb") as stream:
        for name, content in records.items():
            header, size = stream.tell(), gap if content is None else len(content)
            wide = b"".join(struct.pack("<Q", n) for n in (size, size, header) if n >= ones)
            extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
            shown, full = min(size, ones), f"archive/{name}".encode()
            stream.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(full), len(extra)))
            stream.write(full + extra)
            stream.seek(size - 8, 1) if content is None else stream.write(content)
            if content is None:
                stream.write(EIGHT[4:] + EIGHT[:4])
            directory += struct.pack("<4s6H3L", b"PK\1\2", 0, 0, 0x808, 0, 0, 0, 0, shown, shown)
            directory += struct.pack("<5H2L", len(full), len(extra), 0, 0, 0, 0, min(header, ones)) + full + extra
        start, length = stream.tell(), len(directory)
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 798, 45, 0, 0, 4, 4, length, start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + length, 1)
        stream.write(directory + end + locator)
        stream.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 4, 4, length, min(start, ones), 0))


@pytest.mark.parametrize("gap", [1 << 20, (4 << 30) - 400, 5 << 30])
def test_tensors_on_both_sides_of_4_gib_are_found(tmp_path: Path, gap: int) -> None:
    file = tmp_path / "pytorch_model.bin"
    write_wide(file, gap)
    expected = torch.load(file, weights_only=True, mmap=True)
    with file.open("rb") as stream:
        places = torch_archive.read_tensors(stream)
        assert_same({name: read_at(stream, place) for name, place in places.items()}, expected)
        assert expected["a"].tolist() == [-2.0, 1.5]
        assert places["b"].offset > gap
        with zipfile.ZipFile(file) as archive:
            listed = "\n".join(f"{r.filename} {r.file_size} {r.CRC}" for r in archive.infolist())
        assert torch_archive.read_structure(stream) == listed.encode()


# Files from before zip.

BEFORE = pickled(mapping(w=tensor(VIEW)))

HARMFUL_OLDER: Mapping[str, tuple[bytes, str]] = {
    "another magic number": (older(BEFORE, magic=pickled(number(7))), "not a torch archive"),
    "a plain pickle": (BEFORE, "not a torch archive"),
    "another version": (older(BEFORE, version=pickled(number(1000))), "version"),
    "no system": (older(BEFORE, system=pickled(NONE)), "big-endian"),
    "an unknown system": (older(BEFORE, system=pickled(b"}")), "big-endian"),
    "another byte order": (older(BEFORE, system=pickled(mapping(little_endian=FALSE))), "big-endian"),
    "tensors in the system": (
        older(BEFORE, system=pickled(mapping(little_endian=TRUE, w=tensor(VIEW)))),
        "none belong",
    ),
    "a storage that is a part": (
        older(pickled(mapping(w=tensor(storage(more=listed(text("1"), number(0), number(2))))))),
        "part of another",
    ),
    "a storage as in a zip file": (older(pickled(mapping(w=tensor()))), "other than a storage"),
    "no keys": (older(BEFORE, keys=pickled(b"]")), "other storages"),
    "no list of keys": (older(BEFORE, keys=pickled(text("0"))), "other storages"),
    "another key": (older(BEFORE, keys=pickled(b"]" + text("1") + b"a")), "other storages"),
    "a key that is a list": (older(BEFORE, keys=pickled(b"]]a")), "other storages"),
    "a key that takes forever": (older(BEFORE, keys=pickled(b"]" + doubled_tuple(100) + b"a")), "other storages"),
    "a key twice": (older(BEFORE, keys=pickled(b"](" + 2 * text("0") + b"e"), data=2 * (bytes(8) + EIGHT)), "other"),
    "one key twice, the other never": (
        older(
            pickled(mapping(a=tensor(VIEW), b=tensor(storage(key=text("1"), more=NONE)))),
            keys=pickled(b"](" + 2 * text("0") + b"e"),
            data=2 * (struct.pack("<q", 2) + EIGHT),
        ),
        "other storages",
    ),
    "another count": (older(BEFORE, data=struct.pack("<q", 1) + EIGHT), "another length"),
    "a negative count": (older(BEFORE, data=struct.pack("<q", -2) + EIGHT), "another length"),
    "bytes at the end": (older(BEFORE, data=struct.pack("<q", 2) + EIGHT + b"\0"), "follows its end"),
    "a byte too few": (older(BEFORE, data=struct.pack("<q", 2) + EIGHT[:-1]), "truncated"),
    "no data": (older(BEFORE, data=b""), "truncated"),
    "a key that takes 2^100 steps to hash": (older(pickled(b"}" + doubled_tuple(100) + NONE + b"s")), "not strings"),
}


@pytest.mark.parametrize("harm", HARMFUL_OLDER)
def test_a_file_from_before_zip_that_torch_does_not_write_is_refused(harm: str) -> None:
    refused(*HARMFUL_OLDER[harm])


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK", b"PK\3\4", b"\x80", b"\x80\2.", b"GGUF" + bytes(100), bytes(600)]
)
def test_what_is_no_archive_is_refused_for_its_structure_too(content: bytes) -> None:
    refused(content)
    with pytest.raises(ArchiveError):
        torch_archive.read_structure(io.BytesIO(content))


# Damage of any kind.


@pytest.mark.parametrize("layout", FORMATS)
def test_a_file_truncated_anywhere_is_refused(layout: str) -> None:
    content = saved(views(), layout=layout)
    for length in range(len(content)):
        refused(content[:length])


@pytest.mark.parametrize("layout", FORMATS)
def test_a_pickle_truncated_anywhere_is_refused(layout: str) -> None:
    pickle = pickled(mapping(w=tensor(VIEW if layout == "legacy" else storage())))
    for length in range(len(pickle)):
        refused((older if layout == "legacy" else zipped)(pickle[:length]))


def test_a_file_that_becomes_shorter_meanwhile_is_refused() -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size)[:-1] if size and size > 4 else super().read(size)

    for content in (PLAIN, saved(views(), layout="legacy")):
        with pytest.raises(ArchiveError):
            torch_archive.read_tensors(Shrinking(content))


SAMPLES = [
    *(saved(make(), layout=layout) for layout in FORMATS for make in (views, Network().state_dict)),
    saved({"a": random_bits("uint8", 8), "b": random_bits("float8_e5m2", 4)}),
    PLAIN,
    older(BEFORE),
]
PIECES = [
    *(text(word) for word in ("0", "w", "whole", "storage", "cpu", "")),
    *(number(value) for value in (-1, 0, 1, 2, 24, 2**31 - 1, 2**40, 2**63)),
    *(bytes([code]) for code in torch_pickle._STEPS),
    *(FLOATS, BYTES, V2, V3, HOOKS, storage(), tensor(), sizes(2), sizes(0), b"q\0", b"h\0", b"\0", b"\xff"),
]


@st.composite
def edits(draw: st.DrawFn, content: bytes) -> bytes:
    """Some content, a little changed."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 0, 1, 1, 2, 4, 8, 40, len(content)]))
        start = draw(st.integers(0, len(content)))
        new = draw(st.sampled_from(PIECES) | st.binary(max_size=4) | st.just(content[start : start + length]))
        content = content[:at] + new + content[at + draw(st.sampled_from([0, len(new), len(new), length])) :]
    return content


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound file, its whole or only its pickle changed."""
    content = draw(st.sampled_from(SAMPLES))
    if not content.startswith(b"PK") or draw(st.integers(0, 3)) == 0:
        return draw(edits(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {r.filename.partition("/")[2]: archive.read(r) for r in archive.infolist()}
    return zipped(draw(edits(records.pop("data.pkl"))), records)


def comparison(content: bytes) -> str:
    """What happened to a damaged file. Raises AssertionError where torch finds something else in it."""
    places = refusal = None
    try:
        places = found(content)
    except ArchiveError as error:
        refusal = str(error)
    if places is None:
        assert refusal is not None
        assert refusal.isprintable()
        return "refused"
    ours = {name: read_at(io.BytesIO(content), place) for name, place in places.items()}
    try:
        theirs = loaded(content)
    except Exception:  # torch says in many ways that it does not read a file
        return "refused by torch"
    assert_same(ours, {name: value.detach() for name, value in theirs.items()})
    return "compared"


@pytest.mark.slow
def test_what_is_found_in_a_damaged_file_is_what_torch_finds() -> None:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damaged())
    def attempt(content: bytes) -> None:
        with suppress(ArchiveError):
            torch_archive.read_structure(io.BytesIO(content))
        outcomes[comparison(content)] += 1

    attempt()
    assert outcomes["refused"] > 100
    assert outcomes["compared"] > 20  # or nothing was
