"""From a model's name to a directory: one that is there, or a snapshot from the Hugging Face Hub.

Cache, tokens, offline mode, mirrors and progress bars are huggingface_hub's own.
"""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path

from spectrum.checkpoint.disk.weight_files import MAX_INDEX_BYTES, MOST_FILES, SINGLE_FILES, why_no_weights
from spectrum.errors import CheckpointError, HubError, first_line
from spectrum.files import parse_json, read

_TIMEOUT = 10  # seconds for the first request, so that a dead network is an answer and not a wait


def local_directory(model: str) -> Path | None:
    """The directory that a model's name means, or None for what can only be a repository's id.

    Raises CheckpointError for a path that is not there, or not a directory.
    """
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise CheckpointError(f"there is no directory {model!r}") from error
    if model and path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{model} is a file; give the directory that it lies in")
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
        raise CheckpointError(f"there is no directory {model!r}")
    return None


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The directory, named by its commit, of a repository's snapshot on this disk. Asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def snapshot(repo: str, revision: str | None, *, remote_code: bool) -> Path:
    """A directory, named by its commit, with a repository's config and weight files and nothing else.

    With `remote_code`, the repository's Python files too. Without a network, the snapshot that an earlier download
    left. Raises HubError where there is no such repository or revision, access is not granted or nothing answers.
    """
    found = _file_names(repo, revision)
    if isinstance(found, Path):
        return found
    where = f"{repo}{_at(revision)}"
    folder = _download(repo, revision, _config_and_index(where, found, remote_code=remote_code))
    return _download(repo, revision, _shards(folder, found))


def config_snapshot(repo: str, revision: str | None, *, remote_code: bool) -> Path:
    """As `snapshot`, of the config alone."""
    found = _file_names(repo, revision)
    if isinstance(found, Path):
        return found
    return _download(repo, revision, _config(f"{repo}{_at(revision)}", found, remote_code=remote_code))


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision else ""


def _file_names(repo: str, revision: str | None) -> set[str] | Path:
    """Names of a repository's files; where it cannot be asked, the snapshot that an earlier download left."""
    from huggingface_hub import HfApi, errors

    try:
        # First, because it alone neither waits nor tries again where nothing answers.
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
    except errors.HFValidationError as error:
        raise HubError(f"{repo!r} is neither a directory here nor the id of a repository on the Hub") from error
    except _failures() as error:
        if earlier := cached_snapshot(repo, revision):
            return earlier
        raise HubError(_refusal(repo, _at(revision), error)) from error
    return {file.rfilename for file in info.siblings or ()}


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
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision{at.removeprefix(' at revision')} on the Hub; its page lists those that it has"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: ask for access on its page, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no directory {repo!r} here and no such repository on the Hub; "
            "if it is private, set HF_TOKEN or run `hf auth login`"
        )
    return (
        f"there is no directory {repo!r} here, nothing of it{at} in the Hub's cache, and the Hub does not answer: "
        f"{first_line(error)}; check the path, or the network"
    )


def _config_and_index(where: str, names: Collection[str], *, remote_code: bool) -> list[str]:
    """What must be there to know which weight files are needed."""
    weights = [name for stem in SINGLE_FILES for name in (stem, f"{stem}.index.json") if name in names]
    if not weights:
        raise CheckpointError(why_no_weights(where, names))
    # The first is the one that transformers loads; a weight file itself waits for its turn.
    index = [name for name in weights[:1] if name.endswith(".json")]
    return [*_config(where, names, remote_code=remote_code), *index]


def _config(where: str, names: Collection[str], *, remote_code: bool) -> list[str]:
    if "config.json" not in names:
        raise CheckpointError(f"{where} has no config.json, so it is no transformers model")
    return ["config.json", *(name for name in names if remote_code and name.endswith(".py"))]


def _shards(folder: Path, names: Collection[str]) -> list[str]:
    for stem in SINGLE_FILES:
        if stem in names:
            return [stem]
        index = folder / f"{stem}.index.json"
        if index.name in names:
            try:
                shards = set(parse_json(read(index, MAX_INDEX_BYTES))["weight_map"].values()) & set(names)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return []  # reading the directory says what is wrong with the index
            # Each is compared with the name of every file of the repository.
            return sorted(shards) if len(shards) <= MOST_FILES else []
    return []
