"""What does a model's name stand for? A local directory, or a repository on the Hub, by its id or by its address."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_SCHEMES = ("https://", "http://", "hf://", "git@")
_OTHER_REPOSITORIES = {"datasets": "a data set", "spaces": "a space"}
_PAGES = ("tree", "blob", "resolve", "raw", "commit", "commits", "edit")  # each is followed by a revision
_DEFAULT_BRANCH = "main"  # the Hub's, of every repository


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model as the user names it.

    Args:
        name: a local directory or a repository's id. Files are named by it.
        revision: the branch, tag or commit that an address names; None for the default branch.
    """

    name: str
    revision: str | None = None


def parse_model_name(text: str) -> ModelName:
    """The model that a text names: a path, a repository's id, or the address of a repository's page.

    A path and an id stay as they are, without a slash at the end. The address may be that of a mirror in HF_ENDPOINT.

    Raises ValueError if the text is empty, or is an address that is not a model's on the Hub.
    """
    if not text.strip():
        raise ValueError("the model's name is empty; is a shell variable not set?")
    if not os.path.isdir(text):
        text = text.strip()
        parts = _address_parts(text)
        if parts is not None:
            return _of_parts(text, parts)
    return ModelName(text.rstrip("/") or text[:1])


def _address_parts(text: str) -> list[str] | None:
    """The parts of the path in an address on the Hub, None for a text that is no address."""
    scheme = next((scheme for scheme in _SCHEMES if text.lower().startswith(scheme)), "")
    rest = text[len(scheme) :]
    if scheme == "hf://":
        path = rest
    else:
        where = re.sub(r"^([^/:]+):(?=\D)", r"\1/", rest) if scheme == "git@" else rest  # git@hf.co:org/model
        site = next((site for site in _sites() if _is_below(where, site)), None)
        if site is None and scheme:
            raise ValueError(f"{text!r} is not the address of a model on the Hugging Face Hub; give the model's id")
        if site is None:
            return None
        path = where[len(site) :]
    return [unquote(part) for part in re.split(r"[?#]", path)[0].split("/") if part]


def _sites() -> list[str]:
    """The Hub's addresses without their schemes, that of the mirror in HF_ENDPOINT first."""
    mirror = ""
    with suppress(ValueError):  # HF_ENDPOINT is no address, so no name begins with it
        endpoint = urlsplit(os.environ.get("HF_ENDPOINT", ""))
        mirror = f"{endpoint.netloc}{endpoint.path}".rstrip("/")
    return [*([mirror] if mirror else []), *_HOSTS]


def _is_below(address: str, site: str) -> bool:
    return f"{address}/".lower().startswith(f"{site}/".lower())


def _of_parts(text: str, parts: Sequence[str]) -> ModelName:
    """The model that the parts of an address's path name. Raises ValueError if they name none."""
    if parts[:2] == ["api", "models"]:
        parts = parts[2:]
    elif len(parts) > 2 and parts[0] == "models":  # hf://models/org/model
        parts = parts[1:]
    if parts and parts[0] in _OTHER_REPOSITORIES:
        raise ValueError(f"{text!r} is the address of {_OTHER_REPOSITORIES[parts[0]]}, not of a model")
    # The oldest repositories have no owner: huggingface.co/gpt2/tree/main.
    length = 1 if len(parts) == 1 or (parts[1:2] and parts[1] in _PAGES) else 2
    name, page = "/".join(parts[:length]), parts[length:]
    name, _, revision = name.removesuffix(".git").partition("@")  # hf://org/model@revision
    if not name or parts[0] in ("models", "docs", "settings", "collections", "papers"):
        raise ValueError(f"{text!r} is not the address of a model on the Hugging Face Hub; give the model's id")
    if page and page[0] in _PAGES:
        length = 3 if page[1:2] == ["refs"] else 1  # refs/pr/1
        revision = "/".join(page[1 : 1 + length])
        folder = page[1 + length :] if page[0] == "tree" else page[1 + length : -1]
        if folder:
            raise ValueError(f"{text!r} is a folder of {name}; only a whole repository can be scanned, or a directory")
    return ModelName(name, None if revision in ("", _DEFAULT_BRANCH) else revision)
