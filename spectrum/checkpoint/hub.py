"""From a model's name to its directory: a local one, or a snapshot from the Hugging Face Hub.

Cache, tokens, offline mode, mirrors and progress bars are those of huggingface_hub.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.checkpoint.disk import fingerprint
from spectrum.checkpoint.disk.other_formats import names_below, not_a_model_reason
from spectrum.checkpoint.disk.tensors import WeightHeaders
from spectrum.checkpoint.disk.weight_files import read_failure
from spectrum.checkpoint.repository import check_fits, config_files, first_files, weight_files
from spectrum.errors import CheckpointError, HubError, first_line
from spectrum.files import parse_json, read_untrusted
from spectrum.text import nearest, proposal

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_MAX_CONFIG_BYTES = 16 << 20
_TIMEOUT = 10  # seconds for the first request; without a limit, a dead network would mean a long wait


@dataclass(frozen=True)
class ResolvedModel:
    """The directory that a model's name stands for. A run creates it once, so that it reads each header once.

    Args:
        directory: the model's.
        commit: of a snapshot from the Hub; None for a local directory.
    """

    directory: Path
    commit: str | None

    @cached_property
    def headers(self) -> WeightHeaders:
        """The headers of the directory's weight files, as far as they have been read."""
        return WeightHeaders(self.directory)

    @cached_property
    def fingerprint(self) -> str | None:
        """The digest of a local directory's weight files. None for a snapshot, which its commit identifies.

        Raises CheckpointError if a file is missing or damaged.
        """
        if self.commit is not None:
            return None
        with self.headers.naming_other_weights():
            return fingerprint.fingerprint(self.headers)

    def check_files(self) -> None:
        """Raises CheckpointError if there is no config, if it is damaged, or if a weight file is missing."""
        read_config_file(self.directory)
        _ = self.headers.files


def resolve_local(model: str) -> ResolvedModel | None:
    """The model in a local directory of this name, None if the name can only be a repository's id.

    Raises CheckpointError for a path that does not exist, is not a directory, or is in one that is closed to the user.
    """
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~name, of a user that this machine does not have
        raise CheckpointError(f"there is no directory {model!r}") from error
    if model and os.path.isdir(path):
        return ResolvedModel(path, None)
    if os.path.isfile(path):
        raise CheckpointError(f"{model} is a file; give the directory that contains it")
    _refuse_closed(path)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
        raise CheckpointError(f"there is no directory {model!r}{_similar_directory(model)}")
    return None


def check_local(model: str) -> None:
    """Raises CheckpointError if a name is a path where there is no model. Needs neither torch nor the network."""
    local = resolve_local(model)
    if local is not None:
        local.check_files()


def _refuse_closed(path: Path) -> None:
    try:
        os.stat(path)
    except PermissionError as error:  # of a directory above
        raise read_failure(path, error) from error
    except (OSError, ValueError):  # there is nothing
        pass


def _similar_directory(model: str) -> str:
    """The end of a message about a directory that is missing: `; did you mean X?` with a similar path, or nothing."""
    wrong, rest = Path(model).expanduser(), Path()
    while not os.path.isdir(wrong.parent) and wrong != wrong.parent:
        wrong, rest = wrong.parent, wrong.name / rest
    try:
        names = [name for name in os.listdir(wrong.parent) if os.path.isdir(wrong.parent / name / rest)]
    except OSError:  # it cannot be read
        return ""
    name = nearest(wrong.name, (name for name in names if not name.startswith(".")))
    return proposal(name and str(wrong.parent / name / rest))


def read_config_file(directory: Path) -> dict[str, Any]:
    """The content of config.json. Raises CheckpointError if there is none, or if it is not a JSON object."""
    path = directory / "config.json"
    try:
        settings = parse_json(read_untrusted(path, _MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        reason = not_a_model_reason(directory, names_below(directory))
        raise CheckpointError(reason or f"{directory} has no config.json, so it is not a transformers model") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return settings


def resolve(model: str, revision: str | None, *, remote_code: bool) -> ResolvedModel:
    """Find a model by its name: a local directory, or else a repository on the Hub, which is downloaded.

    Raises as `resolve_local` and `snapshot` do.
    """
    local = resolve_local(model)
    if local is not None:
        return local
    directory = snapshot(model, revision, remote_code=remote_code)
    return ResolvedModel(directory, directory.name)


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The directory, named by its commit, of a repository's snapshot in the local cache; None if it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def snapshot(repo: str, revision: str | None, *, remote_code: bool) -> Path:
    """Download a repository's config and weight files, and nothing else. Return the directory, named by its commit.

    If the Hub cannot be reached, an earlier download is used. Raises HubError if there is no such repository or
    revision, if access is not granted, if the weights do not fit on the disk, or if the Hub cannot be reached and
    nothing was downloaded before.

    Args:
        repo: the repository's id.
        revision: a branch, tag or commit; None for the repository's default.
        remote_code: whether to download its Python files too.
    """
    files = _files(repo, revision)
    if isinstance(files, Path):
        return files
    where = f"{repo}{_at(revision)}"
    folder = _download(repo, revision, first_files(where, files, remote_code=remote_code))
    shards = weight_files(folder, files)
    check_fits(where, folder, [files[name] for name in shards])
    return _download(repo, revision, shards)


def config_snapshot(repo: str, revision: str | None, *, remote_code: bool) -> Path:
    """Download a repository's config alone. Arguments, result and errors are those of `snapshot`."""
    files = _files(repo, revision)
    if isinstance(files, Path):
        return files
    return _download(repo, revision, config_files(f"{repo}{_at(revision)}", files, remote_code=remote_code))


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision else ""


def _files(repo: str, revision: str | None) -> dict[str, RepoSibling] | Path:
    """A repository's files by name or, if the Hub cannot be reached, the snapshot of an earlier download."""
    from huggingface_hub import HfApi, errors

    try:
        # This request comes first: it alone gives up soon if the Hub does not answer.
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT, files_metadata=True)
    except errors.HFValidationError as error:
        raise HubError(
            f"{repo!r} is neither a directory here nor the id of a repository on the Hub{_similar_directory(repo)}"
        ) from error
    except _failures() as error:
        if earlier := cached_snapshot(repo, revision):
            return earlier
        raise HubError(_refusal(repo, _at(revision), error)) from error
    return {file.rfilename: file for file in info.siblings or ()}


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
            f"if it is private, set HF_TOKEN or run `hf auth login`{_similar_directory(repo)}"
        )
    return (
        f"there is no directory {repo!r} here{_similar_directory(repo) or '.'} The Hub does not answer "
        f"({first_line(error)}), and its cache has no repository of that name{at}; check the path, or the network"
    )
