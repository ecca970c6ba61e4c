"""Ranges over HTTP: what is asked again, from which byte, for how long, who gets the token, what no server can do."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors
from hypothesis import example, given
from hypothesis import strategies as st

from spectrum.checkpoint.remote import connection as module
from spectrum.checkpoint.remote.answers import RepositoryFile, asked_wait
from spectrum.checkpoint.remote.connection import Connection
from spectrum.errors import HubError, StoppedError
from tests.helpers.hub_client import answer_by, ask, httpx
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
)
from tests.helpers.hub_server import TOKEN, HubServer, Repo, commit
from tests.helpers.hub_storage import Storage

HUB = "https://hub.example"
SIZE = 300_000
CONTENT = random.Random(0).randbytes(SIZE)
START, END = 1_000, 201_000
NAME = "model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(module, "_PATIENCE", 20.0)
    ask(monkeypatch, HUB, tmp_path / "hub")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / NAME).write_bytes(CONTENT)
    with HubServer({"org/model": Repo(tmp_path / "model", commit("a"))}, storage=Storage()) as running:
        ask(monkeypatch, running.endpoint, tmp_path / "hub")
        yield running


def impatient(patch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    patch.setattr(module, "_PATIENCE", seconds)


class Reader:
    """A connection, what it warned of, and reads by it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.connection = Connection(self.warnings.append, self.refusal_reason)

    @staticmethod
    def refusal_reason(error: Exception) -> str | None:
        return f"refused: {type(error).__name__}" if isinstance(error, errors.RepositoryNotFoundError) else None

    def read(self, start: int = START, end: int = END, size: int = SIZE) -> bytes:
        content = bytearray(end - start)
        self.connection.read_into(memoryview(content), RepositoryFile("org/model", commit("a"), NAME, size), start)
        return bytes(content)


def asked(server: HubServer) -> list[tuple[int, int] | None]:
    """The ranges that the storage was asked for."""
    return [request.part for request in server.file_requests if request.storage]


def once(fault: Fault, *, storage: bool = True) -> Callable[[FileRequest], Fault | None]:
    """A fault in the second answer, so that an address has been kept."""
    left = itertools.chain([None, fault], itertools.repeat(None))
    return lambda request: next(left) if request.storage == storage else None


def always(fault: Fault) -> Callable[[FileRequest], Fault | None]:
    return lambda request: fault if request.storage and request.number > 2 else None


# From a server that fails as servers do.


@pytest.mark.parametrize(
    ("fault", "resumed", "reason"),
    [
        pytest.param(Close(), START, "", id="closed"),
        pytest.param(Close(reset=True), START, "", id="reset"),
        pytest.param(Close(after=70_000), START + 70_000, "", id="closed in the body"),
        pytest.param(Status(500), START, "500 Internal Server Error", id="500"),
        pytest.param(Status(502), START, "502 Bad Gateway", id="502"),
        pytest.param(Status(503), START, "503 Service Unavailable", id="503"),
        pytest.param(Status(504), START, "504 Gateway Timeout", id="504"),
        pytest.param(Status(429, retry_after=0), START, "429 Too Many Requests", id="429"),
        pytest.param(Status(429, rate_limit=0), START, "429 Too Many Requests", id="429 of the Hub"),
        pytest.param(Short(missing=50_000), END - 50_000, "it sends less than it was asked for", id="short"),
        pytest.param(Long(extra=7), START, "200007 bytes are sent, 200000 were to be", id="long"),
        pytest.param(IgnoredRange(), START, "the whole file is sent in place of a part", id="no ranges"),
        pytest.param(WrongRange(shift=1), START, "another part is sent", id="another range"),
        pytest.param(WrongRange(total=1), START, "it is 300001 bytes long here, and 300000 in the Hub's", id="total"),
        pytest.param(Gzip(), START, "it is sent in the encoding 'gzip'", id="gzip"),
        pytest.param(Page(), START, "a web page is sent in its place", id="page"),
    ],
)
def test_what_fails_once_is_asked_again_from_where_it_was_and_said_once(
    server: HubServer, fault: Fault, resumed: int, reason: str
) -> None:
    reader = Reader()
    server.faults = once(fault)
    assert reader.read(0, 10) == CONTENT[:10]
    assert reader.read() == CONTENT[START:END]
    assert asked(server) == [(0, 10), (START, END), (resumed, END)]
    assert len(reader.warnings) == 1
    assert f"cannot read org/model/{NAME} from the Hub ({reason}" in reader.warnings[0]
    assert "for up to 20.0 s" in reader.warnings[0]


def test_a_stall_is_not_waited_for_longer_than_the_client_is_told_to(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    reader = Reader()
    server.faults = once(Stall(after=70_000, seconds=2))
    reader.read(0, 10)
    assert reader.read() == CONTENT[START:END]
    assert asked(server)[2:] == [(START + 70_000, END)]
    assert "timed out" in reader.warnings[0]


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_an_address_that_has_expired_is_renewed_at_once_without_a_word(server: HubServer, status: int) -> None:
    reader = Reader()
    server.faults = once(Status(status))
    reader.read(0, 10)
    assert reader.read() == CONTENT[START:END]
    assert [(request.storage, request.part) for request in server.file_requests] == [
        (False, (0, 10)),
        (True, (0, 10)),
        (True, (START, END)),
        (False, (START, END)),
        (True, (START, END)),
    ]
    assert reader.warnings == []


def test_an_address_that_is_renewed_in_vain_is_given_up(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    reader = Reader()
    reader.read(0, 10)
    server.faults = always(Status(403))
    with pytest.raises(HubError, match="403 Forbidden") as refusal:
        reader.read()
    assert "the same command resumes" in str(refusal.value)
    assert 3 < len(asked(server)) < 100  # with pauses


@pytest.mark.parametrize("fault", [Close(), Status(503), Status(429), Page(), Stall(after=0, seconds=1)])
def test_what_goes_on_failing_is_given_up_after_a_while(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    impatient(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    reader = Reader()
    reader.read(0, 10)
    server.faults = always(fault)
    with pytest.raises(HubError) as refusal:
        reader.read()
    assert str(refusal.value).startswith(f"cannot read org/model/{NAME} from the Hub (")
    assert "every score so far is kept: the same command resumes" in str(refusal.value)
    assert len(reader.warnings) == 1


@pytest.mark.parametrize("fault", [Long(extra=7), IgnoredRange(), WrongRange(shift=1), WrongRange(total=1), Gzip()])
def test_answers_that_are_wrong_are_given_up_soon_and_whole_files_proposed(server: HubServer, fault: Fault) -> None:
    reader = Reader()
    reader.read(0, 10)
    server.faults = always(fault)
    with pytest.raises(HubError, match="the same command resumes; --download reads whole files"):
        reader.read()
    assert len(asked(server)) == 1 + 4


def test_a_connection_that_breaks_again_and_again_is_gone_on_with_while_there_is_progress(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOWEST", (100, 60.0))
    reader = Reader()
    reader.read(0, 10)
    server.faults = always(Close(after=20_000))
    assert reader.read() == CONTENT[START:END]
    assert asked(server)[1:] == [(start, END) for start in range(START, END, 20_000)]
    assert len(reader.warnings) == 1


def test_a_token_that_expires_and_is_renewed_is_used(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos = {"org/model": Repo(server.repos["org/model"].root, commit("a"), access="private")}
    server.storage.expire()  # type: ignore[union-attr]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    reader = Reader()
    reader.read(0, 10)
    server.tokens.clear()
    server.storage.expire()  # type: ignore[union-attr]
    server.tokens.add("hf_renewed")
    warn = reader.warnings.append

    def renew(message: str) -> None:
        warn(message)
        monkeypatch.setenv("HF_TOKEN", "hf_renewed")

    reader.connection._warn = renew
    assert reader.read() == CONTENT[START:END]
    assert len(reader.warnings) == 1
    assert "401 Unauthorized" in reader.warnings[0]


def test_a_token_that_is_not_renewed_is_given_up_and_named(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    server.repos = {"org/model": Repo(server.repos["org/model"].root, commit("a"), access="private")}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    reader = Reader()
    reader.read(0, 10)
    server.tokens.clear()
    server.storage.expire()  # type: ignore[union-attr]
    with pytest.raises(HubError, match=r"401 Unauthorized.*resumes; if the token has expired, set HF_TOKEN"):
        reader.read()


@pytest.mark.parametrize(("access", "kind"), [("gated", "GatedRepoError"), ("private", "RepositoryNotFoundError")])
def test_refused_access_is_no_failure_to_be_tried_again(server: HubServer, access: Any, kind: str) -> None:
    server.repos = {"org/model": Repo(server.repos["org/model"].root, commit("a"), access=access)}
    reader = Reader()
    with pytest.raises(HubError, match=f"refused: {kind}"):
        reader.read()
    assert len(server.file_requests) + len(server.requests) == 1
    assert reader.warnings == []


def test_a_file_that_vanishes_is_given_up_at_once(server: HubServer, tmp_path: Path) -> None:
    reader = Reader()
    reader.read(0, 10)
    server.storage.expire()  # type: ignore[union-attr]
    server.repos = {"org/model": Repo(tmp_path / "empty", commit("a"))}
    with pytest.raises(HubError, match=rf"cannot read org/model/{NAME} from the Hub \(404 Not Found\)"):
        reader.read()
    assert reader.warnings == []


# From servers that mean ill, or that nobody has ever seen.


def part_of(request: Any, content: bytes = CONTENT, **headers: str) -> Any:
    """A right answer to a request for a range."""
    start, _, end = request.headers["range"].removeprefix("bytes=").partition("-")
    found = {"Content-Range": f"bytes {start}-{end}/{len(content)}", **headers}
    return httpx.Response(206, headers=found, content=streamed(content[int(start) : int(end) + 1]))


def streamed(*chunks: bytes) -> Iterator[bytes]:
    """A body that comes as from a network; httpx takes bytes for one that has been read."""
    yield from chunks


def range_headers(start: int = START, end: int = END) -> Mapping[str, str]:
    return {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}"}


class Web:
    """Answers by host, and the requests that came."""

    def __init__(self, patch: pytest.MonkeyPatch, **answers: Callable[[Any], Any]) -> None:
        self.requests: list[Any] = []
        self._answers = answers
        answer_by(patch, self._answer)

    def _answer(self, request: Any) -> Any:
        self.requests.append(request)
        if request.url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol("Request URL has an unsupported protocol.")  # as httpx's own transport
        host = request.url.host.partition(".")[0]
        if host not in self._answers:
            raise httpx.ConnectError(f"there is no {host}")
        return self._answers[host](request)


def failing(reason: str, when: Callable[[], bool] = lambda: True) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        if when():
            raise httpx.ConnectError(reason, request=request)
        return part_of(request)

    return answer


def to(address: str) -> Callable[[Any], Any]:
    return lambda request: httpx.Response(302, headers={"Location": address})


def test_the_token_goes_to_the_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    web = Web(monkeypatch, hub=to("https://cdn.example/x"), cdn=to("https://storage.example/y?signed"), storage=part_of)
    reader = Reader()
    for end in (START + 10, END):
        assert reader.read(START, end) == CONTENT[START:end]
    assert [(request.url.host, request.headers.get("authorization")) for request in web.requests] == [
        ("hub.example", "Bearer hf_secret"),
        ("cdn.example", None),
        ("storage.example", None),
        ("storage.example", None),
    ]
    assert not [request for request in web.requests[1:] if "hf_secret" in str([*request.headers.items()])]


def test_a_storage_that_goes_down_is_left_for_the_one_that_the_hub_names_next(monkeypatch: pytest.MonkeyPatch) -> None:
    down = False
    first, second = (to(f"https://cdn{number}.example/x") for number in (1, 2))
    Web(
        monkeypatch,
        hub=lambda request: (second if down else first)(request),
        cdn1=failing("no route", lambda: down),
        cdn2=part_of,
    )
    reader = Reader()
    assert reader.read(START, START + 10) == CONTENT[START : START + 10]
    down = True
    assert reader.read() == CONTENT[START:END]
    (warning,) = reader.warnings
    assert "cdn1.example: no route" in warning


def test_a_storage_that_was_never_reached_is_given_up_sooner_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PATIENCE", 0.2)
    answers = iter([part_of])  # the config comes from the Hub itself
    Web(
        monkeypatch,
        hub=lambda request: next(answers, to("https://cdn.example/x"))(request),
        cdn=failing("no route"),
    )
    reader = Reader()
    assert reader.read(START, START + 10) == CONTENT[START : START + 10]
    with pytest.raises(HubError, match=r"\(cdn.example: no route.*\); check the network, and its proxy or firewall$"):
        reader.read()
    assert reader.warnings[0].endswith("trying again for up to 0.2 s")


def test_a_storage_that_refuses_every_request_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PATIENCE", 0.2)
    Web(monkeypatch, hub=to("https://cdn.example/x"), cdn=lambda request: httpx.Response(403))
    reader = Reader()
    with pytest.raises(HubError, match=r"\(403 Forbidden.*\); check the network"):
        reader.read()
    assert reader.warnings[0].endswith("trying again for up to 0.2 s")


def test_addresses_that_are_good_for_one_range_are_soon_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_one_range(request: Any) -> Any:
        asked = request.headers["range"].removeprefix("bytes=")
        return part_of(request) if request.url.path == f"/{asked}" else httpx.Response(403)

    def signed(request: Any) -> Any:
        return to(f"https://cdn.example/{request.headers['range'].removeprefix('bytes=')}")(request)

    web, reader = Web(monkeypatch, hub=signed, cdn=of_one_range), Reader()
    for start in range(START, START + 400, 10):
        assert reader.read(start, start + 10) == CONTENT[start : start + 10]
    refused = [request for request in web.requests if request.url.host == "cdn.example"]
    assert len(refused) - 40 == module._MAX_YOUNG
    assert not reader.warnings


@pytest.mark.parametrize("endpoint", ["https://hub.example:443", "HTTPS://HUB.example", "https://hub.example"])
def test_a_hub_that_sends_files_itself_gets_the_token_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str
) -> None:
    ask(monkeypatch, endpoint, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    web = Web(monkeypatch, hub=part_of)
    reader = Reader()
    for end in (START + 10, END):
        assert reader.read(START, end) == CONTENT[START:end]
    assert [request.headers.get("authorization") for request in web.requests] == ["Bearer hf_secret"] * 2


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("https://hub.example/again", "redirect"),
        ("file:///etc/passwd", "protocol"),
        ("ftp://storage.example/x", "protocol"),
        ("http://plain.example/x", "it is redirected to plain.example, and not by https"),
        ("http://hub.example/x", "not by https"),
    ],
)
def test_redirects_that_lead_astray_are_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, address: str, reason: str
) -> None:
    def hub(request: Any) -> Any:
        return part_of(request) if request.url.scheme == "http" else to(address)(request)

    web = Web(monkeypatch, hub=hub, plain=part_of)
    reader = Reader()
    with pytest.raises(HubError, match=f"(?i){reason}"):
        reader.read()
    assert len([request for request in web.requests if "/resolve/" in request.url.path]) == 4
    assert not [r for r in web.requests if r.url.scheme != "https" and "authorization" in r.headers]


@pytest.mark.parametrize("headers", [{"Location": "http://["}, {"Location": "https://\x00/"}, {}])
def test_a_redirect_to_nowhere_is_given_up(monkeypatch: pytest.MonkeyPatch, headers: Mapping[str, str]) -> None:
    impatient(monkeypatch)
    Web(monkeypatch, hub=lambda request: httpx.Response(302, headers=headers))
    with pytest.raises(HubError, match="cannot read org/model"):
        Reader().read()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes 1000-200999",
        "bytes 1000-200999/-1",
        "bytes -1000-200999/300000",
        "bytes 1000-999/300000",
        "bytes 1000-201000/300000",
        "bytes 999-200999/300000",
        "bytes \u0661\u0660\u0660\u0660-200999/300000",
        "bytes */300000",
        f"bytes {'9' * 5000}-200999/300000",
        "items 1000-200999/300000",
        "bytes 1000-200999/300000, 5-6/7",
    ],
)
def test_a_range_that_is_not_the_one_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    headers = {b"content-range": text.encode()}
    web = Web(
        monkeypatch, hub=lambda request: httpx.Response(206, headers=headers, content=streamed(bytes(END - START)))
    )
    with pytest.raises(HubError, match="another part is sent than was asked for"):
        Reader().read()
    assert len(web.requests) == 4


def test_a_body_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = itertools.count()

    def endless() -> Iterator[bytes]:
        for _ in sent:
            yield bytes(50_000)

    web = Web(monkeypatch, hub=lambda request: httpx.Response(206, headers=range_headers(), content=endless()))
    with pytest.raises(HubError, match="more is sent than was asked for"):
        Reader().read()
    # All that was asked for has arrived, and then more: it is not known to be right.
    assert next(sent) < 40
    assert len(web.requests) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_the_body_of_a_refusal_is_not_read(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    impatient(monkeypatch)

    def endless() -> Iterator[bytes]:
        pytest.fail("the body is read")
        yield b""

    headers = {"X-Error-Code": "GatedRepo", "Content-Type": "application/json", "Content-Encoding": "gzip"}
    Web(monkeypatch, hub=lambda request: httpx.Response(status, headers=headers, content=endless()))
    with pytest.raises(HubError, match="500 Internal" if status == 500 else "refused: GatedRepoError"):
        Reader().read()


def test_a_trickle_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOWEST", (1_000, 0.1))
    impatient(monkeypatch, 0.5)

    def trickle(start: int) -> Iterator[bytes]:
        for place in range(start, END):
            time.sleep(0.01)
            yield CONTENT[place : place + 1]

    def hub(request: Any) -> Any:
        start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
        starts.append(start)
        return httpx.Response(206, headers=range_headers(start), content=trickle(start))

    starts: list[int] = []
    Web(monkeypatch, hub=hub)
    with pytest.raises(HubError, match=r"\(hardly anything arrives\); every score"):
        Reader().read()
    assert starts == sorted(set(starts))  # what has come is kept
    assert len(starts) > 2


def test_a_slow_line_that_goes_on_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOWEST", (10, 0.05))
    impatient(monkeypatch, 0.1)

    def slow() -> Iterator[bytes]:
        for place in range(START, END, 10_000):
            time.sleep(0.02)
            yield CONTENT[place : place + 10_000]

    web = Web(monkeypatch, hub=lambda request: httpx.Response(206, headers=range_headers(), content=slow()))
    assert Reader().read() == CONTENT[START:END]
    assert len(web.requests) == 1


def test_a_page_of_unknown_length_is_not_taken_for_the_beginning_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole file is asked for without a range, so that nothing but its length proves it."""

    answers = iter([b"Please log in.", CONTENT + b"!", CONTENT])
    web = Web(monkeypatch, hub=lambda request: httpx.Response(200, content=streamed(next(answers))))
    assert Reader().read(0, SIZE) == CONTENT
    assert [request.headers.get("range") for request in web.requests] == [None] * 3


@pytest.mark.parametrize("status", [201, 204, 302, 304, 416, 451, 999])
def test_a_status_that_nobody_expects_is_one_line(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    Web(monkeypatch, hub=lambda request: httpx.Response(status))
    with pytest.raises(HubError, match=rf"cannot read org/model/{NAME} from the Hub \((status )?{status}"):
        Reader().read()


def test_a_session_that_other_code_closes_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = httpx.Client()
    closed.close()
    answer_by(monkeypatch, part_of)
    import huggingface_hub

    sessions = itertools.chain([closed], itertools.repeat(huggingface_hub.get_session()))
    monkeypatch.setattr("huggingface_hub.get_session", lambda: next(sessions))
    reader = Reader()
    assert reader.read() == CONTENT[START:END]
    assert "closed" in reader.warnings[0]


# How long servers ask to wait.


def response(status: int = 429, **headers: str) -> Any:
    return SimpleNamespace(status_code=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("17", 17),
        (" 17 ", 17),
        ("1000000000", 1e9),
        ("9" * 5_000, 1e9),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("", 0),
        ("\u0661\u0667", 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e9),
    ],
)
def test_what_retry_after_says_is_understood_or_ignored(text: str, seconds: float) -> None:
    assert asked_wait(response(retry_after=text)) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(minutes=2), usegmt=True)
    assert 110 < asked_wait(response(503, retry_after=date)) <= 120
    assert asked_wait(response(503, retry_after="Sun, 06 Nov 1994 08:49:37 GMT")) == 0


def test_the_hubs_limit_counts_only_where_it_is_reached() -> None:
    limit = '"resolvers";r=0;t=55'
    assert asked_wait(response(429, ratelimit=limit)) == 55
    assert asked_wait(response(429, ratelimit=limit, retry_after="3")) == 3
    assert asked_wait(response(503, ratelimit='"api";r=998;t=200')) == 0


@given(st.text(), st.text())
@example("Mon, 99 Jan 2026 99:99:99", "t=")
@example("0 0 0 0 0 0", "t=99999999999")
def test_no_header_makes_a_wait_that_is_none(retry_after: str, ratelimit: str) -> None:
    assert 0 <= asked_wait(response(retry_after=retry_after, ratelimit=ratelimit)) <= 1e9


def test_a_wait_beyond_all_patience_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    web = Web(monkeypatch, hub=lambda request: httpx.Response(429, headers={"Retry-After": "1000000000"}))
    reader = Reader()
    with pytest.raises(HubError, match=r"\(429 Too Many Requests; it asks to wait for 277777 h 46 min\)"):
        reader.read()
    assert len(web.requests) == 1
    assert reader.warnings == []


def test_a_wait_that_a_server_asks_for_holds_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def hub(request: Any) -> Any:
        times.append(time.monotonic())
        if len(times) == 1:
            return httpx.Response(503, headers={"Retry-After": "1"})
        return part_of(request)

    Web(monkeypatch, hub=hub)
    reader = Reader()
    first = threading.Thread(target=reader.read)
    first.start()
    while not reader.warnings:
        time.sleep(0.001)
    reader.read(0, 10)
    first.join()
    assert min(times[1:]) - times[0] >= 0.99


# The end of a scan.


def test_a_connection_that_is_stopped_ends_waits_at_once_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (60.0, 60.0))
    impatient(monkeypatch, 600)
    Web(monkeypatch, hub=lambda request: httpx.Response(503))
    reader, ends = Reader(), []

    def read() -> None:
        try:
            reader.read()
        except BaseException as error:
            ends.append(type(error))

    thread = threading.Thread(target=read)
    thread.start()
    while not reader.warnings:
        time.sleep(0.001)
    reader.connection.stop()
    thread.join(10)
    read()
    assert ends == [StoppedError] * 2


def test_a_failure_after_the_end_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()

    def hub(request: Any) -> Any:
        reader.connection.stop()
        return httpx.Response(503)

    Web(monkeypatch, hub=hub)
    with pytest.raises(StoppedError):
        reader.read()
    assert reader.warnings == []
