"""The two dialogs on a pseudo-terminal: what is offered, typed, unchecked, cancelled, and when nothing is asked."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pexpect
import pytest

from spectrum.compute.batches import parse_batch_size
from tests.helpers.forks import Forks
from tests.helpers.paths import TINY_LLAMA, files_below

BATCH_SIZE, LAYER_TYPES = "Batch size", "Layer types"

ENTER, TAB, SPACE, DOWN, ESC, CTRL_C, CLEAR = "\r", "\t", " ", "\x1b[B", "\x1b", "\x03", "\x15"

# Runs the command again and again in one process, because importing torch takes longer than all dialogs together.
# A request is a line of JSON: working directory, arguments, and a file to redirect stdout to.
DRIVER = """
import contextlib, json, os, sys
from spectrum.compute import snr
from spectrum.cli.entry import main

batches, score = [], snr.score
snr.score = lambda batch: batches.append(len(batch)) or score(batch)
while True:
    print("ready", flush=True)
    directory, arguments, stdout = json.loads(sys.stdin.readline())
    batches.clear()
    os.chdir(directory)
    with contextlib.ExitStack() as stack:
        if stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(stdout, "w"))))
        status = main(["--model-name", "model", *arguments])
    print(f"status {status}, batches of {sorted(set(batches))}", flush=True)
"""


class Terminal:
    """A terminal in which the command runs, once after another."""

    def __init__(self) -> None:
        self.child = pexpect.spawn(
            sys.executable, ["-c", DRIVER], dimensions=(40, 120), encoding="utf-8", timeout=60, echo=False
        )

    def start(self, directory: Path, *args: str, stdout: str | None = None) -> None:
        self.child.expect_exact("ready\r\n")
        self.child.sendline(json.dumps([str(directory), args, stdout]))

    def asked(self, title: str) -> str:
        """Wait for a dialog; return what was on the screen before it."""
        self.child.expect_exact(title)
        return str(self.child.before)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.child.send(key)

    def finished(self) -> tuple[int, list[int], list[str]]:
        """Exit status, sizes of the kernel's batches, and the lines since the last dialog."""
        self.child.expect(r"status (\d+), batches of (\[.*?\])\r\n")
        assert isinstance(self.child.match, re.Match)
        status, batches = self.child.match.groups()
        # What is left of a dialog ends with the sequences that give back the screen.
        said = re.split(r"\x1b\[\?\d+[hl]", str(self.child.before))[-1]
        return int(status), json.loads(batches), said.replace("\r\n", "\n").splitlines()


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.child.close(force=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A working directory in which the sample checkpoint is `model`."""
    (tmp_path / "model").symlink_to(TINY_LLAMA)
    return tmp_path


def layer_types(directory: Path) -> set[str]:
    (scan,) = directory.glob("model_snr_results/snr_results_model.json")
    return {entry["type"] for entry in json.loads(scan.read_text()).values()}


@pytest.mark.slow
def test_defaults_are_offered_in_dialogs_that_leave_stdout_alone(directory: Path) -> None:
    # The real command, with stdout on a second terminal.
    screen, stdout = os.openpty()
    command = shlex.join([sys.executable, "-m", "spectrum", "--model-name", "model"])
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", f"exec {command} > {shlex.quote(os.ttyname(stdout))}"],
        cwd=str(directory),
        dimensions=(40, 120),
        encoding="utf-8",
        timeout=60,
    )
    child.expect_exact(BATCH_SIZE)
    child.expect("auto *\x1b")  # in the field of its own, after the text that explains it
    child.send(ENTER)
    child.expect_exact(LAYER_TYPES)
    for kind in ("input_layernorm", "lm_head", "mlp.down_proj", "self_attn.v_proj"):
        child.expect(rf"\[\*\] {kind} +(8 layers|1 layer) ")
    child.send(TAB + ENTER)
    child.expect_exact("75/75")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    os.close(stdout)
    said = b""
    while b"unfrozen parameters" not in said:
        said += os.read(screen, 10_000)
    os.close(screen)
    assert said.startswith(b"Scanned 75 layers of model (LlamaForCausalLM)")
    assert b"\x1b" not in said
    assert len(layer_types(directory)) == 12


@pytest.mark.slow
def test_what_is_typed_and_unchecked_is_obeyed(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory)
    terminal.asked(BATCH_SIZE)
    terminal.press(CLEAR, "0", ENTER)
    terminal.asked("a whole number from 1 up, or auto")
    terminal.press(CLEAR, "3", ENTER)
    terminal.asked(LAYER_TYPES)
    terminal.press(SPACE, DOWN, DOWN, DOWN, SPACE, TAB, ENTER)
    status, batches, _ = terminal.finished()
    assert status == 0
    assert batches == [1, 2, 3]  # of 8 alike: 3, 3 and 2
    assert "lm_head" in layer_types(directory)
    assert not {"input_layernorm", "mlp.gate_proj"} & layer_types(directory)
    assert len(layer_types(directory)) == 10


@pytest.mark.slow
def test_the_button_takes_no_other_batch_sizes_than_the_enter_key(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, "--layer-types", "mlp.*")
    terminal.asked(BATCH_SIZE)
    terminal.press("x", TAB, ENTER)  # typed after the default: the cursor stands at its end
    terminal.asked("not 'autox'")
    terminal.press(CLEAR, "3", TAB, ENTER)
    status, batches, _ = terminal.finished()
    assert (status, batches) == (0, [1, 2, 3])  # 16 of one shape, 8 of another


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(TAB, TAB, ENTER), (ESC,), (CTRL_C,)], ids=["the button", "Esc", "Ctrl-C"])
@pytest.mark.parametrize("title", [BATCH_SIZE, LAYER_TYPES])
def test_cancelling_scans_and_writes_nothing(
    keys: Sequence[str], title: str, terminal: Terminal, directory: Path
) -> None:
    terminal.start(directory)
    terminal.asked(BATCH_SIZE)
    if title == LAYER_TYPES:
        terminal.press(ENTER, ENTER)
        terminal.asked(LAYER_TYPES)
    terminal.press(*keys)
    status, batches, said = terminal.finished()
    assert (status, batches) == (1, [])
    assert said == ["spectrum: error: cancelled; nothing was scanned, nothing was written"]
    assert [name for name in files_below(directory) if not name.startswith("model/")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 1, "spectrum: error: cancelled; nothing was scanned, nothing was written"),
        (signal.SIGTERM, 143, "spectrum: interrupted"),
        (signal.SIGHUP, -signal.SIGHUP, None),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_signals_from_elsewhere_end_a_dialog(
    number: signal.Signals, status: int, said: str | None, forks: Forks, directory: Path
) -> None:
    with forks.on_terminal("--model-name", "model", cwd=directory) as (process, screen):
        before = termios.tcgetattr(process.terminal)
        screen.expect_exact(BATCH_SIZE)
        screen.expect("auto *\x1b")
        assert termios.tcgetattr(process.terminal) != before
        process.send_signal(number)
        if said is not None:
            screen.expect_exact(f"{said}\r\n")
        assert process.wait() == status
        if said is not None:  # a terminal that hung up is nobody's any more
            assert termios.tcgetattr(process.terminal) == before
    assert [name for name in files_below(directory) if not name.startswith("model/")] == []


@pytest.mark.slow
def test_a_list_with_nothing_checked_is_no_list(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, "--batch-size", "auto")
    terminal.asked(LAYER_TYPES)
    terminal.press(*[SPACE, DOWN] * 12, TAB, ENTER)
    status, batches, said = terminal.finished()
    assert (status, batches) == (1, [])
    assert re.match("spectrum: error: .*layer type", said[-1])
    assert [name for name in files_below(directory) if not name.startswith("model/")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "title", "other"),
    [(["--batch-size", "4"], LAYER_TYPES, BATCH_SIZE), (["--layer-types", "mlp.*"], BATCH_SIZE, LAYER_TYPES)],
    ids=["batch size", "layer types"],
)
def test_what_a_flag_answered_is_not_asked(
    args: Sequence[str], title: str, other: str, terminal: Terminal, directory: Path
) -> None:
    terminal.start(directory, *args)
    assert other not in terminal.asked(title)
    terminal.press(TAB, ENTER)  # OK
    status, batches, said = terminal.finished()
    assert status == 0
    assert other not in "".join(said)
    assert max(batches) == (4 if title == LAYER_TYPES else 16)
    assert len(layer_types(directory)) == (12 if title == LAYER_TYPES else 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "note"),
    [
        (["--yes"], ["spectrum: --yes: batch size auto, layer types all"]),
        (["--batch-size", "auto", "--layer-types", "all"], []),
    ],
    ids=["yes", "both flags"],
)
def test_nothing_is_asked_and_a_second_run_asks_nothing_either(
    args: Sequence[str], note: Sequence[str], terminal: Terminal, directory: Path
) -> None:
    terminal.start(directory, *args)
    status, _, said = terminal.finished()
    assert status == 0
    assert [line for line in said if line.startswith("spectrum: ")] == note
    assert said[-1].startswith("unfrozen parameters")
    terminal.start(directory, "--top-percent", "25")
    status, batches, said = terminal.finished()
    assert (status, batches) == (0, [])
    assert said[0] == "75 layers of model (LlamaForCausalLM), from the cached scan."


@pytest.mark.slow
def test_a_notebooks_cell_is_asked_nothing(forks: Forks, directory: Path) -> None:
    # It runs commands on a terminal that nobody types on.
    environment = {"JPY_PARENT_PID": "1"}
    with forks.on_terminal("--model-name", "model", cwd=directory, environment=environment) as (process, screen):
        screen.expect_exact("no terminal to ask on: batch size auto, layer types all")
        screen.expect_exact("unfrozen parameters")
        assert process.wait() == 0


@pytest.mark.slow
def test_nothing_is_asked_where_stdout_is_no_terminal(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, stdout="report.txt")
    status, _, said = terminal.finished()
    assert status == 0
    assert said[0] == "spectrum: no terminal to ask on: batch size auto, layer types all"
    assert (directory / "report.txt").read_text().startswith("Scanned 75 layers of model")


@pytest.mark.parametrize(
    ("text", "size"),
    [("auto", None), ("1", 1), ("12", 12), ("007", 7), ("999999999", 999_999_999)],
)
def test_batch_sizes_that_may_be_typed(text: str, size: int | None) -> None:
    assert parse_batch_size(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "0", "00", "-1", "+1", "1.5", "1e3", "many", "auto!", "\N{SUPERSCRIPT TWO}", "9" * 5000]
)
def test_batch_sizes_that_may_not(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number from 1 up"):
        parse_batch_size(text)
