"""Reads byte ranges of a repository's files over HTTP, with the session, token and endpoint of huggingface_hub.

The Hub answers a request for a weight file with a redirect to a signed address of its storage. The address is kept, so
that the next range takes one request, not two. When it has expired, the Hub is asked for a new one. Any other failure
that may pass is tried again too, from the byte that was to come next, until there is no progress for a long time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from spectrum.checkpoint.remote.answers import (
    FailedAttempt,
    RepositoryFile,
    asked_wait,
    body_size,
    malformed,
    status_reason,
)
from spectrum.errors import HubError, StoppedError, first_line
from spectrum.text import duration

# Seconds without progress with a range after which it is given up: 60 before the first answer, which a firewall or a
# wrong proxy may forbid for good. The Hub limits rates for 300 seconds at a time.
_PATIENCE, _FIRST_PATIENCE = 600.0, 60.0
_PAUSES = (0.5, 30.0)  # seconds before the second attempt, which double with each further one, and the longest of them
_MAX_YOUNG = 4  # addresses that the storage refuses soon after it has accepted them; then none is kept any more
_YOUNG = 60.0  # seconds
_MAX_MALFORMED = 4  # answers in a row that are not what HTTP defines; what sends them will hardly change

# A connection that brings less than these bytes in these seconds is replaced. Less than these bytes are no progress, so
# that a server cannot keep a scan waiting for good by sending a byte now and then.
_SLOWEST = (64 << 10, 60.0)

_UNAVAILABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 403})

# httpx's errors of redirects that cannot be followed. By name, because huggingface_hub uses one of two major versions.
_ASTRAY = frozenset({"TooManyRedirects", "UnsupportedProtocol"})

_RESUMES = "every score so far is kept: the same command resumes"


class Connection:
    """The connection to a repository on the Hub. Threads may share it.

    Args:
        warn: receives a message at the first failure that is tried again.
        refusal_reason: what an error of huggingface_hub means for the user, None if it is not about access.
    """

    def __init__(self, warn: Callable[[str], None], refusal_reason: Callable[[Exception], str | None]) -> None:
        self._warn, self._refusal_reason = warn, refusal_reason
        self._addresses: dict[RepositoryFile, tuple[str, float]] = {}  # in the storage, and when the Hub gave them
        self._num_young = 0  # of those that were refused
        self._lock = threading.Lock()
        self._hub_has_answered = self._storage_has_answered = self._has_warned = False
        self._wait_until = 0.0  # by the monotonic clock: when the server allows the next request
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all reads. They raise StoppedError."""
        self._stopped.set()

    def read_into(self, view: memoryview, file: RepositoryFile, offset: int) -> None:
        """Fill memory with the bytes of a file from an offset on.

        Raises HubError if the bytes cannot be had, after many attempts where these make sense.
        """
        done, counted, last_progress, pause, num_malformed = 0, 0, time.monotonic(), _PAUSES[0], 0
        while done < len(view):
            before = done
            try:
                for chunk in self._chunks(file, offset + done, offset + len(view)):
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
            except FailedAttempt as failure:
                if failure.malformed:
                    done = before  # who knows what has come
                if done - counted >= _SLOWEST[0]:
                    counted, last_progress, pause, num_malformed = done, time.monotonic(), _PAUSES[0], 0
                num_malformed += failure.malformed
                if failure.renewed:
                    continue
                self._addresses.pop(file, None)  # the Hub may know a better one
                self._wait(file, failure, pause, last_progress, is_last=num_malformed == _MAX_MALFORMED)
                pause = min(2 * pause, _PAUSES[1])

    def _wait(
        self, file: RepositoryFile, failure: FailedAttempt, pause: float, last_progress: float, *, is_last: bool
    ) -> None:
        """Wait before the next attempt. Raises HubError instead if there should be none."""
        if self._stopped.is_set():
            raise StoppedError
        pause = failure.wait + pause * random.uniform(0.5, 1)  # so that threads do not all come back at once
        has_answered = self._storage_has_answered if failure.by_storage else self._hub_has_answered
        patience = _PATIENCE if has_answered else min(_PATIENCE, _FIRST_PATIENCE)
        left = last_progress + patience - time.monotonic()
        if is_last or pause > left:
            waited = time.monotonic() - last_progress
            tried = "" if is_last or waited < 1 else f"; tried for {duration(waited)}"
            asked = f"; it asks to wait for {duration(failure.wait)}" if failure.wait > max(0.0, left) else ""
            remedy = failure.remedy and f"; {failure.remedy}"
            next_step = _RESUMES if has_answered else "check the network, and its proxy or firewall"
            raise HubError(
                f"cannot read {file} from the Hub ({failure}{tried}{asked}); {next_step}{remedy}"
            ) from failure
        with self._lock:
            is_first, self._has_warned = not self._has_warned, True
            if failure.wait:
                self._wait_until = max(self._wait_until, time.monotonic() + failure.wait)
        if is_first:
            self._warn(f"cannot read {file} from the Hub ({failure}); trying again for up to {duration(patience)}")
        self._stopped.wait(pause)

    def _chunks(self, file: RepositoryFile, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a range, as they arrive in one attempt. Raises FailedAttempt, or HubError if it is in vain."""
        from huggingface_hub import constants, errors, get_session

        self._stopped.wait(max(0.0, self._wait_until - time.monotonic()))
        if self._stopped.is_set():
            raise StoppedError
        kept, _ = self._addresses.get(file, (None, 0.0))
        url, headers = self._request(file, kept, start, end)
        # HTTPError is httpx's, of whichever major version huggingface_hub uses. RuntimeError is what it raises if other
        # code has closed huggingface_hub's session meanwhile.
        failures: tuple[type[Exception], ...] = (errors.HTTPError, OSError, RuntimeError)  # type: ignore[attr-defined]
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            ) as response:
                first = (response.history or [response])[0].url
                from_storage = kept is not None or _origin(response.url) != _origin(first)
                if first.scheme == "https" and response.url.scheme != "https":
                    raise malformed(f"it is redirected to {response.url.host}, and not by https")
                self._check_status(response, file, kept, from_storage=from_storage)
                size = body_size(response, file, start, end)
                self._storage_has_answered |= from_storage
                self._hub_has_answered |= kept is None
                if from_storage and kept is None and self._num_young < _MAX_YOUNG:
                    self._addresses[file] = str(response.url), time.monotonic()
                yield from self._body(response, size)
        except failures as error:
            reason, by_storage = first_line(error) or type(error).__name__, False
            if request := getattr(error, "_request", None):
                reason = f"{request.url.host}: {reason}"
                by_storage = request.url.host != urlsplit(_hub_address(file)).hostname
            if type(error).__name__ in _ASTRAY:
                raise malformed(reason) from error
            raise FailedAttempt(reason, by_storage=by_storage) from error
        if size < end - start:
            raise FailedAttempt("it sends less than it was asked for")

    def _body(self, response: Any, size: int) -> Iterator[bytes]:
        """The body of an answer, which is to have so many bytes. Raises FailedAttempt if it has not."""
        arrived, since, at_that_time = 0, time.monotonic(), 0
        # A whole file without a length may be anything, such as a proxy's page. Nothing of it is used before its end.
        unproven: list[bytes] | None = [] if response.status_code == 200 else None
        for chunk in response.iter_raw():
            if self._stopped.is_set():
                raise StoppedError
            arrived += len(chunk)
            if arrived > size:
                raise malformed("more is sent than was asked for")
            if unproven is None:
                yield chunk
            else:
                unproven.append(chunk)
            if time.monotonic() - since > _SLOWEST[1]:
                if arrived - at_that_time < _SLOWEST[0]:
                    raise FailedAttempt("hardly anything arrives")
                since, at_that_time = time.monotonic(), arrived
        if arrived < size:
            raise FailedAttempt("the connection ended too early")
        yield from unproven or ()

    def _request(self, file: RepositoryFile, kept: str | None, start: int, end: int) -> tuple[str, dict[str, str]]:
        """The address and the headers of a request. The token goes to the Hub alone, not to its storage."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers: dict[str, str] = build_hf_headers()  # each time, because a token may be renewed
        headers["Accept-Encoding"] = "identity"
        if (start, end) != (0, file.size):
            headers["Range"] = f"bytes={start}-{end - 1}"
        if kept is None:
            return _hub_address(file), headers
        headers.pop("authorization", None)
        return kept, headers

    def _check_status(self, response: Any, file: RepositoryFile, kept: str | None, *, from_storage: bool) -> None:
        """Raises FailedAttempt or HubError unless the answer has what was asked for."""
        status = response.status_code
        if status in (200, 206):
            return
        reason = status_reason(status)
        if status in _UNAVAILABLE:
            raise FailedAttempt(reason, wait=asked_wait(response))
        if kept is not None:
            with self._lock:
                address, since = self._addresses.get(file, (None, 0.0))
                if address == kept:  # no other thread has renewed it
                    self._addresses.pop(file, None)
                    self._num_young += time.monotonic() - since < _YOUNG  # it may be good for one range only
            raise FailedAttempt(reason, renewed=True)
        if from_storage:  # a new address may come
            raise FailedAttempt(reason, by_storage=True)
        if self._hub_has_answered and status in _REFUSED:  # a new token may come
            raise FailedAttempt(reason, remedy="if the token has expired, set HF_TOKEN or run `hf auth login`")
        if refused := self._why_refused(response):
            raise HubError(refused)
        raise HubError(f"cannot read {file} from the Hub ({reason}); {_RESUMES}")

    def _why_refused(self, response: Any) -> str | None:
        """Why an answer does not grant access, for the user; None if it is not about access."""
        from huggingface_hub import errors, hf_raise_for_status

        # Without its body, which may have no end, and which huggingface_hub would read. What counts is in headers.
        headers = {name: value for name, value in response.headers.items() if name.lower().startswith("x-")}
        bare = type(response)(response.status_code, headers=headers, request=response.request)
        try:
            hf_raise_for_status(bare)
        except errors.HfHubHTTPError as error:
            return self._refusal_reason(error)
        return None


def _hub_address(file: RepositoryFile) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repo, file.name, revision=file.commit)


def _origin(url: Any) -> tuple[Any, ...]:
    return url.scheme, url.host, url.port
