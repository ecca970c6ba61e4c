"""Places without weights that transformers loads: what they hold, and what to do, for directories and repositories."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch
import transformers
from safetensors.torch import save_file

from spectrum.checkpoint.disk import weight_files
from spectrum.checkpoint.disk.other_formats import names_below, no_weights_reason, not_a_model_reason
from spectrum.checkpoint.local import check_local
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import CheckpointError
from tests.helpers.command import tiny_llama
from tests.helpers.paths import TINY_LLAMA
from tests.helpers.processes import BIN

# What the Trainer writes into each of its checkpoints, beside the weights.
STATE = ["trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt"]
ZERO = [*STATE, "latest", "global_step40/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]
FSDP = [*STATE, "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"]
MODEL = ["config.json", "model.safetensors"]
SHARDED_MODEL = ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"]


def inside(folder: str, names: Sequence[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names]


# The names in a place, words of the message, and words that must not be in it.
PLACES: Mapping[str, tuple[Sequence[str], tuple[str, ...], tuple[str, ...]]] = {
    "zero-3": (
        [*ZERO, "zero_to_fp32.py"],
        ("ZeRO", "`python zero_to_fp32.py . OUTPUT_DIR` in it", "copy config.json into OUTPUT_DIR"),
        ("training_args.bin", "optimizer.pt"),
    ),
    "zero-3-without-its-script": (ZERO, ("ZeRO", "`python -m deepspeed.utils.zero_to_fp32 . OUTPUT_DIR`"), ()),
    "zero-3-of-accelerate": (
        ["zero_to_fp32.py", "pytorch_model/zero_pp_rank_0_mp_rank_00_model_states.pt", "random_states_0.pkl"],
        ("`python zero_to_fp32.py . OUTPUT_DIR` in it",),
        (),
    ),
    "zero-3-the-inner-directory": (
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        ("`python zero_to_fp32.py . OUTPUT_DIR` in the directory above it",),
        (),
    ),
    "fsdp": (
        FSDP,
        ("FSDP", "`accelerate merge-weights pytorch_model_fsdp_0 OUTPUT_DIR` in it", "copy config.json"),
        ("optimizer_0",),
    ),
    "fsdp-whole": (["pytorch_model_fsdp.bin", *STATE], ("rename pytorch_model_fsdp.bin to pytorch_model.bin",), ()),
    "fsdp-by-rank": (["pytorch_model_fsdp_0_rank3.bin"], ("FSDP", "save it with save_model"), ()),
    "dcp-the-inner-directory": (
        ["__0_0.distcp", ".metadata"],
        ("torch.distributed.checkpoint", "`accelerate merge-weights . OUTPUT_DIR`"),
        (),
    ),
    "dcp-below": (["step-9/__3_0.distcp"], ("`accelerate merge-weights step-9 OUTPUT_DIR`",), ()),
    "state-alone": (STATE, ("the state of a training (optimizer.pt)", "save_model"), ("has weight files",)),
    "optimizer-shards-alone": (["optimizer_0/__0_0.distcp"], ("no weight files",), ("merge-weights",)),
    "training-run": (
        [*inside("checkpoint-90", MODEL), *inside("checkpoint-1000", SHARDED_MODEL), *inside("checkpoint-1100", STATE)],
        ("checkpoints of a training run", "the newest with a model", "checkpoint-1000"),
        ("checkpoint-90", "checkpoint-1100"),
    ),
    "training-run-of-zero-3": (
        [*inside("checkpoint-5", [*STATE, "zero_to_fp32.py", "global_step5/x.pt"]), *inside("checkpoint-4", STATE)],
        ("checkpoint-5", "`python zero_to_fp32.py . OUTPUT_DIR`"),
        (),
    ),
    "training-run-of-adapters": (
        [*inside("checkpoint-5", ["adapter_config.json", "adapter_model.safetensors"])],
        ("checkpoint-5", "holds an adapter"),
        (),
    ),
    "megatron": (["latest_checkpointed_iteration.txt", "iter_0000500/__0_0.distcp"], ("Megatron", "Bridge"), ()),
    "megatron-by-rank": (["iter_0000500/mp_rank_00/model_optim_rng.pt"], ("Megatron",), ("ZeRO",)),
    "nemo": (["llama.nemo"], ("NeMo (llama.nemo)", "export it"), ()),
    "meta": (["consolidated.00.pth", "params.json"], ("Meta or Mistral (consolidated.00.pth)", "convert"), ()),
    "mistral": (["consolidated.safetensors", "params.json"], ("consolidated.safetensors", "convert"), ()),
    "original": (["original/consolidated.00.pth"], ("original format", "convert"), ()),
    "gguf": (["tiny.Q4_K_M.gguf"], ("GGUF files only", "original checkpoint"), ()),
    "onnx": (["onnx/model.onnx"], ("exported to run (onnx/model.onnx)", "exported from"), ()),
    "tensorrt": (["rank0.engine"], ("exported to run (rank0.engine)",), ()),
    "tensorflow": (["tf_model.h5"], ("TensorFlow or Flax", "transformers 4", "from_tf=True"), ()),
    "flax": (["flax_model-00001-of-00002.msgpack"], ("TensorFlow or Flax", "from_flax=True"), ()),
    "mlx": (["weights.00.npz"], ("MLX", "converted from"), ()),
    "diffusers": (["model_index.json", *inside("vae", ["diffusion_pytorch_model.bin"])], ("diffusers",), ()),
    "cache-of-the-hub": (
        ["refs/main", "snapshots/0123456789/config.json", "blobs/aa"],
        ("in the Hub's cache", "the directory snapshots/0123456789"),
        (),
    ),
    "model-below": (inside("final", MODEL), ("no model itself, but its directory final does",), ()),
    "adapter": (["adapter_config.json", "adapter_model.safetensors", *ZERO], ("holds an adapter",), ("ZeRO",)),
    "shards-without-index": (
        ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
        ("shards (model-00001-of-00002.safetensors)", "not their index", "download model.safetensors.index.json"),
        (),
    ),
    "unfinished": (
        ["model.safetensors.part", "model-00001-of-00002.safetensors"],
        ("unfinished download (model.safetensors.part)",),
        (),
    ),
    "unfinished-temporary": (["model.safetensors.tmp"], ("unfinished download (model.safetensors.tmp)",), ()),
    "variant": (["model.fp16.safetensors"], ("weight files (model.fp16.safetensors)", "save_pretrained"), ()),
    "nothing": (["README.md"], ("no weight files",), ()),
}
ONLY_WITH_A_CONFIG = {"state-alone", "optimizer-shards-alone", "nothing", "variant"}
ONLY_WITH_A_CONFIG |= {"shards-without-index", "unfinished", "unfinished-temporary"}


def assert_says(message: str, place: str) -> None:
    _, words, others = PLACES[place]
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert [word for word in others if word in message] == [], message


@pytest.mark.parametrize("place", PLACES)
def test_a_repository_without_weights_says_what_it_holds(place: str) -> None:
    reason = no_weights_reason("org/model at revision 'v1'", {*PLACES[place][0], "README.md"})
    assert "org/model at revision 'v1'" in reason
    assert_says(reason, place)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_directory_without_weights_says_what_it_holds(place: str, with_config: bool, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    for name in PLACES[place][0]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"")
    if with_config:
        tiny_llama(tmp_path / "sound")
        shutil.copy(tmp_path / "sound" / "config.json", directory)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(str(directory))
    assert str(directory) in str(refusal.value)
    if with_config or place not in ONLY_WITH_A_CONFIG:
        assert_says(str(refusal.value), place)
    else:
        assert str(refusal.value) == f"{directory} has no config.json, so it is not a transformers model"


def test_the_newest_checkpoint_of_a_run_is_named_by_its_path(tmp_path: Path) -> None:
    for step in (9, 10):
        tiny_llama(tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(str(tmp_path / "run"))
    named = str(refusal.value).rpartition(" ")[2]
    assert named == str(tmp_path / "run" / "checkpoint-10")
    assert open_checkpoint(named).weights


def test_a_checkpoint_is_named_as_it_is_written() -> None:
    names = [*inside("checkpoint-0007", MODEL), *inside("checkpoint-6", MODEL)]
    reason = not_a_model_reason(Path("run"), names)
    assert reason == "run holds checkpoints of a training run; use the newest with a model, run/checkpoint-0007"


def test_the_newest_checkpoint_says_what_it_holds_unless_it_has_weights() -> None:
    adapter = inside("checkpoint-7", ["adapter_config.json"])
    reason = not_a_model_reason("org/run", adapter)
    assert reason is not None
    assert reason.startswith("checkpoint-7 of org/run holds an adapter")
    assert not_a_model_reason("org/run", [*adapter, "checkpoint-7/model.safetensors"]) is None


def test_names_of_any_depth_are_looked_at_in_one_directory_below() -> None:
    deep = "/".join(f"checkpoint-{step}" for step in range(5_000))
    assert not_a_model_reason("org/run", [f"{deep}/adapter_config.json"]) is None


def test_a_model_with_the_state_of_its_training_is_a_model(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    for name in [*ZERO, *FSDP, "zero_to_fp32.py", "model.onnx", *inside("checkpoint-3", MODEL)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert open_checkpoint(str(tmp_path)).weights
    assert not_a_model_reason(tmp_path, names_below(tmp_path)) is None


def test_unfinished_files_of_a_download_are_found_where_the_hubs_client_keeps_them(tmp_path: Path) -> None:
    kept = tmp_path / ".cache" / "huggingface" / "download"
    kept.mkdir(parents=True)
    (kept / "model.safetensors.0a1b2c.incomplete").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"unfinished download \(model\.safetensors\.0a1b2c\.incomplete\)"):
        weight_files.locate_weights(tmp_path)


@pytest.mark.parametrize("partial", ["model-00002-of-00002.safetensors.part", "model-00002-of-00002.safetensors.tmp"])
def test_a_shard_that_is_still_being_downloaded_is_told_from_one_that_is_missing(partial: str, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00002.*; download the model again"):
        weight_files.locate_weights(tmp_path)
    (tmp_path / partial).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"lacks the shard model-00002.*; finish the download of {partial}"):
        weight_files.locate_weights(tmp_path)


def test_links_are_not_followed_for_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "elsewhere")
    assert names_below(tmp_path / "model") == ["link"]


def test_a_directory_of_many_files_is_listed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectrum.checkpoint.disk.other_formats._MAX_NAMES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"")
    assert len(names_below(tmp_path)) == 3


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("config.json", "has no config.json, so it is not a transformers model"),
        ("model*", "has no weight files (model.safetensors, "),
        ("model-00002*", "lacks the shard model-00002-of-00002.safetensors that its index names; download the model"),
    ],
)
def test_a_directory_that_may_not_be_listed_is_refused_for_what_it_lacks(
    removed: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(TINY_LLAMA, tmp_path / "model"))
    for file in model.glob(removed):
        file.unlink()
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(CheckpointError) as refused:
        check_local(str(model))
    assert str(refused.value).startswith(f"{model} {words}")


def test_a_directory_in_place_of_weights_that_may_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").mkdir()
    for listing in ("scandir", "listdir"):
        monkeypatch.setattr(os, listing, denied)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a directory, not a file; download the model"):
        weight_files.locate_weights(tmp_path)


def denied(path: object, *_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_of_fsdp_are_scanned_after_the_command_of_the_message(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    state = safetensors.torch.load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    dcp: Any = import_module("torch.distributed.checkpoint")
    dcp.save({"model": state}, checkpoint_id=model / "pytorch_model_fsdp_0", no_dist=True)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(str(model))
    (command,) = re.findall("`(.*?)`", str(refusal.value))
    subprocess.run([BIN / shlex.split(command)[0], *shlex.split(command)[1:]], cwd=model, check=True, timeout=120)
    shutil.copy(model / "config.json", model / "OUTPUT_DIR")
    checkpoint = open_checkpoint(str(model / "OUTPUT_DIR"))
    for weight in checkpoint.weights:
        assert torch.equal(checkpoint.read(weight, 0), state[weight.parameter].reshape(weight.matrix_shape))


def test_whole_weights_of_fsdp_are_scanned_after_they_are_renamed(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model_fsdp.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rename pytorch_model_fsdp\.bin to pytorch_model\.bin"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "pytorch_model_fsdp.bin").rename(tmp_path / "pytorch_model.bin")
    assert open_checkpoint(str(tmp_path)).weights


# What has the name of a weight file and is none.


def an_empty_directory(path: Path) -> None:
    path.mkdir()


def a_directory_of_weights(path: Path) -> None:
    path.mkdir()
    torch.save({"a": torch.ones(2)}, path / "pytorch_model-00001-of-00001.bin")


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 100 characters
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


NO_FILES: Mapping[Callable[[Path], None], str] = {
    an_empty_directory: "is a directory, not a file; download the model again",
    a_directory_of_weights: "is a directory, not a file; rename it, and move the files in it into",
    a_dangling_link: "is a link to .*gone, which does not exist; download",
    a_socket: "it is not a regular file",
}


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_what_is_no_file_is_said_to_be_none(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path / name))}.*{NO_FILES[make]}"):
        weight_files.locate_weights(tmp_path)


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_passed_over_as_transformers_does(make: Callable[[Path], None], tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    make(tmp_path / "model.safetensors")
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())
    checkpoint = open_checkpoint(str(tmp_path))
    assert all(
        torch.equal(checkpoint.read(w, 0), state[w.parameter].reshape(w.matrix_shape)) for w in checkpoint.weights
    )


def test_the_directory_that_zero_to_fp32_may_write_is_scanned_after_what_the_message_says(tmp_path: Path) -> None:
    # With the old argument, pytorch_model.bin, newer versions of the script write a directory of that name.
    tiny_llama(tmp_path)
    torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), tmp_path / "saved")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").mkdir()
    (tmp_path / "saved").rename(tmp_path / "pytorch_model.bin" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="rename it, and move the files in it into"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "renamed")
    (tmp_path / "renamed" / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin")
    assert open_checkpoint(str(tmp_path)).weights


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: Permission denied; allow this user to read it"):
        open_checkpoint(str(tmp_path))
