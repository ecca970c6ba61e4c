"""Which parameters a selection trains, and the list of these as Axolotl reads it. Strings in, string out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from spectrum.records import ModelInfo, ScanResult

# What the reference always writes, and what models of unknown provenance get.
LLAMA_HEAD = "lm_head.weight"
LLAMA_EMBEDDING = "model.embed_tokens.weight"
Layers = Mapping[str, Sequence[str]]  # names of layers, by layer type


def embedding_names(info: ModelInfo | None) -> tuple[str | None, str | None]:
    """Parameter names of the output head and the input embedding; Llama's where they are unknown."""
    if info is None:
        return LLAMA_HEAD, LLAMA_EMBEDDING
    return info.head, info.embedding


def is_embedding(layer: str, info: ModelInfo | None) -> bool:
    """Whether a layer is the input embedding or the output head, or tied to one."""
    own = {layer, f"{layer}.weight"}
    wanted = {name for name in embedding_names(info) if name is not None}
    if info is None:
        return not own.isdisjoint(wanted)
    return not set(map(info.owner, own)).isdisjoint(map(info.owner, wanted))


def known_parameters(result: ScanResult) -> list[str]:
    """Names of a model's parameters, sorted; its scored weights alone where no more is known."""
    if result.info is None:
        names = [*(layer.name for layer in result.whole.layers), *result.left_out]
        return sorted(f"{name}.weight" for name in names)
    return sorted(result.info.parameters)


def own_parameters(name: str, parameters: Sequence[str]) -> list[str]:
    """Parameters of a layer itself: a module's weight and bias, or a bare parameter and the bias beside it.

    parameters: sorted.
    """
    matched = _with_prefix(name, parameters)
    return [own for own in (f"{name}.weight", f"{name}.bias", name, f"{name}_bias") if own in matched]


def unfrozen_entries(
    layers: Layers, parameters: Sequence[str], tied: Mapping[str, str], embeddings: Iterable[str]
) -> dict[str, list[str]]:
    """Entries of each layer type.

    An entry is a prefix pattern in every consumer. It is the layer's bare name, unless that would also match a
    parameter of a layer that is not selected: then each of the layer's own parameters is an entry. One that is tied
    to a parameter which no entry is for is followed by that, which is all that trainers see of it.
    parameters: all of the model's, sorted. tied: those that are tied, and to what. embeddings: parameters that have
    lines of their own.
    """
    intended = {own for names in layers.values() for name in names for own in own_parameters(name, parameters)}
    covered = {*intended, *embeddings}
    entries: dict[str, list[str]] = {}
    for layer_type, names in layers.items():
        entries[layer_type] = []
        for name in names:
            seen = [tied[own] for own in own_parameters(name, parameters) if tied.get(own, own) not in covered]
            entries[layer_type] += [*_entries(name, parameters, intended), *seen]
            covered.update(seen)
    return entries


def render_axolotl(entries: Layers, embeddings: Iterable[str | None]) -> str:
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
    return own_parameters(name, parameters) or [f"{name}.weight"]


def _with_prefix(prefix: str, parameters: Sequence[str]) -> list[str]:
    """The names of a sorted sequence that start with a prefix."""
    start = end = bisect_left(parameters, prefix)
    while end < len(parameters) and parameters[end].startswith(prefix):
        end += 1
    return list(parameters[start:end])
