"""A Hugging Face Hub of the tests' own, on loopback.

It speaks the part of the Hub's HTTP API that `model_info`, `snapshot_download`, `hf_hub_download`, `HfFileSystem` and
`get_safetensors_metadata` use, so that the tests meet the real client's requests, cache and errors without a network.
A client in another process reaches it through `HF_ENDPOINT=<hub.endpoint>`; give that process an `HF_HOME` of its own,
or its cache will answer instead, and `HF_HUB_DISABLE_TELEMETRY=1`, or it will first ask for a list of coding agents,
now and then.

`python -m tests.helpers.hub_server DIRECTORY --name org/model --storage` serves in a process of its own: its first line
is the endpoint.
"""

import argparse
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.hub_blobs import LFS, blob_id, git_name, pointer, sha256
from tests.helpers.hub_files import FileHandler, Line, LoopbackServer, Traffic
from tests.helpers.hub_storage import Storage

# The token (`HF_TOKEN`) of an account that may read every repository; any other token is an account that may not.
TOKEN = "hf_reader"

# Who may read a repository: "gated" shows what it holds but refuses its files, "gated-metadata" refuses both (as the
# Hub does to some tokens), "private" looks missing, and "down" answers 503 to everybody.
Access = Literal["public", "gated", "gated-metadata", "private", "down"]

_API = re.compile(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?")
_FILE = re.compile(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")


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


class HubServer(LoopbackServer, Traffic):
    """`with HubServer({"org/name": Repo(root, commit)}) as hub:` serves those repositories at `hub.endpoint`.

    With a storage, weight files are in LFS: the Hub redirects to signed addresses there. `moved` are the new names of
    renamed repositories by their old names, which redirect too.

    `hub.requests` lists the (method, path) of every request to the Hub itself so far, without its query; appending to a
    list is atomic. `hub.tokens` are those of accounts that may read everything. One taken out has expired: it is
    answered 401 everywhere.
    """

    def __init__(
        self,
        repos: Mapping[str, Repo],
        *,
        storage: Storage | None = None,
        line: Line | None = None,
        moved: Mapping[str, str] | None = None,
    ) -> None:
        LoopbackServer.__init__(self, _Handler)
        Traffic.__init__(self, line or Line())
        self.repos = repos
        self.storage = storage
        self.moved = moved or {}
        self.requests: list[tuple[str, str]] = []
        self.tokens = {TOKEN}
        self.valid_once = {TOKEN}
        if storage:
            storage.traffic = self

    def __enter__(self) -> "HubServer":
        super().__enter__()
        if self.storage:
            self.storage.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.storage:
            self.storage.__exit__()
        super().__exit__()


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


class _Handler(FileHandler):
    server: HubServer

    def answer(self) -> None:
        self.traffic = self.server
        _, _, path, query, _ = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()  # also of an error, or it stays
        self.server.requests.append((self.command, path))
        try:
            if match := _API.fullmatch(path):
                self._send_metadata(path, *match.groups(), query=parse_qs(query), form=parse_qs(body))
            elif (match := _FILE.fullmatch(path)) and self.command != "POST":
                self._send_file(path, *match.groups())
            else:
                raise _HubError(404, "Not Found")
        except _HubError as error:
            self.send_content(error.status, error.headers)

    def _send_metadata(
        self,
        path: str,
        name: str,
        kind: str | None,
        quoted_revision: str | None,
        quoted_folder: str | None,
        *,
        query: Mapping[str, list[str]],
        form: Mapping[str, list[str]],
    ) -> None:
        if self._send_moved(path, name):
            return
        repo = self._repo(name, refused=("gated-metadata",))
        revision = repo.at(unquote(quoted_revision or "main"))
        files = revision.files()
        answer: object
        if kind == "paths-info":
            answer = [self._entry(path, files[path]) for path in form.get("paths", []) if path in files]
        elif kind == "tree":
            recursive = query.get("recursive", [""])[0].lower() == "true"
            answer = self._tree(files, unquote(quoted_folder or ""), recursive=recursive)
        else:
            gated = "manual" if repo.access.startswith("gated") else False
            siblings = [
                {"rfilename": path, **(self._blob(file) if "blobs" in query else {})} for path, file in files.items()
            ]
            answer = {"id": name, "sha": revision.commit, "gated": gated, "siblings": siblings}
        self.send_content(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _tree(self, files: Mapping[str, Path], folder: str, *, recursive: bool) -> list[dict[str, object]]:
        """The files below a folder of the repository; unless recursive, those in it, and the folders there."""
        below = {path: file for path, file in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not below:
            raise _HubError(404, f"{folder} does not exist", "EntryNotFound")
        if recursive:
            return [self._entry(path, file) for path, file in below.items()]
        parent = PurePosixPath(folder)
        depth = len(parent.parts)
        folders = {str(parent / PurePosixPath(path).parts[depth]) for path in below} - below.keys()
        return [
            *({"type": "directory", "path": path, "size": 0, "oid": git_name(path.encode())} for path in folders),
            *(self._entry(path, file) for path, file in below.items() if PurePosixPath(path).parent == parent),
        ]

    def _entry(self, path: str, file: Path) -> dict[str, object]:
        entry = {"type": "file", "path": path, "size": file.stat().st_size, "oid": self._blob_id(file)}
        return {**entry, "lfs": {"oid": sha256(file), **_sizes(file)}} if self._in_lfs(file) else entry

    def _blob(self, file: Path) -> dict[str, object]:
        blob: dict[str, object] = {"size": file.stat().st_size, "blobId": self._blob_id(file)}
        return {**blob, "lfs": {"sha256": sha256(file), **_sizes(file)}} if self._in_lfs(file) else blob

    def _blob_id(self, file: Path) -> str:
        return git_name(pointer(file)) if self._in_lfs(file) else blob_id(file)

    def _in_lfs(self, file: Path) -> bool:
        return self.server.storage is not None and file.suffix in LFS

    def _send_file(self, path: str, name: str, quoted_revision: str, quoted_file: str) -> None:
        if self._send_moved(path, name):
            return
        revision = self._repo(name, refused=("gated", "gated-metadata")).at(unquote(quoted_revision))
        file = revision.files().get(unquote(quoted_file))
        if file is None:
            raise _HubError(404, "Entry not found", "EntryNotFound", revision.commit)
        request = self.traffic.arrived(
            self.command,
            unquote(quoted_file),
            file.stat().st_size,
            dict(self.headers),
            storage=False,
            redirected=self._in_lfs(file),
        )
        headers = {"X-Repo-Commit": revision.commit, "ETag": f'"{self._blob_id(file)}"'}
        if not request.redirected or not self.server.storage:
            self.send_file(file, request, headers)
        elif not self.send_fault(self.traffic.fault(request)):
            linked = {"X-Linked-Size": str(file.stat().st_size), "X-Linked-ETag": f'"{sha256(file)}"'}
            address = self.server.storage.address(file, request.file)
            self.send_content(302, {**headers, **linked, "Accept-Ranges": "bytes", "Location": address})

    def _send_moved(self, path: str, name: str) -> bool:
        """Whether the repository has a new name, whose address is then sent."""
        moved = self.server.moved.get(name)
        if moved:
            address = path.replace(f"/{name}", f"/{moved}", 1)
            query = urlsplit(self.path).query
            self.send_content(307, {"Location": f"{address}?{query}" if query else address})
        return moved is not None

    def _repo(self, name: str, refused: tuple[Access, ...]) -> Repo:
        """The repository, unless it is not there for whoever asks or its access is one of those refused."""
        authorization = self.headers.get("Authorization")
        token = (authorization or "").removeprefix("Bearer ")
        reader = token in self.server.tokens
        if reader:
            self.server.valid_once.add(token)
        elif token in self.server.valid_once:
            raise _HubError(401, "Invalid credentials in Authorization header")
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


def _sizes(file: Path) -> dict[str, int]:
    return {"size": file.stat().st_size, "pointerSize": len(pointer(file))}


def commit(digit: str) -> str:
    return digit * 40


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve a directory as a model repository until killed.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", default="org/model")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bandwidth", type=float, help="bytes of files per second")
    parser.add_argument("--storage", action="store_true", help="redirect weight files to signed addresses")
    arguments = parser.parse_args()
    repo = Repo(arguments.directory, commit("a"))
    storage = Storage() if arguments.storage else None
    for file in repo.files().values():  # now, or the first requests would wait for it
        sha256(file) if storage and file.suffix in LFS else blob_id(file)
    with HubServer({arguments.name: repo}, storage=storage, line=Line(arguments.latency, arguments.bandwidth)) as hub:
        print(hub.endpoint, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _main()
