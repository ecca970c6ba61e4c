"""The list of parameters to leave trainable, as Axolotl reads it. Strings in, string out."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from spectrum.layers import Provenance, ScanResult, Selection

# What the reference always writes, and what models of unknown provenance get.
LLAMA_HEAD = "lm_head.weight"
LLAMA_EMBEDDING = "model.embed_tokens.weight"


def unfrozen_entries(selection: Selection, result: ScanResult, *, embeddings: bool) -> dict[str, list[str]]:
    """Entries of each layer type, by descending SNR.

    An entry is a prefix pattern in every consumer. It is the layer's bare name, unless that would also match a
    parameter of an unselected layer: then each of the layer's own parameters is an entry. Without `embeddings`, the
    input embedding and the output head are never entries.
    """
    head, embedding = embedding_names(result.provenance)
    excluded = set() if embeddings else {head, embedding}
    if result.provenance is None:
        names = [*(layer.name for layer in result.layers), *result.left_out]
        parameters = sorted(f"{name}.weight" for name in names)
    else:
        parameters = sorted(result.provenance.parameters)
    chosen = {
        kind.layer_type: [layer.name for layer in kind.selected if f"{layer.name}.weight" not in excluded]
        for kind in selection.types
    }
    intended = {own for names in chosen.values() for name in names for own in _own_parameters(name, parameters)}
    return {
        layer_type: [entry for name in names for entry in _entries(name, parameters, intended)]
        for layer_type, names in chosen.items()
    }


def embedding_names(provenance: Provenance | None) -> tuple[str | None, str | None]:
    """Parameter names of the output head and the input embedding; Llama's where they are unknown."""
    if provenance is None:
        return LLAMA_HEAD, LLAMA_EMBEDDING
    return provenance.head, provenance.embedding


def render_axolotl(entries: dict[str, list[str]], embeddings: Iterable[str | None]) -> str:
    """The YAML that Axolotl reads, byte for byte what the reference writes wherever both are defined."""
    lines = ["unfrozen_parameters:"]
    lines += [f"- ^{name}$" for name in embeddings if name is not None]
    for layer_type, names in entries.items():
        lines.append(f"# {layer_type} layers")
        lines += [f"- {_scalar(name)}" for name in names]
    return "\n".join(lines) + "\n"


def _scalar(name: str) -> str:
    """A name as any YAML reader gives it back: quoted where one would take it for a number, a date or a truth value."""
    if "." in name and name[0].isalpha():
        return name
    import yaml

    try:
        plain = yaml.safe_load(name) == name and name.lower() not in ("y", "n")
    except (ValueError, yaml.YAMLError):  # what looks like a number or a date, and is none
        plain = False
    with suppress(ValueError):
        float(name)
        plain = False
    return name if plain else f"'{name}'"


def _entries(name: str, parameters: Sequence[str], intended: Collection[str]) -> list[str]:
    matched = _with_prefix(name, parameters)
    if all(parameter in intended for parameter in matched):
        return [name]
    return _own_parameters(name, parameters) or [f"{name}.weight"]


def _own_parameters(name: str, parameters: Sequence[str]) -> list[str]:
    """Parameters of the layer itself: a module's weight and bias, or a bare parameter and the bias beside it."""
    matched = _with_prefix(name, parameters)
    return [own for own in (f"{name}.weight", f"{name}.bias", name, f"{name}_bias") if own in matched]


def _with_prefix(prefix: str, parameters: Sequence[str]) -> list[str]:
    """The names of a sorted sequence that start with a prefix."""
    start = end = bisect_left(parameters, prefix)
    while end < len(parameters) and parameters[end].startswith(prefix):
        end += 1
    return list(parameters[start:end])
