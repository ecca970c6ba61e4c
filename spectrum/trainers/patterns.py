"""Regular expressions of a stranger's, matched in bounded time. Standard library only.

A short pattern can take for ever on a short name, and nothing ends a match from within its process.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 30.0  # for all patterns; those of real lists take a thousandth of it

# Limited by itself, too, for when its parent is killed.
_MATCHER = """
import json, re, sys
patterns, names, seconds = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
except (ImportError, ValueError, OSError):
    pass
for pattern in patterns:
    try:
        match = re.compile(pattern).match
    except (re.error, OverflowError, RecursionError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        found = [place for place, name in enumerate(names) if match(name)]
    print(json.dumps(found), flush=True)
"""


class PatternError(Exception):
    """A pattern is none, or takes too long. place: its number among those given. reason: None for the latter."""

    def __init__(self, place: int, reason: str | None) -> None:
        super().__init__(f"pattern {place}: {reason or 'it takes too long'}")
        self.place, self.reason = place, reason


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[list[str]]:
    """For each pattern, the names that it matches from their start. Raises PatternError."""
    if not patterns:
        return []
    # Isolated (-I), without site packages (-S): it starts in 20 ms, and imports nothing from the working directory.
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _MATCHER]
    told = json.dumps([patterns, names, math.ceil(SECONDS) + 1]).encode()
    slow = True
    try:
        done = subprocess.run(command, input=told, capture_output=True, timeout=SECONDS)
        printed, slow = done.stdout, done.returncode == -getattr(signal, "SIGXCPU", 0)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
    found = [json.loads(line) for line in printed[: printed.rfind(b"\n") + 1].splitlines()]
    for place, each in enumerate(found):
        if isinstance(each, str):
            raise PatternError(place, each)
    if len(found) < len(patterns):
        raise PatternError(len(found), None if slow else "there is no memory to match it")
    return [[names[place] for place in places] for places in found]
