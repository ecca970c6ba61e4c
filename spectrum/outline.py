"""A model's parameters by its config alone: no weight is read, and of a repository none is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spectrum import hub, skeleton
from spectrum.layers import Parameter

# More than any published model has stored: they bound its modules, and are not counted here.
_TENSORS = 100_000


@dataclass(frozen=True, slots=True)
class Outline:
    """The names that a trainer sees. modules: paths of all modules. warnings: what speaks against relying on them."""

    model_class: str
    parameters: Mapping[str, Parameter]
    modules: frozenset[str]
    head: str | None
    embedding: str | None
    warnings: tuple[str, ...]


def outline(model: str, *, revision: str | None, model_class: str | None, trust_remote_code: bool) -> Outline:
    """A model as its class and config have it. Ties are those of the config.

    Raises CheckpointError or HubError where there is no such model, or none that transformers can build.
    """
    directory = hub.local_directory(model) or hub.config_snapshot(model, revision, remote_code=trust_remote_code)
    config = skeleton.read_config(directory, trust_remote_code=trust_remote_code)
    meta = skeleton.meta_model(directory, config, model_class, _TENSORS, trust_remote_code=trust_remote_code)
    skeleton.check_names(meta, directory)
    # The first name of each group is the one that `named_parameters()` lists.
    order = {name: i for i, (name, _) in enumerate(skeleton.parameters(meta))}
    owners = {name: min(group, key=order.__getitem__) for group in skeleton.tied_groups(meta) for name in group}
    parameters = {}
    for path, own, module in skeleton.owned_parameters(meta):
        name = f"{path}.{own}" if path else own
        value = module.get_parameter(own)
        tied_to = owners.get(name, name)
        parameters[name] = Parameter(
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            tied_to=None if tied_to == name else tied_to,
            module=skeleton.torch_class(module),
        )
    head, embedding = skeleton.head_and_embedding(meta)
    return Outline(
        model_class=type(meta).__name__,
        parameters=parameters,
        modules=frozenset(path for path, _ in meta.named_modules(remove_duplicate=False) if path),
        head=head,
        embedding=embedding,
        warnings=tuple(skeleton.name_warnings(meta)),
    )
