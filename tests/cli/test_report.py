"""What a run says at its end: figures by hand, bars of the right height and colour, none where they do not belong."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shlex
import struct
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect
import pytest

from spectrum.cli import report
from spectrum.cli.console.grammar import parser
from spectrum.cli.console.terminal import text_columns
from spectrum.records import LayerSnr, ModelInfo, Parameter, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.text import aligned
from spectrum.trainers.checking.report import CheckReport
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
    head, *rows = text.partition("B if all parameters train\n")[2].splitlines()
    assert re.split(" {2,}", head.strip()) == [MIXED, PURE, EIGHT_BIT]
    cells = [re.findall(r"  ([\d.,e+-]+) of ([\d.,e+-]+)", row) for row in rows]
    return {
        name: [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in column]
        for name, column in zip((MIXED, PURE, EIGHT_BIT), zip(*cells, strict=True), strict=True)
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
    starts = [re.split(" {2,}", line)[0] for line in many.splitlines()[-4:]]
    assert starts == ["one device", "ZeRO-2 of 64", "ZeRO-3 of 64", "FSDP of 64"]
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
    for line in report.summary(selection, columns, colours=True).partition("\n\n")[0].splitlines()[1:-1]:
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


MARGIN = "margin: how far the best layer left out scores below the lowest one selected"


def test_the_plain_table_is_that_of_the_selection_and_says_what_a_margin_is() -> None:
    selection = chosen(up=[3, 2, 1, 4], norm=[1, 1])
    assert report.summary(selection, None) == f"{aligned(selection.rows())}\n\n{MARGIN}"
    whole = chosen("100", up=[3, 2, 1, 4])
    assert report.summary(whole, None) == aligned(whole.rows())  # no cut, no margin


@pytest.mark.parametrize("columns", [79, 100, 1000])
def test_with_colour_the_same_table_has_bars_behind_it(columns: int) -> None:
    selection = chosen(up=[3, 2, 1, 4], norm=[1, 1], head=[2])
    plain = aligned(selection.rows()).splitlines()
    table, meanings = without_colours(report.summary(selection, columns, colours=True)).split("\n\n")
    lines = table.splitlines()
    width = max(map(len, plain))
    assert [line[:width].rstrip() for line in lines] == plain
    assert [len(line[width:].strip()) for line in lines] == [len("by depth"), 4, 2, 1, 0]
    starts = {len(line) - len(line[width:].lstrip()) for line in lines[:-1]}
    assert starts == {width + 2}
    assert max(map(len, lines)) <= columns
    assert [line.split(":")[0] for line in meanings.splitlines()] == ["margin", "by depth"]


def test_a_terminal_too_narrow_for_bars_has_none() -> None:
    selection = chosen(up=[3, 2, 1, 4] * 20)
    width = max(map(len, aligned(selection.rows()).splitlines()))
    for columns in range(1, width + 60):
        text = without_colours(report.summary(selection, columns, colours=True))
        assert ("by depth" in text) == any(bar in text for bar in BARS) == (columns >= width + 10)
        assert text.startswith(aligned(selection.rows(), columns).splitlines()[0])
        if columns >= width:
            assert max(map(len, text.splitlines())) <= columns


TOWERS = (
    *(f"model.language_model.layers.{part}" for part in ("self_attn.q_proj", "mlp.experts.gate_up_proj", "norm")),
    *(f"model.vision_tower.vision_model.encoder.layers.{part}" for part in ("self_attn.q_proj", "mlp.fc1")),
    "lm_head",
)


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("columns", [*range(59, 140, 7), 78, 79])
def test_rows_with_long_names_fit_the_terminal(columns: int, colours: bool) -> None:
    selection = top_percent(scan({kind: [3.25, 2.125, 1.0625, 4.5] * 32 for kind in TOWERS}), "50")
    table = without_colours(report.summary(selection, columns, colours=colours)).partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= columns
    rows = [line for line in table if " of " in line][:-1]
    names = [line.split()[0] for line in rows]
    assert len({*names}) == len(TOWERS)  # still told from each other
    for name, kind in zip(names, TOWERS, strict=True):
        start, _, end = name.partition("...")
        assert kind.startswith(start)
        assert kind.endswith(end or start)
    assert all("64 of 128" in line and "4.5" in line for line in rows)


def test_wider_terminals_have_whole_names() -> None:
    selection = top_percent(scan({kind: [3, 2, 1, 4] for kind in TOWERS}), "50")
    assert all(f"{kind} " in report.summary(selection, columns) for kind in TOWERS for columns in (119, None))


# With so many elements, figures are of one to five digits.
@pytest.mark.parametrize(("side", "columns"), [(1000, 79), (10_000, 59), (50_000, 59), (1_000_000, 79)])
def test_the_plan_fits_the_terminal(side: int, columns: int) -> None:
    info = model(parameters(side), (HEAD, EMBEDDING))
    text = report.training_plan([HEAD, EMBEDDING, UP], info, 8, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert sorted(text.split()) == sorted(report.training_plan([HEAD, EMBEDDING, UP], info, 8).split())


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
    text = report.written([("scores", Path("a/b.json")), ("the list", Path("c.yaml"))], None)
    assert text == "scores    a/b.json\nthe list  c.yaml"


def test_a_path_that_does_not_fit_beside_its_label_has_its_own_line() -> None:
    paths = [("scores", Path("a b c d.json")), ("the list", Path("e.yaml"))]
    assert report.written(paths, 22) == "scores    a b c d.json\nthe list  e.yaml"
    assert report.written(paths, 21) == "scores:\n  a b c d.json\nthe list:\n  e.yaml"
    assert "  a b c d.json" in report.written(paths, 5).splitlines()  # whole all the same, to be copied


def test_the_command_that_checks_is_never_broken_inside_a_word() -> None:
    words = ["spectrum", "--model-name", "org/a model", "--check", "config.yaml"]
    command = "spectrum --model-name 'org/a model' --check config.yaml"
    label, path = "Check the list, or your config with it:", Path("list.yaml")
    assert report.next_steps("Use it.", path, words, None) == f"Use it.\n{label} {command}"
    assert report.next_steps("Use it.", path, words, 60) == f"Use it.\n{label}\n  {command}"
    narrow = report.next_steps("Use it.", path, words, 50)
    assert narrow == f"Use it.\n{label}\n  spectrum --model-name 'org/a model' \\\n    --check config.yaml"
    assert shlex.split(narrow.partition(":\n")[2].replace("\\\n", "")) == words  # as a shell reads it
    assert report.next_steps("Use it as it is.", path, [], 10) == "Use it as\n  it is."
    assert report.next_steps("open(LIST)", Path("a b.yaml"), [], None) == "open('a b.yaml')"


def test_a_check_says_what_is_wrong_then_what_each_rule_makes_of_it() -> None:
    trained = {"Axolotl": frozenset({"a", "b"}), "other": frozenset[str]()}
    found = CheckReport(trained, {"Axolotl": 3, "other": 0}, rules_differ=True, problems=("bad",), notes=("so",))
    title, told, table = report.check_summary(found, "the title", None).split("\n\n")
    assert (title, told) == ("the title", "problem: bad\nnote: so")
    assert [line.rsplit(maxsplit=2) for line in table.splitlines()[1:]] == [["Axolotl", "3", "2"], ["other", "0", "0"]]


def test_a_check_without_problems_or_differences_is_short() -> None:
    found = CheckReport({"Axolotl": frozenset("a")}, {"Axolotl": 1}, rules_differ=False, problems=(), notes=())
    assert report.check_summary(found, "the title", None) == "the title\n\nok: every entry does what it says"


# On a terminal.

SCORES = {
    f"model.layers.{i}.mlp.up_proj": {"snr": score, "type": "mlp.up_proj"} for i, score in enumerate([1, 100, 10, 1])
}


def cached(directory: Path, name: str = "model") -> Path:
    """A working directory with a scan that needs no model."""
    (directory / "model_snr_results").mkdir()
    (directory / "model_snr_results" / f"snr_results_{name}.json").write_text(json.dumps(SCORES))
    return directory


def on_terminal(
    directory: Path,
    columns: int = 160,
    *args: str,
    name: str = "model",
    status: int = 0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What the real command says on a terminal."""
    unwanted = ("NO_COLOR", "TERM", "COLUMNS", "LINES", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG", "RANK")
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "spectrum", "--model-name", name, *args],
        cwd=str(directory),
        env=inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | {**(environment or {})},
        dimensions=(40, columns),
        encoding="utf-8",
        timeout=60,
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == status, child.before
    return str(child.before).replace("\r\n", "\n")


def test_a_terminal_has_bars_in_colour(tmp_path: Path) -> None:
    cached(tmp_path)
    said = on_terminal(tmp_path)
    plain = run(tmp_path, "--model-name", "model").out
    assert f"{OTHER}▁" in said
    assert f"{SELECTED}█" in said
    assert set(re.findall(r"\x1b[^m]*m", said)) == {SELECTED, OTHER, PLAIN}
    text = re.sub(r"\nby depth: .*", "", without_colours(said))
    table = [line.rstrip(f"{BARS} ") for line in text.replace("by depth", "").splitlines()]
    assert table == plain.splitlines()


@pytest.mark.parametrize(
    "environment",
    [
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_a_terminal_that_has_or_wants_no_colours_gets_plain_text(environment: dict[str, str], tmp_path: Path) -> None:
    cached(tmp_path)
    said = on_terminal(tmp_path, environment=environment)
    assert "\x1b" not in said
    assert said == run(tmp_path, "--model-name", "model").out


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_nothing_on_a_terminal_is_wider_than_it_except_names_and_commands(columns: int, tmp_path: Path) -> None:
    scores = {
        f"{kind.replace('layers', f'layers.{i}')}": {
            "snr": 1.0 if "norm" in kind else (i * 7 % 13 + 1) / 3,
            "type": kind,
        }
        for kind in TOWERS
        for i in range(26 if "layers" in kind else 1)
    }
    (tmp_path / "model_snr_results").mkdir()
    scan_file = tmp_path / "model_snr_results" / "snr_results_org-model.json"
    scan_file.write_text(json.dumps(scores))
    (tmp_path / "other.json").write_text(json.dumps(dict(list(scores.items())[:-1])))
    said = without_colours(on_terminal(tmp_path, columns, "--compare", "other.json", name="org/model"))
    long = [line for line in said.splitlines() if len(line) >= columns]
    assert [line for line in long if not re.match(r" *\S+$|  spectrum --model-name|    --check ", line)] == []
    # No word is lost, and the end says what was written and what to do.
    last = " ".join(said.split())
    assert "org-model_unfrozenparameters_50percent.yaml Axolotl: paste the list into your config" in last
    assert last.endswith("--check snr_results_org-model_unfrozenparameters_50percent.yaml")


@pytest.mark.parametrize(
    ("args", "status", "prefix"),
    [
        (("--plot-spectrum", "layer[ ] of some name with many words in it " * 3, "x.png"), 1, "spectrum: error: "),
        (("--top-percent", "a number of many words that is none, so that it is told " * 2), 2, "spectrum: error: "),
        (("--compare", "a path of many words that leads nowhere at all " * 3 + ".json"), 1, "spectrum: error: "),
    ],
    ids=["job", "usage", "file"],
)
def test_errors_are_wrapped_at_words_on_a_terminal_and_one_line_elsewhere(
    args: tuple[str, ...], status: int, prefix: str, tmp_path: Path
) -> None:
    cached(tmp_path)
    said = on_terminal(tmp_path, 80, *args, status=status).splitlines()
    assert said[0].startswith(prefix)
    assert len(said) > 1
    assert max(map(len, said)) < 80
    assert all(line.startswith("  ") for line in said[1:])
    piped = run(tmp_path, "--model-name", "model", *args)
    assert piped.status == status
    (line,) = piped.err.splitlines()
    assert " ".join(line.split()) == " ".join(" ".join(said).split())


def test_a_path_alone_is_never_wrapped(tmp_path: Path) -> None:
    cached(tmp_path)
    directory = " ".join(["many words"] * 9)
    said = on_terminal(tmp_path, 80, "--quiet", "--output-dir", directory)
    assert said == f"{directory}/snr_results_model_unfrozenparameters_50percent.yaml\n"


@pytest.mark.parametrize(
    ("columns", "environment", "expected"),
    [(80, {}, 79), (132, {}, 131), (0, {}, 79), (3, {}, 19), (80, {"COLUMNS": "50"}, 49), (80, {"COLUMNS": "x"}, 79)],
)
def test_the_last_column_stays_free(
    columns: int, environment: Mapping[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(ours), os.fdopen(its, "w") as stream:
        assert text_columns(stream) == expected


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, parser().format_help().splitlines())) < 80


def test_pipes_and_closed_streams_have_no_width(tmp_path: Path) -> None:
    assert text_columns(None) is None
    with (tmp_path / "file").open("w") as file:
        assert text_columns(file) is None


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
