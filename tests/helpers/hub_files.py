"""How the tests' own Hub sends files: by ranges, over a line as slow as a test wants it, with the faults it injects."""

import contextlib
import gzip
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers.hub_faults import (
    Close,
    Fault,
    Faults,
    FileRequest,
    Gzip,
    IgnoredRange,
    Long,
    Page,
    Short,
    Stall,
    Status,
    WrongRange,
    applies,
)

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = 1 << 20  # bytes
_PIECE = 0.005  # seconds of the line's bandwidth that go out at once
_LATE = 0.05  # seconds that a body may make up for when its thread woke too late


@dataclass
class Line:
    """The network between the Hub and its clients, which all their connections share; both can change at any time."""

    latency: float = 0.0  # seconds before each answer begins
    bandwidth: float | None = None  # bytes of files per second
    _free: float = field(default=0.0, init=False)  # when it has sent all that was given to it
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def piece(self) -> int:
        """Bytes to send at once: few enough that connections take turns, many enough that this costs little."""
        return _CHUNK if self.bandwidth is None else min(_CHUNK, max(4096, int(self.bandwidth * _PIECE)))

    def carry(self, count: int, *, first: bool) -> None:
        """Wait until the line has carried so many bytes more; `first` when they begin a body."""
        bandwidth = self.bandwidth
        if bandwidth is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now if first else now - _LATE) + count / bandwidth
            wait = self._free - now
        if wait > 0:
            time.sleep(wait)


class LoopbackServer(ThreadingHTTPServer):
    """A server on a free port of loopback for the length of a `with`, at whose end its connections close."""

    request_queue_size = 64  # the client asks for many files at once; beyond the default of 5, some wait a second

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self._open: set[Any] = set()  # of sockets, which the standard library's types call Any here

    def __enter__(self) -> "LoopbackServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)


class Traffic:
    """What goes over the wire, and what is to go wrong there.

    `file_requests` lists every request for a file so far, `faulted` those that met a fault and which, and `sent`
    counts by file (`sent.total()` of all) the bytes of bodies given to the network, of which a client that closes its
    connection may have left a few megabytes unread.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.faults: Faults | None = None
        self.file_requests: list[FileRequest] = []
        self.faulted: list[tuple[FileRequest, Fault]] = []
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, file: str, sent: int) -> None:
        with self._lock:
            self.sent[file] += sent

    def arrived(
        self, method: str, file: str, size: int, headers: Mapping[str, str], *, storage: bool, redirected: bool
    ) -> FileRequest:
        """Record a request for a file of so many bytes."""
        names = {name.lower(): value for name, value in headers.items()}
        part = _part(names.get("range", ""), size)
        with self._lock:
            number = len(self.file_requests) + 1
            request = FileRequest(number, method, file, part, storage, redirected, names)
            self.file_requests.append(request)
        return request

    def fault(self, request: FileRequest) -> Fault | None:
        """What the answer to a request does wrong."""
        fault = self.faults(request) if self.faults else None
        if fault is None or not applies(fault, request):
            return None
        self.faulted.append((request, fault))
        return fault


def _part(header: str, size: int) -> tuple[int, int] | None:
    """The bytes that a Range header asks for; None for the whole file, as for a header that servers may ignore."""
    match = _RANGE.fullmatch(header)
    if match is None or match.group() == "bytes=-":
        return None
    if not match[1]:  # the last so many bytes
        return max(size - int(match[2]), 0) if int(match[2]) else size, size
    start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
    return None if match[2] and end <= start else (start, min(end, size))


class FileHandler(BaseHTTPRequestHandler):
    """Answers of the Hub and of its storage."""

    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True  # or headers and body, which go out one after the other, wait for each other
    traffic: Traffic

    def answer(self) -> None:
        """Answer the request that has come."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has closed its end
            super().handle()

    def send_content(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self._send_headers(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_fault(self, fault: Fault | None) -> bool:
        """Whether a fault is an answer of its own, which is then sent."""
        match fault:
            case Status():
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                if fault.rate_limit is not None:
                    headers["RateLimit"] = f'"resolvers";r=0;t={fault.rate_limit}'
                self.send_content(fault.status, headers)
            case Page():
                self.send_content(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html><body>Please log in.")
            case Close(after=None):
                self._close(reset=fault.reset)
            case _:
                return False
        return True

    def send_file(self, path: Path, request: FileRequest, headers: Mapping[str, str]) -> None:
        fault = self.traffic.fault(request)
        if self.send_fault(fault):
            return
        size = path.stat().st_size
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        part = None if isinstance(fault, IgnoredRange) else request.part
        start, end = part or (0, size)
        if part and start >= size:
            self.send_content(416, {"Content-Range": f"bytes */{size}"})
            return
        total, extra = size, 0
        match fault:
            case WrongRange():
                length = end - start
                start = start + fault.shift if end + fault.shift <= size else max(start - fault.shift, 0)
                end, total = min(start + length, size), size + fault.total
            case Short():
                end = max(end - fault.missing, start + 1)
            case Long():
                extra = fault.extra
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        status = 206 if part else 200
        if isinstance(fault, Gzip):
            content = gzip.compress(_read(path, start, end), compresslevel=1)
            self.traffic.count(request.file, len(content))
            self.send_content(status, {**headers, "Content-Encoding": "gzip"}, content)
            return
        self._send_headers(status, headers, end - start + extra)
        if self.command == "HEAD":
            return
        match fault:
            case Close(after=int(after)):
                self._send_part(path, request.file, start, min(start + after, end))
                self._close(reset=fault.reset)
            case Stall():
                pause = min(start + fault.after, end)
                self._send_part(path, request.file, start, pause)
                time.sleep(fault.seconds)
                self._send_part(path, request.file, pause, end)
            case _:
                inside = min(end + extra, size)
                self._send_part(path, request.file, start, inside)
                self.traffic.count(request.file, end + extra - inside)
                self.wfile.write(bytes(end + extra - inside))

    def _send_headers(self, status: int, headers: Mapping[str, str], length: int) -> None:
        time.sleep(self.traffic.line.latency)
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(header, value)
        self.end_headers()

    def _send_part(self, path: Path, file: str, start: int, end: int) -> None:
        line, position = self.traffic.line, start
        with path.open("rb") as content:
            while position < end:
                count = min(line.piece, end - position)
                line.carry(count, first=position == start)
                self.traffic.count(file, count)  # before a client can have them
                sent = self.connection.sendfile(content, position, count)
                position += sent
                if sent < count:  # the file has become shorter
                    self.traffic.count(file, sent - count)
                    self._close(reset=False)
                    return

    def _close(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing: the requests are in lists."""


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as content:
        content.seek(start)
        return content.read(end - start)
