"""From a model's name to its files: in a local directory, in the Hugging Face Hub's cache, or on the Hub.

Cache, tokens, offline mode, mirrors and progress bars are those of huggingface_hub.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from spectrum.checkpoint.disk.weight_files import has_weights
from spectrum.checkpoint.local import ResolvedModel, resolve_local, similar_directory
from spectrum.checkpoint.remote.repository import (
    Repository,
    check_fits,
    config_files,
    first_files,
    no_ranges_reason,
    snapshot_of,
    weight_files,
)
from spectrum.errors import HubError, first_line
from spectrum.text import amount

_TIMEOUT = 10  # seconds for the first request; without a limit, a dead network would mean a long wait


def resolve(
    model: str,
    revision: str | None,
    *,
    remote_code: bool,
    download: bool = False,
    warn: Callable[[str], None] = lambda message: None,
) -> ResolvedModel:
    """Find a model by its name: a local directory, or else a repository on the Hub.

    The weights of a repository stay on the Hub, to be read by ranges, if they are in safetensors files. Nothing is then
    written to the Hub's cache, except config and code if code may be run. What the cache has is read from there.

    If the Hub cannot be reached, an earlier download is used. Raises as `resolve_local` does, and HubError if there is
    no such repository or revision, if access is not granted, if a download does not fit on the disk, or if the Hub
    cannot be reached and nothing was downloaded before.

    Args:
        model: a directory, or a repository's id.
        revision: a branch, tag or commit of a repository; None for its default.
        remote_code: whether its Python files are wanted too.
        download: whether to download the weights of a repository into the Hub's cache.
        warn: receives a message if the Hub fails and is asked again, or if weights must be downloaded.
    """
    local = resolve_local(model)
    if local is not None:
        return local
    repository = _repository(model, revision, needs_weights=True)
    if isinstance(repository, Path):
        return ResolvedModel(repository, repository.name)
    first = first_files(repository.where, repository.files, remote_code=remote_code)
    reason = None if download else no_ranges_reason(repository)
    if not download and reason is None:
        return _open_remote(repository, first, warn, remote_code=remote_code)
    directory = _download_all(repository, first, reason, warn)
    return ResolvedModel(directory, directory.name)


def _open_remote(
    repository: Repository, first: Collection[str], warn: Callable[[str], None], *, remote_code: bool
) -> ResolvedModel:
    # Only now, because a cached scan needs none of this.
    from spectrum.checkpoint.remote.connection import Connection
    from spectrum.checkpoint.remote.fetcher import Fetcher
    from spectrum.checkpoint.remote.weights import open_remote

    connection = Connection(warn, partial(_refusal_reason, repository.name, _at(repository.revision)))
    remote = open_remote(repository, Fetcher(connection))
    folder = snapshot_of(repository, [*first, *(file.name for file in remote.located.files)])
    if folder is not None:
        return ResolvedModel(folder, repository.commit)
    # Code must be in a directory to be run. It is downloaded by the commit, so that no branch in the cache moves.
    directory = _download(repository.name, repository.commit, first) if remote_code else Path(repository.name)
    return ResolvedModel(directory, repository.commit, remote)


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The directory, named by its commit, of a repository's snapshot in the local cache; None if it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _download_all(
    repository: Repository, first: Collection[str], reason: str | None, warn: Callable[[str], None]
) -> Path:
    """Download the first files of a repository, and its weights. Return the directory, named by its commit.

    Args:
        repository: the repository.
        first: what `first_files` returns for it.
        reason: why that must be, if the user has not asked for it.
        warn: receives the reason, and how much is downloaded.
    """
    folder = _download(repository.name, repository.revision, first)
    shards = weight_files(folder, repository.files)
    needed = check_fits(repository.where, folder, [repository.files[name] for name in shards])
    if needed and reason is not None:
        warn(
            f"{repository.where} {reason}: {amount(needed)} are downloaded into {folder.parent.parent}, and stay there"
        )
    return _download(repository.name, repository.revision, shards)


def config_snapshot(repo: str, revision: str | None, *, remote_code: bool) -> Path:
    """Download a repository's config alone. Return the directory, named by its commit.

    If the Hub cannot be reached, an earlier download is used. Arguments and errors are those of `resolve`.
    """
    repository = _repository(repo, revision, needs_weights=False)
    if isinstance(repository, Path):
        return repository
    return _download(repo, revision, config_files(repository.where, repository.files, remote_code=remote_code))


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision else ""


def _repository(repo: str, revision: str | None, *, needs_weights: bool) -> Repository | Path:
    """What the Hub says of a repository or, if it cannot be reached, the snapshot of an earlier download.

    Raises HubError if there is neither.

    Args:
        repo: the repository's id.
        revision: a branch, tag or commit; None for the repository's default.
        needs_weights: whether a snapshot must have weights, and not the config alone.
    """
    from huggingface_hub import HfApi, errors

    try:
        # This request comes first: it alone gives up soon if the Hub does not answer.
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT, files_metadata=True)
    except errors.HFValidationError as error:
        raise HubError(
            f"{repo!r} is neither a directory here nor the id of a repository on the Hub{similar_directory(repo)}"
        ) from error
    except _failures() as error:
        if (earlier := cached_snapshot(repo, revision)) and (has_weights(earlier) or not needs_weights):
            return earlier
        if earlier and _refusal_reason(repo, _at(revision), error) is None:
            raise HubError(
                f"the Hub's cache on this machine has no weights of {repo}{_at(revision)}, and the Hub does not answer "
                f"({first_line(error)}); check the network"
            ) from error
        raise HubError(_refusal(repo, _at(revision), error)) from error
    if info.sha is None:  # without it, two files could be of two commits
        raise HubError(f"the Hub does not say which commit {repo}{_at(revision)} is; is HF_ENDPOINT another site?")
    return Repository(repo, revision, info.sha, {file.rfilename: file for file in info.siblings or ()})


def _download(repo: str, revision: str | None, names: Collection[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[glob.escape(name) for name in names]))
    except errors.GatedRepoError as error:
        raise HubError(_refusal(repo, _at(revision), error)) from error
    except _failures() as error:
        raise HubError(f"cannot download {repo}{_at(revision)}: {first_line(error)}") from error


def _failures() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    # HTTPError is httpx's, of whichever major version huggingface_hub uses.
    return errors.HTTPError, OSError  # type: ignore[attr-defined]


def _refusal(repo: str, at: str, error: Exception) -> str:
    return _refusal_reason(repo, at, error) or (
        f"there is no directory {repo!r} here{similar_directory(repo) or '.'} The Hub does not answer "
        f"({first_line(error)}), and its cache has no repository of that name{at}; check the path, or the network"
    )


def _refusal_reason(repo: str, at: str, error: Exception) -> str | None:
    """Why a repository is not open to this user; None if the error does not say that."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision{at.removeprefix(' at revision')} on the Hub; its page lists those that it has"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: ask for access on its page, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no directory {repo!r} here and no such repository on the Hub; "
            f"if it is private, set HF_TOKEN or run `hf auth login`{similar_directory(repo)}"
        )
    return None
