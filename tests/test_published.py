"""Scans that the reference's community published: what the reference writes from them, this project writes too."""

from __future__ import annotations

import json
import re
import shutil
from math import inf
from pathlib import Path
from typing import Any

import pytest

from spectrum.cli.entry import main
from tests.helpers.paths import PUBLISHED, files_below

pytestmark = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published scans are not here")

# Names of scans, as their files carry them. A slug is its own slug, so it serves as the model's name.
SCANS = sorted(path.stem.removeprefix("snr_results_") for path in PUBLISHED.glob("snr_results_*.json"))
EXPECTED = sorted((PUBLISHED / "expected").glob("*.yaml"))
EMPTY = "deepseek-ai-DeepSeek-V3.1-Base"
GROK = "xai-grok"


def spectrum(name: str, percent: str, directory: Path) -> int:
    """The command on a copy of a published scan; the YAML goes below `out`."""
    results = directory / "results"
    results.mkdir()
    shutil.copyfile(PUBLISHED / f"snr_results_{name}.json", results / f"snr_results_{name}.json")
    directories = ["--results-dir", str(results), "--output-dir", str(directory / "out")]
    return main(["--model-name", name, "--top-percent", percent, *directories])


def flat(name: str) -> dict[str, tuple[str, float]]:
    """Layer type and SNR of each layer, whichever form the scan is in."""
    content: dict[str, dict[str, Any]] = json.loads((PUBLISHED / f"snr_results_{name}.json").read_text())
    if all("snr" in entry for entry in content.values()):
        return {layer: (entry["type"], entry["snr"]) for layer, entry in content.items()}
    return {layer: (kind, snr) for kind, group in content.items() for layer, snr in group.items()}


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.stem.removeprefix("snr_results_"))
def test_the_yaml_is_the_references_byte_for_byte(expected: Path, tmp_path: Path) -> None:
    named = re.fullmatch(r"snr_results_(.+)_unfrozenparameters_(.+)percent", expected.stem)
    assert named is not None
    name, percent = named.groups()

    assert spectrum(name, percent, tmp_path) == 0

    assert (tmp_path / "out" / expected.name).read_bytes() == expected.read_bytes()
    # A scan of the reference's is used as it is: no sidecar is added, nothing is rewritten.
    scan = f"snr_results_{name}.json"
    assert files_below(tmp_path / "results") == [scan]
    assert (tmp_path / "results" / scan).read_bytes() == (PUBLISHED / scan).read_bytes()


@pytest.mark.parametrize("name", [name for name in SCANS if name != EMPTY])
def test_the_sorted_scores_hold_every_published_score(name: str, tmp_path: Path) -> None:
    assert spectrum(name, "50", tmp_path) == 0

    # By type in the order of the file, each descending, ties in the order of the file.
    groups: dict[str, list[tuple[str, float]]] = {}
    for layer, (kind, snr) in flat(name).items():
        groups.setdefault(kind, []).append((layer, snr))
    expected = [(kind, sorted(group, key=lambda entry: -entry[1])) for kind, group in groups.items()]
    written = (tmp_path / "out" / f"snr_results_{name}_sorted.json").read_text()
    assert json.loads(written, object_pairs_hook=list) == expected


@pytest.mark.parametrize("percent", [25, 50])
def test_no_entry_of_groks_list_also_matches_an_unselected_weight(percent: int, tmp_path: Path) -> None:
    assert spectrum(GROK, str(percent), tmp_path) == 0

    layers = flat(GROK)
    counts: dict[str, int] = {}
    for kind, _ in layers.values():
        counts[kind] = counts.get(kind, 0) + 1
    selected: set[str] = set()
    for kind, count in counts.items():
        ranked = sorted((name for name in layers if layers[name][0] == kind), key=lambda name: -layers[name][1])
        selected.update(f"{name}.weight" for name in ranked[: count * percent // 100])
    assert max(snr for _, snr in layers.values()) == inf

    yaml_file = tmp_path / "out" / f"snr_results_{GROK}_unfrozenparameters_{percent}percent.yaml"
    entries = [line[2:] for line in yaml_file.read_text().splitlines() if line.startswith("- ")]
    assert entries[:2] == ["^lm_head.weight$", "^model.embed_tokens.weight$"]
    # Names collide in this model, so not every entry is a bare one.
    assert 0 < sum(entry.endswith(".weight") for entry in entries[2:]) < len(entries[2:])
    weights = [f"{name}.weight" for name in layers]
    matched = {weight for entry in map(re.compile, entries[2:]) for weight in weights if entry.match(weight)}
    assert matched == selected


def test_an_empty_scan_is_refused_by_name_and_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spectrum(EMPTY, "25", tmp_path) == 1

    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    scan = tmp_path / "results" / f"snr_results_{EMPTY}.json"
    assert str(scan) in stderr
    assert "--rescan" in stderr
    assert scan.read_bytes() == (PUBLISHED / scan.name).read_bytes()
    assert files_below(tmp_path) == [f"results/{scan.name}"]
