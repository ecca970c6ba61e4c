"""Scans on disk: names of files, every form that is read, every one that is refused, and writing all or nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum import files
from spectrum.errors import ResultsError
from spectrum.files import check_writable, selection_path, slug, sorted_path, write_atomically
from spectrum.records import BulkEdge, LayerSnr, ModelInfo, Parameter, Provenance, ScanResult
from spectrum.scanning.scan_json import CachedScan, sorted_json
from spectrum.scanning.store import ScanStore
from tests.helpers.paths import files_below
from tests.helpers.records import PROVENANCE

FILE, SIDECAR = "snr_results_org-m.json", "snr_results_org-m.meta.json"

RESULT = ScanResult(
    "org/m", (LayerSnr("h.0.up", "up", 0.5), LayerSnr("h.1.up", "up", 2.0)), ("h.2.up",), ("up",), PROVENANCE
)


def load(directory: Path, model: str) -> CachedScan | None:
    return ScanStore(directory, model).load()


def save(directory: Path, result: ScanResult) -> Path:
    store = ScanStore(directory, result.model)
    store.save(result)
    return store.scan_path


def layers_of(directory: Path, content: str | bytes) -> list[tuple[str, str, float]]:
    """What a cache of this content holds."""
    (directory / FILE).write_bytes(content.encode() if isinstance(content, str) else content)
    cached = load(directory, "org/m")
    assert cached is not None
    return [(layer.name, layer.layer_type, layer.snr) for layer in cached.result.layers]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("org/model_name", "org-model-name"),
        ("../models/My_Model-1.5", "..-models-My-Model-1.5"),
        ("gpt2", "gpt2"),
        ("org-model-name", "org-model-name"),
    ],
)
def test_slug(model: str, expected: str) -> None:
    assert slug(model) == expected


def test_paths_are_those_of_the_reference() -> None:
    d = Path("d")
    assert ScanStore(d, "org/m_1").scan_path == d / "snr_results_org-m-1.json"
    assert ScanStore(d, "org/m_1").sidecar_path == d / "snr_results_org-m-1.meta.json"
    assert sorted_path(d, "org/m_1") == d / "snr_results_org-m-1_sorted.json"
    assert (
        selection_path(d, "org/m_1", "unfrozenparameters", "12.50", "yaml")
        == d / "snr_results_org-m-1_unfrozenparameters_12.50percent.yaml"
    )


def test_no_scan_is_none(tmp_path: Path) -> None:
    assert load(tmp_path, "org/m") is None
    assert load(tmp_path / "missing", "org/m") is None
    # A sidecar alone is what a first scan leaves when it is cut short between its two files.
    save(tmp_path, RESULT)
    (tmp_path / FILE).unlink()
    assert load(tmp_path, "org/m") is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param('{"h.0.up": {"snr": 1.5, "type": "up"}, "h.1.up": {"snr": 2, "type": "up"}}', id="flat"),
        pytest.param('{"up": {"h.0.up": 1.5, "h.1.up": 2}}', id="nested"),
        pytest.param(
            '{"h.0.up": {"snr": 1.5, "type": "up", "note": [1]}, "h.1.up": {"x": {}, "type": "up", "snr": 2.0}}',
            id="extra keys in an entry",
        ),
    ],
)
def test_every_published_form_is_read(tmp_path: Path, content: str) -> None:
    assert layers_of(tmp_path, content) == [("h.0.up", "up", 1.5), ("h.1.up", "up", 2.0)]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            '{"h.0.up": {"snr": Infinity, "type": "up"}, "h.1.up": {"snr": NaN, "type": "up"}, '
            '"lm_head": {"snr": NaN, "type": "lm_head"}}',
            id="flat",
        ),
        pytest.param('{"up": {"h.0.up": Infinity, "h.1.up": NaN}, "lm_head": {"lm_head": NaN}}', id="nested"),
    ],
)
def test_infinity_is_a_score_and_nan_is_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    expected = ScanResult("org/m", (LayerSnr("h.0.up", "up", inf),), ("h.1.up", "lm_head"), ("up", "lm_head"), None)
    assert load(tmp_path, "org/m") == CachedScan(expected, consistent=True)


LAYER = '{"snr": 1.0, "type": "up"}'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param(" \n\t\n", "is empty", id="white space"),
        pytest.param("{}", "no layers", id="empty object"),
        # Neither form: no SNR for the one, no layers for the other.
        pytest.param('{"h.0.up": {}}', "cannot be used", id="empty entry"),
        pytest.param('{"h.0.up": {"snr": 1.0', "JSON", id="cut off"),
        pytest.param("unfrozen_parameters:\n- lm_head\n", "JSON", id="not JSON"),
        pytest.param("[1, 2]", "list", id="a list"),
        pytest.param("null", "NoneType", id="null"),
        pytest.param("1.5", "float", id="a number"),
        pytest.param('{"h.0.up": 1.5}', "h.0.up", id="a number for an entry"),
        pytest.param(f'{{"h.0.up": {LAYER}, "meta": {{"model": "m"}}}}', "meta", id="extra top-level key"),
        pytest.param(f'{{"h.0.up": {LAYER}, "h.1.up": null}}', "h.1.up", id="null for an entry"),
        pytest.param('{"h.0.up": {"snr": null, "type": "up"}}', "h.0.up", id="null SNR"),
        pytest.param('{"h.0.up": {"snr": "1.0", "type": "up"}}', "h.0.up", id="string SNR"),
        pytest.param('{"h.0.up": {"snr": true, "type": "up"}}', "h.0.up", id="boolean SNR"),
        pytest.param('{"h.0.up": {"snr": [1.0], "type": "up"}}', "h.0.up", id="list SNR"),
        pytest.param('{"up": {"h.0.up": "x"}}', "h.0.up", id="string SNR, nested"),
        pytest.param('{"h.0.up": {"snr": 1' + "0" * 400 + ', "type": "up"}}', "h.0.up", id="SNR out of range"),
        pytest.param('{"h.0.up": {"snr": 1' + "0" * 5000 + ', "type": "up"}}', "JSON", id="endless SNR"),
        pytest.param('{"h.0.up": {"snr": 1.0}}', "h.0.up", id="no type"),
        pytest.param('{"h.0.up": {"snr": 1.0, "type": null}}', "h.0.up", id="null type"),
        pytest.param('{"h.0.up": {"snr": 1.0, "type": 3}}', "h.0.up", id="number for a type"),
        pytest.param('{"h.0.up": {"snr": 1.0, "type": "up", "experts": 1.0}}', "h.0.up", id="a number for experts"),
        pytest.param('{"h.0.up": {"snr": 1, "type": "up", "experts": [1, null]}}', "h.0.up", id="a null expert"),
        pytest.param('{"a":' * 100_000, "JSON", id="deep nesting"),
        pytest.param("[" * 100_000, "JSON", id="deep list"),
        pytest.param(b'{"h.0.\xff": {"snr": 1.0, "type": "up"}}', "utf-8", id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", "no layers", id="byte order mark"),
    ],
)
def test_a_malformed_cache_is_refused_by_name(tmp_path: Path, content: str | bytes, found: str) -> None:
    with pytest.raises(ResultsError, match="--rescan") as refused:
        layers_of(tmp_path, content)
    assert str(tmp_path / FILE) in str(refused.value)
    assert found in str(refused.value)


@pytest.mark.parametrize("form", ["flat name", "flat type", "nested name", "nested type"])
@pytest.mark.parametrize(
    "text",
    ["a\n- b", "a\n", "a: b", 'a"b', "a'b", "a b", "a #b", "- a", "", "^a$", "a[0:1]", "*a", "\u2028a", "é", "\ud800"],
    ids=ascii,
)
def test_names_that_yaml_could_read_otherwise_are_refused(tmp_path: Path, form: str, text: str) -> None:
    content = {
        "flat name": {text: {"snr": 1.0, "type": "up"}},
        "flat type": {"h.0.up": {"snr": 1.0, "type": text}},
        "nested name": {"up": {text: 1.0}},
        "nested type": {text: {"h.0.up": 1.0}},
    }
    with pytest.raises(ResultsError, match="--rescan") as refused:
        layers_of(tmp_path, json.dumps(content[form]))
    assert str(tmp_path / FILE) in str(refused.value)
    assert repr(text) in str(refused.value)


def test_a_cache_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(ResultsError, match="--rescan") as refused:
        load(tmp_path, "org/m")
    assert str(tmp_path / FILE) in str(refused.value)


def test_there_is_no_cache_where_a_file_stands_for_its_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert load(tmp_path / "file", "org/m") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_cache_without_permission_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, RESULT)
    (tmp_path / FILE).chmod(0)
    with pytest.raises(ResultsError, match=f"{FILE}.*--rescan"):
        load(tmp_path, "org/m")


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]{0,8}", fullmatch=True)
SNRS = st.floats(min_value=0, allow_nan=False)
COUNTS = st.integers(0, 1 << 40)
EDGES = st.builds(BulkEdge, COUNTS, COUNTS, SNRS, st.floats(allow_nan=False))
LAYERS = st.lists(
    st.builds(LayerSnr, NAMES, NAMES, SNRS, st.none() | st.lists(SNRS, max_size=3).map(tuple), st.none() | EDGES),
    min_size=1,
    max_size=6,
    unique_by=lambda layer: layer.name,
)
WORDS = st.text(max_size=6).filter(str.isprintable)
TEXTS = st.none() | WORDS
PROVENANCES = st.builds(
    replace,
    st.just(PROVENANCE),
    revision=TEXTS,
    commit=TEXTS,
    fingerprint=TEXTS,
    class_asked=TEXTS,
    info=st.builds(
        ModelInfo,
        model_class=WORDS,
        head=st.none() | NAMES,
        embedding=st.none() | NAMES,
        parameters=st.dictionaries(
            NAMES,
            st.builds(
                Parameter,
                st.lists(st.integers(0, 9), max_size=8).map(tuple),
                st.sampled_from(["float32", "bfloat16"]),
                st.none() | NAMES,
                st.none() | st.sampled_from(["Linear", "Embedding", "Conv1D"]),
            ),
        ),
        layer_types=st.lists(NAMES, max_size=3).map(tuple),
        modules=st.just(frozenset()),
    ),
)


@settings(max_examples=50, deadline=None)
@given(LAYERS, st.lists(NAMES, max_size=2), st.none() | PROVENANCES)
def test_what_was_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, layers: list[LayerSnr], left_out: list[str], made: Provenance | None
) -> None:
    directory = tmp_path_factory.mktemp("results")
    types = tuple(dict.fromkeys(layer.layer_type for layer in layers))
    result = replace(RESULT, layers=tuple(layers), left_out=tuple(left_out), scanned=("first", *types), provenance=made)
    save(directory, result)
    if made is None:
        # The scores have no room for more.
        alone = tuple(replace(layer, edge=None) for layer in layers)
        result = replace(result, layers=alone, left_out=(), scanned=types)
    assert load(directory, "org/m") == CachedScan(result, consistent=True)


def test_the_scan_is_a_flat_object_of_scores_and_types(tmp_path: Path) -> None:
    stack = LayerSnr("h.0.experts.up", "experts.up", 1.5, (1.0, 2.0), BulkEdge(3, 60, 0.25, 0.5))
    path = save(tmp_path / "new" / "directory", replace(RESULT, layers=(*RESULT.layers, stack)))
    assert path == tmp_path / "new" / "directory" / FILE
    # In this order, which is that of the YAML's types.
    assert json.loads(path.read_text(), object_pairs_hook=list) == [
        ("h.0.up", [("snr", 0.5), ("type", "up")]),
        ("h.1.up", [("snr", 2.0), ("type", "up")]),
        ("h.0.experts.up", [("snr", 1.5), ("type", "experts.up"), ("experts", [1.0, 2.0])]),
    ]


def test_the_sidecar_records_what_the_contract_lists(tmp_path: Path) -> None:
    save(tmp_path, RESULT)
    meta = json.loads((tmp_path / SIDECAR).read_text())
    assert (
        meta.items()
        >= {
            "model": "org/m",
            "commit": "c0ffee",
            "model_class": "LlamaForCausalLM",
            "versions": {"spectrum": "1", "torch": "2", "transformers": "5"},
            "head": "lm_head.weight",
            "embedding": "model.embed_tokens.weight",
            "parameters": {"lm_head.weight": {"shape": [8, 4], "dtype": "bfloat16"}},
            "scanned": ["up"],
        }.items()
    )


# Two layers, of which one is tied to the other, as they are recorded.
RECORDED = replace(
    RESULT,
    layers=(
        LayerSnr("h.0.up", "up", 0.5, None, BulkEdge(3, 60, 0.25, 0.5)),
        LayerSnr("h.1.up", "up", 2.0, None, BulkEdge(0, 8, 1e-9, 0.0)),
    ),
    provenance=replace(
        PROVENANCE,
        info=replace(
            PROVENANCE.info,
            parameters={
                "h.0.up.weight": Parameter((8, 4), "bfloat16", module="Linear", layer_type="up"),
                "h.1.up.weight": Parameter((8, 4), "bfloat16", "h.0.up.weight", "Linear"),
                "norm.weight": Parameter((4,), "float32"),
            },
        ),
    ),
)


def test_the_sidecar_records_edges_and_of_parameters_what_there_is_to_say(tmp_path: Path) -> None:
    save(tmp_path, RECORDED)
    meta = json.loads((tmp_path / SIDECAR).read_text())
    assert meta["edges"] == {"h.0.up": [3, 60, 0.25, 0.5], "h.1.up": [0, 8, 1e-9, 0.0]}
    assert meta["parameters"] == {
        "h.0.up.weight": {"shape": [8, 4], "dtype": "bfloat16", "module": "Linear", "layer_type": "up"},
        "h.1.up.weight": {"shape": [8, 4], "dtype": "bfloat16", "tied_to": "h.0.up.weight", "module": "Linear"},
        "norm.weight": {"shape": [4], "dtype": "float32"},
    }
    assert load(tmp_path, "org/m") == CachedScan(RECORDED, consistent=True)


def test_what_lies_at_the_edges_changes_nothing_of_the_scan_itself(tmp_path: Path) -> None:
    scan = save(tmp_path, RESULT).read_bytes()
    assert save(tmp_path, RECORDED).read_bytes() == scan


def test_a_sidecar_from_before_edges_ties_modules_and_types_were_recorded_is_read(tmp_path: Path) -> None:
    save(tmp_path, RECORDED)
    meta = json.loads((tmp_path / SIDECAR).read_text())
    del meta["edges"]
    for parameter in meta["parameters"].values():
        parameter.pop("tied_to", None)
        parameter.pop("module", None)
        parameter.pop("layer_type", None)
    (tmp_path / SIDECAR).write_text(json.dumps(meta))
    assert RECORDED.provenance is not None
    bare = {name: Parameter(own.shape, own.dtype) for name, own in RECORDED.provenance.info.parameters.items()}
    expected = replace(
        RESULT, provenance=replace(RECORDED.provenance, info=replace(RECORDED.provenance.info, parameters=bare))
    )
    assert load(tmp_path, "org/m") == CachedScan(expected, consistent=True)


def test_the_edges_of_some_layers_are_read_and_those_of_none_ignored(tmp_path: Path) -> None:
    save(tmp_path, RECORDED)
    meta = json.loads((tmp_path / SIDECAR).read_text())
    meta["edges"]["h.9.up"] = meta["edges"].pop("h.1.up")
    (tmp_path / SIDECAR).write_text(json.dumps(meta))
    cached = load(tmp_path, "org/m")
    assert cached is not None
    assert [layer.edge for layer in cached.result.layers] == [BulkEdge(3, 60, 0.25, 0.5), None]


def test_the_sorted_scores_descend_within_each_type_and_ties_keep_model_order() -> None:
    scores = [("h.2.up", 1.0), ("h.3.up", inf), ("h.10.up", 1.0), ("h.0.down", 0.5), ("h.0.up", 1.0), ("h.4.up", 2.0)]
    layers = tuple(LayerSnr(name, name.split(".")[-1], snr) for name, snr in scores)
    assert json.loads(sorted_json(replace(RESULT, layers=layers)), object_pairs_hook=list) == [
        ("up", [("h.3.up", inf), ("h.4.up", 2.0), ("h.2.up", 1.0), ("h.10.up", 1.0), ("h.0.up", 1.0)]),
        ("down", [("h.0.down", 0.5)]),
    ]


def test_a_sidecar_of_other_scores_does_not_belong(tmp_path: Path) -> None:
    save(tmp_path, RESULT)
    # Any edit counts, even of white space: what is not recorded cannot be trusted.
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text() + "\n")
    assert load(tmp_path, "org/m") == CachedScan(RESULT, consistent=False)


SIDECAR_KEYS = (
    *("revision", "commit", "fingerprint", "model_class", "class_asked", "versions", "head", "embedding"),
    *("parameters", "layer_types"),
)


@pytest.mark.parametrize(
    "change",
    [
        *[{key: ...} for key in (*SIDECAR_KEYS, "scores_sha256", "scanned", "left_out")],
        {"parameters": ["lm_head.weight"]},
        {"parameters": {"lm_head.weight": {"shape": "wide", "dtype": "bfloat16"}}},
        {"parameters": {"lm_head.weight": {"shape": [inf], "dtype": "bfloat16"}}},
        {"parameters": {"lm_head.weight": [8, 4]}},
        {"parameters": {"lm_head.weight": {"shape": [8, 4], "dtype": "bfloat16", "tied_to": 3}}},
        {"parameters": {"lm_head.weight": {"shape": [8, 4], "dtype": "bfloat16", "tied_to": "a$\n- ^b"}}},
        {"edges": ["h.0.up"]},
        {"edges": None},
        {"edges": {"h.0.up": None}},
        {"edges": {"h.0.up": 3}},
        {"edges": {"h.0.up": [3, 60, 0.25]}},
        {"edges": {"h.0.up": [3, 60, 0.25, 0.5, 0.5]}},
        {"edges": {"h.0.up": [3, "many", 0.25, 0.5]}},
        {"edges": {"h.0.up": [inf, 60, 0.25, 0.5]}},
        {"edges": {"h.0.up": [3, 60, None, 0.5]}},
        {"versions": None},
        {"layer_types": 3},
        {"scanned": None},
        {"scanned": "up"},
        # It would become a line of the YAML.
        {"head": 3},
        {"embedding": "a$\n- ^b"},
    ],
    ids=str,
)
def test_a_malformed_sidecar_is_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    save(tmp_path, RESULT)
    sidecar = tmp_path / SIDECAR
    meta = json.loads(sidecar.read_text()) | change
    sidecar.write_text(json.dumps({key: value for key, value in meta.items() if value is not ...}))
    with pytest.raises(ResultsError, match="--rescan") as refused:
        load(tmp_path, "org/m")
    assert str(sidecar) in str(refused.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", '{"a":' * 100_000], ids=lambda text: text[:10])
def test_a_sidecar_that_is_no_json_object_is_refused_by_name(tmp_path: Path, content: str) -> None:
    save(tmp_path, RESULT)
    (tmp_path / SIDECAR).write_text(content)
    with pytest.raises(ResultsError, match=f"{SIDECAR}.*--rescan"):
        load(tmp_path, "org/m")


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failing_write_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str, existed: bool
) -> None:
    path = tmp_path / "file.yaml"
    if existed:
        path.write_text("old")
    monkeypatch.setattr(owner, call, failing(NO_SPACE))
    with pytest.raises(ResultsError, match=r"cannot write .*file\.yaml: No space left on device"):
        write_atomically(path, "new")
    assert files_below(tmp_path) == (["file.yaml"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_an_interrupted_write_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert (path.read_text(), files_below(tmp_path)) == ("old", ["file.yaml"])


def test_a_write_replaces_the_whole_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.yaml"
    for text in ("first, and longer\n", "second é\n"):
        write_atomically(path, text)
        assert path.read_bytes() == text.encode()
    assert files_below(tmp_path) == ["new/file.yaml"]


def test_readers_see_the_old_content_until_the_new_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("old")
    fsync, seen = os.fsync, []

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        seen.append((path.read_text(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", spy)
    write_atomically(path, "new content")
    # All of the new content had been flushed to the file that was synchronised.
    assert seen == [("old", len("new content"))]


@pytest.mark.parametrize(
    "where", ["file/out.yaml", "file/below/out.yaml", "directory", pytest.param("n" * 300, id="long")]
)
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(ResultsError, match="cannot write") as refused:
        write_atomically(tmp_path / where, "text")
    assert str(tmp_path / where) in str(refused.value)
    assert files_below(tmp_path) == ["file"]


def test_a_save_that_is_cut_short_is_seen_at_the_next_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, RESULT)
    replacing, calls = Path.replace, []

    def once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > 1:
            raise NO_SPACE
        return replacing(self, target)

    monkeypatch.setattr(Path, "replace", once)
    rescanned = replace(RESULT, layers=(LayerSnr("h.0.up", "up", 9.0),))
    with pytest.raises(ResultsError, match=FILE):
        save(tmp_path, rescanned)
    cached = load(tmp_path, "org/m")
    assert cached is not None
    assert (cached.result.layers, cached.consistent) == (RESULT.layers, False)


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.mark.usefixtures("umask")
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    save(tmp_path, RESULT)
    write_atomically(sorted_path(tmp_path, "org/m"), sorted_json(RESULT))
    for name in files_below(tmp_path):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_check_writable_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable([Path("a"), Path("a/b"), tmp_path / "a", tmp_path / "c" / "d"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_check_writable_names_a_directory_that_takes_no_file(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="cannot write to") as refused:
        check_writable([tmp_path / "scan.json", tmp_path / where / "scan.json"])
    assert str(tmp_path / where) in str(refused.value)


def test_check_writable_names_a_directory_in_a_files_place(tmp_path: Path) -> None:
    (tmp_path / "scan.json").mkdir()
    with pytest.raises(ResultsError, match=r"cannot write .*/scan\.json: Is a directory"):
        check_writable([tmp_path / "scan.json"])


def status(mode: int, uid: int) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, uid, 1, 0, 0, 0))


STICKY = stat.S_IFDIR | stat.S_ISVTX | 0o777


@pytest.mark.parametrize(
    ("directory", "of_directory", "of_file", "me", "allowed"),
    [
        (STICKY, 0, 1001, 1000, False),  # as in /tmp
        (STICKY, 0, 1000, 1000, True),
        (STICKY, 1000, 1001, 1000, True),
        (STICKY, 0, 1001, 0, True),
        (stat.S_IFDIR | 0o777, 0, 1001, 1000, True),
    ],
)
def test_whose_files_can_be_replaced(directory: int, of_directory: int, of_file: int, me: int, allowed: bool) -> None:
    with nullcontext() if allowed else pytest.raises(PermissionError, match="another user"):
        files._check_replaceable(status(stat.S_IFREG | 0o644, of_file), status(directory, of_directory), me)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_check_writable_names_a_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsError, match="cannot write to"):
        check_writable([tmp_path / "below"])
