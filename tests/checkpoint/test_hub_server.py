"""The tests' own Hub, as huggingface_hub and a plain HTTP client meet it: what other tests rely on."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from tests.helpers.hub_faults import (
    Close,
    Fault,
    FileRequest,
    Gzip,
    IgnoredRange,
    Long,
    Page,
    Short,
    Stall,
    Status,
    WrongRange,
    random_faults,
)
from tests.helpers.hub_files import Line
from tests.helpers.hub_server import TOKEN, HubServer, Repo, commit
from tests.helpers.hub_storage import Storage
from tests.helpers.paths import ROOT, TINY_LLAMA
from tests.helpers.processes import quiet_environment

SHARD = "model-00001-of-00002.safetensors"
WEIGHTS = (TINY_LLAMA / SHARD).read_bytes()
SIZE = len(WEIGHTS)
CONFIG = (TINY_LLAMA / "config.json").read_bytes()
REPO = Repo(TINY_LLAMA, commit("a"))


@pytest.fixture(params=["direct", "storage"])
def hub(request: pytest.FixtureRequest) -> Iterator[HubServer]:
    with HubServer({"org/model": REPO}, storage=Storage() if request.param == "storage" else None) as server:
        yield server


@pytest.fixture
def plain() -> Iterator[HubServer]:
    with HubServer({"org/model": REPO}) as server:
        yield server


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub in this process may use the network, which is loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@contextmanager
def connected(origin: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection, target: str, part: str | None = None, *, method: str = "GET", **more: str
) -> Answer:
    connection.request(method, target, headers=more | ({"Range": f"bytes={part}"} if part is not None else {}))
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def get(server: HubServer, file: str, part: str | None = None, *, method: str = "GET", **more: str) -> Answer:
    """One request for a file of the Hub itself."""
    with connected(server.endpoint) as connection:
        return ask(connection, f"/org/model/resolve/main/{file}", part, method=method, **more)


def get_address(address: str, part: str | None = None) -> Answer:
    with connected(address) as connection:
        return ask(connection, address.removeprefix(f"http://{urlsplit(address).netloc}"), part)


def fetch(server: HubServer, file: str, part: str | None = None) -> Answer:
    """A file by way of a redirect to the storage, if there is one."""
    answer = get(server, file, part)
    return get_address(answer.headers["location"], part) if answer.status == 302 else answer


def always(fault: Fault) -> Callable[[FileRequest], Fault]:
    return lambda _: fault


# The real client.


@pytest.mark.usefixtures("client")
def test_files_are_downloaded(hub: HubServer, tmp_path: Path) -> None:
    path = Path(hf_hub_download("org/model", SHARD, endpoint=hub.endpoint, cache_dir=tmp_path / "one"))
    assert path.read_bytes() == WEIGHTS
    found = Path(snapshot_download("org/model", endpoint=hub.endpoint, cache_dir=tmp_path / "all"))
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        file.name: file.read_bytes() for file in TINY_LLAMA.iterdir()
    }
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert (path.resolve().name == digest) is (hub.storage is not None)  # the cache names files in LFS by it


@pytest.mark.usefixtures("client")
def test_ranges_are_read_through_the_file_system(hub: HubServer, tmp_path: Path) -> None:
    nested = tmp_path / "nested" / "deep"
    nested.mkdir(parents=True)
    (nested / "a.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "config.json").write_bytes(CONFIG)
    hub.repos = {"org/model": Repo(tmp_path, commit("a"))}
    files = HfFileSystem(endpoint=hub.endpoint, token=TOKEN, skip_instance_cache=True)
    assert set(files.ls("org/model", detail=False)) == {"org/model/config.json", "org/model/nested"}
    assert files.find("org/model") == ["org/model/config.json", "org/model/nested/deep/a.safetensors"]
    with files.open("org/model/nested/deep/a.safetensors", block_size=1000) as file:
        file.seek(500_000)
        assert file.read(10) == WEIGHTS[500_000:500_010]
    assert files.info("org/model/nested/deep/a.safetensors", expand_info=True, refresh=True)["size"] == SIZE
    assert hub.sent == {"nested/deep/a.safetensors": 1010}  # block_size ahead
    with pytest.raises(FileNotFoundError):
        files.info("org/model/nested/other")
    with connected(hub.endpoint) as connection:
        for folder, content in {"": {"config.json", "nested"}, "/nested": {"nested/deep"}}.items():
            tree = json.loads(ask(connection, f"/api/models/org/model/tree/main{folder}").body)
            assert sorted(entry["path"] for entry in tree) == sorted(content)


@pytest.mark.usefixtures("client")
def test_headers_of_safetensors_are_parsed(hub: HubServer) -> None:
    metadata = HfApi(endpoint=hub.endpoint).get_safetensors_metadata("org/model")
    with safetensors.safe_open(TINY_LLAMA / SHARD, "pt") as file:
        assert set(metadata.files_metadata[SHARD].tensors) == set(file.keys())


@pytest.mark.usefixtures("client")
def test_with_a_storage_weight_files_are_in_lfs(hub: HubServer) -> None:
    api = HfApi(endpoint=hub.endpoint)
    siblings = {file.rfilename: file for file in api.model_info("org/model", files_metadata=True).siblings or ()}
    [by_path] = api.get_paths_info("org/model", [SHARD])
    assert isinstance(by_path, RepoFile)
    tree = {file.path: file for file in api.list_repo_tree("org/model", recursive=True) if isinstance(file, RepoFile)}
    assert siblings["config.json"].lfs is None
    for lfs in (siblings[SHARD].lfs, by_path.lfs, tree[SHARD].lfs):
        if hub.storage is None:
            assert lfs is None
        else:
            assert lfs is not None
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{lfs.sha256}\nsize {SIZE}\n".encode()
            assert (lfs.sha256, lfs.size) == (hashlib.sha256(WEIGHTS).hexdigest(), SIZE)
            assert lfs.pointer_size == len(pointer)
            named = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
            assert siblings[SHARD].blob_id == by_path.blob_id == named


@pytest.mark.usefixtures("client")
def test_no_token_reaches_the_storage(tmp_path: Path) -> None:
    with HubServer({"org/model": Repo(TINY_LLAMA, commit("a"), access="gated")}, storage=Storage()) as hub:
        with pytest.raises(GatedRepoError):
            hf_hub_download("org/model", SHARD, endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
        hf_hub_download("org/model", SHARD, endpoint=hub.endpoint, cache_dir=tmp_path, token=TOKEN)
        HfApi(endpoint=hub.endpoint, token=TOKEN).get_safetensors_metadata("org/model")
        seen = {(request.storage, request.authorization) for request in hub.file_requests}
        assert seen == {(False, f"Bearer {TOKEN}"), (True, None)}
        assert all("authorization" not in request.headers for request in hub.file_requests if request.storage)


@pytest.mark.usefixtures("client")
def test_a_renamed_repository_answers_to_its_old_name(tmp_path: Path) -> None:
    with HubServer({"org/model": REPO}, storage=Storage(), moved={"old/name": "org/model"}) as hub:
        api = HfApi(endpoint=hub.endpoint)
        assert api.model_info("old/name", files_metadata=True).id == "org/model"
        path = hf_hub_download("old/name", SHARD, endpoint=hub.endpoint, cache_dir=tmp_path)
        assert Path(path).read_bytes() == WEIGHTS
        with connected(hub.endpoint) as connection:
            answer = ask(connection, "/api/models/old/name/revision/main?blobs=True")
            assert answer.status == 307
            assert answer.headers["location"] == "/api/models/org/model/revision/main?blobs=True"
            answer = ask(connection, f"/old/name/resolve/main/{SHARD}")
            assert (answer.status, answer.headers["location"]) == (307, f"/org/model/resolve/main/{SHARD}")


@pytest.mark.usefixtures("client")
def test_a_token_can_expire_and_another_become_valid(hub: HubServer) -> None:
    hub.repos = {"org/model": Repo(TINY_LLAMA, commit("a"), access="private"), "org/public": REPO}
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    assert api.model_info("org/model").sha == commit("a")
    hub.tokens.remove(TOKEN)
    for name in ("org/model", "org/public"):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
            api.model_info(name)
    hub.tokens.add("hf_new")
    assert api.model_info("org/model", token="hf_new").sha == commit("a")
    hub.tokens.remove("hf_new")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
        api.model_info("org/model", token="hf_new")
    assert api.model_info("org/public", token="hf_stranger").sha == commit("a")


# Ranges.

PARTS = {
    None: (200, None, WEIGHTS),
    "0-0": (206, f"bytes 0-0/{SIZE}", WEIGHTS[:1]),
    "100-299": (206, f"bytes 100-299/{SIZE}", WEIGHTS[100:300]),
    "100-": (206, f"bytes 100-{SIZE - 1}/{SIZE}", WEIGHTS[100:]),
    "-8": (206, f"bytes {SIZE - 8}-{SIZE - 1}/{SIZE}", WEIGHTS[-8:]),
    f"-{SIZE + 5}": (206, f"bytes 0-{SIZE - 1}/{SIZE}", WEIGHTS),
    f"{SIZE - 3}-{SIZE + 90}": (206, f"bytes {SIZE - 3}-{SIZE - 1}/{SIZE}", WEIGHTS[-3:]),
    f"{SIZE}-": (416, f"bytes */{SIZE}", b""),
    f"{SIZE + 4}-{SIZE + 9}": (416, f"bytes */{SIZE}", b""),
    "-0": (416, f"bytes */{SIZE}", b""),
    "9-2": (200, None, WEIGHTS),  # no range, and so ignored
    "9-8": (200, None, WEIGHTS),
    "-": (200, None, WEIGHTS),
    "0-1,4-5": (200, None, WEIGHTS),  # as servers may
}


@pytest.mark.parametrize("part", PARTS)
def test_a_range_is_answered(hub: HubServer, part: str | None) -> None:
    answer = fetch(hub, SHARD, part)
    assert (answer.status, answer.headers.get("content-range"), answer.body) == PARTS[part]
    assert int(answer.headers["content-length"]) == len(answer.body)
    if answer.status != 416:
        assert answer.headers["accept-ranges"] == "bytes"


def test_headers_alone_have_no_body(plain: HubServer) -> None:
    answer = get(plain, SHARD, "5-9", method="HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (206, "5", b"")
    assert plain.sent.total() == 0


def test_a_connection_serves_many_requests_and_ends_with_the_server(hub: HubServer) -> None:
    with connected(hub.endpoint) as connection:
        ask(connection, "/nowhere")
        socket = connection.sock
        connection.request("POST", "/nowhere", body=b"x" * 1000)  # whose body must not be taken for a request
        assert connection.getresponse().read() == b""
        for target in (
            "/api/models/org/model",
            "/org/model/resolve/main/absent",
            "/org/model/resolve/main/config.json",
        ):
            answer = ask(connection, target)
        assert answer.body == CONFIG
        assert socket is not None
        assert connection.sock is socket
        hub.__exit__()
        assert socket.recv(1) == b""


def test_a_changed_file_has_another_name(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / SHARD).write_bytes(WEIGHTS)
    hub.repos = {"org/model": Repo(tmp_path, commit("a"))}
    before = get(hub, SHARD, method="HEAD").headers["etag"]
    assert get(hub, SHARD, method="HEAD").headers["etag"] == before
    (tmp_path / SHARD).write_bytes(WEIGHTS[:-1])
    assert get(hub, SHARD, method="HEAD").headers["etag"] != before
    assert fetch(hub, SHARD).body == WEIGHTS[:-1]


# The storage.


def redirect(hub: HubServer) -> Answer:
    return get(hub, SHARD, method="HEAD")


def test_a_weight_file_is_redirected_to_another_origin() -> None:
    with HubServer({"org/model": REPO}, storage=Storage()) as hub:
        answer = redirect(hub)
        location = urlsplit(answer.headers["location"])
        assert answer.status == 302
        assert (location.scheme, location.hostname) == ("http", "127.0.0.1")
        assert location.port not in (None, urlsplit(hub.endpoint).port)
        assert answer.headers["x-repo-commit"] == commit("a")
        assert answer.headers["x-linked-size"] == str(SIZE)
        assert answer.headers["x-linked-etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
        assert answer.headers["etag"] not in ("", answer.headers["x-linked-etag"])
        assert get(hub, "config.json").body == CONFIG  # which is not in LFS


def test_an_address_is_good_until_it_expires_or_is_ended() -> None:
    storage = Storage(signed_for=3600)
    with HubServer({"org/model": REPO}, storage=storage) as hub:
        address = redirect(hub).headers["location"]
        assert get_address(address, "0-9").body == WEIGHTS[:10]
        assert get_address(address.replace("expires=", "expires=9")).status == 403  # longer than it was signed for
        assert get_address(address.partition("?")[0]).status == 403
        storage.expire()
        assert get_address(address).status == 403
        assert get_address(redirect(hub).headers["location"], "0-9").status == 206
        storage.signed_for = -1
        assert get_address(redirect(hub).headers["location"]).status == 403
        assert [request.storage for request in hub.file_requests].count(True) == 5  # refused ones too


# Faults.

TAIL = "bytes {}-{}/{}".format


ANSWERS: Mapping[Fault, Answer] = {
    Status(503): Answer(503, {}, b""),
    Status(429, retry_after=7): Answer(429, {"retry-after": "7"}, b""),
    Status(429, rate_limit=9): Answer(429, {"ratelimit": '"resolvers";r=0;t=9'}, b""),
    IgnoredRange(): Answer(200, {"content-length": str(SIZE)}, WEIGHTS),
    WrongRange(shift=5): Answer(206, {"content-range": TAIL(105, 304, SIZE)}, WEIGHTS[105:305]),
    WrongRange(total=1): Answer(206, {"content-range": TAIL(100, 299, SIZE + 1)}, WEIGHTS[100:300]),
    Short(missing=50): Answer(206, {"content-range": TAIL(100, 249, SIZE)}, WEIGHTS[100:250]),
    Long(extra=50): Answer(206, {"content-range": TAIL(100, 299, SIZE)}, WEIGHTS[100:350]),
    Stall(after=7, seconds=0.01): Answer(206, {"content-range": TAIL(100, 299, SIZE)}, WEIGHTS[100:300]),
    Page(): Answer(200, {"content-type": "text/html"}, b"<!DOCTYPE html><html><body>Please log in."),
}


@pytest.mark.parametrize("fault", ANSWERS, ids=repr)
def test_an_answer_has_the_fault_that_the_test_asks_for(hub: HubServer, fault: Fault) -> None:
    hub.faults = lambda request: None if request.redirected else fault
    answer = fetch(hub, SHARD, "100-299")
    assert (answer.status, answer.body) == (ANSWERS[fault].status, ANSWERS[fault].body)
    assert ANSWERS[fault].headers.items() <= answer.headers.items()
    [(request, met)] = hub.faulted
    assert (request.storage, request.part, met) == (hub.storage is not None, (100, 300), fault)
    hub.faults = None
    assert fetch(hub, SHARD, "100-299").body == WEIGHTS[100:300]


def test_at_the_end_of_a_file_faults_have_bytes_too(plain: HubServer) -> None:
    last = f"{SIZE - 10}-"
    plain.faults = always(Long(extra=3))
    assert get(plain, SHARD, last).body == WEIGHTS[-10:] + bytes(3)
    plain.faults = always(WrongRange(shift=4))
    answer = get(plain, SHARD, last)
    assert answer.headers["content-range"] == TAIL(SIZE - 14, SIZE - 5, SIZE)
    assert answer.body == WEIGHTS[-14:-4]


def test_a_body_is_compressed_whatever_was_accepted(plain: HubServer) -> None:
    plain.faults = always(Gzip())
    with connected(plain.endpoint) as connection:
        answer = ask(connection, f"/org/model/resolve/main/{SHARD}", "100-299")
    assert (answer.status, answer.headers["content-encoding"]) == (206, "gzip")
    assert gzip.decompress(answer.body) == WEIGHTS[100:300]
    assert plain.sent == {SHARD: len(answer.body)}


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_closes(plain: HubServer, reset: bool) -> None:
    plain.faults = always(Close(reset=reset))
    with pytest.raises(ConnectionResetError) as closed:
        get(plain, SHARD, "100-299")
    assert closed.type is (ConnectionResetError if reset else http.client.RemoteDisconnected)
    plain.faults = always(Close(after=50))
    with pytest.raises(http.client.IncompleteRead) as broken:
        get(plain, SHARD, "100-299")
    assert broken.value.partial == WEIGHTS[100:150]
    plain.faults = always(Close(after=50, reset=True))
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        get(plain, SHARD, "100-299")
    plain.faults = None
    assert get(plain, SHARD, "100-299").body == WEIGHTS[100:300]


def test_a_redirect_has_no_body_that_could_be_at_fault() -> None:
    with HubServer({"org/model": REPO}, storage=Storage()) as hub:
        hub.faults = lambda request: None if request.storage else Close(after=1)
        assert fetch(hub, SHARD, "100-299").body == WEIGHTS[100:300]
        assert hub.faulted == []
        hub.faults = lambda request: None if request.storage else Status(502)
        assert get(hub, SHARD, "100-299").status == 502


def read_stubbornly(hub: HubServer, start: int, end: int) -> bytes:
    """A range, asked for again from where the answer ended, at most a few times."""
    got = b""
    for _ in range(3):
        try:
            answer = fetch(hub, SHARD, f"{start + len(got)}-{end - 1}")
        except http.client.IncompleteRead as broken:
            got += broken.partial
        except ConnectionError:
            continue
        else:
            got += answer.body if answer.status == 206 else b""
        if len(got) == end - start:
            return got
    raise AssertionError(f"{start} to {end}: {len(got)} bytes")


def test_random_faults_are_as_many_as_asked_for_and_mended_by_trying_again(hub: HubServer) -> None:
    hub.faults = random_faults(seed=1, number=50, share=0.5)
    step = 5_000
    with ThreadPoolExecutor(8) as threads:
        parts = threads.map(lambda start: read_stubbornly(hub, start, min(start + step, SIZE)), range(0, SIZE, step))
        assert b"".join(parts) == WEIGHTS
    assert len(hub.faulted) == 50
    assert get(hub, "config.json").body == CONFIG
    last = max(request.number for request, _ in hub.faulted)
    assert last < len(hub.file_requests)  # and then none


def drawn(seed: int, number: int, *, redirected: bool = False) -> list[Fault]:
    """What 1,000 requests for ranges meet."""
    fault = random_faults(seed, number)
    requests = (FileRequest(n, "GET", "a", (0, n + 9), not redirected, redirected, {}) for n in range(1000))
    return [met for request in requests if (met := fault(request))]


def test_random_faults_are_the_same_for_a_seed() -> None:
    assert drawn(4, 9) == drawn(4, 9) != drawn(5, 9)
    assert len(drawn(4, 9)) == 9


def test_random_faults_are_of_all_kinds_that_an_answer_can_have() -> None:
    assert {type(fault) for fault in drawn(1, 100)} == {Close, Status, Short, Stall}
    redirects = drawn(1, 100, redirected=True)
    assert {type(fault) for fault in redirects} == {Close, Status}
    assert Status(403) not in redirects  # only an address expires
    assert Status(403) in drawn(1, 100)


@pytest.mark.parametrize(("method", "part"), [("HEAD", (0, 9)), ("GET", None)])
def test_random_faults_spare_what_reads_no_range(method: str, part: tuple[int, int] | None) -> None:
    fault = random_faults(1, 10, share=1.0)
    assert {fault(FileRequest(n, method, "a", part, True, False, {})) for n in range(20)} == {None}


# What went over the wire.


def test_bytes_are_counted_by_file(hub: HubServer) -> None:
    fetch(hub, SHARD, "100-299")
    fetch(hub, "config.json")
    assert hub.sent == {SHARD: 200, "config.json": len(CONFIG)}
    hub.faults = lambda request: None if request.redirected else Close(after=30)
    with pytest.raises(http.client.IncompleteRead):
        fetch(hub, SHARD, "100-299")
    assert hub.sent.total() == 230 + len(CONFIG)


def test_requests_for_files_are_recorded(hub: HubServer) -> None:
    fetch(hub, SHARD, "100-299")
    get(hub, "config.json", method="HEAD", Authorization="Bearer x")
    in_storage = [(2, "GET", SHARD, (100, 300), True, False)] if hub.storage else []
    assert [(r.number, r.method, r.file, r.part, r.storage, r.redirected) for r in hub.file_requests] == [
        (1, "GET", SHARD, (100, 300), False, hub.storage is not None),
        *in_storage,
        (len(in_storage) + 2, "HEAD", "config.json", None, False, False),
    ]
    assert hub.file_requests[-1].authorization == "Bearer x"
    assert hub.requests == [
        ("GET", f"/org/model/resolve/main/{SHARD}"),
        ("HEAD", "/org/model/resolve/main/config.json"),
    ]


# The line. Only lower bounds on time, which no busy machine breaks.


def test_an_answer_takes_the_latency(plain: HubServer) -> None:
    plain.line.latency = 0.05
    started = time.monotonic()
    get(plain, "config.json")
    assert time.monotonic() - started >= 0.05


def test_connections_share_the_bandwidth() -> None:
    with HubServer({"org/model": REPO}, line=Line(bandwidth=2e6)) as hub, ThreadPoolExecutor(4) as threads:
        started = time.monotonic()
        parts = list(threads.map(lambda n: get(hub, SHARD, f"{n}-{n + 99_999}").body, range(4)))
        assert time.monotonic() - started >= 400_000 / 2e6
        assert parts == [WEIGHTS[n : n + 100_000] for n in range(4)]
        hub.line.bandwidth = None
        assert get(hub, SHARD).body == WEIGHTS


def test_a_slow_body_does_not_hold_up_another_connection(plain: HubServer) -> None:
    stalled, finish = threading.Event(), threading.Event()
    plain.line.bandwidth = 1e5

    def slow() -> bytes:
        with connected(plain.endpoint) as connection:
            connection.request("GET", f"/org/model/resolve/main/{SHARD}")
            response = connection.getresponse()
            stalled.set()
            finish.wait(30)
            return response.read()

    with ThreadPoolExecutor(1) as thread:
        body = thread.submit(slow)
        stalled.wait(30)
        assert get(plain, "config.json").body == CONFIG
        assert plain.sent[SHARD] < SIZE  # still on its way
        plain.line.bandwidth = None
        finish.set()
        assert body.result() == WEIGHTS


# A process of its own.


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.hub_server", str(TINY_LLAMA), "--name", "org/model", "--storage"]
    options = ["--latency", "0.01", "--bandwidth", "100e6"]
    environment = quiet_environment(tmp_path) | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            with connected(endpoint) as connection:
                answer = ask(connection, f"/org/model/resolve/main/{SHARD}")
                assert json.loads(ask(connection, "/api/models/org/model").body)["sha"] == commit("a")
            assert get_address(answer.headers["location"], "100-299").body == WEIGHTS[100:300]
        finally:
            process.kill()


@pytest.mark.usefixtures("client")
def test_an_absent_folder_is_a_404(hub: HubServer) -> None:
    with pytest.raises(EntryNotFoundError):
        list(HfApi(endpoint=hub.endpoint).list_repo_tree("org/model", "absent"))
