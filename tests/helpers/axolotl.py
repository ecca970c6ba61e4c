"""Trainers that can not be dependencies: how their wheels are had, and, as a program, what they unfreeze of a model.

Their requirements pin packages for GPUs and other versions of transformers, and what unfreezes needs none of that: so
they are installed beside everything else, without requirements, and imported in a process of its own.

    python -m tests.helpers.axolotl TASKS RESULTS
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

AXOLOTL = ["axolotl==0.19.0"]
# With what is imported along with its logger and helpers.
MS_SWIFT = ["ms-swift==4.6.0", "modelscope==1.40.2", "modelscope-hub==0.5.1"]
MS_SWIFT += ["json_repair", "cryptography", "cffi", "pycparser"]

_GUARD = 300  # seconds, against hangs; a quiet machine needs thirty


@dataclass(frozen=True)
class Task:
    """A checkpoint, and what one of the functions below is given with it."""

    client: str
    checkpoint: str
    argument: Any


def install(requirements: Sequence[str], directory: Path) -> Path:
    """A directory to import these from. Skips where pip can not get them."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "--no-deps", "--no-compile", "--target", str(directory), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_GUARD)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        pytest.skip(f"pip can not get {' '.join(requirements)}, it says: {said[-1]}")
    return directory


def trainable(wheels: Path, tasks: Sequence[Task], directory: Path) -> list[set[str]]:
    """Which parameters are left trainable, of each task, in a working directory and without a network."""
    return names_from("tests.helpers.axolotl", wheels, [asdict(task) for task in tasks], directory)


def names_from(module: str, wheels: Path, tasks: Sequence[object], directory: Path) -> list[set[str]]:
    """The names that a module makes of each task, run in a process that imports from the wheels, without a network."""
    given, results = directory / "tasks.json", directory / "results.json"
    given.write_text(json.dumps(tasks))
    # What looks for a file here and does not find it would otherwise fetch one of the same name.
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    offline["DISABLE_VERSION_CHECK"] = "1"  # of LLaMA-Factory
    done = subprocess.run(
        [sys.executable, "-m", module, str(given), str(results)],
        cwd=directory,
        env=os.environ | nowhere | offline | {"PYTHONPATH": os.pathsep.join([str(wheels), str(ROOT)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_GUARD,
    )
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(results.read_text())]


# In the other process.


def freeze_layers_except(model: Any, entries: Sequence[str]) -> None:
    """What Axolotl does with `unfrozen_parameters`."""
    importlib.import_module("axolotl.utils.freeze").freeze_layers_except(model, entries)


def spectrum_plugin(model: Any, config: Mapping[str, object]) -> None:
    """What Axolotl does where its plugin is configured."""
    cfg = importlib.import_module("axolotl.utils.dict").DictDefault(config)
    importlib.import_module("axolotl.integrations.spectrum").SpectrumPlugin().pre_model_load(cfg)
    assert cfg.unfrozen_parameters, "the plugin has not found the scores"
    freeze_layers_except(model, cfg.unfrozen_parameters)


def freeze_parameters_ratio(model: Any, trainable: Mapping[str, Any]) -> None:
    """What ms-swift does with `--freeze_parameters_ratio 1` and `--trainable_parameters` or `..._regex`."""
    swift = importlib.import_module("swift.utils.transformers_utils")
    swift.freeze_parameters(model, 1.0, [], None)
    assert not _trainable(model)
    swift.activate_parameters(model, trainable["prefixes"], trainable["regex"])


CLIENTS: Mapping[str, Callable[[Any, Any], None]] = {
    client.__name__: client for client in (freeze_layers_except, spectrum_plugin, freeze_parameters_ratio)
}


def loaded(directory: Path) -> Any:
    """The model as transformers' own loader makes it, of the class that the checkpoint names."""
    import transformers

    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(directory, dtype="auto")


def _trainable(model: Any) -> Collection[str]:
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def _main(given: str, results: str) -> None:
    found = []
    models: dict[str, Any] = {}
    for task in (Task(**task) for task in json.loads(Path(given).read_text())):
        if task.checkpoint not in models:
            models[task.checkpoint] = loaded(Path(task.checkpoint))
        model = models[task.checkpoint]
        model.requires_grad_(True)
        CLIENTS[task.client](model, task.argument)
        found.append(_trainable(model))
    Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
