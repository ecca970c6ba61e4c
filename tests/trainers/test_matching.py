"""Lists on disk: each reader's rule by hand-made cases, and every file that is not a list."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from spectrum.errors import SelectionError
from spectrum.trainers import matching
from spectrum.trainers.lists import read_list
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING
from tests.helpers.lists import of_aliases

DOWN = "model.layers.1.mlp.down_proj.weight"


def matched_by(entry: str, name: str) -> set[str]:
    return {rule for rule, of in RULES.items() if of(entry)(name)}


EVERY = {AXOLOTL, REGULAR_EXPRESSION, SUBSTRING}
PATTERNS = {AXOLOTL, REGULAR_EXPRESSION}


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        # From the name's start, as far as the entry goes; or anywhere in it.
        ("model.layers.1.mlp.down_proj", DOWN, EVERY),
        (DOWN, DOWN, EVERY),
        ("model.layers.1", "model.layers.10.mlp.down_proj.weight", EVERY),
        ("mlp.gate", "mlp.gate_proj.weight", EVERY),
        ("layers.1.mlp.down_proj", DOWN, {SUBSTRING}),
        (f"{DOWN}s", DOWN, set()),
        ("^lm_head.weight$", "lm_head.weight", PATTERNS),
        ("^lm_head.weight$", "lm_head.weight_scale", set()),
        ("^lm_head.weight$", "model.lm_head.weight", set()),
        # A dot is a dot to Axolotl, unless a plus follows.
        ("a.b", "a.b", EVERY),
        ("a.b", "axb", {REGULAR_EXPRESSION}),
        ("a.+b", "axyb", PATTERNS),
        ("a.+b", "a.b", PATTERNS),
        ("a.+b", "a.+b", EVERY),
        ("layers.[0-9]+.mlp", "layers.12.mlp.weight", PATTERNS),
        ("layers.[0-9]+.mlp", "layers.12xmlp.weight", {REGULAR_EXPRESSION}),
        ("a.*b", "a.x.b", {REGULAR_EXPRESSION}),
        ("a.*b", "a..b", PATTERNS),
        ("a.*b", "ab", PATTERNS),
        # A dot that is escaped already is escaped again there: a backslash, and any character.
        (r"a\.b", "a.b", {REGULAR_EXPRESSION}),
        (r"a\.b", r"a\xb", {AXOLOTL}),
        (r"a\.b", r"a\.b", {AXOLOTL, SUBSTRING}),
        # All else is a regular expression as it stands.
        ("model.layers.(0|1).mlp", DOWN, PATTERNS),
        ("model.layers.[0-7].mlp.down_proj", DOWN, PATTERNS),
        ("model.layers.[2-7].mlp.down_proj", DOWN, set()),
        ("model.layers.2[0-9]+.block_sparse_moe.gate", "model.layers.21.block_sparse_moe.gate.weight", PATTERNS),
        ("model.layers.2[0-9]+.block_sparse_moe.gate", "model.layers.2.block_sparse_moe.gate.weight", set()),
        # Rows, for Axolotl alone; to others, characters.
        ("lm_head.weight[0:4]", "lm_head.weight", {AXOLOTL}),
        ("lm_head.weight[:4]", "lm_head.weight", {AXOLOTL}),
        ("lm_head.weight[4:]", "lm_head.weight", {AXOLOTL}),
        ("lm_head.weight[4]", "lm_head.weight", {AXOLOTL}),
        ("^lm_head.weight$[:4]", "lm_head.weight", {AXOLOTL}),
        ("^lm_head.weight$[:4]", "lm_head.weight_scale", set()),
        ("lm_head[0:4]", "lm_head4", PATTERNS),
        ("layers.[0]", "layers.7", {AXOLOTL}),
        ("layers.[0-9]", "layers.7", PATTERNS),
        ("layers.[0-9]", "layers.x", set()),
    ],
)
def test_each_rule_matches_as_its_reader_does(entry: str, name: str, expected: set[str]) -> None:
    assert matched_by(entry, name) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a.weight", "a.weight"),
        ("a.weight[0:10]", "a.weight"),
        ("a.weight[:10]", "a.weight"),
        ("a.weight[10:]", "a.weight"),
        ("a.weight[7]", "a.weight"),
        ("a.weight[:]", "a.weight"),
        ("^a.weight$[:10]", "^a.weight$"),
        ("a[0][1:2]", "a[0]"),
        # None of these is a range: ranges end the entry and hold nothing but digits and one colon.
        ("a.[0-9]", "a.[0-9]"),
        ("a.[0-9]+", "a.[0-9]+"),
        ("a[0:1].b", "a[0:1].b"),
        ("a[0:1]$", "a[0:1]$"),
        ("a[-1]", "a[-1]"),
        ("a[0:1:2]", "a[0:1:2]"),
        ("a[ 1]", "a[ 1]"),
        ("[0:1]", "[0:1]"),
    ],
)
def test_a_range_of_rows_ends_an_entry(entry: str, expected: str) -> None:
    assert matching.without_rows(entry) == expected
    assert matching.selects_rows(entry) == (expected != entry)


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "list.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("text", "entries", "lines"),
    [
        ("unfrozen_parameters:\n- a.b\n# c layers\n- d.e\n", ("a.b", "d.e"), ("a.b", "d.e")),
        ("unfrozen_parameters:\n  - a.b\n  - d.e\n", ("a.b", "d.e"), ()),
        ("unfrozen_parameters: [a.b, d.e]\n", ("a.b", "d.e"), ()),
        ("unfrozen_parameters:\n- 'a.b'\n- d.e  # last\n", ("a.b", "d.e"), ("'a.b'", "d.e  # last")),
        ("unfrozen_parameters:\n-   a.b  \n- d.e \n", ("a.b", "d.e"), ("a.b", "d.e")),
        ("unfrozen_parameters:\r\n- a.b\r\n- d.e\r\n", ("a.b", "d.e"), ("a.b", "d.e")),
        ("\N{BYTE ORDER MARK}unfrozen_parameters:\n- a.b\n", ("a.b",), ("a.b",)),
        ("---\nunfrozen_parameters:\n- a.b\n- a.b\n", ("a.b", "a.b"), ("a.b", "a.b")),
        ("unfrozen_parameters:\n- ^lm_head.weight$\n- a[:4]\n", ("^lm_head.weight$", "a[:4]"), None),
    ],
)
def test_a_list_is_read_as_yaml_and_as_lines(
    text: str, entries: tuple[str, ...], lines: tuple[str, ...] | None, tmp_path: Path
) -> None:
    found = read_list(write(tmp_path, text))
    assert found.entries == entries
    assert found.lines == (entries if lines is None else lines)
    assert found.settings == {}


def test_what_else_a_config_holds_is_kept(tmp_path: Path) -> None:
    text = "base_model: org/model\nunfrozen_parameters:\n- a.b\ndatasets:\n- path: here\nadapter:\n"
    found = read_list(write(tmp_path, text))
    assert found.entries == ("a.b",)
    assert found.settings == {"base_model": "org/model", "datasets": [{"path": "here"}], "adapter": None}


def refused(path: Path, *words: str) -> None:
    with pytest.raises(SelectionError) as caught:
        read_list(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def unfrozen(*entries: str) -> str:
    return "unfrozen_parameters:\n" + "".join(f"- {entry}\n" for entry in entries)


KEY, LIST = "no unfrozen_parameters at its top level", "is not a list of names"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", [KEY]),
        ("# nothing\n", [KEY]),
        ("lm_head.weight\n", [KEY]),
        ("- lm_head.weight\n", [KEY]),
        ("adapter: lora\n", [KEY]),
        ("training:\n  unfrozen_parameters:\n  - a\n", [KEY]),
        ("unfrozen_parameters:\n", ["is empty", "train everything", "put entries under it"]),
        ("unfrozen_parameters: lm_head\n", [LIST]),
        ("unfrozen_parameters: {lm_head: true}\n", [LIST]),
        (unfrozen("1"), [LIST]),
        (unfrozen("a", "1.5"), [LIST]),
        (unfrozen("a", "yes"), [LIST]),
        (unfrozen("a", "''"), [LIST]),
        (unfrozen("a", "[b]"), [LIST]),
        ("unfrozen_parameters:\n- a\n-\n", [LIST]),
        ("unfrozen_parameters: []\n", ["is empty", "train everything"]),
        ("unfrozen_parameters: [a\n", ["not valid YAML", "line 2"]),
        ("unfrozen_parameters:\n- a\n\t- b\n", ["not valid YAML"]),
        ("unfrozen_parameters:\n- *nothing\n", ["not valid YAML", "nothing"]),
        ("unfrozen_parameters:\n- a\n---\nunfrozen_parameters:\n- b\n", ["not valid YAML"]),
        ("unfrozen_parameters: !!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
        (unfrozen("2024-13-45"), ["not valid YAML"]),
        (unfrozen("9" * 5000), ["holds a number"]),
        ("[" * 100_000, ["not valid YAML"]),
        (unfrozen("a").encode("utf-16"), ["not valid YAML"]),
        (b"\x00\x01\xff\xfe", ["not valid YAML"]),
        ("unfrozen_parameters:\n- a\0b\n", ["not valid YAML"]),
        (unfrozen("a", "model.(layers"), ["'model.(layers' is not a regular expression"]),
        (unfrozen("'*.weight'"), ["'*.weight' is not a regular expression"]),
        (unfrozen("a{99999999999999999999}"), ["is not a regular expression"]),
        (unfrozen("(" * 900 + ")" * 900), ["is not a regular expression"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_is_no_list_is_refused_in_a_line(content: str | bytes, words: list[str], tmp_path: Path) -> None:
    refused(write(tmp_path, content), *words)


def test_a_file_that_cannot_be_read_is_refused_in_a_line(tmp_path: Path) -> None:
    refused(tmp_path / "missing.yaml", "cannot read", "No such file")
    refused(tmp_path, "cannot read", "Is a directory")
    refused(write(tmp_path, "a") / "below", "cannot read", "Not a directory")


def test_a_file_larger_than_any_list_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, unfrozen("a"))
    with path.open("ab") as file:
        file.truncate((16 << 20) + 1)  # sparse
    monkeypatch.setattr(Path, "read_text", None)
    refused(path, "4 MiB")


def test_a_pattern_that_python_warns_of_is_a_pattern(tmp_path: Path) -> None:
    # A warning would stand among our own lines.
    assert read_list(write(tmp_path, unfrozen("layers.[[0-9]"))).entries == ("layers.[[0-9]",)


def of_merges(levels: int) -> str:
    maps = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, levels)]
    return f"a0: &a0 {{lol: 1}}\n{''.join(maps)}"


@pytest.mark.parametrize("bomb", [of_aliases, of_merges])
def test_a_small_file_does_not_grow_in_memory(bomb: Callable[[int], str], tmp_path: Path) -> None:
    read_list(write(tmp_path, unfrozen("model.norm")))  # for imports and caches
    path = write(tmp_path, unfrozen("model.norm") + bomb(7))
    assert path.stat().st_size < 1000
    tracemalloc.start()
    try:
        with suppress(SelectionError):  # to refuse it is as good
            read_list(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("entry", ["*a11", "x: *a11"])
def test_an_entry_that_a_small_file_makes_endless_is_not_written_out(entry: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"entry 1 .* is a ") as refused:
        read_list(write(tmp_path, f"{of_aliases(12)}unfrozen_parameters:\n- {entry}\n"))
    assert len(str(refused.value)) < 500


def test_a_bare_list_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- model.norm\n")
    refused(path, "put its list under `unfrozen_parameters:`")


def test_the_entry_that_is_no_name_is_told(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("unfrozen_parameters:\n- model.norm\n- 3\n")
    refused(path, "entry 2 (line 3) is 3, not a name")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: 1\nunfrozen_parameters:\n#- a\n\n #  - b\n#- c\ny: 2\n# - d\n", ["lines 3, 5 and 6", "commented out"]),
        ("unfrozen_parameters:\n# no entry\n", ["put entries under it"]),
        ("unfrozen_parameters:\n- a\nunfrozen_parameters:\n#- b\n", ["last of those in lines 1 and 3", "line 4"]),
        ("unfrozen_parameters:\ntargets:\n- q\n- model.layers.0.mlp\n", ["line 3 is under 'targets': move it"]),
    ],
)
def test_an_empty_list_trains_everything_and_says_where_its_entries_are(
    text: str, words: list[str], tmp_path: Path
) -> None:
    refused(write(tmp_path, text), "is empty", "train everything", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x:\n  y: 1\n  unfrozen_parameters:\n  - a\n", ["in line 3 it is under another key"]),
        ("x:\n- y: 1\n  unfrozen_parameters:\n  - a\n", ["in line 3 it is under another key"]),
        ("x: 1\n# unfrozen_parameters:\n# - a\n", ["Line 2 is commented out"]),
        ("x: 1\nunfrozen-parameters:\n- a\n", ["in line 2 it is spelled 'unfrozen-parameters'"]),
        ("Unfrozen_Parameters:\n- a\n", ["in line 1 it is spelled"]),
        ("unfrozen_parameters\n- a\n", ["write a colon after unfrozen_parameters"]),
        ("x: 1\nlayers:\n- ^lm_head.weight$\n", ["the list in line 3 is under 'layers'"]),
        ("target_modules:\n- model.layers.0.mlp.up_proj\n", ["it is a list for PEFT, for LoraConfig(**...)"]),
        ('{"layers": [], "embeddings": [], "top_percent": 25}', ["a list of --format json, for programs"]),
        ("finetuning_type: freeze\nfreeze_trainable_layers: 2\n", ["LLaMA-Factory trains whole layers so"]),
    ],
)
def test_a_list_in_another_place_is_told(text: str, words: list[str], tmp_path: Path) -> None:
    refused(write(tmp_path, text), KEY, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unfrozen_parameters:\n\t- a\n", ["line 2", "spaces instead of a tab"]),
        ("unfrozen_parameters:\n  - a\n- b\n", ["line 3", "indent all entries alike"]),
        ("unfrozen_parameters:\n- a\nx: 1\n- b\n", ["line 4", "put all entries under `unfrozen_parameters:`"]),
        ("unfrozen_parameters:\n- a\n- *.mlp\n", ["line 3", "write .+ for any characters"]),
        ("unfrozen_parameters:\n-a\n-b\n", ["line 3", "write a space after each -"]),
        ("a:\n  x: 1\n y: 2\n", ["line 3", "is every line indented alike?"]),
        ("unfrozen_parameters:\n- a\n---\nx: 1\n", ["line 3", "single document"]),
        ("unfrozen_parameters:\n- a\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(text: str | bytes, words: list[str], tmp_path: Path) -> None:
    refused(write(tmp_path, text), "not valid YAML", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unfrozen_parameters:\n  -a\n  -b\n", ["after '- '"]),
        ("unfrozen_parameters:\n- a\n- b:\n", ["entry 2 (line 3) is a mapping", "no colon"]),
        ("unfrozen_parameters:\n- a\n\n-\n", ["entry 2 (line 4) is empty"]),
        ("x: &x\n- a\n- 1.5\nunfrozen_parameters: *x\n", ["entry 2 (line 3) is 1.5"]),
        ("unfrozen_parameters:\n- 2020-01-01\n", ["entry 1 (line 2) is 2020-01-01, not a name"]),
        ("unfrozen_parameters:\n- 0x1F\n", ["entry 1 (line 2) is 0x1F, not a name"]),
    ],
)
def test_an_entry_that_is_no_name_is_told_with_its_line(text: str, words: list[str], tmp_path: Path) -> None:
    refused(write(tmp_path, text), LIST, *words)


def test_a_wildcard_without_anything_before_it_is_told_what_to_write(tmp_path: Path) -> None:
    refused(write(tmp_path, unfrozen("'*.mlp'")), "nothing to repeat", "write .+ for any characters")


def test_a_range_of_indexes_is_told_how_to_write(tmp_path: Path) -> None:
    refused(write(tmp_path, unfrozen("layers.[8-10].mlp")), "not a regular expression", "; write layers.(8|9|10).mlp")


def test_keys_that_stand_several_times_are_kept_with_their_lines(tmp_path: Path) -> None:
    text = "x: 1\nunfrozen_parameters:\n- a\nfsdp:\n  v: 1\n  v: 2\nunfrozen_parameters:\n- b\nx: 2\n"
    found = read_list(write(tmp_path, text))
    assert found.entries == ("b",)
    assert found.repeated == {"x": (1, 9), "unfrozen_parameters": (2, 7), "fsdp.v": (5, 6)}
    merged = "base: &base\n  x: 1\n<<: *base\nx: 2\nunfrozen_parameters:\n- a\n"
    assert read_list(write(tmp_path, merged)).repeated == {}


def test_aliases_do_not_multiply_the_keys_that_are_compared(tmp_path: Path) -> None:
    inner = ", ".join(f"k{i}: 1" for i in range(1000))
    text = f"a: &x {{{inner}, k7: 2}}\n" + "".join(f"b{i}: *x\n" for i in range(1000)) + unfrozen("model.norm")
    path = write(tmp_path, text)
    tracemalloc.start()
    try:
        found = read_list(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.repeated == {"a.k7": (1, 1)}
    assert peak < 50 << 20  # with every key of every alias, 600 MB


def test_many_keys_are_compared_with_the_right_one_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    class Counted(SequenceMatcher[str]):
        def ratio(self) -> float:
            found = super().ratio()
            compared.append(found)
            return found

    monkeypatch.setattr("difflib.SequenceMatcher", Counted)
    keys = "".join(f"some_other_setting_{i}: 1\n" for i in range(2000)) + f"{'unfrozen_parameters' * 50}: 1\n"
    refused(write(tmp_path, keys + "unfrozen_parameter:\n- a\n"), "in line 2002 it is spelled 'unfrozen_parameter'")
    assert len(compared) == 1
