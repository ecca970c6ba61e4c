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

from spectrum.cli.console.dialogs import mlp_and_attention
from spectrum.compute.batches import parse_batch_size
from tests.helpers.forks import Forks
from tests.helpers.paths import TINY_LLAMA, files_below

BATCH_SIZE, LAYER_TYPES = "Batch size", "Layer types"

ENTER, TAB, BACK_TAB, SPACE, DOWN = "\r", "\t", "\x1b[Z", " ", "\x1b[B"
ESC, CTRL_C, CLEAR = "\x1b", "\x03", "\x15"

NOTHING_DONE = "nothing was scanned, nothing was written"

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
        env={**os.environ, "NO_COLOR": "1"},  # of the report: escape sequences on stdout would be those of a dialog
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
    child.send(ENTER)
    child.expect_exact("75/75")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    os.close(stdout)
    said = b""
    while b"--check snr_results_model_unfrozen" not in said:
        said += os.read(screen, 10_000)
    os.close(screen)
    assert said.startswith(b"Scanned 75 layers of model (LlamaForCausalLM)")
    assert b"\x1b" not in said
    assert len(layer_types(directory)) == 12


@pytest.mark.slow
def test_what_is_typed_and_unchecked_is_obeyed(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory)
    terminal.asked(BATCH_SIZE)
    terminal.press("0", ENTER)
    terminal.asked("a whole number from 1 up is expected, or auto")
    terminal.press(CLEAR, "3", ENTER)
    terminal.asked(LAYER_TYPES)
    terminal.press(SPACE, DOWN, DOWN, DOWN, SPACE, ENTER)
    status, batches, _ = terminal.finished()
    assert status == 0
    assert batches == [1, 2, 3]  # of 8 alike: 3, 3 and 2
    assert "lm_head" in layer_types(directory)
    assert not {"input_layernorm", "mlp.gate_proj"} & layer_types(directory)
    assert len(layer_types(directory)) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "largest"), [("4", 4), ("auto", 16), ("", 16), (" 2 ", 2)])
def test_what_is_typed_replaces_the_suggestion(typed: str, largest: int, terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, "--layer-types", "mlp.*")
    terminal.asked(BATCH_SIZE)
    terminal.press(*typed, ENTER)
    status, batches, _ = terminal.finished()
    assert (status, max(batches)) == (0, largest)  # of one shape there are 16


@pytest.mark.slow
def test_the_button_takes_no_other_batch_sizes_than_the_enter_key(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, "--layer-types", "mlp.*")
    terminal.asked(BATCH_SIZE)
    terminal.press("x", TAB, ENTER)
    terminal.asked("not 'x'")
    terminal.press(BACK_TAB, CLEAR, "3", TAB, ENTER)
    status, batches, _ = terminal.finished()
    assert (status, batches) == (0, [1, 2, 3])  # 16 of one shape, 8 of another


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "expected", "words"),
    [
        ((TAB, TAB, ENTER), 1, "spectrum: error: cancelled"),
        ((ESC,), 1, "spectrum: error: cancelled"),
        ((CTRL_C,), 130, "spectrum: interrupted"),
    ],
    ids=["the button", "Esc", "Ctrl-C"],
)
@pytest.mark.parametrize("title", [BATCH_SIZE, LAYER_TYPES])
def test_cancelling_scans_and_writes_nothing(
    keys: Sequence[str], expected: int, words: str, title: str, terminal: Terminal, directory: Path
) -> None:
    terminal.start(directory)
    terminal.asked(BATCH_SIZE)
    if title == LAYER_TYPES:
        terminal.press(ENTER)
        terminal.asked(LAYER_TYPES)
    terminal.press(*keys)
    status, batches, said = terminal.finished()
    assert (status, batches) == (expected, [])
    assert said == [f"{words}; {NOTHING_DONE}"]
    assert [name for name in files_below(directory) if not name.startswith("model/")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, f"spectrum: interrupted; {NOTHING_DONE}"),
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
@pytest.mark.parametrize("accept", [(ENTER,), (TAB, ENTER, BACK_TAB)], ids=["Enter", "the button"])
def test_with_nothing_checked_the_dialog_says_so_and_stays_open(
    accept: Sequence[str], terminal: Terminal, directory: Path
) -> None:
    terminal.start(directory, "--batch-size", "auto")
    terminal.asked(LAYER_TYPES)
    terminal.press(*[SPACE, DOWN] * 12, *accept)
    terminal.asked("check at least one layer type")
    terminal.press(SPACE, ENTER)  # the cursor is on the last one
    assert terminal.finished()[0] == 0
    assert layer_types(directory) == {"self_attn.v_proj"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ("n ", {"input_layernorm"}),
        ("na", None),
        ("m", {f"mlp.{kind}_proj" for kind in ("down", "gate", "up")} | {f"self_attn.{kind}_proj" for kind in "kqvo"}),
    ],
)
def test_a_key_checks_a_group_of_types(keys: str, kinds: set[str] | None, terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, "--batch-size", "auto")
    terminal.asked(LAYER_TYPES)
    terminal.asked("a checks all, n none, m only MLP and attention")
    terminal.press(*keys, ENTER)
    assert terminal.finished()[0] == 0
    assert layer_types(directory) == kinds or (kinds is None and len(layer_types(directory)) == 12)


# 80 types whose names differ near their ends, or in the middle.
MANY = [
    f"model.vision_tower.vision_model.encoder.blocks.{i}.attention.{part}" for i in range(40) for part in ("q", "k")
]
ASK_MANY = f"""
from spectrum.cli.console import dialogs
print("chosen", dialogs.ask_layer_types([(name, 127) for name in {MANY}]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (24, 60), (50, 160)])
def test_many_types_with_long_names_fit_a_small_terminal(
    rows: int, columns: int, forks: Forks, directory: Path
) -> None:
    with forks.of(ASK_MANY).on_terminal(cwd=directory, size=(rows, columns)) as (process, screen):
        screen.expect_exact("Cancel")  # the buttons are on the screen, so the list scrolls
        drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", str(screen.before))
        lines = [line.partition("\r")[0] for line in drawn.split("\n")]
        assert max(map(len, lines)) <= columns
        boxes = [line for line in lines if "[*]" in line]
        assert 5 < len(boxes) < rows
        assert all(re.search(r"attention\.[qk] +127 layers ", line) for line in boxes)
        assert len(set(boxes)) == len(boxes)
        assert "Esc cancels." in " ".join(" ".join(lines).replace("│", " ").split())
        screen.send("n" + DOWN * (len(MANY) - 1) + SPACE + ENTER)
        screen.expect_exact(f"chosen ['{MANY[-1]}']")
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lm_head", "mlp.up", "mlp.norm", "self_attn.q_proj", "post_attention_layernorm"], [1, 3]),
        (["attn.c_attn", "mlp.c_fc", "wte"], [0, 1]),
        (["block_sparse_moe.gate", "mlp.experts.down", "self_attention.dense", "norm"], [0, 1, 2]),
        (["encoder.layers.fc1", "fc2", "self_attn.k_proj", "proj"], [0, 1, 2]),
        (["feed_forward.w1", "feedforward.x", "ffn.w", "Attention.o", "conv"], [0, 1, 2, 3]),
        # No choice: everything, only one of both, nothing.
        (["mlp.up", "attn.q"], []),
        (["attention.output.dense", "intermediate.dense"], []),
        (["mixer.in_proj", "norm"], []),
    ],
    ids=str,
)
def test_types_of_mlps_and_attention_are_told_by_their_paths(names: list[str], expected: list[int]) -> None:
    assert mlp_and_attention(names) == [names[i] for i in expected]


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
    terminal.press(TAB, ENTER)  # Accept
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
    assert [line for line in said if line.startswith("spectrum: ")] == ["spectrum: opening model ...", *note]
    assert said[-1].endswith("--check snr_results_model_unfrozenparameters_50percent.yaml")
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
        screen.expect_exact("--check snr_results_model_unfrozenparameters_50percent.yaml")
        assert process.wait() == 0


@pytest.mark.slow
def test_a_dumb_terminal_is_asked_nothing(forks: Forks, directory: Path) -> None:
    # It could not draw a dialog.
    with forks.on_terminal("--model-name", "model", cwd=directory, environment={"TERM": "dumb"}) as (process, screen):
        screen.expect_exact("opening model ...")
        screen.expect_exact("no terminal to ask on: batch size auto, layer types all")
        screen.expect_exact("--check snr_results_model_unfrozenparameters_50percent.yaml")
        assert process.wait() == 0


@pytest.mark.slow
def test_nothing_is_asked_where_stdout_is_no_terminal(terminal: Terminal, directory: Path) -> None:
    terminal.start(directory, stdout="report.txt")
    status, _, said = terminal.finished()
    assert status == 0
    assert said[1] == "spectrum: no terminal to ask on: batch size auto, layer types all"
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
