"""What a run says at its end: figures by hand, bars of the right height and colour, none where they do not belong."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect
import pytest

from spectrum.cli import report
from spectrum.records import LayerSnr, ModelInfo, Parameter, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.text import aligned
from spectrum.trainers.check import CheckReport
from tests.helpers.command import run
from tests.helpers.processes import Spectrum

MIXED, PURE, EIGHT_BIT = "AdamW, mixed precision", "AdamW, pure bf16", "8-bit AdamW, bf16"

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"


def model(parameters: Mapping[str, Parameter], ends: tuple[str | None, str | None] = (None, None)) -> ModelInfo:
    return ModelInfo("SomeForCausalLM", parameters, (), *ends)


def parameters(side: int = 1024, *, tied: bool = False) -> dict[str, Parameter]:
    """Head, embedding and two matrices, each of side * side elements."""
    shape = (side, side)
    head = Parameter(shape, "bfloat16", EMBEDDING if tied else None)
    own = {name: Parameter(shape, "bfloat16") for name in (EMBEDDING, UP, DOWN)}
    return {EMBEDDING: own[EMBEDDING], UP: own[UP], DOWN: own[DOWN], HEAD: head}


def memory(text: str) -> dict[str, list[tuple[float, float]]]:
    """Of each optimizer, on one device and under each sharding: of what is selected, and of everything."""
    rows = {line.split("  ")[0]: re.findall(r"([\d.,e+-]+) of ([\d.,e+-]+)", line) for line in text.splitlines()}
    return {
        name: [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in rows[name]]
        for name in (MIXED, PURE, EIGHT_BIT)
    }


def first_words(text: str) -> str:
    return text.partition("\n\n")[0]


# Which parameters train.


@pytest.mark.parametrize(
    ("trained", "tied", "words"),
    [
        # Of four matrices; of three where the head is the embedding.
        ([HEAD, EMBEDDING, UP], False, "3,145,728 of 4,194,304 parameters train, 75 percent"),
        ([HEAD, EMBEDDING, UP], True, "2,097,152 of 3,145,728 parameters train, 66.7 percent"),
        ([HEAD, EMBEDDING, UP, DOWN], False, "4,194,304 of 4,194,304 parameters train, 100 percent"),
        ([UP], False, "1,048,576 of 4,194,304 parameters train, 25 percent"),
        ([UP], True, "1,048,576 of 3,145,728 parameters train, 33.3 percent"),
        # By either of its names.
        ([HEAD], True, "1,048,576 of 3,145,728 parameters train, 33.3 percent"),
        ([EMBEDDING], True, "1,048,576 of 3,145,728 parameters train, 33.3 percent"),
    ],
)
def test_what_trains_is_counted_once(trained: list[str], tied: bool, words: str) -> None:
    text = report.training_plan(trained, model(parameters(tied=tied), (HEAD, EMBEDDING)), 8)
    assert text.startswith(f"{words};") or text.startswith(f"{words}\n")


@pytest.mark.parametrize(
    ("trained", "tied", "words"),
    [
        ([HEAD, EMBEDDING, UP], False, "without input embedding and output head 25 percent"),
        ([HEAD, EMBEDDING, UP], True, "without input embedding and output head 33.3 percent"),
        ([HEAD, UP], False, "without input embedding and output head 25 percent"),
        ([HEAD, EMBEDDING], False, "without input embedding and output head 0 percent"),
        ([UP], False, "with input embedding and output head 75 percent"),
        ([UP], True, "with input embedding and output head 66.7 percent"),
    ],
)
def test_what_would_train_with_or_without_embeddings_is_said(trained: list[str], tied: bool, words: str) -> None:
    assert words in first_words(report.training_plan(trained, model(parameters(tied=tied), (HEAD, EMBEDDING)), 8))


def test_a_model_without_embeddings_has_no_word_of_them() -> None:
    # An encoder of speech, say; or names that the model does not have.
    for embedding in (None, "nowhere.weight"):
        text = first_words(report.training_plan([UP], model({UP: Parameter((2, 2), "float32")}, (None, embedding)), 8))
        assert text == "4 of 4 parameters train, 100 percent"


@pytest.mark.parametrize(
    ("trained", "share"),
    [
        ([HEAD, EMBEDDING, UP], "66.7 percent"),
        ([HEAD, EMBEDDING], "100 percent"),
        # Half of it is not most of it.
        ([HEAD, EMBEDDING, UP, DOWN], None),
        ([HEAD, UP], None),
        ([UP], None),
    ],
)
def test_embeddings_that_outweigh_the_rest_are_pointed_out(trained: list[str], share: str | None) -> None:
    text = first_words(report.training_plan(trained, model(parameters(), (HEAD, EMBEDDING)), 8))
    assert ("--no-embeddings" in text) == (share is not None)
    assert share is None or share in text.splitlines()[-1]


# Memory.


def test_memory_by_hand() -> None:
    """Four matrices of 2^20 elements, three of them trained: so MiB are bytes for each element.

    Mixed precision takes 4 for each weight and 4 + 8 for what trains, DeepSpeed's 2 and 2 + 12, which is
    also what it makes of pure bfloat16, elsewhere 2 and 2 + 4; 8-bit states one each, and a float32 for each block of
    256: 2 (1 + 4 / 256) = 2.03125, beside DeepSpeed's copy of 4.
    """
    found = memory(report.training_plan([HEAD, EMBEDDING, UP], model(parameters(), (HEAD, EMBEDDING)), 8))
    expected = {
        MIXED: [
            (4 * 4 + 12 * 3, 4 * 4 + 12 * 4),
            (2 * 4 + 14 * 3 / 8, 2 * 4 + 14 * 4 / 8),
            ((2 * 4 + 14 * 3) / 8, (2 * 4 + 14 * 4) / 8),
            ((4 * 4 + 12 * 3) / 8, (4 * 4 + 12 * 4) / 8),
        ],
        PURE: [
            (2 * 4 + 6 * 3, 2 * 4 + 6 * 4),
            (2 * 4 + 14 * 3 / 8, 2 * 4 + 14 * 4 / 8),
            ((2 * 4 + 14 * 3) / 8, (2 * 4 + 14 * 4) / 8),
            ((2 * 4 + 6 * 3) / 8, (2 * 4 + 6 * 4) / 8),
        ],
        EIGHT_BIT: [
            (2 * 4 + 4.03125 * 3, 2 * 4 + 4.03125 * 4),
            (2 * 4 + 8.03125 * 3 / 8, 2 * 4 + 8.03125 * 4 / 8),
            ((2 * 4 + 8.03125 * 3) / 8, (2 * 4 + 8.03125 * 4) / 8),
            ((2 * 4 + 4.03125 * 3) / 8, (2 * 4 + 4.03125 * 4) / 8),
        ],
    }
    assert found == {name: [pytest.approx(pair, rel=5e-3) for pair in pairs] for name, pairs in expected.items()}


def test_tied_weights_are_in_memory_once() -> None:
    found = memory(report.training_plan([HEAD, EMBEDDING, UP], model(parameters(tied=True), (HEAD, EMBEDDING)), 8))
    assert found[PURE][0] == pytest.approx((2 * 3 + 6 * 2, 2 * 3 + 6 * 3), rel=5e-3)


def test_memory_is_divided_among_devices() -> None:
    alone, many = (report.training_plan([UP], model(parameters()), devices) for devices in (1, 64))
    assert "ZeRO-2" not in alone  # there is nothing to divide
    assert re.search(r"ZeRO-2 of 64 +ZeRO-3 of 64 +FSDP of 64$", many, re.MULTILINE)
    assert memory(alone)[PURE] == [(14, 32)]
    assert memory(many)[PURE] == [
        pytest.approx(pair, rel=5e-3) for pair in ((14, 32), (8 + 14 / 64, 8.875), (22 / 64, 1), (14 / 64, 0.5))
    ]


def test_the_unit_is_that_of_the_largest_figure() -> None:
    # 16 bytes for each element where all train in mixed precision: 2^26 of them are a GiB.
    one = {UP: Parameter((1 << 13, 1 << 13), "bfloat16")}
    less = {UP: Parameter((1 << 13, (1 << 13) - 1), "bfloat16")}
    assert "GiB" in report.training_plan([UP], model(one), 8)
    assert "MiB" not in report.training_plan([UP], model(one), 8)
    assert memory(report.training_plan([UP], model(one), 8))[MIXED][0] == (1, 1)
    assert "MiB" in report.training_plan([UP], model(less), 8)
    assert memory(report.training_plan([UP], model(less), 8))[MIXED][0] == pytest.approx((1024, 1024), rel=5e-3)


def test_figures_of_the_largest_models_stay_figures() -> None:
    # A trillion parameters in mixed precision: 16 TB.
    text = report.training_plan([UP], model({UP: Parameter((1_000_000, 1_000_000), "bfloat16")}), 8)
    assert text.startswith("1,000,000,000,000 of 1,000,000,000,000 parameters train, 100 percent")
    assert memory(text)[MIXED][0] == pytest.approx((14_901, 14_901), rel=5e-3)
    assert "e+" not in text


# The table.

BARS = "▁▂▃▄▅▆▇█"
SELECTED, OTHER, PLAIN = "\x1b[36m", "\x1b[2m", "\x1b[0m"


def scan(types: Mapping[str, Sequence[float]]) -> ScanResult:
    layers = [
        LayerSnr(f"model.layers.{i}.{kind}", kind, score)
        for kind, scores in types.items()
        for i, score in enumerate(scores)
    ]
    return ScanResult("m", tuple(layers), (), tuple(types), None)


def chosen(percent: str = "50", **types: Sequence[float]) -> Selection:
    return top_percent(scan(types), percent)


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


def bars(selection: Selection, columns: int = 200) -> list[list[tuple[str, bool]]]:
    """Of each type, its bars, and whether each is coloured as selected."""
    found = []
    for line in report.summary(selection, columns).splitlines()[1:-1]:
        drawn, colour = [], PLAIN
        for piece in re.findall(r"\x1b\[\d*m|.", line):
            if piece.startswith("\x1b"):
                colour = piece
            elif piece in BARS:
                drawn.append((piece, colour == SELECTED))
                assert colour in (SELECTED, OTHER)
        assert colour == PLAIN  # what follows is as before
        found.append(drawn)
    return found


def test_the_plain_table_is_that_of_the_selection() -> None:
    selection = chosen(up=[3, 2, 1, 4], norm=[1, 1])
    assert report.summary(selection, None) == aligned(selection.rows())


@pytest.mark.parametrize("columns", [80, 100, 1000])
def test_with_colour_the_same_table_has_bars_behind_it(columns: int) -> None:
    selection = chosen(up=[3, 2, 1, 4], norm=[1, 1], head=[2])
    plain = report.summary(selection, None).splitlines()
    lines = without_colours(report.summary(selection, columns)).splitlines()
    width = max(map(len, plain))
    assert [line[:width].rstrip() for line in lines] == plain
    assert [len(line[width:].strip()) for line in lines] == [len("by depth"), 4, 2, 1, 0]
    starts = {len(line) - len(line[width:].lstrip()) for line in lines[:-1]}
    assert starts == {width + 2}
    assert max(map(len, lines)) <= columns


def test_a_terminal_too_narrow_for_bars_has_none() -> None:
    selection = chosen(up=[3, 2, 1, 4] * 20)
    plain = report.summary(selection, None)
    width = max(map(len, plain.splitlines()))
    assert report.summary(selection, width) == plain
    assert report.summary(selection, 1) == plain
    for columns in range(width, width + 60):
        lines = without_colours(report.summary(selection, columns)).splitlines()
        assert max(map(len, lines)) <= max(columns, width)


def test_bars_are_in_the_order_of_the_model_and_as_high_as_the_logarithm() -> None:
    # Two decades: a tenth of the highest is half way down.
    drawn = bars(chosen(up=[1, 100, 10, 1]))[0]
    assert [bar for bar, _ in drawn] == ["▁", "█", "▅", "▁"]
    assert [selected for _, selected in drawn] == [False, True, True, False]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 1, 1, 1], "▅▅▅▅"),  # no scale
        ([7], "▅"),
        ([0, 1, 100], "▁▁█"),
        ([0, 0], "▅▅"),
        ([math.inf, 1, 100], "█▁█"),
        ([math.inf, math.inf], "▅▅"),
        ([0, math.inf, 1, 1e-300, 1e300], "▁█▅▁█"),
        ([5e-324, 1.0], "▁█"),
    ],
    ids=str,
)
def test_scores_without_a_logarithm_have_bars(scores: list[float], expected: str) -> None:
    found = "".join(bar for bar, _ in bars(chosen(up=scores))[0])
    # Where there is no scale, any height but the same one will do.
    assert found == expected or (len(set(expected)) == 1 == len(set(found)) and len(found) == len(expected))


@pytest.mark.parametrize("layers", [40, 41, 80, 126, 1000])
def test_many_layers_share_bars(layers: int) -> None:
    best = layers // 20
    (drawn,) = bars(chosen("5", up=[1.0] * (layers - best) + [100.0] * best))
    assert 20 <= len(drawn) <= 40
    # Those that are selected, and higher, are the last.
    assert drawn[-1] == ("█", True)
    assert 1 <= [selected for _, selected in drawn].count(True) <= best
    assert drawn[: len(drawn) * 9 // 10] == [("▁", False)] * (len(drawn) * 9 // 10)


def test_a_list_of_files_lines_up() -> None:
    text = report.written([("scores", Path("a/b.json")), ("unfrozen parameters", Path("c.yaml"))])
    assert text == "scores               a/b.json\nunfrozen parameters  c.yaml"


def test_a_check_says_what_is_wrong_then_what_each_rule_makes_of_it() -> None:
    trained = {"Axolotl": frozenset({"a", "b"}), "other": frozenset[str]()}
    found = CheckReport(trained, {"Axolotl": 3, "other": 0}, rules_differ=True, problems=("bad",), notes=("so",))
    title, told, table = report.check_summary(found, "the title").split("\n\n")
    assert (title, told) == ("the title", "problem: bad\nnote: so")
    assert [line.rsplit(maxsplit=2) for line in table.splitlines()[1:]] == [["Axolotl", "3", "2"], ["other", "0", "0"]]


def test_a_check_without_problems_or_differences_is_short() -> None:
    found = CheckReport({"Axolotl": frozenset("a")}, {"Axolotl": 1}, rules_differ=False, problems=(), notes=())
    assert report.check_summary(found, "the title") == "the title\n\nok: every entry does what it says"


# On a terminal.

SCORES = {
    f"model.layers.{i}.mlp.up_proj": {"snr": score, "type": "mlp.up_proj"} for i, score in enumerate([1, 100, 10, 1])
}


def cached(directory: Path, name: str = "model") -> Path:
    """A working directory with a scan that needs no model."""
    (directory / "model_snr_results").mkdir()
    (directory / "model_snr_results" / f"snr_results_{name}.json").write_text(json.dumps(SCORES))
    return directory


def on_terminal(directory: Path, columns: int = 160, **environment: str) -> str:
    """What the real command says on a terminal."""
    unwanted = ("NO_COLOR", "TERM", "COLUMNS", "LINES", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG", "RANK")
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "spectrum", "--model-name", "model"],
        cwd=str(directory),
        env=inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment,
        dimensions=(40, columns),
        encoding="utf-8",
        timeout=60,
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
    return str(child.before).replace("\r\n", "\n")


def test_a_terminal_has_bars_in_colour(tmp_path: Path) -> None:
    cached(tmp_path)
    said = on_terminal(tmp_path)
    plain = run(tmp_path, "--model-name", "model").out
    assert f"{OTHER}▁" in said
    assert f"{SELECTED}█" in said
    assert set(re.findall(r"\x1b[^m]*m", said)) == {SELECTED, OTHER, PLAIN}
    table = [line.rstrip(f"{BARS} ") for line in without_colours(said).replace("by depth", "").splitlines()]
    assert table == plain.splitlines()


@pytest.mark.parametrize(
    ("environment", "columns"),
    [
        ({"NO_COLOR": "1"}, 160),
        ({"TERM": "dumb"}, 160),
        ({"PYTHONIOENCODING": "latin-1"}, 160),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 160),
        ({}, 60),
    ],
    ids=str,
)
def test_a_terminal_that_has_or_wants_no_colours_gets_plain_text(
    environment: dict[str, str], columns: int, tmp_path: Path
) -> None:
    cached(tmp_path)
    said = on_terminal(tmp_path, columns, **environment)
    assert "\x1b" not in said
    assert said == run(tmp_path, "--model-name", "model").out


@pytest.mark.slow
def test_a_pipe_gets_plain_text(tmp_path: Path, run_spectrum: Spectrum) -> None:
    cached(tmp_path)
    done = run_spectrum("--model-name", "model", TERM="xterm-256color", PYTHONIOENCODING="utf-8", COLUMNS="200")
    assert done.stdout == run(tmp_path, "--model-name", "model").out


@pytest.mark.parametrize("escape", ["\x1b[31m", SELECTED, PLAIN, "\x1b]0;title\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"])
def test_names_show_what_a_terminal_would_obey(escape: str, tmp_path: Path) -> None:
    name = f"a{escape}b"
    done = run(cached(tmp_path, name), "--model-name", name, "--compare", f"{tmp_path}/missing{escape}.json")
    assert escape not in done.out + done.err
    assert done.status == 1
    fine = run(tmp_path, "--model-name", name)
    assert fine.status == 0
    assert escape not in fine.out + fine.err
    assert name.encode("unicode_escape").decode() in fine.out
    quiet = run(tmp_path, "--model-name", name, "--quiet")
    assert escape not in quiet.out
