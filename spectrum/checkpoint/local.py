"""The files of a model, and finding those of a model in a local directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.checkpoint.disk import fingerprint
from spectrum.checkpoint.disk.other_formats import ADAPTER_CONFIG, has_weights, names_below, not_a_model_reason
from spectrum.checkpoint.disk.tensors import WeightHeaders
from spectrum.checkpoint.disk.weight_files import MAX_CONFIG_BYTES, read_failure
from spectrum.errors import CheckpointError
from spectrum.files import parse_json, read_untrusted
from spectrum.text import nearest, proposal

if TYPE_CHECKING:
    from spectrum.checkpoint.remote.weights import RemoteModel


@dataclass(frozen=True)
class ResolvedModel:
    """The files that a model's name stands for. A run creates it once, so that it reads each header once.

    Args:
        directory: where they are; the repository's id if they are on the Hub.
        commit: of the repository; None for a local directory.
        remote: the files on the Hub, if they are read from there.
    """

    directory: Path
    commit: str | None
    remote: RemoteModel | None = None

    @cached_property
    def headers(self) -> WeightHeaders:
        """The headers of the weight files, as far as they have been read."""
        return WeightHeaders(self.directory, None if self.remote is None else self.remote.located)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of config.json. Raises CheckpointError if there is none, or if it is not a JSON object."""
        if self.remote is None:
            return read_config_file(self.directory)
        return _parse_config(self.directory / "config.json", self.remote.config)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter lies beside the weights."""
        if self.remote is None:
            return (self.directory / ADAPTER_CONFIG).is_file()
        return self.remote.has_adapter

    @cached_property
    def fingerprint(self) -> str | None:
        """The digest of a local directory's weight files. None for a repository, which its commit identifies.

        Raises CheckpointError if a file is missing or damaged.
        """
        if self.commit is not None:
            return None
        with self.headers.naming_other_weights():
            return fingerprint.fingerprint(self.headers)

    def check_files(self) -> None:
        """Raises CheckpointError if there is no config, if it is damaged, or if a weight file is missing."""
        _ = self.settings
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
        raise CheckpointError(f"there is no directory {model!r}{similar_directory(model)}")
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


def similar_directory(model: str) -> str:
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
        return _parse_config(path, read_untrusted(path, MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        names = names_below(directory)
        reason = not_a_model_reason(directory, names)
        if has_weights(names):
            reason = f"{directory} has no config.json beside its weights; copy that of the model into it"
        raise CheckpointError(reason or f"{directory} has no config.json, so it is not a transformers model") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _parse_config(path: Path, text: bytes) -> dict[str, Any]:
    try:
        settings = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return settings
