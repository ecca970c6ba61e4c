"""Kill scans at any moment, and see that nothing is half written, and that the same command then comes to the same end.

    python -m tests.robustness.kills [--moments 100] [--timed 50] [--successions 5] [--seed 0]
    python -m tests.robustness.kills --moments 0 --at 'scan: after replace 1' 'journal: half a line 17'

Moments are events in the life of a scan at which it kills itself; for that it is forked from a process that has
imported everything. Of them, `--timed` are points in time at which a process that starts from nothing is killed
from outside. The scans begin with no cache, with one that lacks types, with one of other weights, with one to be
ignored, and with the journal of other weights. Only processes are killed, no machines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.helpers import fork_server
from tests.helpers.paths import ROOT, TINY_LLAMA

if TYPE_CHECKING:
    from spectrum.records import MatrixScore

# Nothing of spectrum is imported up here: the scans that are killed in time are to be killed in their imports, too.

MODEL = "tiny_llama"
CACHE = "cache"
OUTPUT = "out"
SCAN = f"{CACHE}/snr_results_tiny-llama.json"
SIDECAR = f"{CACHE}/snr_results_tiny-llama.meta.json"
JOURNAL = f"{CACHE}/snr_results_tiny-llama.journal-0.jsonl"
COMMAND = [
    *("--model-name", MODEL, "--results-dir", CACHE, "--output-dir", OUTPUT),
    *("--top-percent", "25", "--batch-size", "1", "--device", "cpu", "--yes"),
]

# What a kill leaves before a new file takes its name: hidden, and never taken for a result.
_TEMPORARY = re.compile(r"\..+\.(jsonl?|yaml)\.\d+\.[0-9a-f]{8}")
_LOCK = re.compile(r"\..+\.lock")
_GOING_ON = re.compile(r"^spectrum: resuming an interrupted scan: (\d+) of (\d+) matrices are scored$", re.M)

# Events of which a scan has one for each matrix.
_MANY = ("read", "journal: before a line", "journal: half a line", "journal: after a line")


# The scan that is killed.


@dataclass
class Tracer:
    """Writes down what a scan comes to, takes a while over it, and kills the process at the moment `at`."""

    log: int
    at: str | None = None
    slow: float = 0.0
    _counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reached(self, event: str) -> None:
        if self.due(event):
            die()
        time.sleep(self.slow)

    def due(self, event: str) -> bool:
        with self._lock:
            self._counts[event] += 1
            moment = f"{event} {self._counts[event]}"
            os.write(self.log, f"{moment}\n".encode())
        return moment == self.at


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # until the signal has come to this thread


def scan() -> None:
    """The command, in a process of its own, slowed down and traced as the environment says."""
    log = os.open(os.environ["KILLS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    tracer = Tracer(log, os.environ.get("KILLS_AT"), float(os.environ.get("KILLS_SLOW", "0")))
    tracer.due("imports")
    sys.argv[0] = "spectrum"
    trace(tracer)
    from spectrum.cli import entry

    entry.command()


def trace(tracer: Tracer) -> None:
    """Have a tracer told of all that changes a file, and of every read."""
    from spectrum.checkpoint.checkpoint import Checkpoint
    from spectrum.cli import select
    from spectrum.files import write_atomically
    from spectrum.scanning import journal, store

    def around(owner: Any, name: str, before: Callable[..., str | None], after: Callable[..., str | None]) -> None:
        original = getattr(owner, name)

        def traced(*args: Any, **kwargs: Any) -> Any:
            if (event := before(*args)) is not None:
                tracer.reached(event)
            value = original(*args, **kwargs)
            if (event := after(*args)) is not None:
                tracer.reached(event)
            return value

        mock.patch.object(owner, name, traced).start()

    written: list[str] = []  # the file that is being written

    def what(path: object) -> str:
        name = Path(str(path)).name
        kinds = {
            ".meta.json": "sidecar",
            "_sorted.json": "sorted",
            ".yaml": "yaml",
            ".json": "scan",
            ".jsonl": "journal",
        }
        return next((kind for ending, kind in kinds.items() if name.endswith(ending)), "temporary")

    def current() -> str:
        return written[-1] if written else "journal"

    def write(path: Path, text: str) -> None:
        kind = what(path)
        tracer.reached(f"{kind}: before writing")
        if tracer.due(f"{kind}: half a text"):
            text, tracer.at = text[: len(text) // 2], f"{kind}: before fsync 1"
        written.append(kind)
        write_atomically(path, text)
        written.pop()

    write_line = journal.Journal._write

    def write_in_halves(self: journal.Journal, line: bytes) -> None:
        assert self._file is not None
        half = len(line) // 2
        tracer.reached("journal: before a line")
        self._file.write(line[:half])
        tracer.reached("journal: half a line")
        write_line(self, line[half:])
        tracer.reached("journal: after a line")

    def no_event(*args: object) -> None:
        return None

    for module in (store, select):
        mock.patch.object(module, "write_atomically", write).start()
    mock.patch.object(journal.Journal, "_write", write_in_halves).start()
    around(Checkpoint, "read", lambda *args: "read", no_event)
    around(journal.Journal, "_open", no_event, lambda *args: "journal: opened")
    around(os, "fsync", lambda file: f"{current()}: before fsync", lambda file: f"{current()}: after fsync")
    around(
        Path, "replace", lambda old, new: f"{what(new)}: before replace", lambda old, new: f"{what(new)}: after replace"
    )
    around(Path, "unlink", lambda path: f"{what(path)}: before unlink", lambda path: f"{what(path)}: after unlink")
    tracer.reached("opening")


@dataclass(frozen=True)
class Ended:
    """How a scan ended, what it said, the moments it came to."""

    status: int
    said: str
    moments: list[str]


def forked(directory: Path, args: Sequence[str], at: str | None = None, *, traced: bool = True) -> Ended:
    """A scan in a fork of this process, which has no other threads."""
    said, log = directory.with_name("said.txt"), directory.with_name("log.txt")
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        status = 99
        try:
            os.chdir(directory)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            from spectrum.cli import entry

            events = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if traced:
                trace(Tracer(events, at))
            status = entry.main(args)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(), log.read_text().splitlines())


@contextmanager
def started(
    directory: Path, args: Sequence[str], slow: float, at: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A slowed scan in a process that starts from nothing; stdout and stderr go to `said.txt` beside the directory."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_", "KILLS_"))}
    log = directory.with_name("log.txt")
    log.unlink(missing_ok=True)
    environment = inherited | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "KILLS_LOG": str(log),
        "KILLS_SLOW": str(slow),
    }
    if at is not None:
        environment["KILLS_AT"] = at
    command = [sys.executable, "-c", "from tests.robustness.kills import scan; scan()", *args]
    with (
        directory.with_name("said.txt").open("wb") as said,
        subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


# What it begins with, and what it has to come to.


@dataclass
class Scenario:
    """A command, the directory that it begins with, and what an uninterrupted run of it makes of that."""

    name: str
    args: list[str]
    start: Path
    before: dict[str, bytes]
    end: dict[str, bytes]
    moments: list[str]


def files(directory: Path) -> dict[str, bytes]:
    """All files but those of the model and locks, which have to stay."""
    found = (path for path in directory.rglob("*") if path.is_file() and not _LOCK.fullmatch(path.name))
    named = ((str(path.relative_to(directory)), path) for path in found)
    return {name: path.read_bytes() for name, path in named if not name.startswith(f"{MODEL}/")}


def scenarios(scratch: Path) -> list[Scenario]:
    """What a scan may begin with."""
    plain = scratch / "plain"
    shutil.copytree(TINY_LLAMA, plain / MODEL)
    other = scratch / "other"
    shutil.copytree(TINY_LLAMA, other / MODEL)
    _change_weights(other / MODEL)
    some, all_of_it = [*COMMAND, "--layer-types", "mlp.*"], [*COMMAND, "--layer-types", "all"]

    def after(start: Path, name: str, args: Sequence[str], at: str | None = None) -> Path:
        copy = Path(shutil.copytree(start, scratch / name))
        ended = forked(copy, args, at)
        assert ended.status == (0 if at is None else -signal.SIGKILL), ended.said
        return copy

    def with_plain_weights(directory: Path) -> Path:
        shutil.rmtree(directory / MODEL)
        shutil.copytree(TINY_LLAMA, directory / MODEL)
        return directory

    return [
        _scenario("no cache", COMMAND, plain),
        _scenario("types to add", all_of_it, after(plain, "types", some)),
        _scenario("other weights cached", COMMAND, with_plain_weights(after(other, "cached", COMMAND))),
        _scenario("a cache to ignore", [*COMMAND, "--rescan"], after(plain, "rescan", COMMAND)),
        _scenario(
            "other weights' journal",
            COMMAND,
            with_plain_weights(after(other, "journal", COMMAND, "journal: after a line 40")),
        ),
    ]


def _scenario(name: str, args: list[str], start: Path) -> Scenario:
    directory = Path(shutil.copytree(start, start.with_name(f"{start.name}-to-its-end")))
    ended = forked(directory, args)
    assert ended.status == 0, ended.said
    end = files(directory)
    assert len(end) == 4, sorted(end)  # scores and sidecar, sorted scores, list
    return Scenario(name, args, start, files(start), end, ended.moments)


def _change_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in model.glob("*.safetensors"):
        changed = {name: tensor.flip(0) * (1 + tensor.abs()) for name, tensor in load_file(path).items()}
        save_file(changed, path, {"format": "pt"})


# What a kill has left.


@dataclass(frozen=True)
class Left:
    """What of a scan is on disk after a kill. kept: matrices in the journal. finished: the scan itself is there."""

    kept: int
    finished: bool
    whole: bool
    temporaries: int
    problems: list[str]


def left_by_kill(directory: Path, scenario: Scenario) -> Left:
    """Everything under its final name is as it was before, or as it will be."""
    from spectrum.errors import ResultsError
    from spectrum.scanning.store import ScanStore

    found, problems, temporaries, kept = files(directory), [], 0, 0
    for name, content in found.items():
        if _TEMPORARY.fullmatch(Path(name).name):
            temporaries += 1
        elif name == JOURNAL:
            kept, problem = _in_journal(content, scenario)
            problems += problem
        elif name not in scenario.end:
            problems.append(f"{name} is none of the command's files")
        elif content not in (scenario.before.get(name), scenario.end[name]):
            problems.append(f"{name} is neither what it was nor what it will be")
    for name in scenario.before.keys() - found.keys() - {JOURNAL}:
        problems.append(f"{name} is gone")
    whole = False
    try:
        cached = ScanStore(directory / CACHE, MODEL).load()
        whole = cached is not None and cached.consistent
    except ResultsError as error:
        problems.append(f"the cache cannot be read: {error}")
    finished = whole and {name: found.get(name) for name in _cache_files(scenario)} == _cache_files(scenario)
    return Left(kept, finished, whole or SCAN not in found, temporaries, problems)


def _cache_files(scenario: Scenario) -> dict[str, bytes]:
    return {name: content for name, content in scenario.end.items() if name.startswith(f"{CACHE}/")}


def _in_journal(content: bytes, scenario: Scenario) -> tuple[int, list[str]]:
    """How many matrices a later run finds in a journal, and what is wrong with them."""
    if content == scenario.before.get(JOURNAL):
        return 0, []
    scores, edges = json.loads(scenario.end[SCAN]), json.loads(scenario.end[SIDECAR])["edges"]
    known = journaled(content)
    layers = {name: name[0].removesuffix(".weight") for name in known}
    wrong = [
        name
        for name, (snr, edge) in known.items()
        if (snr, [*edge]) != (scores[layers[name]]["snr"], edges[layers[name]])
    ]
    return len(known), [f"the journal has another score of {name}" for name in wrong]


def journaled(content: bytes) -> dict[tuple[str, int], MatrixScore]:
    """The scores in a journal, of whatever it is."""
    from spectrum.scanning import journal

    head = content.split(b"\n")[0]
    try:
        identity = json.loads(head)
    except ValueError:
        return {}
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return journal.read(Path(file.name), identity)


def finish(directory: Path, scenario: Scenario, left: Left) -> list[str]:
    """Run the same command to its end. What is not then as an uninterrupted run would have left it."""
    ended = forked(directory, scenario.args, traced=False)
    if ended.status != 0:
        return [f"the same command ended with {ended.status}: {ended.said}"]
    found = {name: content for name, content in files(directory).items() if not _TEMPORARY.fullmatch(Path(name).name)}
    problems = [
        f"{name} is not as without a kill" for name, content in scenario.end.items() if found.get(name) != content
    ]
    problems += [f"{name} stays" for name in sorted(found.keys() - scenario.end.keys())]
    match = _GOING_ON.search(ended.said)
    continued = int(match[1]) if match else 0
    # What is finished is not continued: it is taken as it is, or, where that is asked for, made anew.
    over = left.kept == len(json.loads(scenario.end[SCAN])) if "--rescan" in scenario.args else left.finished
    expected = 0 if over else left.kept
    if continued != expected:
        problems.append(f"it went on from {continued} matrices, {expected} were kept")
    return problems


# The test.


@dataclass
class Tally:
    """What came of the kills."""

    stages: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    temporaries: int = 0
    most_temporaries: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.stages.total()

    def note(self, moment: str, scenario: Scenario, left: Left, problems: Sequence[str]) -> None:
        self.stages[_stage(moment)] += 1
        self.torn += not left.whole
        self.temporaries += left.temporaries > 0
        self.most_temporaries = max(self.most_temporaries, left.temporaries)
        self.failures += [f"{scenario.name}, killed at {moment!r}: {problem}" for problem in problems]


def _stage(moment: str) -> str:
    return re.sub(r" \d+$", "", moment)


def kill_at(directory: Path, scenario: Scenario, moment: str, tally: Tally) -> None:
    """Kill a scan at an event."""
    shutil.copytree(scenario.start, directory)
    ended = forked(directory, scenario.args, moment)
    if ended.status != -signal.SIGKILL:
        tally.failures.append(f"{scenario.name}: {moment!r} was not come to, status {ended.status}: {ended.said}")
        return
    left = left_by_kill(directory, scenario)
    tally.note(moment, scenario, left, left.problems + finish(directory, scenario, left))


def kill_after(directory: Path, scenario: Scenario, seconds: float, slow: float, tally: Tally) -> None:
    """Kill a scan that starts from nothing after so long."""
    shutil.copytree(scenario.start, directory)
    with started(directory, scenario.args, slow) as process, suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    log = directory.with_name("log.txt")
    moments = log.read_text().splitlines() if log.exists() else []
    moment = moments[-1] if moments else "the interpreter's start"
    if process.returncode != -signal.SIGKILL:
        moment = "the scan's end"
        tally.survived += 1
        if process.returncode != 0:
            tally.failures.append(f"{scenario.name}: it failed, {directory.with_name('said.txt').read_text()}")
    left = left_by_kill(directory, scenario)
    tally.note(moment, scenario, left, left.problems + finish(directory, scenario, left))


def kill_again_and_again(
    directory: Path, scenario: Scenario, chance: random.Random, tally: Tally, times: int = 4
) -> None:
    """Kill a scan, and each that goes on with it: what is scored is never lost."""
    shutil.copytree(scenario.start, directory)
    before = 0
    for _ in range(times):
        # Each goes some way: a scan that is killed before it has scored anything would keep nothing either.
        moment = f"{chance.choice(_MANY)} {chance.randint(2, 14)}"
        ended = forked(directory, scenario.args, moment)
        left = left_by_kill(directory, scenario)
        problems = [*left.problems]
        if ended.status != -signal.SIGKILL:
            problems.append(f"it was not come to, status {ended.status}: {ended.said}")
        if left.kept < before:
            problems.append(f"only {left.kept} matrices are kept, {before} were before")
        before = left.kept
        tally.note(moment, scenario, left, [f"again and again, {problem}" for problem in problems])
    if not before:
        tally.failures.append(f"{scenario.name}: killed again and again, it kept nothing")
    tally.failures += [f"{scenario.name}, killed again and again: {p}" for p in finish(directory, scenario, left)]


def chosen_moments(all_scenarios: Sequence[Scenario], count: int, chance: random.Random) -> list[tuple[Scenario, str]]:
    """Moments of all scenarios in turn: two of three are such as come once or twice in a scan, each but once."""
    rare = {s.name: [m for m in s.moments if _stage(m) not in _MANY] for s in all_scenarios}
    many = {s.name: [m for m in s.moments if _stage(m) in _MANY] for s in all_scenarios}
    for moments in [*rare.values(), *many.values()]:
        chance.shuffle(moments)
    chosen = []
    for i in range(count):
        scenario = all_scenarios[i % len(all_scenarios)]
        kinds = (many, rare) if i % 3 == 2 else (rare, many)
        moments = next(kind[scenario.name] for kind in kinds if kind[scenario.name])
        chosen.append((scenario, moments.pop()))
    return chosen


def single_threaded() -> None:
    """Import all that a scan does, for forks to have it; a thread would be lacking in them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    fork_server.single_threaded()


def test(
    moments: int,
    timed: int,
    successions: int,
    *,
    seed: int,
    at: Sequence[str],
    within: float | None,
    tell: Callable[[str], None],
) -> Tally:
    """Kill so many scans, and such that begin with no cache at these moments.

    within: the seconds from which points in time are taken; None for as long as a scan takes.
    """
    single_threaded()
    chance = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        every = scenarios(scratch)
        directory = scratch / "work" / "killed"

        def done(what: str) -> None:
            shutil.rmtree(directory.parent)
            tell(f"{what}: {tally.kills} kills, {len(tally.failures)} failures")

        for scenario, moment in [*((every[0], a) for a in at), *chosen_moments(every, moments - timed, chance)]:
            kill_at(directory, scenario, moment, tally)
            done(f"{scenario.name}, {moment}")
        for i in range(successions):
            kill_again_and_again(directory, every[(0, 1, 2, 4)[i % 4]], chance, tally)
            done("again and again")
        slow = 0.01
        if timed and within is None:
            within = _life(directory, every[0], slow)
            done(f"a scan takes {within:.1f} s")
        for i in range(timed):
            # Not all at random: few would be as late as the results.
            seconds = (within or 0) * (i + chance.random()) / timed
            scenario = every[i % len(every)]
            kill_after(directory, scenario, seconds, slow, tally)
            done(f"{scenario.name}, after {seconds:.2f} s")
    return tally


def _life(directory: Path, scenario: Scenario, slow: float) -> float:
    shutil.copytree(scenario.start, directory)
    begun = time.monotonic()
    with started(directory, scenario.args, slow) as process:
        process.wait()
    assert process.returncode == 0, directory.with_name("said.txt").read_text()
    return time.monotonic() - begun


def report(tally: Tally) -> str:
    """What came of it, for people."""
    lines = [f"{count:4}  {stage}" for stage, count in sorted(tally.stages.items())]
    lines += [
        "",
        f"{tally.kills} kills, of which {tally.survived} came too late",
        f"{tally.torn} left a sidecar of other scores, which was seen",
        f"{tally.temporaries} left hidden temporary files, {tally.most_temporaries} at most, which stay",
        *(f"FAILED {failure}" for failure in tally.failures),
        "OK" if not tally.failures else f"{len(tally.failures)} failures",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m tests.robustness.kills", description="Kill scans, and see that nothing is lost."
    )
    p.add_argument("--moments", type=int, default=100, metavar="N")
    p.add_argument("--timed", type=int, metavar="N", help="of these, at points in time (default: half)")
    p.add_argument("--within", type=float, metavar="SECONDS", help="the latest of these (default: a scan's end)")
    p.add_argument("--successions", type=int, metavar="N", help="of four kills each (default: one for 20 moments)")
    p.add_argument("--at", nargs="+", default=[], metavar="MOMENT", help="these, too, of a scan without a cache")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    args = p.parse_args(argv)
    timed = args.moments // 2 if args.timed is None else args.timed
    successions = max(1, args.moments // 20) if args.successions is None else args.successions
    tally = test(
        args.moments,
        timed,
        successions,
        seed=args.seed,
        at=args.at,
        within=args.within,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(report(tally))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
