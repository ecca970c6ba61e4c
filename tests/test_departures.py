"""Where this tool departs from the reference on purpose, one test each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spectrum.cli.entry import main
from tests.helpers.oracle import oracle_snr
from tests.helpers.paths import TINY_LLAMA, files_below


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def spectrum(*args: str) -> str:
    """Run the command on `model`; return its list."""
    assert main(["--model-name", "model", "--yes", *args]) == 0
    (file,) = Path().glob("*.yaml")
    return file.read_text()


def scores() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("model_snr_results/snr_results_model.json").read_text())
    return content


def scan_of_the_reference(snrs: Mapping[str, float]) -> None:
    """A cache as the reference writes it: flat, and without a sidecar."""
    flat = {name: {"snr": snr, "type": name.split(".", 2)[2]} for name, snr in snrs.items()}
    Path("model_snr_results").mkdir()
    Path("model_snr_results/snr_results_model.json").write_text(json.dumps(flat))


def save(model_class: str, config_class: str, **settings: object) -> dict[str, np.ndarray]:
    """Save a random model as `model`; return its parameters, by name."""
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, model_class)(config)
    model.save_pretrained("model")
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def test_the_percentage_holds_on_the_first_scan_too() -> None:
    shutil.copytree(TINY_LLAMA, "model")
    text = spectrum("--top-percent", "25")
    assert files_below(Path())[-1] == "snr_results_model_unfrozenparameters_25percent.yaml"
    assert text.count(".mlp.up_proj\n") == 2  # of 8


def test_half_is_the_default_with_a_cached_scan_too() -> None:
    scan_of_the_reference({f"h.{i}.up": float(i) for i in range(4)})
    assert "# up layers\n- h.3.up\n- h.2.up\n" in spectrum()
    assert "snr_results_model_unfrozenparameters_50percent.yaml" in files_below(Path())


def test_a_type_that_is_part_of_anothers_name_is_ranked_apart() -> None:
    # By substring, every gate_proj would count, and outrank, among the gates.
    gates = {f"h.{i}.mlp.gate": 1.0 + i for i in range(4)}
    projections = {f"h.{i}.mlp.gate_proj": 10.0 - i for i in range(4)}
    scan_of_the_reference(gates | projections)
    assert spectrum("--no-embeddings") == (
        "unfrozen_parameters:\n"
        "# mlp.gate layers\n"
        "- h.3.mlp.gate.weight\n"
        "- h.2.mlp.gate.weight\n"
        "# mlp.gate_proj layers\n"
        "- h.0.mlp.gate_proj\n"
        "- h.1.mlp.gate_proj\n"
    )


def test_a_name_that_begins_an_unselected_ones_is_spelt_out() -> None:
    scan_of_the_reference(
        {"h.0.mlp.gate": 2.0, "h.1.mlp.gate": 1.0, "h.0.mlp.gate_proj": 1.0, "h.1.mlp.gate_proj": 2.0}
    )
    assert spectrum().endswith(
        "# mlp.gate layers\n- h.0.mlp.gate.weight\n# mlp.gate_proj layers\n- h.1.mlp.gate_proj\n"
    )


def test_the_towers_of_one_model_are_ranked_apart() -> None:
    tower = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    pixels = {"image_size": 8, "patch_size": 4}
    save("CLIPModel", "CLIPConfig", text_config=tower | tokens, vision_config=tower | pixels, projection_dim=8)
    text = spectrum()
    for side in ("text_model", "vision_model"):
        for name in ("self_attn.q_proj", "mlp.fc1"):
            ranked = [f"{side}.encoder.layers.{i}.{name}" for i in (0, 1)]
            best = max(ranked, key=lambda layer: scores()[layer]["snr"])
            assert f"# {side}.encoder.layers.{name} layers\n- {best}\n#" in text


def save_vision_model() -> dict[str, np.ndarray]:
    return save(
        "ViTForImageClassification",
        "ViTConfig",
        image_size=8,
        patch_size=4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )


def test_convolutions_are_scored_as_matrices_of_their_output_channels() -> None:
    kernel = save_vision_model()["vit.embeddings.patch_embeddings.projection.weight"]
    assert kernel.shape == (16, 3, 4, 4)
    spectrum()
    name = "vit.embeddings.patch_embeddings.projection"
    assert scores()[name] == {"snr": pytest.approx(oracle_snr(kernel.reshape(16, 48))), "type": name}


def test_bare_parameters_that_are_no_experts_are_as_before_not_scored() -> None:
    # Such as the class token and the position embeddings, which have three dimensions too.
    parameters = save_vision_model()
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} < parameters.keys()
    spectrum()
    assert set(scores()) == {name.removesuffix(".weight") for name in parameters if name.endswith(".weight")}


def test_a_convolution_of_one_dimension_is_no_stack() -> None:
    mamba = save("MambaForCausalLM", "MambaConfig", vocab_size=20, hidden_size=8, state_size=4, num_hidden_layers=2)
    spectrum()
    for i in range(2):
        weight = mamba[f"backbone.layers.{i}.mixer.conv1d.weight"]
        assert weight.shape == (16, 1, 4)
        entry = scores()[f"backbone.layers.{i}.mixer.conv1d"]
        assert entry == {"snr": pytest.approx(oracle_snr(weight.reshape(16, 4))), "type": "mixer.conv1d"}


def test_fused_experts_are_scored_one_by_one_and_enter_by_their_median() -> None:
    parameters = save(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    text = spectrum()
    for i in range(2):
        for name in ("gate_up_proj", "down_proj"):
            stack = parameters[f"model.layers.{i}.mlp.experts.{name}"]
            assert stack.ndim == 3
            expected = [oracle_snr(expert) for expert in stack]
            entry = scores()[f"model.layers.{i}.mlp.experts.{name}"]
            assert entry["experts"] == pytest.approx(expected, rel=1e-8)
            assert entry["snr"] == pytest.approx(np.median(expected), rel=1e-8)
            assert f"# mlp.experts.{name} layers\n- model.layers." in text


def test_a_matrix_of_zeros_scores_zero_and_ranks_last() -> None:
    shutil.copytree(TINY_LLAMA, "model")
    shard = Path("model/model-00001-of-00002.safetensors")
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.down_proj.weight"].zero_()
    save_file(tensors, shard, {"format": "pt"})
    text = spectrum("--layer-types", "mlp.down_proj", "--top-percent", "87.5")
    assert scores()["model.layers.0.mlp.down_proj"]["snr"] == 0
    assert text.count(".mlp.down_proj\n") == 7
    assert "model.layers.0.mlp.down_proj" not in text


@pytest.mark.parametrize("known", [True, False], ids=["a type that transformers knows", "one that it does not know"])
def test_no_code_of_the_model_runs_without_the_flag(known: bool, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TINY_LLAMA, "model")
    config = json.loads(Path("model/config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}}
    config |= {
        "model_type": "llama" if known else "custom-llama",
        "architectures": ["LlamaForCausalLM" if known else "Model"],
    }
    Path("model/config.json").write_text(json.dumps(config))
    marker = Path("the code ran").absolute()
    Path("model/custom.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    status = main(["--model-name", "model", "--quiet"])
    assert not marker.exists()
    said = capsys.readouterr().err
    if known:  # under the class of transformers' own
        assert (status, said) == (0, "")
    else:
        assert status == 1
        assert "custom-llama" in said
        assert "--trust-remote-code" in said


def test_the_models_own_head_and_embedding_are_named() -> None:
    tiny = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    save("GPT2LMHeadModel", "GPT2Config", **tiny, bos_token_id=0, eos_token_id=0)
    text = spectrum()
    assert text.startswith("unfrozen_parameters:\n- ^lm_head.weight$\n- ^transformer.wte.weight$\n# ")
    assert scores()["lm_head"]["snr"] == scores()["transformer.wte"]["snr"]  # tied, entered under both
    assert spectrum("--model-class", "GPT2Model").startswith("unfrozen_parameters:\n- ^wte.weight$\n# ")  # no head
