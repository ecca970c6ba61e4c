"""Each format in the hands of its reader, on every architecture: exact, or refused for a true reason.

The readers' own code, where pip can get it; otherwise their rule, after the source that is named.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from torch import nn
from trl.scripts.utils import TrlParser
from trl.trainer.model_config import ModelConfig
from trl.trainer.utils import get_peft_config

from spectrum.checkpoint.reader import of_model
from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers.formats.formats import FORMATS
from tests.helpers import readers
from tests.helpers.adapters import Wrapped, adapted, names_of, trainable, weights
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.axolotl import install

pytestmark = [
    pytest.mark.slow,
    # peft asks transformers for what it calls by another name now.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It advises on saving adapters on embeddings, turns a setting of GPT-2's matrices as they want it, and says that a
    # pattern which is to match nothing does.
    pytest.mark.filterwarnings("ignore:Model .*has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to (True|False):UserWarning"),
    pytest.mark.filterwarnings("ignore:target_modules=.* were set but no module was matched:RuntimeWarning"),
]

PERCENTS = ("50", "100")
CASES = [(architecture, percent) for architecture in ARCHITECTURES for percent in PERCENTS]
Case = tuple[str, str]


@cache
def selected(architecture: str, percent: str) -> Selection:
    """A selection in which the last layers of each type score highest."""
    checkpoint = of_model(ARCHITECTURES[architecture](), "m")
    layers = tuple(LayerSnr(weight.name, weight.layer_type, 1.0 + i) for i, weight in enumerate(checkpoint.weights))
    types = checkpoint.provenance.info.layer_types
    return top_percent(ScanResult("m", layers, (), types, checkpoint.provenance), percent)


def rendered(form: str, case: Case) -> str | None:
    """The text of the file; None if the format refuses the selection."""
    try:
        return FORMATS[form].render(selected(*case)).text
    except SelectionError:
        return None


def trained(case: Case) -> set[str]:
    """The parameters that train, by the names under which trainers see them."""
    selection = selected(*case)
    info = selection.result.info
    assert info is not None
    return set(info.owners(selection.trained()))


def reason(form: str, case: Case) -> str:
    with pytest.raises(SelectionError) as refusal:
        FORMATS[form].render(selected(*case))
    return str(refusal.value)


# What is imported runs in one process, which takes longer to start than to do its work.

CLIENTS = {"nemo": "nemo_automodel", "axolotl-lora": "axolotl", "llamafactory": "llamafactory"}

# Models that generate no text. Trainers of language models take none.
SILENT = {"bert", "vits"}
GENERATING = [case for case in CASES if case[0] not in SILENT]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, Case], set[str]]:
    wheels = install(readers.IMPORTED, tmp_path_factory.mktemp("readers"))
    cases = {"nemo": CASES, "axolotl-lora": GENERATING, "llamafactory": GENERATING}
    texts = {(form, case): text for form in CLIENTS for case in cases[form] if (text := rendered(form, case))}
    tasks: list[readers.Task] = [(CLIENTS[form], case[0], yaml.safe_load(text)) for (form, case), text in texts.items()]
    found = readers.results_of(wheels, tasks, tmp_path_factory.mktemp("tasks"))
    return dict(zip(texts, found, strict=True))


# NeMo Automodel.

NEMO_REFUSED = {("phi", "50"), ("bert", "50"), ("gemma3", "100")}


def test_nemo_automodel_trains_what_is_selected(results: Mapping[tuple[str, Case], set[str]]) -> None:
    found = {case: names for (form, case), names in results.items() if form == "nemo"}
    assert found == {case: trained(case) for case in CASES if case not in NEMO_REFUSED}


@pytest.mark.parametrize("case", sorted(NEMO_REFUSED))
def test_nemo_is_refused_where_a_module_holds_what_trains_and_what_does_not(case: Case) -> None:
    holds = re.search(r"(\S+) holds (\S+), which trains, and (\S+), which does not", reason("nemo", case))
    assert holds
    module = ARCHITECTURES[case[0]]().get_submodule(holds[1])
    names = {f"{holds[1]}.{name}" for name, _ in module.named_parameters()}
    assert names >= {holds[2], holds[3]}
    info = selected(*case).result.info
    assert info is not None
    assert [info.owner(name) in trained(case) for name in holds.groups()[1:]] == [True, False]


# Those that list what is frozen.


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(readers.SOURCES, tmp_path_factory.mktemp("sources"))


Read = Callable[[Path, nn.Module, Mapping[str, Any]], None]


def llm_foundry(sources: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    # composer's HuggingFaceModel keeps the model as `model`.
    readers.llm_foundry(sources, Wrapped("model", model), config["callbacks"]["layer_freezing"]["layer_names"])


def ludwig(sources: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    # ludwig.models.llm.LLM keeps the model as `model`.
    readers.ludwig(sources, Wrapped("model", model), config["trainer"]["layers_to_freeze_regex"])


def distillkit(sources: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """github.com/arcee-ai/DistillKit, distillkit/main.py, load_student_model; it is on no index."""
    patterns = [re.compile(entry) for entry in config["frozen_res"]]
    for name, parameter in model.named_parameters():
        if any(pattern.search(name) for pattern in patterns):
            parameter.requires_grad = False


def h2o_llm_studio(sources: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """github.com/h2oai/h2o-llmstudio, documentation/docs/tooltips/experiments/_freeze-layers.mdx; it is on no index.

    llm_studio/src/models/text_causal_language_modeling_model.py keeps the model as `backbone`.
    """
    assert config["training"]["lora"] is False
    for name, parameter in Wrapped("backbone", model).named_parameters():
        if any(entry in name for entry in config["training"]["freeze_layers"]):
            parameter.requires_grad = False


@pytest.mark.parametrize("read", [llm_foundry, ludwig, distillkit, h2o_llm_studio])
def test_what_is_listed_as_frozen_is_what_does_not_train(read: Read, sources: Path) -> None:
    for case in CASES:
        text = rendered("frozen", case)
        model = ARCHITECTURES[case[0]]()
        if text is None:
            assert trained(case) == {name for name, _ in model.named_parameters()}, case
        else:
            read(sources, model, yaml.safe_load(text))
            assert trainable(model) == trained(case), case
    assert rendered("frozen", ("llama", "50"))


# Adapters, which must be where PEFT puts those of --format peft: test_peft has a test of these.


@cache
def by_peft(case: Case) -> set[str] | None:
    text = rendered("peft", case)
    return None if text is None else adapted_by(LoraConfig(r=2, **yaml.safe_load(text)), case[0])


def adapted_by(config: Any, architecture: str) -> set[str]:
    model: Any = ARCHITECTURES[architecture]()
    names = names_of(model)
    return weights(adapted(get_peft_model(model, config), names))


def test_axolotl_adapts_what_peft_does(results: Mapping[tuple[str, Case], set[str]]) -> None:
    found = {case: names for (form, case), names in results.items() if form == "axolotl-lora"}
    assert found == {case: names for case in GENERATING if (names := by_peft(case)) is not None}


def trl_config(text: str, directory: Path) -> Any:
    """The `LoraConfig` that TRL's command line makes of a file, which a shell splits into words."""
    (directory / "list.txt").write_text(text)
    command = ["bash", "-c", r"printf '%s\n' $(cat list.txt)"]
    words = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    kinds: Any = [ModelConfig]
    (arguments,) = TrlParser(kinds).parse_args_and_config(["--lora_r", "2", *words])
    return get_peft_config(arguments)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in SILENT])
def test_trl_adapts_what_peft_does(architecture: str, tmp_path: Path) -> None:
    for percent in PERCENTS:
        text = rendered("trl-lora", (architecture, percent))
        expected = by_peft((architecture, percent))
        assert (text is None) == (expected is None)
        if text is not None:
            assert adapted_by(trl_config(text, tmp_path), architecture) == expected


# All that LLaMA-Factory is given of these is refused, or has no adapter; at 100 percent also what a tower has.
MIXTURES = {"mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "granite-moe", "deepseek-v2", "deepseek-v3", "gpt-oss"}
MIXTURES |= {"jetmoe", "llama4-text", "jamba", "llama4"}


def test_llamafactory_adapts_what_peft_does(results: Mapping[tuple[str, Case], set[str]]) -> None:
    found = {case: names for (form, case), names in results.items() if form == "llamafactory"}
    expected = {case: names for case in GENERATING if case[0] not in MIXTURES and (names := by_peft(case)) is not None}
    del expected["gemma3", "100"]  # its projector is a bare parameter
    expected["llava", "100"] = expected["llava", "100"] - {"model.vision_tower.embeddings.patch_embedding.weight"}
    expected["qwen2.5-vl", "100"] = expected["qwen2.5-vl", "100"] - {"model.visual.patch_embed.proj.weight"}
    assert found == expected


OF_PARAMETERS = [*((name, percent) for name in sorted(MIXTURES) for percent in PERCENTS), ("gemma3", "100")]


@pytest.mark.parametrize("case", OF_PARAMETERS)
def test_llamafactory_is_refused_where_peft_needs_a_parameter(case: Case) -> None:
    named = re.search(r"are parameters to PEFT: (\S+?),? ", reason("llamafactory", case))
    assert named
    assert named[1].rstrip(";") in yaml.safe_load(rendered("peft", case) or "")["target_parameters"]
