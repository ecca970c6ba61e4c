"""What cannot be scanned, end to end: one line that names it and what to do, status 1, nothing left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from spectrum.errors import ResultsError
from spectrum.files import check_name, selection_path, sorted_path, write_atomically
from spectrum.scanning.store import ScanStore
from tests.helpers.command import Finished, assert_refused, tiny_llama
from tests.helpers.paths import files_below

Run = Callable[..., Finished]
Damage = Callable[[Path], object]

INDEX = "model.safetensors.index.json"
UP_PROJ = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def sound_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in a few shards that scans in a moment: what every case here is a damaged copy of."""
    directory = tmp_path_factory.mktemp("sound") / "model"
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tiny_llama(directory, "bfloat16", shards_of="6KB", **sizes)
    assert len(shards_of(directory)) >= 2
    return directory


@pytest.fixture
def model(sound_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_model, tmp_path / "model"))


def shards_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("model-*.safetensors"))


def content(directory: Path) -> dict[Path, bytes]:
    return {directory / name: (directory / name).read_bytes() for name in files_below(directory)}


def assert_refused_without_a_trace(run: Run, directory: Path, args: list[str | Path], *words: str) -> None:
    before = content(directory)
    done = run(*args)
    assert_refused(done, *words)
    assert "unexpected" not in done.err  # which is how a fault of the program's own is reported
    assert content(directory) == before


def test_the_model_that_the_cases_damage_is_scanned(run: Run, model: Path) -> None:
    done = run("--model-name", model, "--results-dir", "results")
    assert done.status == 0, done.err
    assert len(files_below(Path())) == 4


# Ways to damage a model's directory.


def config_set(**changes: object) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def config_without(*keys: str) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in keys}))

    return damage


def written(name: str, content: str | bytes) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def directory_instead(name: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


def only(files: Mapping[str, str | bytes]) -> Damage:
    def damage(directory: Path) -> None:
        shutil.rmtree(directory)
        directory.mkdir()
        for name, content in files.items():
            written(name, content)(directory)

    return damage


def weights_replaced_by(files: Mapping[str, bytes]) -> Damage:
    def damage(directory: Path) -> None:
        only({"config.json": (directory / "config.json").read_bytes(), **files})(directory)

    return damage


def shard_truncated(directory: Path) -> None:
    shard = shards_of(directory)[1]
    os.truncate(shard, shard.stat().st_size - 1)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change the tensors, in place, and save them as one file."""

    def damage(directory: Path) -> None:
        state = {k: v for shard in shards_of(directory) for k, v in safetensors.torch.load_file(shard).items()}
        change(state)
        for file in [*shards_of(directory), directory / INDEX]:
            file.unlink()
        safetensors.torch.save_file(state, directory / "model.safetensors")

    return damage


def cast(name: str, dtype: torch.dtype) -> Damage:
    return tensors(lambda state: state.update({name: state[name].to(dtype)}))


def index_entry(key: str, shard: str | None = None) -> Damage:
    """Put a key into a shard by the index, by default the first."""

    def damage(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        index["weight_map"][key] = shard or shards_of(directory)[0].name
        (directory / INDEX).write_text(json.dumps(index))

    return damage


LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
DEEP = "[" * 200_000
EVERY_WEIGHT_NAN = tensors(lambda state: [tensor.view(-1)[-1:].fill_(math.nan) for tensor in state.values()])

# What was done to a sound model's directory, more of the command line, and words of the one line that says so.
REFUSED: Mapping[str, tuple[Damage, list[str], tuple[str, ...]]] = {
    # config.json
    "no-config": (lambda d: (d / "config.json").unlink(), [], ("model has no config.json beside its weights",)),
    "empty-directory": (only({}), [], ("model has no config.json",)),
    "config-empty": (written("config.json", ""), [], ("config.json is not valid JSON",)),
    "config-broken": (written("config.json", '{"model_type": "llama"'), [], ("config.json is not valid JSON",)),
    "config-not-utf-8": (written("config.json", b'{"model_type": "\xff"}'), [], ("config.json is not valid JSON",)),
    "config-too-deep": (written("config.json", DEEP), [], ("config.json is not valid JSON",)),
    "config-a-list": (written("config.json", "[]"), [], ("config.json is not a JSON object",)),
    "config-null": (written("config.json", "null"), [], ("config.json is not a JSON object",)),
    "config-a-directory": (directory_instead("config.json"), [], ("cannot read", "config.json")),
    "no-model-type": (config_without("model_type", "architectures"), [], ("config.json has no model_type",)),
    "model-type-null": (config_set(model_type=None, architectures=None), [], ("config.json has no model_type",)),
    "model-type-unknown": (config_set(model_type="nonesuch"), [], ("'nonesuch'", "a newer transformers")),
    "model-type-a-list": (config_set(model_type=["llama"]), [], ("config.json", "model_type")),
    "architectures-a-number": (config_set(architectures=1), [], ("config.json", "architectures")),
    "architectures-numbers": (config_set(architectures=[1]), [], ("config.json", "architectures")),
    "auto-map-a-number": (config_set(auto_map=1), [], ("config.json", "auto_map")),
    "model-type-of-the-repository": (
        config_set(model_type="nonesuch", auto_map={"AutoConfig": "configuration.Config"}),
        [],
        ("'nonesuch'", "needs code from its repository", "--trust-remote-code"),
    ),
    "code-of-the-repository-missing": (
        config_set(model_type="nonesuch", auto_map={"AutoConfig": "configuration.Config"}),
        ["--trust-remote-code"],
        ("config.json", "configuration.py"),
    ),
    "sizes-that-are-text": (config_set(hidden_size="sixteen"), [], ("config.json", "hidden_size")),
    "sizes-that-make-no-model": (
        config_set(hidden_size=-16, head_dim=8),
        [],
        ("cannot build LlamaForCausalLM", "model"),
    ),
    "quantized": (config_set(quantization_config={"quant_method": "gptq"}), [], ("gptq", "the original checkpoint")),
    "quantized-by-no-name": (config_set(quantization_config={"bits": 4}), [], ("quantized", "original checkpoint")),
    "quantized-long-ago": (
        config_set(compression_config={"quant_method": "sparse"}),
        [],
        ("quantized by the method 'sparse'",),
    ),
    "adapter": (
        only({"adapter_config.json": "{}", "adapter_model.safetensors": b"\0"}),
        [],
        ("model holds an adapter", "merge it into its base model"),
    ),
    "gguf": (only({"model.Q4_K_M.gguf": b"GGUF"}), [], ("model holds GGUF files only", "the original checkpoint")),
    # --model-class
    "class-nonsense": (lambda _: None, ["--model-class", "NoSuchModel"], ("no model class 'NoSuchModel'",)),
    "class-a-module": (lambda _: None, ["--model-class", "models"], ("no model class 'models'",)),
    "class-a-config": (lambda _: None, ["--model-class", "LlamaConfig"], ("no model class 'LlamaConfig'",)),
    "class-a-tokenizer": (lambda _: None, ["--model-class", "AutoTokenizer"], ("no model class 'AutoTokenizer'",)),
    "class-of-another-model": (lambda _: None, ["--model-class", "GPT2LMHeadModel"], ("GPT2LMHeadModel",)),
    "class-with-more-weights": (
        lambda _: None,
        ["--model-class", "LlamaForSequenceClassification"],
        ("model lacks the parameter score.weight of LlamaForSequenceClassification", "--model-class"),
    ),
    # Weight files
    "no-weights": (weights_replaced_by({}), [], ("model has no weight files",)),
    "weights-of-odd-names": (
        weights_replaced_by({"model.fp16.safetensors": b"\0", "weights.pth": b"\0"}),
        [],
        ("model.fp16.safetensors, weights.pth", "save_pretrained"),
    ),
    "config-beside-an-adapter": (
        weights_replaced_by({"adapter_config.json": b"{}", "adapter_model.safetensors": b"\0"}),
        [],
        ("model holds an adapter",),
    ),
    "config-beside-gguf": (weights_replaced_by({"model.gguf": b"GGUF"}), [], ("model holds GGUF files only",)),
    "index-not-json": (written(INDEX, "{"), [], (INDEX, "not valid JSON")),
    "index-without-map": (written(INDEX, "{}"), [], (INDEX, "no weight_map")),
    "index-of-a-missing-shard": (
        index_entry("lm_head.weight", "model-9.safetensors"),
        [],
        ("lacks the shard model-9.safetensors",),
    ),
    "index-of-a-shard-elsewhere": (
        index_entry("lm_head.weight", "../model/model.safetensors"),
        [],
        (INDEX, "'../model/model.safetensors'", "not a file of the model's directory"),
    ),
    "index-of-a-missing-key": (
        index_entry("missing.weight"),
        [],
        ("'missing.weight'", "in no shard"),
    ),
    "shard-missing": (lambda d: shards_of(d)[1].unlink(), [], ("lacks the shard model-00002-of-",)),
    "shard-empty": (lambda d: shards_of(d)[1].write_bytes(b""), [], ("model-00002-of-", "is empty")),
    "shard-truncated": (shard_truncated, [], ("model-00002-of-", "damaged", "download the model again")),
    "shard-lfs-pointer": (lambda d: shards_of(d)[1].write_text(LFS_POINTER), [], ("model-00002-of-", "git lfs pull")),
    "archive-of-something-else": (weights_replaced_by({"pytorch_model.bin": b"<html>"}), [], ("pytorch_model.bin",)),
    # Weights
    "weight-missing": (
        tensors(lambda state: state.pop(f"{UP_PROJ}.weight")),
        [],
        (f"model lacks the parameter {UP_PROJ}.weight of LlamaForCausalLM",),
    ),
    "weights-missing": (
        tensors(lambda state: [state.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in (0, 1)]),
        [],
        ("model.layers.0.mlp.up_proj.weight and 1 more",),
    ),
    "norm-missing": (tensors(lambda state: state.pop("model.norm.weight")), [], ("parameter model.norm.weight",)),
    "weight-misshapen": (
        tensors(lambda state: state.update({f"{UP_PROJ}.weight": torch.ones(24, 8, dtype=torch.bfloat16)})),
        [],
        (f"{UP_PROJ}.weight as [24, 8]", "as [24, 16]", "LlamaForCausalLM"),
    ),
    "weight-transposed": (
        tensors(lambda state: state.update({f"{UP_PROJ}.weight": state[f"{UP_PROJ}.weight"].T.contiguous()})),
        [],
        (f"{UP_PROJ}.weight as [16, 24]", "as [24, 16]"),
    ),
    "config-of-a-larger-model": (config_set(num_hidden_layers=3), [], ("model lacks the parameter model.layers.2.",)),
    "config-of-a-wider-model": (config_set(intermediate_size=48), [], ("as [24, 16]", "as [48, 16]", "config.json")),
    "weight-int8": (cast(f"{UP_PROJ}.weight", torch.int8), [], (f"{UP_PROJ}.weight as int8", "original checkpoint")),
    "weight-uint8": (cast(f"{UP_PROJ}.weight", torch.uint8), [], (f"{UP_PROJ}.weight as uint8",)),
    "weight-bool": (cast(f"{UP_PROJ}.weight", torch.bool), [], (f"{UP_PROJ}.weight as bool",)),
    "weight-complex": (cast(f"{UP_PROJ}.weight", torch.complex64), [], (f"{UP_PROJ}.weight as complex64",)),
    "weight-fp8": (cast(f"{UP_PROJ}.weight", torch.float8_e4m3fn), [], (f"{UP_PROJ}.weight as float8_e4m3fn",)),
    "every-weight-nan": (EVERY_WEIGHT_NAN, [], ("every weight", "NaN or infinity", "lm_head")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scanned_is_refused_by_name(run: Run, model: Path, tmp_path: Path, case: str) -> None:
    damage, more, words = REFUSED[case]
    damage(model)
    assert_refused_without_a_trace(run, tmp_path, ["--model-name", model, *more], *words)


@pytest.mark.parametrize("name", ["./model", "/nowhere/model", "~/no-such-model", "a/b/c", "../work/model"])
def test_a_path_that_is_not_there_is_named(run: Run, tmp_path: Path, name: str) -> None:
    assert_refused_without_a_trace(run, tmp_path, ["--model-name", name], f"there is no directory {name!r}")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_file_of_a_model_is_not_the_model(run: Run, model: Path, tmp_path: Path, file: str) -> None:
    words = (f"{file} is a file", "the directory that contains it")
    assert_refused_without_a_trace(run, tmp_path, ["--model-name", model / file], *words)


@pytest.mark.parametrize("option", ["--results-dir", "--output-dir"])
@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_directory_for_results_that_is_a_file_is_named(
    run: Run, model: Path, tmp_path: Path, option: str, below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    words = ("cannot write to", str(tmp_path / "file"))
    assert_refused_without_a_trace(run, tmp_path, ["--model-name", model, option, tmp_path / "file" / below], *words)


# Not refused, though odd.


def scores_of(model: str) -> dict[str, Any]:
    flat: dict[str, Any] = json.loads(Path(f"snr_results_{model}.json").read_text())
    return flat


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", [UP_PROJ, "model.layers.0.input_layernorm", "lm_head"])
def test_a_layer_with_nan_or_infinity_is_left_out_and_named(run: Run, model: Path, layer: str, value: float) -> None:
    tensors(lambda state: state[f"{layer}.weight"].view(-1)[-1:].fill_(value))(model)
    model.rename("model")
    for _ in ("scanned", "from the cache"):
        done = run("--model-name", "model", "--top-percent", "100", "--results-dir", ".", "--no-embeddings")
        assert done.status == 0, done.err
        (warning,) = [line for line in done.err.splitlines() if line.startswith("spectrum: warning: ")]
        assert warning.endswith(f": {layer}")
        flat = scores_of("model")
        ranked = json.loads(Path("snr_results_model_sorted.json").read_text())
        assert layer not in flat
        assert flat.keys() == {name for group in ranked.values() for name in group}
        assert all(math.isfinite(entry["snr"]) for entry in flat.values())
        entries = yaml.safe_load(Path("snr_results_model_unfrozenparameters_100percent.yaml").read_text())
        unfrozen = set(entries["unfrozen_parameters"])
        assert unfrozen == flat.keys() - {"lm_head", "model.embed_tokens"}


def test_a_matrix_of_zeros_scores_zero_and_is_ranked_last(run: Run, model: Path) -> None:
    tensors(lambda state: state["model.layers.0.mlp.up_proj.weight"].zero_())(model)
    model.rename("model")
    done = run("--model-name", "model", "--results-dir", ".", "--output-dir", "out")
    assert done.status == 0, done.err
    assert "warning" not in done.err
    flat = scores_of("model")
    assert flat["model.layers.0.mlp.up_proj"]["snr"] == 0
    assert flat[UP_PROJ]["snr"] > 0
    (text,) = (path.read_text() for path in Path("out").glob("*.yaml"))
    assert f"# mlp.up_proj layers\n- {UP_PROJ}\n#" in text


@pytest.mark.parametrize(
    "damage",
    [
        config_set(architectures=["NoSuchForCausalLM"]),
        config_set(architectures=None),
        config_set(architectures=[]),
        config_without("architectures"),
    ],
    ids=["unknown", "null", "empty", "absent"],
)
def test_without_an_architecture_that_transformers_knows_the_model_type_decides(
    run: Run, model: Path, damage: Damage
) -> None:
    damage(model)
    done = run("--model-name", model)
    assert done.status == 0, done.err
    assert "(LlamaForCausalLM)" in done.out


def test_tensors_that_the_model_does_not_have_are_ignored(run: Run, model: Path) -> None:
    tensors(lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(model)
    done = run("--model-name", model)
    assert (done.status, "warning" in done.err) == (0, False)


def test_a_name_too_long_to_name_files_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="too long to name files by"):
        check_name("x" * 200)
    check_name("x" * 180)
    store = ScanStore(tmp_path, "x" * 180)
    paths = [store.scan_path, store.sidecar_path, sorted_path(tmp_path, "x" * 180)]
    longest = max(paths, key=lambda path: len(path.name))
    write_atomically(longest, "{}")
    write_atomically(selection_path(tmp_path, "x" * 180, "unfrozenparameters", "12.5", "yaml"), "")
