"""Damage of a repository's files: one line says it, and names the file, before a weight is fetched."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.command import assert_refused, run, tiny_llama
from tests.helpers.hub_client import serving
from tests.helpers.hub_server import HubServer, Repo, commit
from tests.helpers.paths import files_below

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00004.safetensors"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., HubServer]]:
    with ExitStack() as stack:
        yield lambda repos, **options: stack.enter_context(serving(tmp_path / "home", repos, **options))


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes what the header of the single file says, of the same bytes."""

    def damage(model: Path) -> None:
        content = (model / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (model / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def moved(header: dict[str, Any]) -> None:
    """The data of one tensor is that of another."""
    first, second, *_ = (key for key in header if key != "__metadata__")
    header[second]["data_offsets"] = header[first]["data_offsets"]


def wider(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["shape"][0] *= 2


def cut(size: int) -> Callable[[Path], object]:
    """Lets the single file lack its last bytes, or have only so many."""
    return lambda model: (model / SINGLE).write_bytes((model / SINGLE).read_bytes()[:size])


def replaced(file: str, content: bytes | str) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda model: (model / file).write_bytes(data)


def renamed_in_index(model: Path) -> None:
    text = (model / INDEX).read_text()
    (model / INDEX).write_text(text.replace(SECOND, "model-00009-of-00004.safetensors"))


def put_in_the_wrong_shard(model: Path) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = SECOND
    (model / INDEX).write_text(json.dumps(index))


def state_without(key: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        state = load_file(model / SINGLE)
        del state[key]
        save_file(state, model / SINGLE, metadata={"format": "pt"})

    return damage


def misshapen(model: Path) -> None:
    state = load_file(model / SINGLE)
    save_file(state | {"lm_head.weight": torch.ones(3, 3)}, model / SINGLE, metadata={"format": "pt"})


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3000\n"

# Whether the model has shards, what is done to it, and what the line says.
DAMAGE: Mapping[str, tuple[bool, Callable[[Path], object], tuple[str, ...]]] = {
    "header-that-overlaps": (False, with_header(moved), (f"org/model/{SINGLE} is damaged", "not where it belongs")),
    "header-of-another-shape": (False, with_header(wider), (f"org/model/{SINGLE} is damaged", "'lm_head.weight'")),
    "header-no-json": (False, replaced(SINGLE, struct.pack("<Q", 90) + b"{" * 90), (f"org/model/{SINGLE} is damaged",)),
    "header-longer-than-file": (False, replaced(SINGLE, struct.pack("<Q", 10**12) + b"{}" * 90), (SINGLE, "truncated")),
    "file-cut-in-data": (False, cut(-1), (f"org/model/{SINGLE} is damaged", "bytes long")),
    "file-cut-in-header": (False, cut(100), (f"org/model/{SINGLE} is truncated",)),
    "file-of-three-bytes": (False, cut(3), (f"org/model/{SINGLE} is truncated",)),
    "empty-file": (False, replaced(SINGLE, b""), (f"org/model/{SINGLE} is empty",)),
    "lfs-pointer": (False, replaced(SINGLE, POINTER), (f"org/model/{SINGLE} is a Git LFS pointer",)),
    "lfs-pointer-as-shard": (True, replaced(SECOND, POINTER), (f"org/model/{SECOND} is a Git LFS pointer",)),
    "empty-shard": (True, replaced(SECOND, b""), (f"org/model/{SECOND} is empty",)),
    "shard-missing": (True, lambda model: (model / SECOND).unlink(), ("org/model", "lacks the shard", SECOND)),
    "shard-misnamed": (True, renamed_in_index, ("org/model", "lacks the shard model-00009-of-00004.safetensors")),
    "shard-of-another-key": (True, put_in_the_wrong_shard, ("index of org/model puts 'lm_head.weight' in", SECOND)),
    "index-no-json": (True, replaced(INDEX, "{"), (f"org/model/{INDEX} is not valid JSON",)),
    "index-empty": (True, replaced(INDEX, ""), (f"org/model/{INDEX} is not valid JSON",)),
    "index-no-map": (True, replaced(INDEX, "{}"), (f"org/model/{INDEX} has no weight_map",)),
    "index-escapes": (
        True,
        replaced(INDEX, '{"weight_map": {"a": "../config.json"}}'),
        (f"org/model/{INDEX}", "'../config.json'", "not a file of the model's"),
    ),
    "index-too-long": (True, replaced(INDEX, b" " * ((64 << 20) + 1)), (f"org/model/{INDEX} has 67.1 MB, more than",)),
    "config-too-long": (
        False,
        replaced("config.json", b" " * ((16 << 20) + 1)),
        ("org/model/config.json has 16.8 MB, more than",),
    ),
    "config-empty": (False, replaced("config.json", ""), ("org/model/config.json is not valid JSON",)),
    "config-a-list": (False, replaced("config.json", "[]"), ("org/model/config.json is not a JSON object",)),
    "config-of-no-model": (False, replaced("config.json", "{}"), ("org/model/config.json has no model_type",)),
    "parameter-missing": (False, state_without("lm_head.weight"), ("org/model lacks", "lm_head.weight")),
    "parameter-misshapen": (False, misshapen, ("org/model", "lm_head.weight", "[3, 3]")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_by_the_name_of_the_file(serve: Callable[..., HubServer], tmp_path: Path, case: str) -> None:
    has_shards, damage, words = DAMAGE[case]
    model = tiny_llama(tmp_path / "repository", shards_of="1KB" if has_shards else None)
    assert (model / (SECOND if has_shards else SINGLE)).exists()
    damage(model)
    hub = serve(model)
    (tmp_path / "here").mkdir()
    done = run(tmp_path / "here", "--model-name", "org/model")
    assert_refused(done, *words)
    assert done.err.count("\n") == 1, done.err  # nothing is tried again
    assert "download the model again" not in done.err  # nothing was downloaded
    assert hub.sent.total() < 30_000
    assert files_below(tmp_path / "here") == []
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("shards_of", [None, "1KB"])
def test_a_damaged_file_is_refused_as_one_on_disk_is(
    serve: Callable[..., HubServer], tmp_path: Path, shards_of: str | None
) -> None:
    model = tiny_llama(tmp_path / "repository", shards_of=shards_of)
    name = SECOND if shards_of else SINGLE
    (model / name).write_bytes((model / name).read_bytes() + b"\0")
    serve({"org/model": Repo(model, commit("a"))})
    (tmp_path / "here").mkdir()
    of_disk = run(tmp_path / "here", "--model-name", str(model)).err
    of_hub = run(tmp_path / "here", "--model-name", "org/model").err
    assert of_hub.partition(";")[0] == of_disk.replace(str(model), "org/model").partition(";")[0]


def test_of_two_sets_of_weights_the_one_that_transformers_prefers_is_scanned(
    serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    model = tiny_llama(tmp_path / "repository")
    others = tiny_llama(tmp_path / "other", shards_of="1KB", hidden_size=16)
    for file in others.glob("model*"):
        file.rename(model / file.name)
    (model / "pytorch_model.bin").write_bytes(b"the same again")
    hub = serve(model)
    (tmp_path / "here").mkdir()
    done = run(tmp_path / "here", "--model-name", "org/model")
    assert done.status == 0, done.err
    assert set(hub.sent) == {"config.json", SINGLE}
