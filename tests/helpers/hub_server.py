"""A Hugging Face Hub of the tests' own, on loopback.

It speaks the part of the Hub's HTTP API that `model_info`, `snapshot_download` and `hf_hub_download` use, so that
the tests meet the real client's requests, cache and errors without a network. A client in another process reaches
it through `HF_ENDPOINT=<hub.endpoint>`; give that process an `HF_HOME` of its own, or its cache will answer instead,
and `HF_HUB_DISABLE_TELEMETRY=1`, or it will first ask for a list of coding agents, now and then.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

# The token (`HF_TOKEN`) of an account that may read every repository; any other token is an account that may not.
TOKEN = "hf_reader"

# Who may read a repository: "gated" shows what it holds but refuses its files, "gated-metadata" refuses both (as the
# Hub does to some tokens), "private" looks missing, and "down" answers 503 to everybody.
Access = Literal["public", "gated", "gated-metadata", "private", "down"]

_API = re.compile(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Revision:
    """The files under a directory, as of one commit (40 hexadecimal digits)."""

    root: Path
    commit: str

    def files(self) -> dict[str, Path]:
        return {path.relative_to(self.root).as_posix(): path for path in sorted(self.root.rglob("*")) if path.is_file()}


@dataclass(frozen=True)
class Repo(Revision):
    """A model repository: the head of `main`, and other branches or tags by name. Each answers to its commit too."""

    access: Access = "public"
    refs: Mapping[str, Revision] = field(default_factory=dict)

    def at(self, name: str) -> Revision:
        for ref, revision in {"main": self, **self.refs}.items():
            if name in (ref, revision.commit):
                return revision
        raise _HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")


class HubServer(ThreadingHTTPServer):
    """`with HubServer({"org/name": Repo(root, commit)}) as hub:` serves those repositories at `hub.endpoint`.

    `hub.requests` lists the (method, path) of every request so far, without its query; appending to a list is atomic.
    """

    request_queue_size = 64  # the client asks for many files at once; beyond the default of 5, some wait a second

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@contextmanager
def closed_endpoint() -> Iterator[str]:
    """The URL of a port at which connections are refused: bound, so that nobody else takes it, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class _HubError(Exception):
    """An answer other than the one asked for, in the headers by which the client tells its exceptions apart."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.headers = status, {name: value for name, value in headers.items() if value}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        _, _, path, query, _ = urlsplit(self.path)
        self.server.requests.append((self.command, path))
        try:
            if match := _API.fullmatch(path):
                self._send_metadata(*match.groups(), with_blobs="blobs" in parse_qs(query))
            elif match := _FILE.fullmatch(path):
                self._send_file(*match.groups())
            else:
                raise _HubError(404, "Not Found")
        except _HubError as error:
            self._send(error.status, error.headers, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_metadata(self, name: str, kind: str | None, quoted_revision: str | None, *, with_blobs: bool) -> None:
        repo = self._repo(name, refused=("gated-metadata",))
        revision = repo.at(unquote(quoted_revision or "main"))
        files = revision.files()
        answer: object
        if kind == "tree":  # always recursive, as the client asks for it
            answer = [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": _blob_id(file.read_bytes())}
                for path, file in files.items()
            ]
        else:
            gated = "manual" if repo.access.startswith("gated") else False
            siblings = [{"rfilename": path, **(_blob(file) if with_blobs else {})} for path, file in files.items()]
            answer = {"id": name, "sha": revision.commit, "gated": gated, "siblings": siblings}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _send_file(self, name: str, quoted_revision: str, quoted_path: str) -> None:
        revision = self._repo(name, refused=("gated", "gated-metadata")).at(unquote(quoted_revision))
        file = revision.files().get(unquote(quoted_path))
        if file is None:
            raise _HubError(404, "Entry not found", "EntryNotFound", revision.commit)
        content = file.read_bytes()
        headers = {"X-Repo-Commit": revision.commit, "ETag": f'"{_blob_id(content)}"', "Accept-Ranges": "bytes"}
        if part := _RANGE.fullmatch(self.headers.get("Range", "")):  # the rest of an interrupted download
            start, end = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, headers, content[start : end + 1])
        else:
            self._send(200, headers, content)

    def _repo(self, name: str, refused: tuple[Access, ...]) -> Repo:
        """The repository, unless it is not there for whoever asks or its access is one of those refused."""
        authorization = self.headers.get("Authorization")
        reader = authorization == f"Bearer {TOKEN}"
        repo = self.server.repos.get(name)
        if repo is None or (repo.access == "private" and not reader):
            if authorization:
                raise _HubError(404, "Repository not found", "RepoNotFound")
            # The client knows the Hub's own 401 by its https:// URL; on loopback, which has none, it needs the code.
            raise _HubError(401, "Invalid username or password.", "RepoNotFound")
        if repo.access == "down":
            raise _HubError(503, "Service Unavailable")
        if repo.access in refused and not reader:
            if authorization:
                ask = f"and you are not in the authorized list. Visit {self.server.endpoint}/{name} to ask for access."
                raise _HubError(403, f"Access to model {name} is restricted {ask}", "GatedRepo")
            log_in = "You must have access to it and be authenticated to access it. Please log in."
            raise _HubError(401, f"Access to model {name} is restricted. {log_in}", "GatedRepo")
        return repo

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the requests are in `hub.requests`."""


def _blob(file: Path) -> dict[str, object]:
    return {"size": file.stat().st_size, "blobId": _blob_id(file.read_bytes())}


def _blob_id(content: bytes) -> str:
    """Git's name for a file's content, which the Hub gives as the ETag of a file that it does not keep in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit(digit: str) -> str:
    return digit * 40
