"""Which parameters does a selection train, and what does the list say? Names in, text out.

`unfrozen_entries` gives the entries of the list, `render_axolotl` the text of the YAML file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from spectrum.records import WEIGHT_NORM, ModelInfo, ScanResult

# The two names that the reference always writes. They are used only for scans of other tools, which name no embeddings.
LLAMA_HEAD = "lm_head.weight"
LLAMA_EMBEDDING = "model.embed_tokens.weight"
Layers = Mapping[str, Sequence[str]]  # layer type -> names of layers


class ParameterIndex:
    """The names of a model's parameters, sorted once, to be looked up for each layer.

    Args:
        names: the names of all parameters, in any order.
        tied: each tied parameter that trainers do not see, with its owner, under which they see it.
        embedding_parameters: the names of the parameters of the output head and the input embedding.
    """

    def __init__(
        self, names: Iterable[str], tied: Mapping[str, str] | None = None, embedding_parameters: Iterable[str] = ()
    ) -> None:
        self._sorted = sorted(names)
        self._names = frozenset(self._sorted)
        self._tied = tied or {}
        self.embedding_parameters = tuple(embedding_parameters)
        self._embedding_owners = frozenset(map(self.owner, self.embedding_parameters))

    @classmethod
    def of(cls, result: ScanResult) -> ParameterIndex:
        """The index of a scanned model.

        A scan by another tool does not name parameters. Each layer is then taken to have a weight, and the embeddings
        to have Llama's names.
        """
        info = result.info
        if info is None:
            layers = [*(layer.name for layer in result.whole.layers), *result.left_out]
            return cls((f"{layer}.weight" for layer in layers), embedding_parameters=(LLAMA_HEAD, LLAMA_EMBEDDING))
        return cls(info.parameters, info.tied(), _embedding_parameters(info))

    def starting_with(self, prefix: str) -> list[str]:
        """The names that start with a prefix, sorted."""
        start = end = bisect_left(self._sorted, prefix)
        while end < len(self._sorted) and self._sorted[end].startswith(prefix):
            end += 1
        return self._sorted[start:end]

    def own(self, layer: str) -> list[str]:
        """The parameters of a layer itself: a module's weight and bias, or a bare parameter and the bias beside it.

        Under weight normalization, two parameters take the place of the weight.
        """
        normalized = (f"{layer}.{name}" for name in WEIGHT_NORM)
        candidates = (f"{layer}.weight", *normalized, f"{layer}.bias", layer, f"{layer}_bias")
        return [name for name in candidates if name in self._names]

    def owner(self, name: str) -> str:
        """The owner of a tied parameter: the name under which trainers see it. Otherwise the name itself."""
        return self._tied.get(name, name)

    def is_embedding(self, layer: str) -> bool:
        """Whether a layer is the input embedding or the output head, or is tied to one."""
        return any(self.owner(name) in self._embedding_owners for name in (layer, f"{layer}.weight"))


def _embedding_parameters(info: ModelInfo) -> list[str]:
    """The output head and the owner of the input embedding, and the owner of the head if that is a third parameter.

    A tied head keeps its name, although trainers see only the owner: Axolotl looks for the word `lm_head`.
    """
    head = [] if info.head is None else [info.head]
    embedding = [] if info.embedding is None else [info.owner(info.embedding)]
    return list(dict.fromkeys([*head, *embedding, *map(info.owner, head)]))


def unfrozen_entries(
    layers: Layers, index: ParameterIndex, embedding_parameters: Iterable[str]
) -> dict[str, list[str]]:
    """The entries of each layer type.

    Every trainer reads an entry as a prefix. So the bare name of a layer is an entry only if every parameter whose name
    starts with it is selected. Otherwise each of the layer's own parameters is an entry, and is anchored (`^name$`) if
    it is the beginning of another parameter's name.

    A tied parameter is followed by its owner, unless the list has it already: trainers see only the owner.

    Args:
        layers: the selected layers.
        index: the names of all the model's parameters.
        embedding_parameters: the embedding parameters that the list has in any case.
    """
    own = {layer: index.own(layer) for group in layers.values() for layer in group}
    selected = {name for names in own.values() for name in names}
    covered = {*selected, *embedding_parameters}
    entries: dict[str, list[str]] = {}
    for layer_type, group in layers.items():
        entries[layer_type] = []
        for layer in group:
            owners = [owner for name in own[layer] if (owner := index.owner(name)) not in covered]
            own_entries = _layer_entries(layer, index, selected)
            entries[layer_type] += [*own_entries, *(_parameter_entry(owner, index, selected) for owner in owners)]
            covered.update(owners)
    return entries


def _layer_entries(layer: str, index: ParameterIndex, selected: Collection[str]) -> list[str]:
    """The entries of one layer. selected: the parameters of all selected layers."""
    if all(name in selected for name in index.starting_with(layer)):
        return [layer]
    return [_parameter_entry(name, index, selected) for name in index.own(layer) or [f"{layer}.weight"]]


def _parameter_entry(parameter: str, index: ParameterIndex, selected: Collection[str]) -> str:
    """The entry of one parameter. selected: the parameters of all selected layers."""
    others = (name for name in index.starting_with(parameter) if name != parameter)
    return parameter if all(name in selected for name in others) else f"^{parameter}$"


def render_axolotl(entries: Layers, embedding_parameters: Iterable[str], comment: str = "") -> str:
    """The text of the YAML file that Axolotl reads, byte for byte what the reference writes where both are defined.

    Args:
        entries: the entries of each layer type. Each type has a comment, even if it has no entry.
        embedding_parameters: the embedding parameters, whose lines come first.
        comment: one line below the key, which every reader of such lists skips; empty for none.
    """
    lines = ["unfrozen_parameters:", *([f"# {comment}"] if comment else [])]
    lines += [f"- ^{name}$" for name in embedding_parameters]
    for layer_type, group in entries.items():
        lines.append(f"# {layer_type} layers")
        lines += [f"- {yaml_scalar(entry)}" for entry in group]
    return "\n".join(lines) + "\n"


def yaml_scalar(name: str) -> str:
    """A name as YAML text. It is quoted if YAML readers would read it as a number, a date or a truth value."""
    if "." in name and name[0].isalpha():
        return name
    import yaml

    try:
        plain = yaml.safe_load(name) == name and name.lower() not in ("y", "n")
    except (ValueError, yaml.YAMLError):  # the name looks like a number or a date, but is not a valid one
        plain = False
    with suppress(ValueError):
        float(name)
        plain = False
    return name if plain else f"'{name}'"
