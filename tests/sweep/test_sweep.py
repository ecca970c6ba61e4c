"""The sweep over all classes, for a few of them; and that it can fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.sweep.classes import main
from tests.sweep.sizes import Size, shrunk

# Runs one sweep after another, in a process without other threads. Those after the first read with a fault.
SWEEPS = """
import contextlib, io, json, os, time
import torch
from spectrum.checkpoint.checkpoint import Checkpoint
from tests.sweep import classes as sweep

def one_bit(checkpoint, weight, index):
    value = Checkpoint.read(checkpoint, weight, index)
    if weight.name == "layers.1.mlp.down_proj":
        value = value.clone()
        value.view(torch.uint8)[-1, -1] ^= 1
    return value

def death(checkpoint, weight, index):
    os._exit(3)

def silence(checkpoint, weight, index):
    time.sleep(600)

def run(read, *names):
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        status = sweep.main(["--only", *names, "--jobs", "2"], read)
    return status, lines.getvalue().splitlines()

found = {
    "exact": run(Checkpoint.read, "GPT2Model", "Qwen3MoeM*", "T5Model"),
    "one bit": run(one_bit, "LlamaModel"),
    "death": run(death, "LlamaModel"),
}
sweep.KNOWN["Llama*"] = "layers.1.mlp.down_proj.weight has other values"
found["known"] = run(one_bit, "LlamaModel")
sweep.MAX_SECONDS = 3
found["silence"] = run(silence, "LlamaModel")
print(json.dumps(found))
"""

Found = dict[str, tuple[int, list[str]]]


@pytest.fixture(scope="module")
def found() -> Found:
    """The exit status and the lines of each sweep."""
    done = subprocess.run([sys.executable, "-c", SWEEPS], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    sweeps: Found = json.loads(done.stdout)
    return sweeps


@pytest.mark.slow
def test_a_few_classes_are_exact(found: Found) -> None:
    status, (_, *rows, last) = found["exact"]
    assert status == 0, rows
    assert sorted(row.split()[0] for row in rows) == ["GPT2Model", "Qwen3MoeModel", "T5Model"]
    assert all(row.endswith(" exact") for row in rows)
    assert last.startswith("3 classes: 3 exact; ")
    assert "; 0 rows need work (" in last


@pytest.mark.slow
def test_a_bit_that_is_wrong_is_found(found: Found) -> None:
    status, (_, row, last) = found["one bit"]
    assert status == 1
    assert row.startswith("! LlamaModel ")
    assert row.endswith("wrong          layers.1.mlp.down_proj.weight has other values than transformers loads")
    assert "; 1 rows need work (" in last


@pytest.mark.slow
def test_a_reason_that_is_known_needs_no_work(found: Found) -> None:
    status, (_, row, _) = found["known"]
    assert status == 0
    assert row.startswith("  LlamaModel ")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "reason"), [("death", "its process died"), ("silence", "no end in 3 s")])
def test_a_class_that_ends_its_process_or_does_not_end_is_a_row(found: Found, fault: str, reason: str) -> None:
    status, (_, row, _) = found[fault]
    assert status == 1
    assert row.startswith("! LlamaModel ")
    assert row.endswith(reason)


def test_a_pattern_that_matches_no_class_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "Nothing", "No*thing"])
    assert "no class matches Nothing No*thing" in capsys.readouterr().err


def test_widths_keep_their_ratios_and_other_sizes_are_set() -> None:
    config = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "head_dim": 128,
        "num_hidden_layers": 32,
        "layer_types": ["a", "b"] * 16,
        "vocab_size": 32000,
        "eos_token_id": 31999,
        "patch_size": 14,
        "text_config": {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8},
    }
    assert shrunk(config, Size(32, 2, experts=True, tokens=True)) == {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_attention_heads": 32,
        "head_dim": 4,
        "num_hidden_layers": 2,
        "layer_types": ["a", "b"],
        "vocab_size": 512,
        "eos_token_id": 499,
        "patch_size": 14,
        "text_config": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    }
    assert shrunk(config, Size(1, None, experts=False, tokens=False)) == config
