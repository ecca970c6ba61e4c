"""Faults of a network and of servers, for the tests' own Hub: each is a record that says what an answer does wrong.

`hub.faults = lambda request: Close(after=100) if request.number == 3 else None` breaks the third request for a file.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileRequest:
    """One request for a file, to the Hub or to its storage."""

    number: int  # from 1 on, over both origins
    method: str  # "GET" or "HEAD"
    file: str  # its path inside the repository
    part: tuple[int, int] | None  # the range asked for in bytes, without its end as in Python; None for the whole file
    storage: bool  # it went to the storage
    redirected: bool  # the Hub's answer is a signed address at the storage, unless it is an error
    headers: Mapping[str, str]  # names in lower case

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(frozen=True, slots=True)
class Close:
    """The connection closes after `after` bytes of a body of which all were announced, or (None) without an answer."""

    after: int | None = None
    reset: bool = False  # by a TCP reset, which also discards what the client has not read yet


@dataclass(frozen=True, slots=True)
class Status:
    """This status instead of the file, with when to come back (seconds) in one of two headers or without."""

    status: int
    retry_after: int | None = None  # `Retry-After`
    rate_limit: int | None = None  # the Hub's `RateLimit`


@dataclass(frozen=True, slots=True)
class IgnoredRange:
    """Status 200 and the whole file."""


@dataclass(frozen=True, slots=True)
class WrongRange:
    """A range that starts `shift` bytes further on, as long as asked, or a `Content-Range` whose total is off.

    The body is what the header says; where it would pass the end of the file, it starts as much earlier instead.
    """

    shift: int = 0
    total: int = 0  # bytes added to the file's size in the header


@dataclass(frozen=True, slots=True)
class Short:
    """A range that lacks its last bytes, and says so in its headers."""

    missing: int = 1


@dataclass(frozen=True, slots=True)
class Long:
    """More bytes than asked for and than `Content-Range` says, as `Content-Length` announces; past the file, zeros."""

    extra: int = 1


@dataclass(frozen=True, slots=True)
class Gzip:
    """The body compressed, whatever encodings the client accepts."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing for some seconds after so many bytes of the body; then the rest."""

    after: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """Status 200 and an HTML page, as from a network that wants its terms accepted first."""


Fault = Close | Status | IgnoredRange | WrongRange | Short | Long | Gzip | Stall | Page
Faults = Callable[[FileRequest], Fault | None]


def applies(fault: Fault, request: FileRequest) -> bool:
    """Whether a fault can happen in the answer: one of the body only where there is a body, of a range to a range."""
    match fault:
        case Status() | Page() | Close(after=None):
            return True
        case IgnoredRange() | WrongRange() | Short():
            return not request.redirected and request.part is not None
        case _:
            return not request.redirected and request.method == "GET"


def random_faults(seed: int, number: int, *, share: float = 0.25, per_range: int = 2) -> Faults:
    """So many faults, each of which a second try mends, at random ones of the GET requests for ranges; then none.

    `share` is the probability of each such request until then. Of the requests for ranges with the same end, however
    they go on (a reader resumes where it was), at most `per_range` fail, so that three tries are enough.
    """
    rng, lock = random.Random(seed), threading.Lock()
    failed: Counter[tuple[str, int]] = Counter()

    def fault(request: FileRequest) -> Fault | None:
        if request.method != "GET" or request.part is None:
            return None
        with lock:
            end = (request.file, request.part[1])
            if failed.total() == number or failed[end] == per_range or rng.random() >= share:
                return None
            failed[end] += 1
            return _recoverable(rng, request, request.part[1] - request.part[0])

    return fault


def _recoverable(rng: random.Random, request: FileRequest, length: int) -> Fault:
    refusals: list[Fault] = [
        Close(),
        Close(reset=True),
        *(Status(status) for status in (500, 502, 503, 504)),
        Status(429, retry_after=rng.randrange(2)),
        Status(429, rate_limit=0),
        *([Status(403)] if request.storage else []),  # its address has expired
    ]
    somewhere = rng.randrange(max(length, 1))
    bodies: list[Fault] = [
        Close(after=somewhere),
        Close(after=somewhere, reset=True),
        Stall(after=somewhere, seconds=rng.uniform(0.01, 0.2)),
        *([Short(missing=length - somewhere)] if somewhere else []),
    ]
    # As many of one kind as of the other, where both can be.
    return rng.choice(refusals if request.redirected or rng.random() < 0.5 else bodies)
