"""What of a repository is in the Hub's cache already, what is downloaded, and which repositories are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors.torch
import torch

from spectrum.text import amount
from tests.helpers.command import Finished, assert_refused, run, tiny_llama
from tests.helpers.hub_client import serving
from tests.helpers.hub_server import TOKEN, Access, HubServer, Repo, commit
from tests.helpers.paths import files_below

SCAN = "model_snr_results/snr_results_org-model.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory that `org/model` on the Hub has been made from."""
    return tiny_llama(tmp_path / "repository", shards_of="2KB", num_hidden_layers=2, hidden_size=16, vocab_size=64)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., HubServer]]:
    with ExitStack() as stack:
        yield lambda repos, **options: stack.enter_context(serving(tmp_path / "home", repos, **options))


@pytest.fixture
def hub(model: Path, serve: Callable[..., HubServer]) -> HubServer:
    return serve(model)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the Hub's cache has `org/model`."""
    return tmp_path / "home" / "hub" / "models--org--model"


@pytest.fixture
def scores(hub: HubServer, tmp_path: Path) -> bytes:
    """Those of `org/model`, from a scan that downloads it."""
    scores = scanned(tmp_path / "downloaded", "--download")
    hub.file_requests.clear()
    hub.sent.clear()
    return scores


def ask(directory: Path, *args: str) -> Finished:
    directory.mkdir(exist_ok=True)
    return run(directory, "--model-name", "org/model", *args)


def scanned(directory: Path, *args: str) -> bytes:
    done = ask(directory, *args)
    assert done.status == 0, done.err
    return (directory / SCAN).read_bytes()


def shards(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob("*.safetensors"))


def requested(hub: HubServer) -> set[str]:
    return {request.file for request in hub.file_requests}


# What the Hub's cache has.


def test_a_whole_snapshot_is_scanned_without_a_request_for_a_file(
    hub: HubServer, scores: bytes, tmp_path: Path
) -> None:
    assert scanned(tmp_path / "here") == scores
    assert requested(hub) == set()


def test_of_a_partial_snapshot_only_what_is_missing_is_fetched(
    hub: HubServer, model: Path, cache: Path, scores: bytes, tmp_path: Path
) -> None:
    snapshot = cache / "snapshots" / commit("a")
    missing = shards(model)[1::2]
    for name in missing:
        (snapshot / name).resolve().unlink()
        (snapshot / name).unlink()
    before = files_below(cache)
    done = ask(tmp_path / "here")
    assert (tmp_path / "here" / SCAN).read_bytes() == scores
    assert requested(hub) == set(missing)
    whole = sum((model / name).stat().st_size for name in shards(model))
    fetched = re.search(r"reading (.*) of the (.*) of org/model", done.err)
    assert fetched is not None
    assert fetched[2] == amount(whole)
    assert hub.sent.total() < sum((model / name).stat().st_size for name in missing) + 64 * len(missing)
    assert files_below(cache) == before


def test_the_same_content_of_another_commit_is_read_from_the_cache(
    hub: HubServer, model: Path, scores: bytes, tmp_path: Path
) -> None:
    changed = shutil.copytree(model, tmp_path / "next")
    shard = shards(model)[0]
    tensors = safetensors.torch.load_file(model / shard)
    safetensors.torch.save_file({k: v + 1 for k, v in tensors.items()}, changed / shard, metadata={"format": "pt"})
    hub.repos["org/model"] = Repo(changed, commit("b"))  # type: ignore[index]
    assert scanned(tmp_path / "here") != scores
    assert requested(hub) == {shard}


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_truncated_blob_is_not_used(
    hub: HubServer, model: Path, cache: Path, scores: bytes, tmp_path: Path, size: int
) -> None:
    shard = shards(model)[0]
    blob = (cache / "snapshots" / commit("a") / shard).resolve()
    os.truncate(blob, size if size >= 0 else blob.stat().st_size + size)
    assert scanned(tmp_path / "here") == scores
    assert requested(hub) == {shard}


def test_a_part_of_a_download_is_not_used(
    hub: HubServer, model: Path, cache: Path, scores: bytes, tmp_path: Path
) -> None:
    snapshot = cache / "snapshots" / commit("a")
    shard = shards(model)[0]
    blob = (snapshot / shard).resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    (snapshot / shard).unlink()
    assert scanned(tmp_path / "here") == scores
    assert requested(hub) == {shard}


# Blobs that repositories share, as newer versions of huggingface_hub keep them.


def share_blobs(cache: Path) -> None:
    """Move the blobs of weights to where repositories share them, and leave links in their places."""
    for number, blob in enumerate(sorted((cache / "blobs").iterdir())):
        name = f"{number:02x}{'5' * 62}"
        shared = cache.parent / "blobs" / name[:2] / name
        shared.parent.mkdir(parents=True)
        blob.rename(shared)
        blob.symlink_to(Path("..", "..", "blobs", name[:2], name))


def test_a_snapshot_of_shared_blobs_is_scanned(hub: HubServer, cache: Path, scores: bytes, tmp_path: Path) -> None:
    share_blobs(cache)
    assert scanned(tmp_path / "here") == scores
    assert scanned(tmp_path / "again", "--download") == scores
    assert requested(hub) == set()
    done = run(tmp_path, "--model-name", str(cache / "snapshots" / commit("a")))  # as a directory
    assert done.status == 0, done.err


def test_shared_blobs_serve_another_commit_and_a_partial_snapshot(
    hub: HubServer, model: Path, cache: Path, scores: bytes, tmp_path: Path
) -> None:
    share_blobs(cache)
    shard = shards(model)[0]
    (cache / "snapshots" / commit("a") / shard).unlink()
    assert scanned(tmp_path / "partial") == scores
    hub.repos["org/model"] = Repo(model, commit("b"))  # type: ignore[index]
    assert scanned(tmp_path / "next") == scores
    assert requested(hub) == set()


@pytest.mark.parametrize("place", ["elsewhere", "hub/blobs/5", "hub/blobs/05/more", "hub/models--org--other/blobs"])
def test_a_blob_that_leads_elsewhere_is_refused(
    hub: HubServer, model: Path, cache: Path, scores: bytes, tmp_path: Path, place: str
) -> None:
    shard = shards(model)[0]
    blob = (cache / "snapshots" / commit("a") / shard).resolve()
    target = cache.parents[1] / place / ("5" * (64 if "blobs/05" in place else 63))
    target.parent.mkdir(parents=True)
    blob.rename(target)
    blob.symlink_to(target)
    assert_refused(ask(tmp_path / "here"), shard, "a link out of its directory", str(target))
    assert files_below(tmp_path / "here") == []


# Downloads: of repositories without safetensors files, and where the user asks for them.


def test_download_keeps_all_weights_and_the_next_scan_needs_no_network(
    hub: HubServer, model: Path, cache: Path, tmp_path: Path
) -> None:
    done = ask(tmp_path / "here", "--download", "--layer-types", "mlp.down_proj")
    assert done.status == 0, done.err
    assert done.said("reading") == []
    assert files_below(cache / "snapshots" / commit("a")) == sorted([*files_below(model)])
    assert (cache / "refs" / "main").read_text() == commit("a")


@pytest.fixture
def archive(model: Path, tmp_path: Path) -> Path:
    state = {k: v for name in shards(model) for k, v in safetensors.torch.load_file(model / name).items()}
    directory = tmp_path / "archive"
    directory.mkdir()
    shutil.copy(model / "config.json", directory)
    torch.save(state, directory / "pytorch_model.bin")
    return directory


SAID = "org/model has no safetensors files"


def test_a_torch_archive_is_downloaded_which_is_said(
    serve: Callable[..., HubServer], archive: Path, cache: Path, tmp_path: Path
) -> None:
    hub = serve(archive)
    done = ask(tmp_path / "here")
    assert done.status == 0, done.err
    size = (archive / "pytorch_model.bin").stat().st_size
    assert done.said("warning: ") == [
        f"spectrum: warning: {SAID}: {amount(size)} are downloaded into {cache}, and stay there"
    ]
    assert (cache / "snapshots" / commit("a") / "pytorch_model.bin").is_file()
    hub.requests.clear()
    again = ask(tmp_path / "here")
    assert (again.err, hub.requests) == ("", [])


def test_a_torch_archive_that_is_downloaded_on_purpose_needs_no_word(
    serve: Callable[..., HubServer], archive: Path, tmp_path: Path
) -> None:
    serve(archive)
    done = ask(tmp_path / "here", "--download")
    assert (done.status, SAID in done.err) == (0, False), done.err


@pytest.mark.parametrize("download", [True, False])
def test_a_torch_archive_that_does_not_fit_is_refused(
    serve: Callable[..., HubServer], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    size = (archive / "pytorch_model.bin").stat().st_size
    with_free(monkeypatch, size - 1)
    hub = serve(archive)
    done = ask(tmp_path / "here", *(["--download"] if download else []))
    assert_refused(done, f"org/model does not fit: {amount(size)} are to be downloaded", "HF_HOME")
    assert "pytorch_model.bin" not in requested(hub)
    assert files_below(tmp_path / "here") == []


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the disk of the Hub's cache have so many bytes."""
    monkeypatch.setattr("spectrum.checkpoint.remote.repository.free_space", lambda directory: free)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_a_model_that_fits_no_disk_is_scanned(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 0)
    assert_refused(ask(tmp_path / "downloaded", "--download"), "org/model does not fit", "HF_HOME")
    assert scanned(tmp_path / "here")


# Who may read it, and where it is.


def test_a_repository_of_a_new_name_is_scanned_under_the_old_one(
    serve: Callable[..., HubServer], model: Path, tmp_path: Path
) -> None:
    hub = serve({"new/name": Repo(model, commit("a"))}, moved={"org/model": "new/name"})
    assert scanned(tmp_path / "here")
    assert not (tmp_path / "home").exists()
    assert set(shards(model)) < requested(hub)


REFUSED: Mapping[Access, str] = {
    "gated": "org/model is gated: ask for access on its page, then set HF_TOKEN",
    "gated-metadata": "org/model is gated: ask for access on its page, then set HF_TOKEN",
    "private": "no directory 'org/model' here and no such repository on the Hub; if it is private, set HF_TOKEN",
    "down": "The Hub does not answer",
}


@pytest.mark.parametrize("access", REFUSED)
@pytest.mark.parametrize("args", [(), ("--layer-types", "mlp.*"), ("--plot-spectrum", "lm_head", "drawn.svg")])
def test_a_repository_that_may_not_be_read_is_refused_at_once(
    serve: Callable[..., HubServer], model: Path, tmp_path: Path, access: Access, args: tuple[str, ...]
) -> None:
    hub = serve({"org/model": Repo(model, commit("a"), access=access)})
    assert_refused(ask(tmp_path / "here", *args), REFUSED[access])
    assert len(hub.requests) <= 6  # of the client, which asks a Hub that is down several times
    assert files_below(tmp_path / "here") == []
    assert not (tmp_path / "home").exists()


def test_an_absent_repository_is_refused_at_once(serve: Callable[..., HubServer], tmp_path: Path) -> None:
    hub = serve({})
    assert_refused(ask(tmp_path / "here"), "no directory 'org/model' here and no such repository on the Hub")
    assert len(hub.requests) == 1


@pytest.mark.parametrize("access", ["gated", "gated-metadata", "private"])
def test_a_token_opens_a_repository_and_stays_with_the_hub(
    serve: Callable[..., HubServer], model: Path, tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve({"org/model": Repo(model, commit("a"), access=access)})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert scanned(tmp_path / "here")
    tokens = {(request.storage, request.authorization) for request in hub.file_requests}
    assert tokens == {(False, f"Bearer {TOKEN}"), (True, None)}


def test_a_gated_repository_whose_config_is_in_the_cache_is_refused_like_any(
    serve: Callable[..., HubServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The config is public to whoever has read it before; the first file that is refused is then that of the weights.
    hub = serve({"org/model": Repo(tiny_llama(tmp_path / "single"), commit("a"), access="gated")})
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        (tmp_path / "list.yaml").write_text("unfrozen_parameters:\n- model.layers.0\n")
        assert ask(tmp_path / "here", "--check", str(tmp_path / "list.yaml")).status == 0
    assert requested(hub) == {"config.json"}
    assert_refused(ask(tmp_path / "here"), REFUSED["gated"])


def test_offline_only_the_cache_is_read(
    hub: HubServer, scores: bytes, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert scanned(tmp_path / "here") == scores
    shutil.rmtree(cache)
    assert_refused(ask(tmp_path / "there"), "'org/model'", "its cache has no repository of that name")
    assert hub.requests == []


def test_the_check_of_a_list_reads_the_config_alone(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("unfrozen_parameters:\n- model.layers.0.mlp.down_proj\n")
    done = ask(tmp_path / "here", "--check", str(tmp_path / "list.yaml"))
    assert done.status == 0, done.err
    assert requested(hub) == {"config.json"}
    assert json.loads((cache / "snapshots" / commit("a") / "config.json").read_text())["hidden_size"] == 16
