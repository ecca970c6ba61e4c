"""The list that Axolotl's SpectrumPlugin makes: from a scan beside the config, by a rule of its own.

As its code in Axolotl 0.19, `integrations/spectrum`, which is the same in 0.21.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrum.errors import SelectionError
from spectrum.files import parse_json, read_untrusted, slug
from spectrum.text import in_line
from spectrum.trainers.lists import EntryList
from spectrum.trainers.untrusted_yaml import Document, check_name, repeated, shown

NAME = "SpectrumPlugin"
# The plugin writes these whatever the model calls its embeddings.
FIRST_LINES = ("^lm_head.weight$", "^model.embed_tokens.weight$")

_MAX_BYTES = 64 << 20
_DEFAULT_FRACTION = 0.5


@dataclass(frozen=True, slots=True)
class PluginList:
    """The list that the plugin makes for a config.

    Args:
        path: the scan that it reads, relative to the working directory.
        entries: the list, with the rest of the config; None if there is no scan to make it from.
        problems: what keeps the plugin from making the list that is meant, one line each.
        notes: other lines that inform the user.
    """

    path: Path
    entries: EntryList | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    reader = "Axolotl's SpectrumPlugin"

    @property
    def num_entries(self) -> int:
        """How many entries the list has."""
        return 0 if self.entries is None else len(self.entries.entries)


def plugin(document: Document) -> PluginList | None:
    """The list that the plugin makes; None if the config does not have it, or has a list of its own.

    Raises SelectionError if the config does not say for which model, or if the scan cannot be read.
    """
    config = document.content
    plugins = config.get("plugins")
    if not isinstance(plugins, list) or not any(isinstance(name, str) and NAME in name for name in plugins):
        return None
    model = config.get("spectrum_model_name") or config.get("base_model")
    if not isinstance(model, str):
        raise SelectionError(f"{document.path} has {NAME}, and neither spectrum_model_name nor base_model")
    check_name(model, f"the model's name in {document.path}")
    name = slug(model)
    if "\\" in name or name in (".", ".."):
        raise SelectionError(f"the model's name in {document.path}, {model[:40]!r}, is no name of a file")
    path = Path("model_snr_results", f"snr_results_{name}.json")
    fraction, problems, notes = _fraction(config)
    notes.append(f"{NAME} reads {path} in the directory in which Axolotl starts; here that is the working directory")
    if not config.get("spectrum_model_name"):
        notes.append(f"spectrum_model_name is not set, so {NAME} takes base_model: {model}")
    if config.get("gradient_checkpointing"):
        notes += list(_checkpointing(config))
    scores = _scores(path)
    entries = None
    if scores is None:
        problems.append(
            f"{path} is not in {in_line(str(Path.cwd()))}: {NAME} then fetches a scan by the reference; without one it "
            f"only warns, and everything trains; make it with: spectrum --model-name {model}"
        )
    elif fraction is not None:
        settings = {key: value for key, value in config.items() if key != "plugins"}
        listed = tuple(_entries(scores, fraction))
        entries = EntryList(listed, listed, settings, dict(repeated(document.root)))
    return PluginList(path, entries, tuple(problems), tuple(notes))


def _fraction(config: Mapping[str, Any]) -> tuple[float | None, list[str], list[str]]:
    """The fraction of each layer type that the plugin selects, with problems and notes. None if it is no number."""
    value = config.get("spectrum_top_fraction", _DEFAULT_FRACTION)
    notes = []
    if "spectrum_top_fraction" not in config:
        notes.append(f"spectrum_top_fraction is not set, so {NAME} takes {_DEFAULT_FRACTION}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, [f"spectrum_top_fraction is {shown(value)}, not a number from 0 to 1"], notes
    if value > 1:
        wanted = f"; write {value / 100:g} for {value:g} percent" if value <= 100 else ""
        return float(value), [f"spectrum_top_fraction is over 1, so {NAME} selects every layer{wanted}"], notes
    if value <= 0:
        return None, [f"spectrum_top_fraction is {value:g}, not a number from 0 to 1"], notes
    return float(value), [], notes


def _checkpointing(config: Mapping[str, Any]) -> Iterator[str]:
    kwargs = config.get("gradient_checkpointing_kwargs")
    if not isinstance(kwargs, dict) or kwargs.get("use_reentrant") is not False:
        yield (
            "Axolotl takes reentrant checkpointing, because the config has no list yet when it decides; set "
            "gradient_checkpointing_kwargs to {use_reentrant: false}"
        )


def _scores(path: Path) -> Mapping[str, tuple[str, float]] | None:
    """The type and the score of each layer in a scan; None if there is no file, or if it is empty."""
    try:
        content = parse_json(read_untrusted(path, _MAX_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SelectionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SelectionError(f"{path} is not JSON: {error}; scan again with --rescan") from error
    if not content:
        return None
    scores = {}
    for name, entry in content.items() if isinstance(content, dict) else [("", None)]:
        layer_type, snr = (entry.get("type"), entry.get("snr")) if isinstance(entry, dict) else (None, None)
        if not isinstance(layer_type, str) or isinstance(snr, bool) or not isinstance(snr, int | float) or not name:
            raise SelectionError(
                f"{path} is not the file that {NAME} can read: {name[:40]!r} lacks its type or SNR; scan again"
            )
        check_name(name, f"a layer in {path}")
        scores[name] = (layer_type, float(snr))
    return scores


def _entries(scores: Mapping[str, tuple[str, float]], fraction: float) -> Iterator[str]:
    """The plugin's list: the first lines, then the best layers of each type, types in the order of the scan."""
    yield from FIRST_LINES
    by_type: dict[str, list[str]] = {}
    for name, (layer_type, _) in scores.items():
        by_type.setdefault(layer_type, []).append(name)
    for names in by_type.values():
        best = sorted(names, key=lambda name: scores[name][1], reverse=True)
        yield from best[: int(len(names) * fraction)]
