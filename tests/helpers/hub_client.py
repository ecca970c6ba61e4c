"""huggingface_hub in the tests' own process, as a client of the tests' own Hub, or of a function that answers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from tests.helpers.hub_server import HubServer, Repo, commit
from tests.helpers.hub_storage import Storage

# httpx, of whichever major version huggingface_hub uses.
httpx: Any = importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def ask(patch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Have the client in this process ask a Hub, without a token. home: what stands for HF_HOME."""
    settings = {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    }
    for name, value in settings.items():
        patch.setattr(f"huggingface_hub.constants.{name}", value)
    patch.delenv("HF_TOKEN", raising=False)


def answer_by(patch: pytest.MonkeyPatch, answer: Callable[[Any], Any]) -> None:
    """Have a function answer each request: it takes an httpx.Request and returns an httpx.Response, or raises."""
    client = httpx.Client(transport=httpx.MockTransport(answer))
    patch.setattr("huggingface_hub.get_session", lambda: client)


@contextmanager
def serving(home: Path, repos: Path | Mapping[str, Repo], **options: Any) -> Iterator[HubServer]:
    """A Hub with a storage, which this process asks meanwhile, without a token.

    Args:
        home: what stands for HF_HOME.
        repos: the directory of `org/model`, or repositories by their ids.
        options: of the server.
    """
    of_one = {"org/model": Repo(repos, commit("a"))} if isinstance(repos, Path) else repos
    with HubServer(of_one, **{"storage": Storage()} | options) as hub, pytest.MonkeyPatch.context() as patch:
        ask(patch, hub.endpoint, home)
        yield hub
