"""transformers is silent while a model is loaded, and afterwards as it was."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from spectrum.checkpoint.disk.tensors import WeightHeaders
from spectrum.checkpoint.mapping import parameters
from spectrum.checkpoint.mapping.isolation import quiet
from tests.helpers.command import tiny_llama


@pytest.fixture(params=[True, False])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the user has transformers' progress bars shown."""
    shown: bool = request.param
    monkeypatch.setattr("transformers.logging._tqdm_active", shown)
    return shown


def test_a_model_that_is_loaded_whole_shows_no_progress_of_transformers(
    shown: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tiny_llama(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(directory)
    assert ("Loading weights" in capfd.readouterr().err) is shown
    loaded = parameters.load(directory, model, WeightHeaders(directory).tensors())
    assert "lm_head.weight" in loaded
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.is_progress_bar_enabled() is shown


def test_an_error_leaves_the_progress_bars_as_they_were(shown: bool) -> None:
    with suppress(KeyboardInterrupt), quiet():
        assert not transformers.logging.is_progress_bar_enabled()
        raise KeyboardInterrupt
    assert transformers.logging.is_progress_bar_enabled() is shown


def test_progress_bars_of_downloads_are_left_to_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for states in ({}, {"_global": False}):
        # By its module: the package has a class of the same name.
        monkeypatch.setattr(import_module("huggingface_hub.utils.tqdm"), "progress_bar_states", dict(states))
        before = are_progress_bars_disabled()
        with quiet():
            assert are_progress_bars_disabled() is before
        assert are_progress_bars_disabled() is before
