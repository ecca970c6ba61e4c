"""Tiny checkpoints of each architecture: names, values and scores against the model that transformers itself loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import CheckpointError
from spectrum.records import LayerWeight, ScanResult
from spectrum.scanning.assemble import assemble
from spectrum.selection.selection import top_percent
from tests.helpers.architectures import ARCHITECTURES, built
from tests.helpers.oracle import oracle_snr
from tests.helpers.scanned import scan

State = dict[str, torch.Tensor]

CPU = [torch.device("cpu")]

# Parameters that hold weight matrices without being a module's `weight`, in the architectures of the table.
BARE_MATRICES = re.compile(r"\.experts\.(gate_up_proj|down_proj)$|\.in_proj_weight$|\.mm_input_projection_weight$")


def loaded(directory: Path) -> Any:
    """The model as transformers' own loader makes it, of the class that the checkpoint names."""
    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(directory, dtype="auto")


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Under every name: a tied one under each module that owns it."""
    return {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}


def owners(model: torch.nn.Module) -> dict[str, str]:
    """Every layer to score with its parameter's name, in model order: modules with a `weight`, and bare matrices.

    Of a weight under weight normalization, the parameter is the direction.
    """
    return {
        (path.removesuffix(".parametrizations.weight") if own in ("weight", "original1") else f"{path}.{own}"): (
            f"{path}.{own}"
        )
        for path, module in model.named_modules(remove_duplicate=False)
        for own, _ in module.named_parameters(recurse=False)
        if own in ("weight", "original1") or BARE_MATRICES.search(f"{path}.{own}")
    }


def as_matrices(model: torch.nn.Module, parameter: str) -> torch.Tensor:
    """A parameter of a loaded model as the contract has it scored: (matrices, n, m)."""
    module, value = model.get_submodule(parameter.rpartition(".")[0]), model.get_parameter(parameter).detach()
    if parameter.endswith(".original1"):
        norms = model.get_parameter(parameter.replace("original1", "original0")).detach()
        kept = model.get_submodule(
            f"{parameter.rpartition('.')[0]}.0"
        ).dim  # of the weight's dimensions; a norm is one over all others
        length = value.double().pow(2).sum([d for d in range(value.ndim) if d != kept], keepdim=True).sqrt()
        value = (norms.double() * value.double() / length).to(value.dtype)
        module = model.get_submodule(parameter.removesuffix(".parametrizations.weight.original1"))
    if value.ndim == 1:
        return value.reshape(1, 1, -1)
    if isinstance(module, torch.nn.ConvTranspose1d):
        assert module.groups == 1
        value = value.transpose(0, 1)
    if value.ndim == 2 or "Conv" in type(module).__name__:
        return value.reshape(1, len(value), -1)
    return value


def name_of(model: torch.nn.Module, getter: str) -> str | None:
    """Name of the weight of what `get_input_embeddings` or its counterpart returns, None where a model has none."""
    try:
        wanted = getattr(model, getter)()
    except NotImplementedError:
        return None
    return next((f"{name}.weight" for name, module in model.named_modules() if module is wanted), None)


def matrices(checkpoint: Checkpoint, weight: LayerWeight) -> torch.Tensor:
    return torch.stack([checkpoint.read(weight, index) for index in range(weight.num_matrices)])


def same_bits(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether a stored value is the loaded one; transformers widens some on loading, depending on its version."""
    widened = stored.to(loaded.dtype)
    is_wider = loaded.dtype.itemsize >= stored.dtype.itemsize
    return (
        is_wider and widened.shape == loaded.shape and torch.equal(widened.view(torch.uint8), loaded.view(torch.uint8))
    )


def scanned(checkpoint: Checkpoint) -> ScanResult:
    scores = scan(checkpoint.weights, checkpoint.read, CPU)
    return assemble("model", checkpoint.weights, scores, checkpoint.provenance)


# One of each kind that is read in its own way; the others take long together.
KINDS = ("llama", "gpt2", "mixtral", "gpt-oss", "t5")
EVERY = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.fixture(scope="module", params=EVERY)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an architecture in many shards."""
    directory = tmp_path_factory.mktemp(request.param)
    built(request.param).save_pretrained(directory, max_shard_size="8KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    return directory


@pytest.fixture(scope="module")
def checkpoint(saved: Path) -> Checkpoint:
    return open_checkpoint(str(saved))


@pytest.fixture(scope="module")
def model(saved: Path) -> Any:
    return loaded(saved)


@pytest.fixture(scope="module")
def result(checkpoint: Checkpoint) -> ScanResult:
    return scanned(checkpoint)


def test_every_module_that_owns_a_weight_is_scored_once_in_model_order(checkpoint: Checkpoint, model: Any) -> None:
    assert [weight.name for weight in checkpoint.weights] == list(owners(model))


def test_every_matrix_is_read_bit_for_bit_as_transformers_loads_it(checkpoint: Checkpoint, model: Any) -> None:
    for weight in checkpoint.weights:
        parameter = owners(model)[weight.name]
        assert weight.shape == tuple(model.get_parameter(parameter).shape)
        assert same_bits(matrices(checkpoint, weight), as_matrices(model, parameter)), weight.name


def test_tied_weights_are_one_and_others_are_not(checkpoint: Checkpoint, model: Any) -> None:
    identity = {name: id(model.get_parameter(parameter)) for name, parameter in owners(model).items()}
    for a in checkpoint.weights:
        for b in checkpoint.weights:
            assert (a.parameter == b.parameter) == (identity[a.name] == identity[b.name]), (a.name, b.name)


def test_the_provenance_names_every_parameter_and_the_class(checkpoint: Checkpoint, model: Any) -> None:
    made = checkpoint.provenance.info
    assert made.model_class == type(model).__name__
    shapes = {name: tuple(value.shape) for name, value in parameters(model).items()}
    assert {name: p.shape for name, p in made.parameters.items()} == shapes
    assert {p.dtype for p in made.parameters.values()} == {"bfloat16"}  # as stored


def test_the_provenance_says_which_parameters_are_tied(checkpoint: Checkpoint, model: Any) -> None:
    made = checkpoint.provenance.info.parameters
    owner = {name: own.tied_to or name for name, own in made.items()}
    assert all(made[name].tied_to is None for name in owner.values())
    identity = {name: id(model.get_parameter(name)) for name in made}
    for a in made:
        for b in made:
            assert (owner[a] == owner[b]) == (identity[a] == identity[b]), (a, b)


def test_the_provenance_says_which_modules_are_torchs_own(checkpoint: Checkpoint, model: Any) -> None:
    for name, own in checkpoint.provenance.info.parameters.items():
        module = model.get_submodule(name.rpartition(".")[0])
        classes = [kind for kind in type(module).__mro__ if kind is not torch.nn.Module]
        known = [
            kind for kind in classes if getattr(torch.nn, kind.__name__, None) is kind or kind.__name__ == "Conv1D"
        ]
        grouped = "grouped " if getattr(module, "groups", 1) > 1 else ""
        assert own.module == (f"{grouped}{known[0].__name__}" if known else None), name


def test_head_and_embedding_are_the_models_own(checkpoint: Checkpoint, model: Any) -> None:
    assert checkpoint.provenance.info.head == name_of(model, "get_output_embeddings")
    assert checkpoint.provenance.info.embedding == name_of(model, "get_input_embeddings")


def test_every_score_is_that_of_the_loaded_weight(result: ScanResult, model: Any) -> None:
    assert {layer.name for layer in result.layers} == set(owners(model))
    for layer in result.layers:
        stack = as_matrices(model, owners(model)[layer.name])
        expected = [oracle_snr(matrix.float().numpy()) for matrix in stack]
        assert layer.snr == pytest.approx(np.median(expected), rel=1e-8), layer.name
        if layer.experts is None:
            assert len(expected) == 1
        else:
            assert layer.experts == pytest.approx(expected, rel=1e-8), layer.name


def test_types_carry_the_path_of_the_tower_where_suffixes_are_shared(result: ScanResult) -> None:
    # Whatever the towers are called: no type pools layers of two stacks.
    stacks: dict[str, set[str]] = {}
    for layer in result.layers:
        stack, *below = re.split(r"\.\d+\.", layer.name, maxsplit=1)
        if below:
            stacks.setdefault(layer.layer_type, set()).add(stack)
    assert all(len(found) == 1 for found in stacks.values()), stacks


@pytest.mark.parametrize(("percent", "embeddings"), [("50", True), ("100", False)])
def test_the_entries_match_the_parameters_of_the_selected_modules_and_no_others(
    result: ScanResult, model: Any, percent: str, embeddings: bool
) -> None:
    chosen = top_percent(result, percent, embeddings=embeddings)
    selected = {layer.name for kind in chosen.types for layer in kind.selected}
    if not embeddings:
        # Whatever shares its values with one of these would train them, too.
        named = {name_of(model, getter) for getter in ("get_output_embeddings", "get_input_embeddings")} - {None}
        values = [model.get_parameter(name) for name in named]
        parameter_of = owners(model)
        selected -= {name for name in selected if any(model.get_parameter(parameter_of[name]) is v for v in values)}
    entries = [entry for group in chosen.entries().values() for entry in group]
    names = list(parameters(model))
    matched = {entry: {name for name in names if re.match(entry, name)} for entry in entries}
    assert all(matched.values()), matched
    # A fused stack's bias lies beside it, a module's within it, and so do the parts of a normalized weight.
    normalized = ".parametrizations.weight."
    ends = {n: {n, n.rpartition(".")[0], n.removesuffix("_bias"), n.partition(normalized)[0]} for n in names}
    intended = {n for n in names if ends[n] & selected}
    assert set().union(*matched.values()) == intended


# Other forms of a checkpoint, and other contents than a model saves.


def with_state(directory: Path, state: State, file: str = "model.safetensors", **config: object) -> Path:
    """The checkpoint with these tensors instead, in one file, and with these changes of its config."""
    for weights in [*directory.glob("model*.safetensors*"), *directory.glob("pytorch_model*")]:
        weights.unlink()
    if file.endswith(".safetensors"):
        safetensors.torch.save_file(state, directory / file, metadata={"format": "pt"})
    else:
        torch.save(state, directory / file)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def save(architecture: str, directory: Path) -> tuple[Path, State]:
    """A checkpoint in one file, and the tensors in it."""
    built(architecture).save_pretrained(directory)
    return directory, safetensors.torch.load_file(directory / "model.safetensors")


def assert_as_transformers_loads(directory: Path) -> Checkpoint:
    checkpoint, model = open_checkpoint(str(directory)), loaded(directory)
    values = parameters(model)
    assert [weight.name for weight in checkpoint.weights] == list(owners(model))
    for weight in checkpoint.weights:
        assert same_bits(matrices(checkpoint, weight), as_matrices(model, owners(model)[weight.name])), weight.name
    assert {name: p.shape for name, p in checkpoint.provenance.info.parameters.items()} == {
        name: tuple(value.shape) for name, value in values.items()
    }
    return checkpoint


@pytest.mark.parametrize("architecture", EVERY)
def test_a_checkpoint_in_one_file_reads_the_same(tmp_path: Path, architecture: str) -> None:
    directory, _ = save(architecture, tmp_path)
    assert len(list(directory.glob("*.safetensors"))) == 1
    assert_as_transformers_loads(directory)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_checkpoint_in_a_torch_archive_reads_the_same(tmp_path: Path, architecture: str) -> None:
    directory, state = save(architecture, tmp_path)
    assert_as_transformers_loads(with_state(directory, state, "pytorch_model.bin"))


def test_a_gpt2_of_old_whose_keys_lack_the_prefix_reads_the_same(tmp_path: Path) -> None:
    directory, state = save("gpt2", tmp_path)
    old = {key.removeprefix("transformer."): value for key, value in state.items()}
    assert old.keys().isdisjoint(state)
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril() for i in range(2)}
    checkpoint = assert_as_transformers_loads(with_state(directory, old | masks))
    assert "transformer.h.0.attn.c_attn" in {weight.name for weight in checkpoint.weights}


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("copies", ["equal", "different", "one-element-apart"])
def test_stored_copies_of_a_tied_weight_are_one_only_if_they_are_equal(
    tmp_path: Path, architecture: str, copies: str
) -> None:
    directory, state = save(architecture, tmp_path)
    (embedding,) = (key for key in state if key.endswith(("embed_tokens.weight", "wte.weight")))
    head = state[embedding].clone()
    if copies == "different":
        head = torch.randn(head.shape).bfloat16()
    elif copies == "one-element-apart":
        head[-1, -1] += 1
    checkpoint = assert_as_transformers_loads(with_state(directory, state | {"lm_head.weight": head}))
    (a,) = (weight for weight in checkpoint.weights if weight.name == "lm_head")
    (b,) = (weight for weight in checkpoint.weights if f"{weight.name}.weight" == embedding)
    assert (a.parameter == b.parameter) == (copies == "equal")


def test_a_tied_weight_is_read_once_and_scored_under_both_names(tmp_path: Path) -> None:
    directory, state = save("llama-tied", tmp_path)
    assert "lm_head.weight" not in state
    checkpoint = open_checkpoint(str(directory))
    read: list[str] = []

    def reader(weight: LayerWeight, index: int) -> torch.Tensor:
        read.append(weight.parameter)
        return checkpoint.read(weight, index)

    scores = {score.name: score.snr for score in scan(checkpoint.weights, reader, CPU)}
    assert len(read) == len(set(read)) == len(state)
    expected = oracle_snr(state["model.embed_tokens.weight"].float().numpy())
    assert scores["lm_head"] == scores["model.embed_tokens"] == pytest.approx(expected, rel=1e-8)


def test_a_head_stored_alone_stands_for_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    directory, state = save("llama-tied", tmp_path)
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    assert_as_transformers_loads(with_state(directory, state))


def test_weights_are_read_and_scored_in_the_dtype_that_they_are_stored_in(tmp_path: Path) -> None:
    directory, state = save("llama", tmp_path)
    dtypes = {
        "model.layers.0.mlp.up_proj": torch.float64,
        "model.layers.1.mlp.up_proj": torch.float32,
        "model.layers.0.mlp.down_proj": torch.float16,
    }
    mixed = state | {f"{name}.weight": torch.randn_like(state[f"{name}.weight"], dtype=d) for name, d in dtypes.items()}
    checkpoint = open_checkpoint(str(with_state(directory, mixed)))
    scores = {layer.name: layer.snr for layer in scanned(checkpoint).layers}
    weights = {weight.name: weight for weight in checkpoint.weights}
    for name, dtype in dtypes.items():
        stored = mixed[f"{name}.weight"]
        assert same_bits(matrices(checkpoint, weights[name])[0], stored)
        assert weights[name].dtype == checkpoint.provenance.info.parameters[f"{name}.weight"].dtype == str(dtype)[6:]
        assert scores[name] == pytest.approx(oracle_snr(stored.double().numpy()), rel=1e-8)


@pytest.mark.parametrize("class_name", ["LlamaModel", "AutoModel", "LlamaForCausalLM", "AutoModelForCausalLM"])
def test_names_are_those_of_the_class_that_is_asked_for(tmp_path: Path, class_name: str) -> None:
    directory, _ = save("llama", tmp_path)
    checkpoint = open_checkpoint(str(directory), model_class=class_name)
    model = getattr(transformers, class_name).from_pretrained(directory)
    assert [weight.name for weight in checkpoint.weights] == list(owners(model))
    # Its own class is the same as none.
    asked = None if class_name == "LlamaForCausalLM" else class_name
    assert (checkpoint.provenance.info.model_class, checkpoint.provenance.class_asked) == (type(model).__name__, asked)
    assert checkpoint.provenance.info.head == name_of(model, "get_output_embeddings")
    assert checkpoint.provenance.info.embedding == name_of(model, "get_input_embeddings")


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "opt"])
def test_any_parameter_that_is_missing_is_named(tmp_path: Path, architecture: str) -> None:
    directory, state = save(architecture, tmp_path)
    for key in state:
        with_state(directory, {name: value for name, value in state.items() if name != key})
        with pytest.raises(CheckpointError, match=f"{re.escape(str(directory))} lacks the parameter {re.escape(key)}"):
            open_checkpoint(str(directory))


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "opt"])
def test_any_parameter_of_another_shape_is_named_with_both_shapes(tmp_path: Path, architecture: str) -> None:
    directory, state = save(architecture, tmp_path)
    for key, value in state.items():
        wrong = torch.cat([value, value[:1]])
        with_state(directory, state | {key: wrong})
        with pytest.raises(CheckpointError) as refusal:
            open_checkpoint(str(directory))
        for words in (str(directory), key, str([*wrong.shape]), str([*value.shape])):
            assert words in str(refusal.value)
