"""Match untrusted regular expressions in bounded time.

A short pattern can take forever on a short name, and Python cannot stop a match that has begun. So another process
matches, and is killed when its time is up.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 30.0  # for all patterns together; the patterns of real lists take about a thousandth of this

# The process also limits its own CPU time, in case its parent is killed.
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
        result = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        result = [place for place, name in enumerate(names) if match(name)]
    print(json.dumps(result), flush=True)
"""


class PatternError(Exception):
    """A pattern is invalid, or takes too long.

    Args:
        place: the pattern's place among all patterns, from 0.
        reason: what is wrong with the pattern; None if it takes too long.
    """

    def __init__(self, place: int, reason: str | None) -> None:
        super().__init__(f"pattern {place}: {reason or 'it takes too long'}")
        self.place, self.reason = place, reason


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[list[str]]:
    """For each pattern, the names that it matches from their start. Raises PatternError."""
    if not patterns:
        return []
    # Isolated (-I) and without site packages (-S), it starts in 20 ms and imports nothing from the working directory.
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _MATCHER]
    request = json.dumps([patterns, names, math.ceil(SECONDS) + 1]).encode()
    out_of_time = True
    try:
        process = subprocess.run(command, input=request, capture_output=True, timeout=SECONDS)
        printed, out_of_time = process.stdout, process.returncode == -getattr(signal, "SIGXCPU", 0)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
    # One line for each pattern that was matched in full. The last line may be cut off.
    results = [json.loads(line) for line in printed[: printed.rfind(b"\n") + 1].splitlines()]
    for place, result in enumerate(results):
        if isinstance(result, str):
            raise PatternError(place, result)
    if len(results) < len(patterns):
        raise PatternError(len(results), None if out_of_time else "there is no memory to match it")
    return [[names[place] for place in places] for places in results]
