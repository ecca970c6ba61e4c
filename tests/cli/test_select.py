"""What the command can be asked for beside a list for Axolotl: other formats, a share of all parameters, pictures, a
comparison."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import spectrum.checkpoint.reader
from spectrum.cli import entry
from spectrum.plots import heatmap, histogram
from spectrum.scanning import scan_json
from spectrum.selection import selection
from spectrum.text import aligned
from spectrum.trainers.formats import formats
from tests.helpers.architectures import built
from tests.helpers.command import Finished, assert_refused, run
from tests.helpers.paths import PUBLISHED, TINY_LLAMA, files_below
from tests.helpers.processes import torchrun

MODEL = ["--model-name", "model"]
LIST = "snr_results_model_unfrozenparameters_50percent.yaml"
SCAN = "model_snr_results/snr_results_model.json"
SORTED = "snr_results_model_sorted.json"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the sample checkpoint and its scan."""
    directory = tmp_path_factory.mktemp("first")
    shutil.copytree(TINY_LLAMA, directory / "model")
    done = run(directory, *MODEL, "--yes", "--quiet", "--output-dir", "elsewhere")
    assert done.status == 0, done.err
    shutil.rmtree(directory / "elsewhere")
    return directory


@pytest.fixture
def scanned(first: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first, tmp_path / "work"))


@pytest.fixture
def cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a checkpoint, fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the checkpoint was opened")

    monkeypatch.setattr(spectrum.checkpoint.reader, "open_checkpoint", refuse)


def done_well(directory: Path, *args: str | Path) -> Finished:
    done = run(directory, *MODEL, *args)
    assert done.status == 0, done.err
    return done


def sections(done: Finished) -> list[str]:
    return done.out.rstrip("\n").split("\n\n")


# Formats.

NAMES = {
    "axolotl": "snr_results_model_unfrozenparameters_25percent.yaml",
    "names": "snr_results_model_names_25percent.txt",
    "swift": "snr_results_model_swift_25percent.txt",
    "nemo": "snr_results_model_nemo_25percent.yaml",
    "frozen": "snr_results_model_frozen_25percent.yaml",
    "peft": "snr_results_model_peft_25percent.yaml",
    "axolotl-lora": "snr_results_model_axolotl-lora_25percent.yaml",
    "trl-lora": "snr_results_model_trl-lora_25percent.txt",
    "llamafactory": "snr_results_model_llamafactory_25percent.yaml",
    "json": "snr_results_model_selection_25percent.json",
}


def test_every_format_is_tested() -> None:
    assert NAMES.keys() == formats.FORMATS.keys()


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_each_format_has_a_file(name: str, embeddings: bool, scanned: Path) -> None:
    options = ["--format", name, "--top-percent", "25", *([] if embeddings else ["--no-embeddings"])]
    done = done_well(scanned, *options)
    chosen = selection.top_percent(scan_json.read_published(scanned / SCAN), "25", embeddings=embeddings)
    expected = formats.FORMATS[name][0](chosen)
    assert (scanned / NAMES[name]).read_text() == expected.text
    files, steps = sections(done)[-2:]
    assert files.splitlines()[-1].split() == ["list", NAMES[name]]
    check = f"Check the list, or your config with it: spectrum --model-name {MODEL[1]} --check {NAMES[name]}"
    use = formats.FORMATS[name].use.replace("LIST", repr(NAMES[name]))
    assert steps == "\n".join([use, *([check] if name != "json" else [])])
    assert done.err == ""
    assert not expected.notes or sections(done)[-3] == "\n".join(expected.notes)
    others = [file for file in NAMES.values() if (scanned / file).exists()]
    assert others == [NAMES[name]]
    quiet = done_well(scanned, *options, "--quiet", "--output-dir", "out")
    assert quiet.out == f"out/{NAMES[name]}\n"
    assert (scanned / "out" / NAMES[name]).read_text() == expected.text


@pytest.mark.usefixtures("cache_only")
def test_formats_hold_what_the_yaml_does(scanned: Path) -> None:
    for name in NAMES:
        done_well(scanned, "--format", name, "--top-percent", "25")
    entries = yaml.safe_load((scanned / NAMES["axolotl"]).read_text())["unfrozen_parameters"]
    layers = entries[2:]
    weights = ["lm_head.weight", "model.embed_tokens.weight", *(f"{layer}.weight" for layer in layers)]
    assert (scanned / NAMES["names"]).read_text().splitlines() == weights
    content = json.loads((scanned / NAMES["json"]).read_text())
    assert [layer["name"] for layer in content["layers"]] == layers
    assert (content["model"], content["top_percent"]) == ("model", 25)
    targets = yaml.safe_load((scanned / NAMES["peft"]).read_text())["target_modules"]
    assert targets == [layer for layer in layers if "norm" not in layer]
    arguments = (scanned / NAMES["swift"]).read_text().splitlines()
    assert arguments[1].split() == ["--trainable_parameters", "lm_head.weight", "model.embed_tokens.weight", *layers]


@pytest.mark.usefixtures("cache_only")
def test_adapters_have_no_plan_for_training_in_full(scanned: Path) -> None:
    assert "AdamW" in done_well(scanned).out
    for name in ("peft", "axolotl-lora", "trl-lora", "llamafactory"):
        assert "AdamW" not in done_well(scanned, "--format", name).out


# Controls.


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize(("order", "word"), [("lowest", "lowest"), ("random:7", "random-7")])
@pytest.mark.parametrize("name", NAMES)
def test_a_control_has_files_of_its_own(name: str, order: str, word: str, scanned: Path) -> None:
    options = ["--format", name, "--top-percent", "25", "--no-embeddings"]
    done_well(scanned, *options)
    default, sorted_scores = ((scanned / file).read_bytes() for file in (NAMES[name], SORTED))
    done = done_well(scanned, *options, "--order", order)
    file = NAMES[name].replace("25percent", f"25percent_{word}")
    chosen = selection.top_percent(scan_json.read_published(scanned / SCAN), "25", embeddings=False, order=order)
    assert (scanned / file).read_text() == formats.FORMATS[name].render(chosen).text
    assert (scanned / file).read_bytes() != default == (scanned / NAMES[name]).read_bytes()
    assert (scanned / SORTED).read_bytes() == sorted_scores
    assert sections(done)[1] == f"Control: {chosen.share()} of each layer type, in place of the top 25 percent."
    assert sections(done)[2] == aligned(chosen.rows())
    assert sections(done)[-2].splitlines()[-1].split() == ["list", file]
    assert (f"--check {file}" in sections(done)[-1]) == (name != "json")
    assert done_well(scanned, *options, "--order", order, "--quiet", "--output-dir", "out").out == f"out/{file}\n"


@pytest.mark.usefixtures("cache_only")
def test_the_default_order_changes_nothing(scanned: Path) -> None:
    plain = done_well(scanned, "--top-percent", "25")
    before = {name: (scanned / name).read_bytes() for name in files_below(scanned)}
    assert done_well(scanned, "--top-percent", "25", "--order", "highest") == plain
    assert {name: (scanned / name).read_bytes() for name in files_below(scanned)} == before


@pytest.mark.usefixtures("cache_only")
def test_a_control_may_be_a_share_of_all_parameters(scanned: Path) -> None:
    done = done_well(scanned, "--top-params", "30", "--order", "random:7")
    equivalent = "At most 30 percent of all parameters: the same as --top-percent 25 --order random:7."
    assert equivalent in sections(done)
    file = scanned / LIST.replace("50percent", "25percent_random-7")
    assert file.is_file()
    again = done_well(scanned, "--top-percent", "25", "--order", "random:7", "--output-dir", "again")
    assert again.err == ""
    assert (scanned / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.usefixtures("cache_only")
def test_a_control_is_compared_with_the_same_control(scanned: Path) -> None:
    other = json.loads((scanned / SCAN).read_text())
    for entry_of_layer in other.values():
        entry_of_layer["snr"] = 1 / entry_of_layer["snr"]
    (scanned / "other.json").write_text(json.dumps(other))
    out = done_well(scanned, "--order", "lowest", "--top-percent", "25", "--compare", "other.json").out
    assert "in place of model, lowest 25 percent of each layer type:" in out
    highest = selection.top_percent(scan_json.read_published(scanned / SCAN), "25").layers()["mlp.up_proj"]
    assert all(f"+ {name}\n" in out for name in highest)
    out = done_well(scanned, "--order", "random:1", "--top-percent", "25", "--compare", "other.json").out
    assert "of these types, both select the same layers" in out


@pytest.mark.usefixtures("cache_only")
def test_the_list_of_a_control_is_checked(scanned: Path) -> None:
    done_well(scanned, "--order", "random:7")
    done = run(scanned, *MODEL, "--check", LIST.replace("50percent", "50percent_random-7"))
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("random", "random needs a seed, so that the same layers can be drawn again, such as random:1, not 'random'"),
        ("random:x", "such as random:1, not 'random:x'"),
        ("Lowest", "not 'Lowest'; did you mean lowest?"),
        ("", "highest, lowest or random:SEED is expected"),
    ],
)
def test_an_order_that_is_none_is_wrong_usage(order: str, words: str, tmp_path: Path) -> None:
    assert_refused(run(tmp_path, *MODEL, "--order", order), "--order", words, status=2)


def test_a_name_that_is_too_long_for_its_file_is_refused_before_a_scan(tmp_path: Path) -> None:
    shutil.copytree(TINY_LLAMA, tmp_path / ("m" * 170))
    # The name itself is within 255 bytes; that of the temporary file beside it is not.
    done = run(tmp_path, "--model-name", "m" * 170, "--yes", "--order", f"random:{2**63 - 1}")
    assert_refused(done, "cannot write snr_results_mmm", "too long")
    assert files_below(tmp_path / "model_snr_results") == []


def test_a_format_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    assert_refused(run(tmp_path, *MODEL, "--format", "gguf"), "--format", "gguf", "'swift'", status=2)


# A share of all parameters.


def count(names: list[str], scan: Path) -> int:
    parameters = json.loads(scan.with_name(f"{scan.stem}.meta.json").read_text())["parameters"]
    return sum(math.prod(parameters[name]["shape"]) for name in names)


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize("embeddings", [[], ["--no-embeddings"]])
@pytest.mark.parametrize("share", ["20", "37.5", "50", "99", "100"])
def test_the_most_that_a_share_allows_is_selected(share: str, embeddings: list[str], scanned: Path) -> None:
    done = done_well(scanned, "--top-params", share, "--format", "names", *embeddings)
    (line,) = [text for text in sections(done) if text.startswith(f"At most {share} percent of all parameters: ")]
    percent = line.removesuffix(".").rpartition(" ")[2]
    file = scanned / f"snr_results_model_names_{percent}percent.txt"
    total = count(
        list(json.loads((scanned / SCAN).with_name("snr_results_model.meta.json").read_text())["parameters"]),
        scanned / SCAN,
    )

    def trained(percent: float) -> int:
        out = scanned / f"out-{percent}"
        done_well(scanned, "--top-percent", f"{percent:g}", "--format", "names", "--output-dir", out, *embeddings)
        return count((next(out.glob("*.txt"))).read_text().splitlines(), scanned / SCAN)

    assert f"--top-percent {percent}" in line
    own = count(file.read_text().splitlines(), scanned / SCAN)
    # The same as with the percentage that is named; and with the next step, of eight layers, it would be too much.
    assert own == trained(float(percent))
    assert own <= total * float(share) / 100
    step = math.floor(float(percent) / 12.5) + 1
    assert step > 8 or trained(12.5 * step) > total * float(share) / 100


@pytest.mark.usefixtures("cache_only")
def test_a_share_says_which_percentage_it_is_even_if_quiet(scanned: Path) -> None:
    line = "At most 60 percent of all parameters: the same as --top-percent 50."
    assert line in sections(done_well(scanned, "--top-params", "60"))
    quiet = done_well(scanned, "--top-params", "60", "--quiet")
    assert (quiet.out, quiet.err) == (f"{LIST}\n", f"spectrum: {line}\n")
    assert done_well(scanned, "--top-percent", "60", "--quiet").err == ""


@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize("args", [[], ["--format", "swift"], ["--top-params", "60"], ["--compare", SCAN]], ids=str)
def test_the_last_24_lines_say_what_trains_where_the_list_is_and_what_to_do_with_it(
    args: Sequence[str], scanned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "text_columns", lambda stream: 79)
    lines = done_well(scanned, *args).out.splitlines()
    assert max(map(len, lines)) <= 79
    end = lines[-23:]  # the prompt takes one
    file = "snr_results_model_swift_50percent.txt" if "swift" in args else LIST
    assert (f"$(cat '{file}')" in " ".join(" ".join(end).split())) == ("swift" in args)
    assert end[-1].endswith(f"--check {file}")
    assert any(" of 861,792 parameters train, " in line for line in end)
    assert sum(line.startswith(("scores  ", "sorted scores  ", "list  ")) for line in end) == 3


@pytest.mark.parametrize(
    "option", [["--revision", "a b"], ["--model-class", "LlamaForCausalLM"], ["--trust-remote-code"]]
)
@pytest.mark.usefixtures("cache_only")
def test_the_command_that_checks_opens_the_model_alike(option: Sequence[str], scanned: Path) -> None:
    command = done_well(scanned, *option).out.splitlines()[-1].partition(": ")[2]
    assert shlex.split(command) == ["spectrum", *MODEL, *option, "--check", LIST]


TRAIN_TOO = "lm_head, model.embed_tokens: input embedding and output head train too, selected or not; "


@pytest.mark.usefixtures("cache_only")
def test_embeddings_that_train_without_being_selected_are_told(scanned: Path) -> None:
    assert f"{TRAIN_TOO}--no-embeddings keeps them frozen\n" in done_well(scanned, "--top-percent", "25").out
    for options in (["--no-embeddings"], ["--top-percent", "100"], ["--format", "peft"]):
        assert "train too" not in done_well(scanned, *options).out
    # What stays frozen is not counted as selected.
    frozen = sections(done_well(scanned, "--top-percent", "100", "--no-embeddings"))
    table = next(part for part in frozen if part.startswith("layer type"))
    assert [line.split()[1:4] for line in table.splitlines() if line.startswith(("lm_head", "total"))] == [
        ["0", "of", "1"],
        ["73", "of", "75"],
    ]


@pytest.mark.usefixtures("cache_only")
def test_the_origin_counts_the_layers_that_are_shown(scanned: Path) -> None:
    assert done_well(scanned, "--layer-types", "mlp.*").out.startswith("24 layers of model ")


def test_a_scan_of_some_types_that_replaces_one_of_more_is_warned_of(scanned: Path) -> None:
    done = done_well(scanned, "--layer-types", "mlp.*", "--rescan")
    (warning,) = done.said("warning: ")
    assert "replaces the cached one, and drops 9 layer types that it has: input_layernorm, lm_head" in warning
    assert done_well(scanned, "--layer-types", "mlp.*", "--rescan").said("warning: ") == []
    assert done_well(scanned, "--rescan").said("warning: ") == []


@pytest.mark.usefixtures("cache_only")
def test_the_hint_at_frozen_embeddings_says_what_they_save(scanned: Path) -> None:
    refused = run(scanned, *MODEL, "--top-params", "10")
    share = refused.err.rpartition(" trains ")[2].split()[0]
    assert run(scanned, *MODEL, "--top-params", share, "--no-embeddings").status == 0
    assert "embeddings=False" in refused.err
    assert "; even with input embedding and output head frozen" in refused.err
    assert "; with input embedding" in run(scanned, *MODEL, "--top-params", share).err
    again = run(scanned, *MODEL, "--top-params", "10", "--no-embeddings")
    assert_refused(again, "the smallest selection trains", "not 10")
    assert "frozen" not in again.err


@pytest.mark.usefixtures("cache_only")
def test_a_share_that_is_too_small_is_an_error(scanned: Path) -> None:
    refused = run(scanned, *MODEL, "--top-params", "1")
    assert_refused(refused, "the smallest selection trains", "percent of all parameters, not 1", "--no-embeddings")
    assert not list(scanned.glob("*.yaml"))


@pytest.mark.parametrize("value", ["0", "101", "abc", "-1", ""])
def test_a_share_that_is_none_is_wrong_usage(value: str, tmp_path: Path) -> None:
    assert_refused(run(tmp_path, *MODEL, f"--top-params={value}"), "--top-params", "at most 100", status=2)


@pytest.mark.parametrize("percent", ["25", "50", "100"])
@pytest.mark.parametrize("order", [1, -1])
def test_there_is_one_share(percent: str, order: int, tmp_path: Path) -> None:
    options = [["--top-percent", percent], ["--top-params", "20"]][::order]
    assert_refused(run(tmp_path, *MODEL, *options[0], *options[1]), "not allowed with argument", status=2)


def test_weights_that_no_rule_scores_are_told_from_the_cache_too(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=16, image_size=64, patch_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path / "model")
    note = "percent of the parameters are in weights that are not scored, and so are never selected: embeddings.pos"
    assert note in " ".join(run(tmp_path, *MODEL, "--yes").out.split())
    shutil.rmtree(tmp_path / "model")
    assert note in " ".join(run(tmp_path, *MODEL, "--yes").out.split())


def test_a_scan_without_sizes_has_no_share(tmp_path: Path) -> None:
    (tmp_path / "model_snr_results").mkdir()
    (tmp_path / SCAN).write_text('{"a.0.b": {"snr": 1.5, "type": "b"}, "a.1.b": {"snr": 2.5, "type": "b"}}')
    assert_refused(run(tmp_path, *MODEL, "--top-params", "20"), "model", "--rescan")
    done = done_well(tmp_path)
    assert "--rescan" in done.out
    assert "AdamW" not in done.out


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "eight", "", "1e3", "\N{ARABIC-INDIC DIGIT FIVE}", "10000000"])
def test_a_number_of_devices_that_is_none_is_wrong_usage(value: str, tmp_path: Path) -> None:
    for option in ("--training-gpus", "--gpus"):
        assert_refused(run(tmp_path, *MODEL, f"{option}={value}"), option, repr(value), status=2)


@pytest.mark.usefixtures("cache_only")
def test_memory_is_for_as_many_devices_as_are_asked_for(scanned: Path) -> None:
    assert "ZeRO-3 of 8" in done_well(scanned).out
    assert "ZeRO-3 of 64" in done_well(scanned, "--training-gpus", "64").out
    (scanned / "list.yaml").write_text("unfrozen_parameters:\n- model.norm\n")
    assert "ZeRO-3 of 3" in done_well(scanned, "--check", "list.yaml", "--gpus", "3").out


# Pictures.

STARTS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(STARTS[path.suffix.lower()])


def _recorded(draw: Callable[..., None], calls: list[tuple[Any, ...]], *given: Any) -> None:
    calls.append(given)
    draw(*given)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is given to those who draw, who draw all the same."""
    pytest.importorskip("matplotlib")
    calls: list[tuple[Any, ...]] = []
    for module, name in ((heatmap, "heatmap"), (histogram, "spectrum_histogram")):
        monkeypatch.setattr(module, name, partial(_recorded, getattr(module, name), calls))
    return calls


@pytest.mark.slow
@pytest.mark.usefixtures("cache_only")
@pytest.mark.parametrize("name", ["picture.png", "new/picture.svg", "Picture.PDF"])
def test_a_picture_of_the_selection_is_drawn_beside_the_list(
    name: str, scanned: Path, drawn: list[tuple[Any, ...]]
) -> None:
    plain = done_well(scanned, "--top-percent", "25")
    done = done_well(scanned, "--top-percent", "25", "--plot", name)
    assert is_picture(scanned / name)
    files = sections(done)[-2].splitlines()
    assert [line.split()[0] for line in files] == ["scores", "sorted", "picture", "list"]
    assert files[2].split() == ["picture", name]
    assert done.out.replace(f"{files[2]}\n", "") == plain.out
    ((chosen, path),) = drawn
    assert (chosen.percent, chosen.result.model, path) == ("25", "model", Path(name))
    quiet = done_well(scanned, "--quiet", "--plot", name)
    assert quiet.out == f"{LIST}\n"


@pytest.mark.usefixtures("cache_only")
def test_a_page_shows_first_what_the_command_selects(scanned: Path) -> None:
    options = ["--top-params", "30", "--no-embeddings", "--layer-types", "mlp.*", "--order", "random:7"]
    written = ["--format", "swift", "--output-dir", "lists", "--training-gpus", "4"]
    done = done_well(scanned, *options, *written, "--plot", "new/scores.html")
    assert sections(done)[-2].splitlines()[2].split() == ["page", "new/scores.html"]
    data = page_data(scanned / "new/scores.html")
    percent = re.search(r"the same as --top-percent (\S+) --order random:7", done.out)
    assert percent is not None
    types = [of_type["name"] for of_type in data["scans"][0]["types"]]
    assert data["start"] == {
        "percent": percent[1],
        "topParams": "30",
        "embeddings": False,
        "off": [name for name in types if not name.startswith("mlp.")],
        "format": "swift",
        "devices": 4,
    }
    assert len(types) == 12
    assert data["order"] == "random:7"
    assert data["command"] == ["spectrum", "--model-name", "model", "--output-dir", "lists"]


@pytest.mark.usefixtures("cache_only")
def test_a_page_compares_where_the_command_does(scanned: Path) -> None:
    shutil.copyfile(scanned / SCAN, scanned / "other.json")
    done_well(scanned, "--plot", "scores.html", "--compare", "other.json")
    assert [scan["model"] for scan in page_data(scanned / "scores.html")["scans"]] == ["model", "other"]

    (scanned / "other.json").write_text('{"a.0.b": {"snr": 1.0, "type": "b"}}')
    done = run(scanned, *MODEL, "--plot", "scores.html", "--compare", "other.json")
    assert done.status == 1
    assert "no layer in common" in done.err
    assert [scan["model"] for scan in page_data(scanned / "scores.html")["scans"]] == ["model"]


def page_data(path: Path) -> Any:
    """What a page knows, as its scripts read it."""
    return json.loads(path.read_text().partition('id="data">')[2].partition("</script>")[0])


@pytest.mark.parametrize("option", [["--plot"], ["--plot-spectrum", "model.norm"]])
@pytest.mark.parametrize("name", ["picture.jpg", "picture", "png", ".svg", "picture.png.txt"])
def test_a_picture_of_another_kind_is_refused_before_a_scan(option: list[str], name: str, tmp_path: Path) -> None:
    shutil.copytree(TINY_LLAMA, tmp_path / "model")
    before = files_below(tmp_path)
    assert_refused(run(tmp_path, *MODEL, "--yes", *option, name), ".png, .svg or .pdf", name)
    assert files_below(tmp_path) == before


def test_a_place_that_takes_no_picture_is_found_out_before_a_scan(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copytree(TINY_LLAMA, tmp_path / "model")
    (tmp_path / "file").write_text("no directory")
    before = files_below(tmp_path)
    assert_refused(run(tmp_path, *MODEL, "--yes", "--plot", "file/picture.png"), "file")
    assert files_below(tmp_path) == before


def singular_values(name: str) -> np.ndarray:
    stored = {k: v for file in TINY_LLAMA.glob("*.safetensors") for k, v in load_file(file).items()}
    return np.linalg.svd(stored[f"{name}.weight"].double().numpy(), compute_uv=False)[::-1]


def test_the_spectrum_of_a_layer_is_drawn(scanned: Path, drawn: list[tuple[Any, ...]]) -> None:
    shutil.rmtree(scanned / "model_snr_results")
    layer = "model.layers.2.mlp.gate_proj"
    before = files_below(scanned)
    done = done_well(scanned, "--plot-spectrum", layer, "new/spectrum.svg")
    assert (done.out, done.err) == ("new/spectrum.svg\n", "")
    assert is_picture(scanned / "new" / "spectrum.svg")
    ((spectrum, model, path),) = drawn
    assert (spectrum.name, model, path) == (layer, "model", Path("new/spectrum.svg"))
    assert spectrum.values == pytest.approx(singular_values(layer), rel=1e-8)
    assert len(spectrum.values) == min(spectrum.shape)
    # Nothing is scanned for it.
    assert sorted(files_below(scanned)) == sorted([*before, "new/spectrum.svg"])


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("experts")
    built("qwen3-moe").save_pretrained(directory / "model")
    return directory


@pytest.mark.parametrize(("asked", "index"), [("", 0), ("[0]", 0), ("[3]", 3)])
def test_one_matrix_of_a_stack_is_drawn(asked: str, index: int, experts: Path, drawn: list[tuple[Any, ...]]) -> None:
    layer = "model.layers.1.mlp.experts.down_proj"
    done_well(experts, "--plot-spectrum", f"{layer}{asked}", f"{index}{bool(asked)}.png")
    ((spectrum, *_),) = drawn
    assert spectrum.name == f"{layer}[{index}]"
    stack = dict(built("qwen3-moe").named_parameters())[layer].detach().double().numpy()
    assert spectrum.shape == stack.shape[1:]
    assert spectrum.values == pytest.approx(np.linalg.svd(stack[index], compute_uv=False)[::-1], rel=1e-8)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("model.layers.1.mlp.experts.down_prj", ["no layer", "did you mean model.layers.1.mlp.experts.down_proj"]),
        ("model.layers.1.mlp.experts.down_proj[4]", ["has 4 matrices", "no model.layers.1.mlp.experts.down_proj[4]"]),
        ("self_attn.q_proj", ["is not one layer", "name one of those that end so", "model.layers.0.self_attn.q_proj"]),
        ("model.norm[1]", ["has 1 matrix"]),
        ("model.norm[x]", ["'model.norm[x]' is not a layer"]),
        ("model.norm[-1]", ["is not a layer"]),
        ("model.norm[\N{ARABIC-INDIC DIGIT FIVE}]", ["is not a layer"]),
        ("", ["is not a layer"]),
        ("model.norm[" + "9" * 5000 + "]", ["model.norm"]),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.usefixtures("drawn")
def test_a_layer_that_is_none_is_refused(layer: str, words: list[str], experts: Path) -> None:
    before = files_below(experts)
    refused = run(experts, *MODEL, "--plot-spectrum", layer, "missing.png")
    assert_refused(refused, *words)
    assert "unexpected" not in refused.err
    assert files_below(experts) == before


@pytest.mark.parametrize(
    ("failure", "words"),
    [(torch.linalg.LinAlgError("no convergence"), "cannot decompose"), (MemoryError(), "has no memory for")],  # type: ignore[attr-defined]
    ids=["convergence", "memory"],
)
@pytest.mark.usefixtures("drawn")
def test_a_layer_that_a_device_cannot_decompose_is_refused_in_a_line(
    failure: Exception, words: str, experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    before = files_below(experts)
    refused = run(experts, *MODEL, "--device", "cpu", "--plot-spectrum", "lm_head", "missing.png")
    assert_refused(refused, f"cpu {words} lm_head, [")
    assert "unexpected" not in refused.err
    assert files_below(experts) == before


def test_a_check_and_a_spectrum_are_two_commands(tmp_path: Path) -> None:
    refused = run(tmp_path, *MODEL, "--check", "a.yaml", "--plot-spectrum", "b", "c.png")
    assert_refused(refused, "not allowed with argument", status=2)


# A comparison.


def changed(scanned: Path, name: str, factor: Mapping[str, float]) -> Path:
    """The sample's scan with other scores, as one of another tool."""
    content = json.loads((scanned / SCAN).read_text())
    scores = {layer: entry | {"snr": entry["snr"] * factor.get(layer, 1)} for layer, entry in content.items()}
    path = scanned / name
    path.write_text(json.dumps(scores))
    return path


def comparison(done: Finished) -> tuple[str, dict[str, list[str]], list[str]]:
    """Its title, its row of each type, and what follows, but for a line on unequal depths."""
    parts = [part for part in sections(done) if not part.startswith("the depths differ: ")]
    at = next(i for i, part in enumerate(parts) if " in place of " in part)
    rows = {line.split()[0]: line.split()[1:] for line in parts[at + 1].splitlines()[1:]}
    ends = [part for part in parts[at + 3 : at + 4] if part.startswith("only in ")]
    return parts[at], rows, [line for part in (parts[at + 2], *ends) for line in part.splitlines()]


@pytest.mark.usefixtures("cache_only")
def test_the_same_scan_selects_the_same(scanned: Path) -> None:
    title, rows, rest = comparison(done_well(scanned, "--compare", SCAN))
    assert title.startswith("model in place of model, top 50 percent")
    assert rows["mlp.up_proj"] == ["8", "1.000", "0", "0"]
    assert rows["input_layernorm"] == ["8", "0", "0"]
    assert rest == ["of these types, both select the same layers"]
    assert comparison(done_well(scanned, "--compare", "model"))[2] == rest


@pytest.mark.usefixtures("cache_only")
def test_a_scans_file_may_select_other_layers(scanned: Path) -> None:
    ranked = json.loads((scanned / SCAN).read_text())
    names = sorted((name for name in ranked if name.endswith("up_proj")), key=lambda name: -ranked[name]["snr"])
    changed(scanned, "snr_results_other.json", {names[0]: 1e-3, names[7]: 1e3})
    done = done_well(scanned, "--compare", "snr_results_other.json")
    title, rows, rest = comparison(done)
    assert title.startswith("other in place of model")
    # The first and the last have changed places: 1 - 6 (49 + 49) / (8 * 63).
    assert rows["mlp.up_proj"] == ["8", f"{1 - 6 * 98 / 504:.3f}", "1", "1"]
    assert rows["mlp.down_proj"] == ["8", "1.000", "0", "0"]
    assert rest == ["1 layer enters the selection (+), 1 leaves it (-):", f"+ {names[7]}", f"- {names[0]}"]
    # What is written is the model's own.
    assert f"- {names[0]}\n" in (scanned / LIST).read_text()
    assert not list(scanned.glob("*other*.yaml"))


@pytest.mark.usefixtures("cache_only")
def test_a_comparison_is_of_what_is_asked_for(scanned: Path) -> None:
    done = done_well(scanned, "--compare", SCAN, "--layer-types", "mlp.*", "--top-percent", "25")
    title, rows, _ = comparison(done)
    assert "top 25 percent" in title
    assert list(rows) == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert "only in" not in done.out
    share = comparison(done_well(scanned, "--compare", SCAN, "--top-params", "40"))
    assert "top 25 percent" in share[0]
    assert done_well(scanned, "--compare", SCAN, "--quiet").out == f"{LIST}\n"


def test_a_comparison_is_the_same_from_the_cache(scanned: Path) -> None:
    built("qwen3-moe").save_pretrained(scanned / "other")
    first = done_well(scanned, "--compare", "other", "--yes", "--rescan")
    assert "the depths differ: model has 8 layers of input_layernorm, other has 2; " in first.out
    assert comparison(first) == comparison(done_well(scanned, "--compare", "other"))
    assert any(line.startswith("only in other: ") for line in comparison(first)[2])


def test_a_scan_made_anew_leaves_the_other_one_as_it_is(scanned: Path) -> None:
    # Of the other one there is nothing but its scan.
    other = changed(scanned, "model_snr_results/snr_results_other.json", {})
    before = other.read_bytes()
    done = done_well(scanned, "--rescan", "--yes", "--compare", "other")
    assert done.out.startswith("Scanned 75 layers of model")
    assert comparison(done)[2] == ["of these types, both select the same layers"]
    assert other.read_bytes() == before


def test_another_model_is_scanned_for_it(scanned: Path) -> None:
    built("qwen3-moe").save_pretrained(scanned / "other")
    done = done_well(scanned, "--compare", "other", "--yes")
    title, rows, rest = comparison(done)
    assert title.startswith("other in place of model")
    assert rows["self_attn.q_proj"][0] == "2"
    assert "mlp.up_proj" not in rows
    assert (scanned / "model_snr_results" / "snr_results_other.json").exists()
    # Only the model's own list is written.
    assert sorted(path.name for path in scanned.glob("snr_results_*")) == ["snr_results_model_sorted.json", LIST]
    text = "\n".join(rest)
    assert "only in model: mlp.down_proj, mlp.gate_proj, mlp.up_proj" in text
    assert "only in other: mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.gate" in text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("missing.json", ["no scan missing.json"]),
        ("./missing", ["no directory './missing'"]),
        ("broken.json", ["broken.json", "not valid JSON"]),
    ],
)
def test_what_cannot_be_compared_is_an_error(other: str, words: list[str], scanned: Path) -> None:
    (scanned / "broken.json").write_text("{")
    assert_refused(run(scanned, *MODEL, "--compare", other), *words)
    assert not (scanned / LIST).exists()


def test_where_nothing_compares_the_list_is_written_all_the_same(scanned: Path) -> None:
    (scanned / "strange.json").write_text('{"a.0.b": {"snr": 1.5, "type": "b"}}')
    done = run(scanned, *MODEL, "--compare", "strange.json")
    assert (done.status, done.err) == (
        1,
        "spectrum: error: model and strange have no layer in common, so there is nothing to compare\n",
    )
    assert (scanned / LIST).exists()
    assert LIST in done.out


def test_a_file_that_is_not_there_is_found_out_before_a_scan(tmp_path: Path) -> None:
    shutil.copytree(TINY_LLAMA, tmp_path / "model")
    before = files_below(tmp_path)
    assert_refused(run(tmp_path, *MODEL, "--yes", "--compare", "missing.json"), "missing.json")
    assert files_below(tmp_path) == before


PUBLISHED_LLAMA = "meta-llama-Meta-Llama-3.1-8B-Instruct"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published scans are not here")
def test_published_scans_are_compared(tmp_path: Path) -> None:
    (tmp_path / "model_snr_results").mkdir()
    for name in (PUBLISHED_LLAMA, "meta-llama-Meta-Llama-3-8B"):
        shutil.copyfile(PUBLISHED / f"snr_results_{name}.json", tmp_path / f"model_snr_results/snr_results_{name}.json")
    # One by its name, as it stands in the cache; or by its file.
    options = ["--model-name", PUBLISHED_LLAMA, "--top-percent", "25"]
    by_name = run(tmp_path, *options, "--compare", "meta-llama-Meta-Llama-3-8B")
    by_file = run(tmp_path, *options, "--compare", PUBLISHED / "snr_results_meta-llama-Meta-Llama-3-8B.json")
    assert by_name.status == by_file.status == 0, by_name.err + by_file.err
    assert comparison(by_name) == comparison(by_file)
    _, rows, rest = comparison(by_file)
    assert rows["self_attn.q_proj"][0] == "32"
    # An instruction-tuned model is a little other than an earlier base model.
    assert 0.5 < float(rows["mlp.down_proj"][1]) <= 1
    own = yaml.safe_load((tmp_path / f"snr_results_{PUBLISHED_LLAMA}_unfrozenparameters_25percent.yaml").read_text())[
        "unfrozen_parameters"
    ]
    assert {line[2:] for line in rest if line.startswith("- ")} <= set(own)
    assert {line[2:] for line in rest if line.startswith("+ ")}.isdisjoint(own)


def test_two_cached_scans_are_compared_without_torch(scanned: Path) -> None:
    changed(scanned, "model_snr_results/snr_results_other.json", {})
    code = (
        "import sys; from spectrum.cli.entry import main; "
        "status = main(['--model-name', 'model', '--compare', 'other', '--top-params', '40', '--format', 'json']); "
        "sys.exit(status or ' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=scanned, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "of these types, both select the same layers" in done.stdout


# Several processes.


def together(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_")) and k != "RANK"}
    return subprocess.run(
        torchrun(2, "-m", "spectrum", *MODEL, *args),
        cwd=directory,
        env=inherited | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.slow
def test_processes_scan_both_models_together(tmp_path: Path) -> None:
    for name in ("model", "other"):
        shutil.copytree(TINY_LLAMA, tmp_path / name)
    done = together(tmp_path, "--yes", "--compare", "other")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" in place of ") == 1
    assert "Scanned 75 layers of model (LlamaForCausalLM) in 2 processes" in done.stdout
    assert "of these types, both select the same layers" in done.stdout
    assert (tmp_path / "model_snr_results/snr_results_other.json").read_bytes() == (tmp_path / SCAN).read_bytes()
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.slow
def test_several_processes_say_once_what_one_does(scanned: Path) -> None:
    (scanned / "list.yaml").write_text("unfrozen_parameters:\n- model.norm\n")
    done = together(scanned, "--check", "list.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == done_well(scanned, "--check", "list.yaml").out.rstrip("\n")
