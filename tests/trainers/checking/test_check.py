"""Lists against a model's names: what is right, each thing that can be wrong, and `--check`."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from spectrum.checkpoint.reader import describe_model
from spectrum.records import ModelInfo, Parameter
from spectrum.scanning import scan_json
from spectrum.selection import selection
from spectrum.trainers import lists, matching
from spectrum.trainers.checking.check import check_list
from spectrum.trainers.checking.report import CheckReport
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, SUBSTRING
from tests.helpers.architectures import built
from tests.helpers.command import Finished, assert_refused, run
from tests.helpers.hub_server import HubServer, Repo
from tests.helpers.lists import of_aliases
from tests.helpers.paths import TINY_LLAMA, files_below
from tests.helpers.processes import commands

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Of twelve layers, so that the tenth's name begins as the first's does; the fourth is dense, as DeepSeek's first are.
NAMES = [
    EMBEDDING,
    *(f"model.layers.{i}.self_attn.q_proj.{own}" for i in range(12) for own in ("weight", "bias")),
    *(f"model.layers.{i}.mlp.experts.down_proj{own}" for i in range(12) if i != 3 for own in ("", "_bias")),
    *(f"model.layers.{i}.mlp.gate.weight" for i in range(12) if i != 3),
    "model.layers.3.mlp.gate_proj.weight",
    "model.layers.3.mlp.gate.weight",
    "model.norm.weight",
    HEAD,
]


def modelled(names: Sequence[str], tied: Mapping[str, str] | None = None) -> ModelInfo:
    """A model that has parameters of these names, and the modules that they imply."""
    parts = [name.split(".") for name in names]
    return ModelInfo(
        model_class="SomeForCausalLM",
        layer_types=(),
        parameters={name: Parameter((8, 8), "bfloat16", (tied or {}).get(name)) for name in names},
        modules=frozenset(".".join(part[:i]) for part in parts for i in range(1, len(part))),
        head=HEAD,
        embedding=EMBEDDING,
    )


MODEL = modelled(NAMES)
TIED = modelled(NAMES, {HEAD: EMBEDDING})


def lines(*entries: str) -> str:
    return "unfrozen_parameters:\n" + "".join(f"- {entry}\n" for entry in entries)


def check(directory: Path, text: str, model: ModelInfo = MODEL) -> CheckReport:
    path = directory / "list.yaml"
    path.write_text(text)
    return check_list(lists.read_list(path), model)


def problem(found: CheckReport, *words: str) -> None:
    """There is one problem, which has these words."""
    assert len(found.problems) == 1, found.problems
    for word in words:
        assert word in found.problems[0]


# The names.


def test_a_list_of_whole_names_is_right(tmp_path: Path) -> None:
    entries = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.experts.down_proj", "model.norm"]
    found = check(tmp_path, lines(*entries))
    own = {f"model.layers.0.self_attn.q_proj.{own}" for own in ("weight", "bias")}
    expected = own | {f"model.layers.2.mlp.experts.down_proj{own}" for own in ("", "_bias")} | {"model.norm.weight"}
    assert found.problems == found.notes == ()
    assert found.trained == dict.fromkeys((AXOLOTL, REGULAR_EXPRESSION, SUBSTRING), expected)
    assert found.num_matching == dict.fromkeys((AXOLOTL, REGULAR_EXPRESSION, SUBSTRING), 3)


@pytest.mark.parametrize(
    ("entry", "nearest"),
    [
        ("model.layers.0.self_attn.q_prj", "model.layers.0.self_attn.q_proj"),
        ("^model.embed_token.weight$", EMBEDDING),
        ("transformer.h.0.attn.c_attn", None),
    ],
)
def test_an_entry_that_matches_nothing_is_a_problem(entry: str, nearest: str | None, tmp_path: Path) -> None:
    found = check(tmp_path, lines("model.norm", entry))
    assert found.problems[0].startswith(f"{entry} matches nothing")
    assert found.problems[0].removeprefix(f"{entry} matches nothing") == (
        f"; did you mean {nearest}?" if nearest else ""
    )
    assert found.num_matching[AXOLOTL] == 1


@pytest.mark.parametrize(
    ("entry", "more", "instead"),
    [
        ("model.layers.1", ["model.layers.10.mlp", "and 8 more"], "; write model.layers.1[.]"),
        ("^model.layers.1", ["model.layers.10.mlp", "and 8 more"], "; write model.layers.1[.]"),
        ("model.layers.1[.]", [], ""),
        # Patterns of indexes name modules, too.
        ("model.layers.[1-2]", ["model.layers.10.mlp", "and 8 more"], "; write model.layers.[1-2][.]"),
        (
            "model.layers.(3|4).mlp.gate",
            ["layers.3.mlp.gate_proj.weight"],
            "; write model.layers.(3|4).mlp.gate.weight",
        ),
        ("^model.layers.[0-9]+.mlp.gate", ["layers.3.mlp.gate_proj"], "; write model.layers.[0-9]+.mlp.gate.weight"),
        ("model.layers.[0-9]+.mlp", [], ""),
        ("model.layers.[0-9]+.mlp.experts.down_proj", [], ""),
        ("model.layers.[0-9]+.mlp.ga", [], ""),  # no name, but the beginning of names
        ("model.layers.3.mlp.gate", ["model.layers.3.mlp.gate_proj.weight"], "write model.layers.3.mlp.gate.weight"),
        ("model", [], ""),
        ("model.layers.2", [], ""),
        ("model.layers.1.", [], ""),
        ("model.layers.3.mlp.gate.", [], ""),
        ("model.layers.3.mlp.gate.weight", [], ""),
        # The bias beside a bare parameter is its own.
        ("model.layers.1.mlp.experts.down_proj", [], ""),
    ],
)
def test_the_name_of_a_module_may_not_match_another_one(
    entry: str, more: list[str], instead: str, tmp_path: Path
) -> None:
    found = [text for text in check(tmp_path, lines(entry)).problems if "unlike Axolotl" not in text]
    assert len(found) == bool(more)
    for text in found:
        assert text.startswith(f"{entry} also matches ")
        assert text.endswith(instead)
        for word in more:
            assert word in text


def test_only_of_the_entries_that_are_told_it_is_searched_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = modelled([f"l.{i}.mlp.{own}.weight" for i in range(40) for own in ("gate", "gate_proj")])
    calls: list[None] = []
    match = matching.match_patterns

    def counting(patterns: Sequence[str], names: Sequence[str]) -> list[list[str]]:
        calls.append(None)
        return match(patterns, names)

    monkeypatch.setattr(matching, "match_patterns", counting)
    entries = [f"l.{i}.mlp.gate" for i in range(40)] + [f"l.[{i}:{i + 2}].mlp" for i in range(8)]
    found = check(tmp_path, f"x: 1\n{lines(*entries)}", model)
    assert [text for text in found.problems if text.startswith("37 more also match")]
    assert [text for text in found.problems if text.startswith("5 more hold indexes")]
    assert len(calls) < 40


def test_what_an_entry_also_matches_may_be_named_by_another(tmp_path: Path) -> None:
    gates = ["model.layers.3.mlp.gate_proj", "model.layers.(3|4).mlp.gate"]
    assert check(tmp_path, lines(*gates)).problems == ()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("model.layers.[10-11].self_attn.q_proj", "write model.layers.(10|11).self_attn.q_proj"),
        ("model.layers.[0:3].self_attn.q_proj", "write model.layers.(0|1|2).self_attn.q_proj"),
        ("model.layers.[:2].mlp.gate", "write model.layers.(0|1).mlp.gate"),
        ("model.layers.[2,11].self_attn.q_proj[:4]", "write model.layers.(2|11).self_attn.q_proj[:4]"),
        (
            "model.layers.[10-19].self_attn.q_proj[:4]",
            "write model.layers.(10|11|12|13|14|15|16|17|18|19).self_attn.q_proj[:4]",
        ),
        ("model.layers.[20-21].self_attn.q_proj", "; model.layers.(20|21).self_attn.q_proj matches nothing"),
        ("model.layers.[!1].self_attn.q_proj", "! is one of them; write ^ in its place"),
    ],
)
def test_brackets_that_a_regular_expression_reads_otherwise_are_a_problem(
    entry: str, words: str, tmp_path: Path
) -> None:
    found = check(tmp_path, f"base_model: x\n{lines(entry)}")
    problem(found, f"{entry} matches only model.layers.", "brackets hold single characters", words)


@pytest.mark.parametrize("entry", ["[0-3]", "[12]", "[1,2]", "1[01]", "(1|10)", "[0-9]+"])
def test_brackets_that_say_what_was_meant_are_right(entry: str, tmp_path: Path) -> None:
    entry = f"model.layers.{entry}.self_attn.q_proj"
    assert check(tmp_path, f"base_model: x\n{lines(entry)}").problems == ()


def test_the_advice_keeps_rows_and_biases(tmp_path: Path) -> None:
    model = modelled(["l.0.q.weight", "l.0.q.bias", "l.0.q_norm.weight", "l.0.o.weight", "l.0.o_norm.weight"])
    assert check(tmp_path, lines("l.0.q"), model).problems[0].endswith("; write l.0.q.weight and l.0.q.bias")
    problem(check(tmp_path, f"x: 1\n{lines('l.0.o[:4]')}", model), "; write l.0.o.weight[:4]")
    tied = check(tmp_path, f"x: 1\n{lines('lm_head[:4]', 'model.norm')}", TIED)
    problem(tied, f"lm_head[:4] is tied to {EMBEDDING}", f"; write ^{EMBEDDING}$[:4]")


@pytest.mark.parametrize("owner", ["model.norm", EMBEDDING])
def test_of_many_entries_for_a_tied_head_a_few_are_told(owner: str, tmp_path: Path) -> None:
    rows = [f"{HEAD}[{i}:{i + 1}]" for i in range(8)]
    found = check(tmp_path, f"x: 1\n{lines(owner, *rows)}", TIED)
    tied = [text for text in (*found.problems, *found.notes) if "tied to" in text]
    assert len(tied) == 4
    assert tied[3].startswith("5 more ")


def test_rows_are_noted_only_if_something_matches(tmp_path: Path) -> None:
    found = check(tmp_path, f"x: 1\n{lines('model.norm', 'model.nothing[:4]')}")
    assert found.notes == ()


def test_the_name_of_a_parameter_may_not_match_another_one(tmp_path: Path) -> None:
    model = modelled(["a.weight", "a.weight_scale", "a.bias"])
    problem(check(tmp_path, lines("a.weight"), model), "a.weight also matches a.weight_scale; write ^a.weight$")
    problem(check(tmp_path, "adapter:\n" + lines("a.weight[:4]"), model), "a.weight[:4] also matches a.weight_scale")


@pytest.mark.parametrize(
    ("entry", "trains"),
    [
        ("model.layers.[0-7].self_attn.q_proj", 16),
        ("model.layers.1[0-9]+.self_attn.q_proj", 4),
        ("model.layers.1.+mlp", 9),  # of layers 1, 10 and 11
    ],
)
def test_a_pattern_may_match_whatever_it_does(entry: str, trains: int, tmp_path: Path) -> None:
    # In a trainer's config, which other readers do not read.
    found = check(tmp_path, f"base_model: x\n{lines(entry)}")
    assert found.problems == ()
    assert len(found.trained[AXOLOTL]) == trains


def test_a_pattern_has_to_match_something(tmp_path: Path) -> None:
    # From Axolotl's documentation.
    entry = "model.layers.2[0-9]+.block_sparse_moe.gate"
    problem(check(tmp_path, lines("model.norm", entry)), f"{entry} matches nothing")


def test_a_tied_head_trains_through_the_embedding(tmp_path: Path) -> None:
    found = check(tmp_path, lines(f"^{HEAD}$", f"^{EMBEDDING}$"), TIED)
    assert found.problems == ()
    assert f"^{HEAD}$ is tied to {EMBEDDING}, and trains through it" in found.notes
    assert found.trained[AXOLOTL] == {EMBEDDING}
    assert found.num_matching[AXOLOTL] == 1


@pytest.mark.parametrize("entry", [f"^{HEAD}$", HEAD, "lm_head"])
def test_a_tied_head_alone_does_not_train(entry: str, tmp_path: Path) -> None:
    found = check(tmp_path, lines(entry, "model.norm"), TIED)
    problem(found, f"{entry} is tied to {EMBEDDING}", f"write ^{EMBEDDING}$")
    assert found.trained[AXOLOTL] == {"model.norm.weight"}


def test_a_list_by_which_nothing_trains_is_a_problem(tmp_path: Path) -> None:
    assert check(tmp_path, lines("transformer.h.0", "wte")).problems[-1] == "nothing trains"


def test_a_list_by_which_everything_trains_is_noted(tmp_path: Path) -> None:
    assert check(tmp_path, lines("model", "lm_head")).notes == ("every parameter trains",)
    assert check(tmp_path, lines("model")).notes == ()


# Other readers.


@pytest.mark.parametrize(
    ("entry", "rule", "words", "is_problem"),
    [
        # No spelling of `norm` is right for readers that search within names, so the list is not wrong.
        ("norm", SUBSTRING, "trains layers.0.norm.weight", False),
        ("norm.weight[:4]", REGULAR_EXPRESSION, "does not train norm.weight", True),
    ],
)
def test_it_is_told_that_other_readers_understand_an_entry_otherwise(
    entry: str, rule: str, words: str, is_problem: bool, tmp_path: Path
) -> None:
    model = modelled(["norm.weight", "layers.0.norm.weight"])
    found = check(tmp_path, lines(entry), model)
    told, others = (found.problems, found.notes) if is_problem else (found.notes, found.problems)
    assert [text for text in told if text.startswith(f"{rule}: {words}") and "unlike Axolotl" in text]
    assert not [text for text in others if text.startswith(f"{rule}: {words}")]
    assert found.rules_differ
    # A whole config is read by one trainer only.
    config = check(tmp_path, f"base_model: x\n{lines(entry)}", model)
    assert not [text for text in (*config.problems, *config.notes) if "unlike Axolotl" in text or SUBSTRING in text]
    assert not config.rules_differ


def test_an_entry_that_only_others_match_has_one_problem(tmp_path: Path) -> None:
    found = check(tmp_path, lines("q_proj", "model.norm"))
    problem(found, "q_proj matches nothing")
    assert found.rules_differ  # so the table shows what the others match


def test_lines_that_are_whole_names_are_noted_as_no_substrings(tmp_path: Path) -> None:
    found = check(tmp_path, lines(f"^{HEAD}$", "^model.norm.weight$", "model.layers.0.mlp"))
    assert found.problems == ()
    (note,) = found.notes
    assert SUBSTRING in note
    assert "^model.norm.weight$" in note
    assert f"^{HEAD}$" not in note  # every list has it
    assert found.trained[SUBSTRING]
    assert all(name.startswith("model.layers.0.mlp.") for name in found.trained[SUBSTRING])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"unfrozen_parameters: [{HEAD}, model.norm]\n", ["0 entries, not 2"]),
        (f"unfrozen_parameters:\n  - {HEAD}\n  - model.norm\n", ["0 entries, not 2"]),
        (f"unfrozen_parameters:\n- '{HEAD}'\n- model.norm\n", ["other entries", f"'{HEAD}'", "without quotes"]),
        (f"unfrozen_parameters:\n- {HEAD} # head\n- model.norm\n", ["other entries", "comments"]),
    ],
)
def test_entries_are_to_be_lines_of_their_own(text: str, words: list[str], tmp_path: Path) -> None:
    problem(check(tmp_path, text), "lines that begin with '- '", *words)
    assert check(tmp_path, f"base_model: x\n{text}").problems == ()


# A whole config.

CONFIG = f"""\
base_model: org/model
datasets:
- path: data.jsonl
  type: alpaca
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
plugins:
- axolotl.integrations.liger.LigerPlugin
adapter:
deepspeed: deepspeed_configs/zero2.json
unfrozen_parameters:
- ^{HEAD}$
- ^{EMBEDDING}$
- model.layers.4.self_attn.q_proj
"""


def test_a_whole_config_is_right(tmp_path: Path) -> None:
    assert check(tmp_path, CONFIG).problems == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapter": "lora"}, ["adapter: lora"]),
        ({"adapter": "qlora"}, ["adapter: qlora"]),
        ({"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, ["SpectrumPlugin"]),
        ({"plugins": ["a.LigerPlugin", "axolotl.integrations.spectrum.SpectrumPlugin"]}, ["SpectrumPlugin"]),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, ["use_reentrant"]),
        ({"optimizer": "polora"}, ["polora", "refuses the list"]),
        ({"fsdp": ["full_shard", "auto_wrap"]}, ["FSDP 1", "use_orig_params"]),
        ({"fsdp": ["full_shard"], "fsdp_config": {"fsdp_use_orig_params": False}}, ["use_orig_params"]),
        ({"fsdp": ["full_shard"], "fsdp_config": {"use_orig_params": False}}, ["use_orig_params"]),
        ({"fsdp_config": {"offload_params": False}}, ["use_orig_params"]),
        ({"fsdp": ["full_shard"], "fsdp_version": 1}, ["use_orig_params"]),
    ],
    ids=str,
)
def test_a_setting_that_defeats_the_list_is_a_problem(
    change: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    problem(check(tmp_path, yaml.safe_dump(yaml.safe_load(CONFIG) | change)), *words)


@pytest.mark.parametrize(
    "change",
    [
        {"fsdp": ["full_shard"], "fsdp_config": {"fsdp_use_orig_params": True}},
        {"fsdp": ["full_shard"], "fsdp_config": {"use_orig_params": True}},
        {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}},
        {"fsdp_config": {"fsdp_version": 2, "offload_params": False}},
        {"fsdp_version": 2},
        {"fsdp": [], "fsdp_config": None},
        {"fsdp": None},
        {"deepspeed": "deepspeed_configs/zero3_bf16.json"},
        {"deepspeed": {"zero_optimization": {"stage": 3}}},
        {"adapter": ""},
        {"plugins": None},
        {"plugins": "axolotl.integrations.liger.LigerPlugin"},
        # With a list, Axolotl's default is not reentrant.
        {"gradient_checkpointing": True},
        {"gradient_checkpointing_kwargs": None},
        {"optimizer": "adamw_8bit"},
        {"gradient_checkpointing_kwargs": "none"},
    ],
    ids=str,
)
def test_a_setting_that_does_not_is_none(change: dict[str, object], tmp_path: Path) -> None:
    assert check(tmp_path, yaml.safe_dump(yaml.safe_load(CONFIG) | change)).problems == ()


@pytest.mark.parametrize(
    ("deepspeed", "wrong"),
    [
        ("deepspeed_configs/zero3_bf16.json", True),
        ({"zero_optimization": {"stage": 3}}, True),
        ("deepspeed_configs/zero2.json", False),
        ({"zero_optimization": {"stage": 2}}, False),
    ],
)
def test_rows_of_sharded_parameters_are_a_problem(deepspeed: object, wrong: bool, tmp_path: Path) -> None:
    config = yaml.safe_load(CONFIG) | {"deepspeed": deepspeed}
    config["unfrozen_parameters"] = [f"^{HEAD}$[:4]", "model.norm"]
    found = check(tmp_path, yaml.safe_dump(config))
    assert [text for text in found.problems if "ZeRO-3" in text] == list(found.problems)
    assert len(found.problems) == wrong
    assert [note for note in found.notes if "weight decay" in note]


@pytest.mark.parametrize(
    "setting",
    [
        "adapter: BOMB",
        "plugins: BOMB",
        "plugins: [BOMB]",
        "deepspeed: BOMB",
        "fsdp_version: BOMB",
        "fsdp_config: BOMB",
        "fsdp_config: {fsdp_version: BOMB}",
        "gradient_checkpointing_kwargs: {use_reentrant: BOMB}",
    ],
)
def test_settings_that_a_small_file_makes_endless_are_not_written_out(setting: str, tmp_path: Path) -> None:
    # Written out, it is 4 MB, a ninth of that for each part, and nine times as much with a further level.
    text = f"fsdp: [full_shard]\n{of_aliases(7)}{setting.replace('BOMB', '*a6')}\n{lines('model.norm')}"
    (tmp_path / "list.yaml").write_text(text)
    read = lists.read_list(tmp_path / "list.yaml")
    tracemalloc.start()
    try:
        found = check_list(read, MODEL)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18
    assert all(len(text) < 500 for text in found.problems)


# The lists that we write.


@dataclass(frozen=True)
class Scanned:
    """A working directory with a model and its scan, made by the command."""

    directory: Path
    model: str

    def names(self) -> ModelInfo:
        path = str(self.directory / self.model)
        info, *_ = describe_model(path, revision=None, model_class=None, trust_remote_code=False)
        return info


OWN = ["llama", "llama-tied", "gpt2", "qwen2-moe", "deepseek-v3", "gpt-oss", "jamba", "gemma3", "t5", "whisper"]


@pytest.fixture(scope="module", params=OWN)
def scanned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    directory = tmp_path_factory.mktemp("own")
    built(request.param).save_pretrained(directory / request.param)
    done = run(directory, "--model-name", request.param, "--yes", "--quiet")
    assert done.status == 0, done.err
    return Scanned(directory, request.param)


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("percent", ["50", "100"])
def test_our_own_lists_have_no_problems(scanned: Scanned, percent: str, embeddings: bool, tmp_path: Path) -> None:
    scan = scan_json.read_published(scanned.directory / f"model_snr_results/snr_results_{scanned.model}.json")
    chosen = selection.top_percent(scan, percent, embeddings=embeddings)
    model = scanned.names()
    found = check_list(lists.read_list(chosen.to_yaml(tmp_path / "own.yaml")), model)
    assert found.problems == ()
    expected = {model.parameters[name].tied_to or name for name in chosen.trained()}
    assert found.trained[AXOLOTL] == found.trained[REGULAR_EXPRESSION] == expected


def test_the_command_finds_our_own_list_right(scanned: Scanned) -> None:
    file = f"snr_results_{scanned.model}_unfrozenparameters_50percent.yaml"
    before = files_below(scanned.directory)
    done = run(scanned.directory, "--model-name", scanned.model, "--check", file)
    assert done.status == 0
    assert "error" not in done.err
    assert "problem" not in done.out
    assert files_below(scanned.directory) == before


# The command.


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """A working directory with the sample checkpoint, short of its weights."""
    shutil.copytree(TINY_LLAMA, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    assert not list(tmp_path.rglob("*.safetensors*"))
    return tmp_path


GOOD = lines(f"^{HEAD}$", f"^{EMBEDDING}$", "model.layers.1.mlp.down_proj", "model.layers.7.self_attn.q_proj")


def checked(directory: Path, text: str, *args: str) -> Finished:
    (directory / "list.yaml").write_text(text)
    return run(directory, "--model-name", "model", "--check", "list.yaml", *args)


def table(done: Finished) -> dict[str, tuple[int, int]]:
    """Of each rule: entries that match, parameters that train."""
    rows = [line.rsplit(maxsplit=2) for line in done.out.splitlines()]
    return {row[0]: (int(row[1]), int(row[2])) for row in rows if row and row[0] in matching.RULES}


def test_a_list_is_checked_without_weights(config_only: Path) -> None:
    before = files_below(config_only)
    done = checked(config_only, GOOD)
    assert (done.status, done.err) == (0, "")
    title, *_ = done.out.splitlines()
    assert title == "list.yaml, 4 entries, against LlamaForCausalLM of model"
    assert table(done) == {}  # patterns are noted; otherwise, all rules agree
    assert "AdamW" in done.out
    # Head and embedding, and two matrices, by the sample's config.
    sizes = json.loads((TINY_LLAMA / "config.json").read_text())
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    query = hidden * heads * sizes.get("head_dim", hidden // heads)
    count = 2 * sizes["vocab_size"] * hidden + hidden * sizes["intermediate_size"] + query
    assert f"{count:,} of 861,792 parameters" in done.out
    assert files_below(config_only) == ["list.yaml", *before]


@pytest.mark.parametrize(
    ("text", "entries", "has_plan"),
    [
        (
            "freeze_config: {freeze_modules: [{glob: '*'}], unfreeze_modules: [{path: model.norm}, {path: lm_head}]}",
            "3 entries of NeMo Automodel's freeze_config",
            True,
        ),
        (
            "callbacks: {layer_freezing: {layer_names: [model.lm_head.weight]}}",
            "1 entry of llm-foundry's layer_freezing",
            True,
        ),
        ("model.norm.weight\nlm_head.weight\n", "2 entries of names of parameters that train", True),
        ("adapter: lora\nlora_target_modules: [q_proj]", "1 entry of Axolotl's lora_target_modules", False),
        ("target_modules: .*q_proj", "1 entry of PEFT's LoraConfig", False),
    ],
    ids=["nemo", "llm-foundry", "names", "axolotl-lora", "peft"],
)
def test_the_title_says_whose_rule_it_is(text: str, entries: str, has_plan: bool, config_only: Path) -> None:
    done = checked(config_only, text)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"list.yaml, {entries}, against LlamaForCausalLM of model"
    assert "ok: every entry does what it says" in done.out
    assert ("AdamW" in done.out) == has_plan  # the memory of adapters depends on their rank


def test_the_plugins_scan_is_looked_for_where_the_command_runs(config_only: Path) -> None:
    config = "base_model: model\nplugins: [axolotl.integrations.spectrum.SpectrumPlugin]\nspectrum_top_fraction: 0.5\n"
    missing = checked(config_only, config)
    assert error_of(missing) == "spectrum: error: list.yaml: 1 problem\n"
    assert f"model_snr_results/snr_results_model.json is not in {config_only}" in missing.out
    scores = {f"model.layers.{i}.mlp.up_proj": {"type": "mlp.up_proj", "snr": i} for i in range(8)}
    (config_only / "model_snr_results").mkdir()
    (config_only / "model_snr_results" / "snr_results_model.json").write_text(json.dumps(scores))
    done = checked(config_only, config)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("list.yaml, 6 entries of Axolotl's SpectrumPlugin, against LlamaForCausalLM of model")


def error_of(done: Finished) -> str:
    """The one line on stderr."""
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert done.err.startswith("spectrum: error: list.yaml: ")
    return done.err


def test_a_wrong_list_is_an_error_with_the_report_on_stdout(config_only: Path) -> None:
    wrong = lines("model.layers.1.mlp.down_prj", "model.norm", "transformer.wte")
    done = checked(config_only, wrong)
    assert error_of(done) == "spectrum: error: list.yaml: 2 problems\n"
    assert "down_prj matches nothing; did you mean model.layers.1.mlp.down_proj?" in done.out
    assert done.out.count("problem: ") == 2
    assert "transformer.wte matches nothing" in done.out


def test_a_quiet_check_prints_nothing_but_the_first_problem(config_only: Path) -> None:
    quiet = checked(config_only, lines("model.layers.1.mlp.down_prj", "wte", "model.norm"), "--quiet")
    assert quiet.out == ""
    assert error_of(quiet).startswith("spectrum: error: list.yaml: 2 problems, the first: model.layers.1.mlp.down_prj")
    one = checked(config_only, lines("wte", "model.norm"), "--quiet")
    assert (one.out, one.err) == ("", "spectrum: error: list.yaml: 1 problem: wte matches nothing\n")
    fine = checked(config_only, GOOD, "--quiet")
    assert (fine.status, fine.out, fine.err) == (0, "", "")


def test_the_memory_of_a_wrong_list_is_estimated_only_if_asked_for(config_only: Path) -> None:
    wrong = lines("model.norm", "wte")
    assert "AdamW" not in checked(config_only, wrong).out
    assert "ZeRO-3 of 4" in checked(config_only, wrong, "--training-gpus", "4").out
    assert "ZeRO-3 of 8" in checked(config_only, GOOD).out


def test_nothing_that_trains_has_no_plan(config_only: Path) -> None:
    done = checked(config_only, lines("transformer.wte"), "--training-gpus", "4")
    error_of(done)
    assert "nothing trains" in done.out
    assert "AdamW" not in done.out


def test_the_table_shows_what_each_rule_matches_if_they_differ(config_only: Path) -> None:
    assert table(checked(config_only, lines("input_layernorm", "model.norm"))) == {
        AXOLOTL: (1, 1),
        REGULAR_EXPRESSION: (1, 1),
        SUBSTRING: (2, 9),
    }


def test_a_list_for_another_class_is_wrong(config_only: Path) -> None:
    done = checked(config_only, GOOD, "--model-class", "LlamaModel")
    error_of(done)
    assert "against LlamaModel of model" in done.out
    assert f"write ^embed_tokens.weight$ in place of ^{EMBEDDING}$, and the others likewise" in done.out
    assert "nothing trains" in done.out
    assert checked(config_only, GOOD, "--model-class", "AutoModelForCausalLM").status == 0


def test_a_list_from_another_version_of_transformers_is_wrong(tmp_path: Path) -> None:
    """As multimodal models had them before 5.0, where the language model came first."""
    built("llava").save_pretrained(tmp_path / "model")
    old = ["language_model.model.layers.0.mlp.down_proj", "language_model.lm_head"]
    done = checked(tmp_path, lines("^lm_head.weight$", *old))
    error_of(done)
    for one, new in zip(old, ["model.language_model.layers.0.mlp.down_proj", "lm_head"], strict=True):
        reason = "it is a name of the weight files or of an older transformers"
        assert f"{one} matches nothing: {reason}; write {new}\n" in done.out


def test_the_rival_class_of_a_multimodal_model_is_warned_of(tmp_path: Path) -> None:
    built("llama4").save_pretrained(tmp_path / "model")
    done = checked(tmp_path, lines("language_model.model.norm"))
    assert done.status == 0
    (line,) = done.err.splitlines()
    assert line.startswith("spectrum: warning: ")
    assert "Llama4ForCausalLM" in line
    assert "--model-class" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adapter: lora\n", "no unfrozen_parameters"),
        (lines("model.("), "'model.(' is not a regular expression"),
        ("unfrozen_parameters: []\n", "is empty"),
    ],
)
def test_what_is_no_list_is_an_error_in_a_line(text: str, words: str, config_only: Path) -> None:
    assert_refused(checked(config_only, text), words, "list.yaml")


def test_a_model_that_is_not_there_is_an_error_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(GOOD)
    assert_refused(run(tmp_path, "--model-name", "./missing", "--check", "list.yaml"), "no directory './missing'")


# From the Hub.


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer({"org/model": Repo(TINY_LLAMA, "a" * 40)}) as server:
        yield server


@pytest.mark.slow
def test_only_the_config_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(GOOD)
    home = tmp_path / "home"
    args = ["--model-name", "org/model", "--check", "list.yaml"]
    with commands(home, HF_ENDPOINT=hub.endpoint) as command:
        done = command(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "spectrum" not in done.stderr  # but for the Hub's own progress, silent
    assert "against LlamaForCausalLM of org/model" in done.stdout
    fetched = {path.rpartition("/")[2] for _, path in hub.requests if "/resolve/" in path}
    assert fetched == {"config.json"}
    assert [path.name for path in home.rglob("*") if path.is_symlink()] == ["config.json"]
    # And then it is there.
    with commands(home, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1") as command:
        assert command(*args, cwd=tmp_path).returncode == 0
        missing = command("--model-name", "org/missing", "--check", "list.yaml", cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "org/missing" in missing.stderr


# A file that says something twice.


@pytest.mark.parametrize("settings", ["", "base_model: x\n"])
def test_a_list_that_another_one_replaces_is_a_problem(settings: str, tmp_path: Path) -> None:
    text = f"{settings}{lines('model.layers.1.self_attn')}{settings.replace('base_model', 'lr')}{lines('model.norm')}"
    found = check(tmp_path, text)
    first, last = (i for i, line in enumerate(text.splitlines(), 1) if line == "unfrozen_parameters:")
    told = f"unfrozen_parameters stands in lines {first} and {last}, and only the last list, in line {last}, counts"
    assert f"{told}; merge the lists" in found.problems
    assert found.trained[AXOLOTL] == {"model.norm.weight"}


def test_a_setting_that_stands_twice_is_a_problem(tmp_path: Path) -> None:
    problem(
        check(tmp_path, f"adapter: lora\n{lines('model.norm')}adapter:\n"),
        "adapter stands in lines 1 and 4, and only the last counts",
    )
    fsdp = "fsdp_config:\n  version: 1\n  version: 2\n"
    problem(check(tmp_path, fsdp + lines("model.norm")), "fsdp_config.version stands in lines 2 and 3")
    # Any other one has nothing to do with the list.
    assert check(tmp_path, f"lr: 1\nlr: 2\n{lines('model.norm')}").problems == ()


def test_the_command_fails_for_a_list_that_another_one_replaces(config_only: Path) -> None:
    done = checked(config_only, GOOD + GOOD)
    assert error_of(done) == "spectrum: error: list.yaml: 1 problem\n"
    assert "problem: unfrozen_parameters stands in lines 1 and 6" in done.out


# What a list of Axolotl's can say besides.


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("[5:2]", "selects no row"),
        ("[3:3]", "selects no row"),
        ("[0:9]", "does not have"),
        ("[8]", "does not have"),
        ("[8:]", "does not have"),
        ("[:8]", None),
        ("[7]", None),
        ("[7:]", None),
        ("[:]", None),
    ],
)
def test_rows_that_a_parameter_does_not_have_are_a_problem(rows: str, words: str | None, tmp_path: Path) -> None:
    # Its parameters have eight; a whole config, since scripts know nothing of rows.
    found = check(tmp_path, f"base_model: x\n{lines(f'model.norm.weight{rows}')}")
    if words is None:
        assert found.problems == ()
    else:
        problem(found, f"model.norm.weight{rows}", words, "Axolotl refuses")


TOWERS = modelled([EMBEDDING, "model.vision_tower.layers.0.mlp.fc1.weight", "model.layers.0.mlp.up_proj.weight"])


def test_what_is_frozen_again_with_the_other_modalities_is_a_problem(tmp_path: Path) -> None:
    both = lines("model.vision_tower.layers.0.mlp.fc1", "model.layers.0.mlp.up_proj")
    problem(check(tmp_path, f"freeze_mm_modules: true\n{both}", TOWERS), "freeze_mm_modules", "vision_tower.layers.0")
    assert check(tmp_path, f"freeze_mm_modules: false\n{both}", TOWERS).problems == ()
    one = lines("model.layers.0.mlp.up_proj")
    assert check(tmp_path, f"freeze_mm_modules: true\n{one}", TOWERS).problems == ()


@pytest.mark.parametrize("setting", ["load_in_4bit", "load_in_8bit"])
def test_quantized_weights_that_are_to_train_are_a_problem(setting: str, tmp_path: Path) -> None:
    problem(check(tmp_path, f"{setting}: true\n{lines('model.norm')}"), setting, "do not train")
    assert check(tmp_path, f"{setting}: false\n{lines('model.norm')}").problems == ()


def test_a_name_that_no_module_has_is_noted_with_what_it_begins(tmp_path: Path) -> None:
    found = check(tmp_path, lines("model.layers.3.mlp.gate_pro"))
    assert found.problems == ()
    (note,) = found.notes
    assert "model.layers.3.mlp.gate_pro is not the name of a module" in note
    assert "model.layers.3.mlp.gate_proj.weight" in note


def test_many_entries_of_another_model_are_told_once(tmp_path: Path) -> None:
    foreign = [f"transformer.h.{i}.mlp.c_fc" for i in range(40)]
    problem(check(tmp_path, lines("model.norm", *foreign)), "40 entries match nothing", foreign[0], "--model-class")
    first, last = check(tmp_path, lines(*foreign)).problems
    assert first.startswith(
        f"no entry matches, for example {foreign[0]} and {foreign[1]}; is the list for another model"
    )
    assert last == "nothing trains"


def test_many_entries_that_match_too_much_are_told_once(tmp_path: Path) -> None:
    model = modelled([f"a.{i}.{name}.weight" for i in range(9) for name in ("gate", "gate_proj")])
    found = check(tmp_path, lines(*(f"a.{i}.gate" for i in range(9))), model).problems
    assert found[0] == "a.0.gate also matches a.0.gate_proj.weight; write a.0.gate.weight"
    assert len(found) == 4
    assert found[-1] == "6 more also match what they do not name"


def test_a_list_without_problems_says_that_it_is_ok(config_only: Path) -> None:
    assert "\nok: every entry does what it says\n" in checked(config_only, GOOD).out
    assert "\nok:" not in checked(config_only, lines("model.norms")).out
