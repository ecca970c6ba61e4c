"""Tables for terminals and notebooks; counts, lists and times in words."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum.text import Row, aligned, duration, html, listed, nearest, plural, proposal, shortened, wrapped

ROWS: list[Row] = [("layer type", "layers", "SNR"), ("mlp", "8", "0.125"), ("a < b & c", "1024", ""), ("total", "", "")]

# Cells that are as wide on a terminal as they are long, and neither begin nor end with white space.
CELLS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=8)
TABLES = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), min_size=1, max_size=5))


def test_the_first_column_is_flush_left_and_the_others_flush_right() -> None:
    assert aligned(ROWS) == ("layer type  layers    SNR\nmlp              8  0.125\na < b & c     1024\ntotal")


@given(TABLES)
def test_columns_line_up_and_hold_every_cell(rows: list[Row]) -> None:
    lines = aligned(rows).split("\n")
    assert len(lines) == len(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    for line, row in zip(lines, rows, strict=True):
        assert line == line.rstrip()
        cells = [line[start : start + width] for start, width in zip(starts, widths, strict=True)]
        assert cells[0].rstrip() == row[0]
        assert [cell.lstrip() for cell in cells[1:]] == list(row[1:])
        for cell, width in zip(cells[1:], widths[1:], strict=True):
            assert not cell.strip() or (len(cell) == width and cell[-1] != " ")
        # There are only spaces between the columns.
        assert all(not line[start - 2 : start].strip() for start in starts[1:])


def test_a_table_of_one_row_is_that_row() -> None:
    assert aligned([("a", "b")]) == "a  b"


def test_a_table_that_is_too_wide_breaks_its_head_first_and_then_cuts_names() -> None:
    rows = [("layer type", "highest SNR"), ("tower.layers.self_attn.q_proj", "0.125"), ("tower.head", "1")]
    assert aligned(rows, 42) == aligned(rows)
    assert aligned(rows, 38) == (
        "                               highest\n"
        "layer type                         SNR\n"
        "tower.layers.self_attn.q_proj    0.125\n"
        "tower.head                           1"
    )
    assert aligned(rows, 30) == (
        "                       highest\n"
        "layer type                 SNR\n"
        "tower.l...attn.q_proj    0.125\n"
        "tower.head                   1"
    )


@given(TABLES, st.integers(1, 60))
def test_a_table_is_as_wide_as_its_numbers_need_at_most(rows: list[Row], columns: int) -> None:
    lines = aligned(rows, columns).split("\n")
    numbers = sum(max(map(len, cells)) + 2 for cells in [*zip(*rows, strict=True)][1:])
    assert max(map(len, lines)) <= max(columns, numbers + 12)


@given(st.lists(st.text("abc", max_size=30), min_size=1, max_size=5, unique=True), st.integers(8, 30))
def test_shortened_names_fit_and_keep_both_ends(names: list[str], width: int) -> None:
    for name, short in zip(names, shortened(names, width), strict=True):
        if len(name) <= width:
            assert short == name
        else:
            assert len(short) == width
            start, end = next(
                (short[:i], short[i + 3 :])
                for i in range(1, width)
                if short[i : i + 3] == "..." and name.startswith(short[:i])
            )
            assert start
            assert name.endswith(end)


def test_names_are_cut_where_they_stay_different() -> None:
    early = [f"model.{tower}.encoder.layers.self_attention.q_proj" for tower in ("vision_tower", "audio_tower")]
    late = [f"model.language_model.layers.blocks.{part}.projection.weight_matrix" for part in ("query", "key")]
    for width in (40, 45, 50):
        assert len(set(shortened([*early, *late], width))) == 4
    assert shortened(early, 24) == ["model.vi...ention.q_proj", "model.au...ention.q_proj"]
    assert shortened(["model.visual.blocks.attn.q_proj"], 20) == ["model....attn.q_proj"]


@given(st.text("ab \n", max_size=80), st.integers(1, 30))
def test_wrapping_breaks_long_lines_between_words_only(text: str, columns: int) -> None:
    lines = wrapped(text, columns).split("\n")
    assert wrapped(text, None) == text
    assert " ".join(lines).split() == text.split()
    for line in lines:
        assert len(line) <= columns or " " not in line.strip()
    assert [line for line in text.split("\n") if len(line) <= columns and line not in lines] == []


def test_wrapped_lines_are_indented_within_the_width() -> None:
    assert wrapped("one two three four", 9, "  ") == "one two\n  three\n  four"
    assert wrapped("incomprehensibilities are whole", 10) == "incomprehensibilities\nare whole"


class Cells(HTMLParser):
    """The cells of a table as a browser would read them, each with its tag and alignment."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str, str]]] = []
        self.tags: list[str] = []
        self._cell: tuple[str, str] | None = None
        self._text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell, self._text = (tag, str(dict(attrs)["style"]).removeprefix("text-align: ")), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if self._cell is not None and tag == self._cell[0]:
            self.rows[-1].append((*self._cell, self._text))
            self._cell = None


def test_html_has_the_first_row_as_head_and_the_same_alignment() -> None:
    head, *body = Cells(html(ROWS)).rows
    assert [cell[0] for cell in head] == ["th"] * 3
    assert {cell[0] for row in body for cell in row} == {"td"}
    assert [[text for _, _, text in row] for row in (head, *body)] == [list(row) for row in ROWS]
    assert all([side for _, side, _ in row] == ["left", "right", "right"] for row in (head, *body))


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_no_cell_breaks_out_of_html(rows: list[Row]) -> None:
    found = Cells(html(rows))
    assert set(found.tags) == {"table", "tr", "th"} | ({"td"} if len(rows) > 1 else set())
    assert len(found.tags) == 1 + 3 * len(rows)
    # An HTML parser replaces carriage returns and some other characters.
    plain = [[cell if cell.isascii() and cell.isprintable() else None for cell in row] for row in rows]
    for row, cells in zip(plain, found.rows, strict=True):
        assert all(cell is None or cell == text for cell, (_, _, text) in zip(row, cells, strict=True))


def test_html_escapes_what_would_be_markup() -> None:
    text = html([("<b>a</b>", "&amp;"), ('"x"', "<script>alert(1)</script>")])
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;a&lt;/b&gt;" in text
    assert "&amp;amp;" in text
    assert not any(tag in text for tag in ("<b>", "<script"))


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (75, "75 layers")], ids=str
)
def test_a_count_has_its_noun_in_the_right_number(count: int, expected: str) -> None:
    assert plural(count, "layer") == expected


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (0, 5, ""),
        (1, 5, "n0"),
        (5, 5, "n0, n1, n2, n3, n4"),
        (6, 5, "n0, n1, n2, n3, n4 and 1 more"),
        (80, 5, "n0, n1, n2, n3, n4 and 75 more"),
        (3, 1, "n0 and 2 more"),
    ],
    ids=str,
)
def test_a_list_names_the_first_few_and_counts_the_rest(count: int, limit: int, expected: str) -> None:
    names = [f"n{i}" for i in range(count)]
    assert listed(names, limit) == expected
    if limit == 5:
        assert listed(names) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (0.84, "0.8 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (65.4, "1 min 05 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        # Rounding comes before the split into units, so there are never 60 seconds.
        (119.6, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_a_duration_is_said_in_the_units_that_people_use(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("word", "meant"), [("bannana", "banana"), ("BANANA", "banana"), ("cherry", "Cherry"), ("x", None), ("", None)]
)
def test_the_nearest_name_is_proposed(word: str, meant: str | None) -> None:
    assert nearest(word, ["apple", "banana", "Cherry"]) == meant
    assert proposal(meant) == ("" if meant is None else f"; did you mean {meant}?")


def test_no_name_is_near_to_an_endless_word() -> None:
    assert nearest("a" * 300, ["a" * 301]) is not None
    assert nearest("a" * 301, ["a" * 301]) is None
