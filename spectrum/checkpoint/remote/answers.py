"""What an HTTP server answers to a request for a byte range: is it what was asked for, and if not, what to do?"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_RATE_LIMIT_RESET = re.compile(r"\bt=(\d{1,9})\b", re.ASCII)
_LONGEST_WAIT = 1e9  # seconds; a server may ask for more

_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file at one commit of a repository.

    Args:
        repo: the repository's id.
        commit: of the repository.
        name: of the file, with its folders.
        size: in bytes.
    """

    repo: str
    commit: str
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.repo}/{self.name}"


class FailedAttempt(Exception):  # noqa: N818 - it is caught where the next attempt is made
    """An attempt that may succeed when it is made again.

    Args:
        reason: a phrase for messages.
        wait: how long the server asks to wait, in seconds.
        malformed: whether the answer was not what HTTP defines.
        renewed: whether an address that had expired was dropped, so that the next attempt need not wait.
        remedy: what else a user may do; empty if there is nothing.
        by_storage: whether the Hub's storage failed, not the Hub itself.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait: float = 0.0,
        malformed: bool = False,
        renewed: bool = False,
        remedy: str = "",
        by_storage: bool = False,
    ) -> None:
        super().__init__(reason)
        self.wait, self.malformed, self.renewed, self.remedy = wait, malformed, renewed, remedy
        self.by_storage = by_storage


def malformed(reason: str) -> FailedAttempt:
    """The failure of an attempt whose answer is not what HTTP defines."""
    return FailedAttempt(reason, malformed=True, remedy="--download reads whole files")


def body_size(response: Any, file: RepositoryFile, start: int, end: int) -> int:
    """How many bytes the body of an answer has: the range that was asked for, or the beginning of it.

    Raises FailedAttempt if it is anything else.
    """
    headers = response.headers
    if headers.get("content-type", "").lower().startswith("text/html"):
        # It may well pass: what sends such pages are networks that want a login, and servers in trouble.
        raise FailedAttempt("a web page is sent in its place, as by a network that wants a login")
    encoding = headers.get("content-encoding") or "identity"
    if encoding != "identity":
        raise malformed(f"it is sent in the encoding {encoding!r}")
    size = _whole_size(response, file, start, end) if response.status_code == 200 else _part_size(headers, start, end)
    total = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if total is not None and total[3] not in ("*", str(file.size)):
        raise malformed(f"it is {total[3]} bytes long here, and {file.size} in the Hub's list")
    if headers.get("content-length", str(size)) != str(size):
        raise malformed(f"{headers['content-length']} bytes are sent, {size} were to be")
    return size


def _whole_size(response: Any, file: RepositoryFile, start: int, end: int) -> int:
    if (start, end) != (0, file.size):
        raise malformed("the whole file is sent in place of a part of it")
    length = response.headers.get("content-length", str(file.size))
    if length != str(file.size):
        raise malformed(f"it is {length} bytes long here, and {file.size} in the Hub's list")
    return file.size


def _part_size(headers: Any, start: int, end: int) -> int:
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if match is None or int(match[1]) != start or not start <= int(match[2]) < end:
        raise malformed("another part is sent than was asked for")
    return int(match[2]) + 1 - start


def status_reason(status: int) -> str:
    """A phrase for an HTTP status."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def asked_wait(response: Any) -> float:
    """How long an answer asks to wait, in seconds; 0 if it does not say so in a form that HTTP or the Hub defines."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+", text, re.ASCII):
        return min(float(text), _LONGEST_WAIT)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), _LONGEST_WAIT)
    except (ValueError, TypeError, IndexError, OverflowError):  # no date, or one that Python cannot handle
        pass
    # The Hub's header is in every answer. Only with this status is its limit reached.
    reset = _RATE_LIMIT_RESET.search(response.headers.get("ratelimit", ""))
    return float(reset[1]) if reset and response.status_code == _TOO_MANY_REQUESTS else 0.0
