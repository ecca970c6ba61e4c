"""The tests' own Hub in a process of its own, which measurements slow down and ask what it has sent."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.helpers.hub_files import Line
from tests.helpers.hub_server import HubServer, Repo, commit
from tests.helpers.hub_storage import Storage

MODEL = "org/model"


@dataclass(frozen=True, slots=True)
class Served:
    """A model on a Hub on loopback. environment: of the processes that read it there, under the name MODEL."""

    environment: dict[str, str]
    _pipe: Connection

    def limit(self, latency: float, bandwidth: float | None) -> None:
        """Slow the line down. latency: seconds before each answer. bandwidth: bytes of files a second, if limited."""
        self._pipe.send((latency, bandwidth))
        self._pipe.recv()

    def sent(self) -> int:
        """How many bytes of weight files have been sent so far."""
        self._pipe.send(None)
        sent: int = self._pipe.recv()
        return sent


@contextmanager
def served(directory: Path, home: str) -> Iterator[Served]:
    """Serve a checkpoint until the context ends. home: a folder for the cache of huggingface_hub."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(directory, theirs), daemon=True)
    process.start()
    endpoint: str = ours.recv()
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    try:
        yield Served(environment, ours)
    finally:
        process.kill()
        process.join()


def _serve(directory: Path, pipe: Connection) -> None:
    line = Line()
    with HubServer({MODEL: Repo(directory, commit("a"))}, storage=Storage(), line=line) as hub:
        pipe.send(hub.endpoint)
        while True:
            limits = pipe.recv()
            if limits is not None:
                line.latency, line.bandwidth = limits
            pipe.send(sum(sent for file, sent in hub.sent.items() if file.endswith(".safetensors")))
