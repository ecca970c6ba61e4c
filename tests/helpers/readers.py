"""Trainers that read our lists, beside those in `axolotl`: what their own code does to a model.

Their requirements are not met. Those that can be imported without run in a process of their own, beside what these
imports need. Of the others only the code that freezes is taken from the source.

    python -m tests.helpers.readers TASKS RESULTS
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.helpers.adapters import adapted, names_of, trainable, weights
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.axolotl import names_from

IMPORTED = ["nemo-automodel==0.7.0", "axolotl==0.19.0", "llamafactory==0.9.5"]
# With what is imported along with Axolotl's telemetry, which stays off, and LLaMA-Factory's arguments.
IMPORTED += ["posthog", "distro", "backoff", "omegaconf", "antlr4-python3-runtime==4.9.3"]
SOURCES = ["llm-foundry==0.22.0", "ludwig==0.11.0"]

Task = tuple[str, str, Any]  # one of the clients below, an architecture, what the client reads


def results_of(wheels: Path, tasks: Sequence[Task], directory: Path) -> list[set[str]]:
    """What each task leaves trainable, or where it puts adapters. Without a network."""
    return names_from("tests.helpers.readers", wheels, tasks, directory)


# In the other process.


def nemo_automodel(model: Any, config: Mapping[str, Any]) -> set[str]:
    """What NeMo Automodel does with `freeze_config`."""
    importlib.import_module("nemo_automodel.components.utils.model_utils").apply_parameter_freezing(
        model, config["freeze_config"]
    )
    return trainable(model)


def axolotl(model: Any, config: Mapping[str, Any]) -> set[str]:
    """What Axolotl does with the keys of an adapter in a config, which it checks first."""
    names = names_of(model)
    settings = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.05, **config}
    rest = {"base_model": "x", "datasets": [{"path": "x", "type": "alpaca"}], "micro_batch_size": 1, "num_epochs": 1}
    whole = {"gradient_accumulation_steps": 1, "learning_rate": 1e-4, **rest, **settings}
    checked = importlib.import_module("axolotl.utils.schemas.config").AxolotlInputConfig(**whole)
    cfg = importlib.import_module("axolotl.utils.dict").DictDefault(checked.model_dump())
    wrapped, _ = importlib.import_module("axolotl.loaders.adapter").load_lora(model, cfg)
    return weights(adapted(wrapped, names))


def llamafactory(model: Any, config: Mapping[str, Any]) -> set[str]:
    """What LLaMA-Factory does with the keys of an adapter."""
    names = names_of(model)
    arguments = importlib.import_module("llamafactory.hparams.finetuning_args").FinetuningArguments(**config)
    of_model = SimpleNamespace(adapter_name_or_path=None, resize_vocab=False, use_kt=False, use_unsloth=False)
    trl: Any = importlib.import_module("trl")
    trl.AutoModelForCausalLMWithValueHead = None  # imported from an older TRL, and not used here
    set_up = importlib.import_module("llamafactory.model.adapter")._setup_lora_tuning
    wrapped = set_up(model.config, model, of_model, arguments, is_trainable=True, cast_trainable_params_to_fp32=False)
    return weights(adapted(wrapped, names))


CLIENTS: Mapping[str, Callable[[Any, Any], set[str]]] = {
    client.__name__: client for client in (nemo_automodel, axolotl, llamafactory)
}


def _main(given: str, results: str) -> None:
    tasks: list[Task] = json.loads(Path(given).read_text())
    found = [sorted(CLIENTS[client](ARCHITECTURES[architecture](), read)) for client, architecture, read in tasks]
    Path(results).write_text(json.dumps(found))


# In the process of the tests.


def llm_foundry(wheels: Path, model: Any, layer_names: Sequence[str]) -> None:
    """What llm-foundry's callback `layer_freezing` does at the start of training."""
    given = {"Callback": object, "experimental_class": lambda name: lambda defined: defined}
    path = wheels / "llmfoundry" / "callbacks" / "resumption_callbacks.py"
    callback = _taken_from(path, ["LayerFreezing"], given)["LayerFreezing"](layer_names=layer_names)
    callback.fit_start(SimpleNamespace(model=model), None)


def ludwig(wheels: Path, model: Any, regex: str) -> None:
    """What Ludwig does with `layers_to_freeze_regex`."""
    path = wheels / "ludwig" / "utils" / "trainer_utils.py"
    taken = _taken_from(path, ["freeze_layers_regex", "count_parameters"], {"re": re})
    taken["freeze_layers_regex"](SimpleNamespace(layers_to_freeze_regex=regex), model)


def _taken_from(path: Path, names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Some definitions of a module, without its imports. given: what they use of these."""
    logger = logging.getLogger("tests.readers")
    namespace: dict[str, Any] = {"log": logger, "logger": logger, **given}
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names]
    exec(compile(tree, str(path), "exec"), namespace)  # as this module does, it reads no annotation
    return namespace


if __name__ == "__main__":
    _main(*sys.argv[1:])
