"""Scans of a repository whose weights stay on the Hub: the same scores, no byte too many, nothing kept on disk."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import spectrum
from spectrum.checkpoint.remote import fetcher
from spectrum.compute import devices
from spectrum.text import amount
from tests.helpers.architectures import built, dbrx, dinov2, randomized
from tests.helpers.command import Finished, assert_refused, run, tiny_llama
from tests.helpers.hub_client import serving
from tests.helpers.hub_faults import FileRequest
from tests.helpers.hub_server import HubServer, Repo, Revision, commit
from tests.helpers.paths import TINY_LLAMA, files_below
from tests.helpers.processes import commands
from tests.helpers.quantized import save_fp8, save_mxfp4

FIRST_BYTES = 64  # of a file: what is read to learn how long its header is, and is read again with the header

Sizes = Mapping[str, int]  # bytes of each stored tensor, by its key


@dataclass(frozen=True)
class Checkpoint:
    """How one is made in a directory, the keys of its tensors that are not scored, and those stored a second time."""

    make: Callable[[Path], object]
    unscored: str = "nothing"
    compared: str = "nothing"


def sample(directory: Path) -> None:
    shutil.copytree(TINY_LLAMA, directory, dirs_exist_ok=True)


def saved(build: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda directory: build().save_pretrained(directory)


def architecture(name: str) -> Callable[[Path], None]:
    return saved(lambda: built(name))


def with_head(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """A checkpoint whose config ties the head to the embedding, and whose file has a head beside it."""

    def make(directory: Path) -> None:
        built("llama-tied").save_pretrained(directory)
        file = directory / "model.safetensors"
        state = load_file(file)
        assert "lm_head.weight" not in state
        head = change(state["model.embed_tokens.weight"].clone())
        save_file(state | {"lm_head.weight": head}, file, metadata={"format": "pt"})

    return make


def changed_in_a_row_between(head: torch.Tensor) -> torch.Tensor:
    head[1] += 1  # not among the rows that are compared before the scan
    return head


def changed_at_the_end(head: torch.Tensor) -> torch.Tensor:
    head[-1, -1] += 1
    return head


def without_prefix(directory: Path) -> None:
    """As the first GPT-2 was stored: transformers adds the prefix to its keys."""
    built("gpt2").save_pretrained(directory)
    file = directory / "model.safetensors"
    state = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


CUSTOM_CODE = {
    "configuration_far.py": "from transformers import LlamaConfig\n\n\n"
    "class FarConfig(LlamaConfig):\n    model_type = 'far-llama'\n",
    "modeling_far.py": "from transformers import LlamaForCausalLM\n\n"
    "from .configuration_far import FarConfig\n\n\n"
    "class FarForCausalLM(LlamaForCausalLM):\n    config_class = FarConfig\n",
}


def with_code(directory: Path) -> None:
    tiny_llama(directory)
    path = directory / "config.json"
    auto_map = {"AutoConfig": "configuration_far.FarConfig", "AutoModelForCausalLM": "modeling_far.FarForCausalLM"}
    changes = {"model_type": "far-llama", "architectures": ["FarForCausalLM"], "auto_map": auto_map}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for name, code in CUSTOM_CODE.items():
        (directory / name).write_text(code)


CHECKPOINTS: Mapping[str, Checkpoint] = {
    "sample": Checkpoint(sample),
    "single": Checkpoint(tiny_llama),
    "shards": Checkpoint(lambda directory: tiny_llama(directory, shards_of="1KB", num_hidden_layers=3)),
    "tied, stored once": Checkpoint(architecture("llama-tied")),
    "tied, stored twice": Checkpoint(with_head(lambda head: head), compared="lm_head|embed_tokens"),
    "tied, stored unequal": Checkpoint(with_head(lambda head: head + 1), compared="lm_head|embed_tokens"),
    "tied, one element unequal": Checkpoint(with_head(changed_at_the_end), compared="lm_head|embed_tokens"),
    "experts, stored one by one": Checkpoint(architecture("qwen3-moe"), "e_score_correction_bias"),
    "experts, stored fused": Checkpoint(architecture("gpt-oss"), "bias$|sinks$"),
    "experts, stored in rows": Checkpoint(saved(lambda: randomized(dbrx()))),
    "fp8": Checkpoint(lambda directory: save_fp8(directory, experts=False)),
    "fp8 experts": Checkpoint(lambda directory: save_fp8(directory, experts=True)),
    "mxfp4": Checkpoint(save_mxfp4, "bias$|sinks$"),
    "without prefix": Checkpoint(without_prefix, "bias$"),
    "weight norm": Checkpoint(architecture("vits"), "bias$|log_scale$|translate$|emb_rel_[kv]$"),
    "multimodal, renamed": Checkpoint(architecture("llava"), "bias$|class_embedding"),
    "two parameters in a tensor": Checkpoint(
        saved(lambda: randomized(dinov2())), r"bias$|\.lambda1$|_token$|position_embeddings$"
    ),
    "multimodal with experts": Checkpoint(architecture("llama4"), "bias$|class_embedding|positional_embedding_vlm"),
}


@dataclass(frozen=True)
class Compared:
    """The files that a scan from disk and one from the Hub have written, and what the Hub was asked for."""

    name: str
    model: Path
    from_disk: Mapping[str, bytes]
    from_hub: Mapping[str, bytes]
    hub: HubServer
    home: Path
    done: Finished


def scanned(directory: Path, *args: str) -> Finished:
    directory.mkdir(exist_ok=True)
    done = run(directory, "--model-name", "org/model", *args)
    assert done.status == 0, done.err
    return done


def contents(directory: Path, *, but: str = "nothing") -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in files_below(directory) if not name.startswith(but)}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    name, root = request.param, tmp_path_factory.mktemp("compared")
    if "fp8" in name:
        pytest.importorskip("transformers.integrations.finegrained_fp8", exc_type=ImportError)
    model = root / "disk" / "org" / "model"
    model.mkdir(parents=True)
    CHECKPOINTS[name].make(model)
    scanned(root / "disk")
    with serving(root / "home", model) as hub:
        done = scanned(root / "away")
    of_disk, of_hub = contents(root / "disk", but="org/"), contents(root / "away")
    return Compared(name, model, of_disk, of_hub, hub, root / "home", done)


def without_origin(meta: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(meta).items() if key not in ("commit", "fingerprint")}


def test_all_files_are_those_of_a_scan_from_disk(compared: Compared) -> None:
    assert compared.from_hub.keys() == compared.from_disk.keys()
    for name, content in compared.from_hub.items():
        if name.endswith(".meta.json"):
            assert json.loads(content)["commit"] == commit("a")
            assert without_origin(content) == without_origin(compared.from_disk[name])
        else:
            assert content == compared.from_disk[name], name


def header(file: Path) -> tuple[int, Sizes]:
    """The bytes before the first tensor of a file, and the size of each tensor."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entries = json.loads(stream.read(length))
    entries.pop("__metadata__", None)
    return 8 + length, {key: entry["data_offsets"][1] - entry["data_offsets"][0] for key, entry in entries.items()}


def stored(model: Path) -> tuple[int, Sizes]:
    """The bytes of all headers, and the size of each tensor, of a checkpoint."""
    files = list(map(header, sorted(model.glob("*.safetensors"))))
    return sum(length for length, _ in files), {key: size for _, sizes in files for key, size in sizes.items()}


def sent_of_weights(hub: HubServer) -> int:
    return sum(size for file, size in hub.sent.items() if file.endswith(".safetensors"))


def parts(hub: HubServer, model: Path) -> list[tuple[str, int, int]]:
    """The file, the offset and the end of each range of tensors that was asked for, in order of these."""
    starts = {file.name: header(file)[0] for file in model.glob("*.safetensors")}
    asked = [(request.file, *request.part) for request in hub.file_requests if request.storage and request.part]
    return sorted(part for part in asked if part[1] >= starts[part[0]])


def test_no_more_is_fetched_than_what_is_scored(compared: Compared) -> None:
    known = CHECKPOINTS[compared.name]
    headers, sizes = stored(compared.model)
    scored = sum(size for key, size in sizes.items() if not re.search(known.unscored, key))
    # Some rows of two copies are compared. Of a real embedding, they are less than a thousandth.
    rows = sum(min(17, 64) * size // 64 for key, size in sizes.items() if re.search(known.compared, key))
    num_files = len(list(compared.model.glob("*.safetensors")))
    sent = sent_of_weights(compared.hub)
    assert scored + headers <= sent <= 1.01 * (scored + rows) + headers + num_files * FIRST_BYTES
    once = parts(compared.hub, compared.model)
    if not rows:
        assert sum(end - offset for _, offset, end in once) == scored
        assert all(one[0] != two[0] or one[2] <= two[1] for one, two in pairwise(once))


def test_what_will_be_fetched_is_said_before(compared: Compared) -> None:
    unscored = CHECKPOINTS[compared.name].unscored
    scored = sum(size for key, size in stored(compared.model)[1].items() if not re.search(unscored, key))
    whole = sum(file.stat().st_size for file in compared.model.glob("*.safetensors"))
    assert compared.done.said("reading ") == [
        f"spectrum: reading {amount(scored)} of the {amount(whole)} of org/model from the Hub, into memory alone; "
        "--download keeps the files on disk"
    ]


def test_nothing_is_kept_on_disk(compared: Compared) -> None:
    assert not compared.home.exists()


# What is fetched of one repository, run after run.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory that `org/model` on the Hub has been made from."""
    return tiny_llama(tmp_path / "repository", shards_of="2KB", num_hidden_layers=2, hidden_size=16, vocab_size=64)


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[HubServer]:
    with serving(tmp_path / "home", model) as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., HubServer]]:
    with ExitStack() as stack:
        yield lambda repos, **options: stack.enter_context(serving(tmp_path / "home", repos, **options))


def forget(hub: HubServer) -> None:
    """Count from now on."""
    hub.requests.clear()
    hub.file_requests.clear()
    hub.sent.clear()


def fetched(hub: HubServer, model: Path) -> int:
    """The bytes of tensors that were asked for."""
    return sum(end - offset for _, offset, end in parts(hub, model))


def of_keys(model: Path, pattern: str) -> int:
    return sum(size for key, size in stored(model)[1].items() if re.search(pattern, key))


def test_only_the_layer_types_asked_for_are_fetched(hub: HubServer, model: Path, tmp_path: Path) -> None:
    done = scanned(tmp_path / "some", "--layer-types", "mlp.down_proj")
    wanted = of_keys(model, r"mlp\.down_proj")
    assert fetched(hub, model) == wanted
    assert f"reading {amount(wanted)} of the " in done.err


def test_a_cached_scan_fetches_nothing(hub: HubServer, tmp_path: Path) -> None:
    scanned(tmp_path / "here")
    forget(hub)
    again = scanned(tmp_path / "here", "--top-percent", "25")
    assert "from the cached scan" in again.out
    assert "reading" not in again.err
    assert hub.requests == []


def pushed(hub: HubServer, model: Path, root: Path, digit: str = "b") -> Path:
    """Push other weights of the same shapes to `org/model`; return their directory."""
    other = shutil.copytree(model, root / f"pushed-{digit}")
    for file in other.glob("*.safetensors"):
        save_file({key: value + 1 for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    before = hub.repos["org/model"]
    hub.repos["org/model"] = Repo(  # type: ignore[index]
        other, commit(digit), refs={**before.refs, f"before-{digit}": Revision(before.root, before.commit)}
    )
    return other


def test_layer_types_are_added_from_the_commit_of_the_cached_scan_and_nothing_else_is_fetched(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    scanned(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    scanned(tmp_path / "grown", "--layer-types", "mlp.*")
    forget(hub)
    pushed(hub, model, tmp_path)
    scanned(tmp_path / "grown", "--layer-types", "all")
    assert fetched(hub, model) == of_keys(model, r"^(?!.*mlp\.)")
    made = contents(tmp_path / "grown")
    scan = "model_snr_results/snr_results_org-model.json"
    assert json.loads(made[scan]) == json.loads(whole[scan])
    assert json.loads(made[scan.replace(".json", ".meta.json")])["commit"] == commit("a")


def test_copies_of_tied_weights_that_turn_out_unequal_are_never_scored_as_one(
    serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    model = tmp_path / "repository"
    with_head(changed_in_a_row_between)(model)
    serve(model)
    scanned(tmp_path / "others", "--layer-types", "mlp.*")
    assert_refused(
        run(tmp_path, "--model-name", "org/model"),
        "lm_head.weight and model.embed_tokens.weight of org/model differ in a few rows",
        "--download compares them before the scan",
    )
    # As from disk, where all rows are compared.
    assert run(tmp_path, "--model-name", "org/model", "--download").status == 0
    assert run(tmp_path, "--model-name", str(model)).status == 0
    scans = [json.loads(file.read_text()) for file in (tmp_path / "model_snr_results").glob("*[!a].json")]
    assert len(scans) == 2
    assert scans[0] == scans[1]
    assert scans[0]["lm_head"] != scans[0]["model.embed_tokens"]


@pytest.mark.parametrize("changed", range(4))
def test_each_copy_of_a_tied_weight_is_compared(serve: Callable[..., HubServer], tmp_path: Path, changed: int) -> None:
    model = tmp_path / "repository"
    sizes: Any = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16}
    layers: Any = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=64, **sizes, **layers)
    transformers.BartForConditionalGeneration(config).save_pretrained(model)
    file = model / "model.safetensors"
    state = load_file(file)
    names = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    (shared,) = [state.pop(f"{name}.weight") for name in names if f"{name}.weight" in state]
    assert len(shared) > 40  # so that row 1 is not among those that are compared before the scan
    copies = {f"{name}.weight": shared.clone() for name in names}
    copies[f"{names[changed]}.weight"][1] += 1
    save_file(state | copies, file, metadata={"format": "pt"})
    serve(model)
    assert_refused(run(tmp_path, "--model-name", "org/model"), "of org/model differ in a few rows")


def test_what_is_fetched_ahead_is_freed_when_it_has_been_read(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    close = fetcher._Ahead.close

    def recorded(ahead: fetcher._Ahead) -> None:
        held.append(ahead._held)
        close(ahead)

    monkeypatch.setattr(fetcher._Ahead, "close", recorded)
    scanned(tmp_path / "here")
    assert held == [0]


def test_what_arrives_first_is_not_the_largest_matrix(
    serve: Callable[..., HubServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[list[Any]] = []
    ahead = fetcher.Fetcher.ahead

    def recorded(self: fetcher.Fetcher, plan: Iterable[Any]) -> Any:
        plans.append(list(plan))
        return ahead(self, plans[-1])

    monkeypatch.setattr(fetcher.Fetcher, "ahead", recorded)
    serve(tiny_llama(tmp_path / "repository", hidden_size=16, vocab_size=4096))
    scanned(tmp_path / "here")
    (plan,) = plans
    assert {name for (name, _), _ in plan[:2]}.isdisjoint({"lm_head.weight", "model.embed_tokens.weight"})


def test_batches_are_planned_for_a_network_only_if_the_weights_come_from_one(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_for: list[bool] = []
    batch_budget = devices.batch_budget

    def recorded(*args: Any, from_network: bool) -> Any:
        planned_for.append(from_network)
        return batch_budget(*args, from_network=from_network)

    monkeypatch.setattr(devices, "batch_budget", recorded)
    scanned(tmp_path / "from the hub")
    assert run(tmp_path, "--model-name", model, "--yes", "--device", "cpu").status == 0
    assert planned_for == [True, False]


def test_a_spectrum_fetches_one_layer(hub: HubServer, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    layer = "model.layers.1.self_attn.o_proj"
    scanned(tmp_path / "here", "--plot-spectrum", layer, "drawn.svg")
    assert fetched(hub, model) == of_keys(model, re.escape(layer))
    assert files_below(tmp_path / "here") == ["drawn.svg"]
    assert not (tmp_path / "home").exists()


def test_of_stacked_experts_a_spectrum_fetches_one(serve: Callable[..., HubServer], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = tmp_path / "repository"
    built("gpt-oss").save_pretrained(model)
    hub = serve(model)
    layer = "model.layers.1.mlp.experts.down_proj"
    scanned(tmp_path / "here", "--plot-spectrum", f"{layer}[2]", "drawn.svg")
    assert fetched(hub, model) == of_keys(model, re.escape(layer) + "$") // 4


@pytest.mark.parametrize("quantized", [True, False])
def test_every_expert_is_fetched_by_itself(serve: Callable[..., HubServer], tmp_path: Path, quantized: bool) -> None:
    model = tmp_path / "repository"
    (save_mxfp4 if quantized else architecture("gpt-oss"))(model)
    hub = serve(model)
    scanned(tmp_path / "here", "--layer-types", "mlp.experts.down_proj")
    key = "model.layers.0.mlp.experts.down_proj"
    experts = [size // 4 for name, size in stored(model)[1].items() if name.startswith(key) and "bias" not in name]
    assert len(experts) == (2 if quantized else 1)  # with the scales
    asked = parts(hub, model)
    assert sorted(end - offset for _, offset, end in asked) == sorted(experts * 4 * 2)
    assert len(set(asked)) == len(asked)


@pytest.mark.slow
def test_a_process_of_its_own_writes_nothing_but_results_and_code_that_it_runs(
    serve: Callable[..., HubServer], model: Path, tmp_path: Path
) -> None:
    with_code(tmp_path / "disk" / "org" / "custom")
    repos = {
        "org/model": Repo(model, commit("a")),
        "org/custom": Repo(tmp_path / "disk" / "org" / "custom", commit("b")),
    }
    hub = serve(repos)
    here, home, temporary = (tmp_path / name for name in ("here", "own-home", "temporary"))
    here.mkdir()
    temporary.mkdir()
    with commands(home, HF_ENDPOINT=hub.endpoint, TMPDIR=str(temporary)) as online:
        done = online("--model-name", "org/model", cwd=here)
        assert done.returncode == 0, done.stderr
        assert not home.exists()
        assert list(temporary.iterdir()) == []
        assert files_below(here) == [
            "model_snr_results/snr_results_org-model.json",
            "model_snr_results/snr_results_org-model.meta.json",
            "snr_results_org-model_sorted.json",
            "snr_results_org-model_unfrozenparameters_50percent.yaml",
        ]
        custom = ("--model-name", "org/custom", "--trust-remote-code")
        for directory in (tmp_path / "disk", here):
            done = online(*custom, cwd=directory)
            assert done.returncode == 0, done.stderr
    scan = "model_snr_results/snr_results_org-custom.json"
    assert (here / scan).read_bytes() == (tmp_path / "disk" / scan).read_bytes()
    meta = json.loads((here / scan.replace(".json", ".meta.json")).read_text())
    assert (meta["model_class"], meta["commit"]) == ("FarForCausalLM", commit("b"))
    # Code is downloaded by its commit. If a branch were noted, it would stand for another commit from now on.
    repository = home / "hub" / "models--org--custom"
    assert {path.name for path in (repository / "snapshots" / commit("b")).iterdir()} == {"config.json", *CUSTOM_CODE}
    assert not (repository / "refs").exists()
    assert not any(path.suffix == ".safetensors" for path in home.rglob("*"))


# The commit is the one that the scan began with.


@pytest.mark.parametrize("number", [1, 4, 12])
def test_a_push_in_mid_scan_changes_nothing(hub: HubServer, model: Path, tmp_path: Path, number: int) -> None:
    scanned(tmp_path / "before")

    def push(request: FileRequest) -> None:
        if request.storage and not moments and request.number >= number:
            moments.append(request.number)
            assert hub.storage is not None
            hub.storage.expire()  # so that all files are asked for anew
            pushed(hub, model, tmp_path)

    moments: list[int] = []
    forget(hub)
    hub.faults = push
    scanned(tmp_path / "meanwhile")
    assert moments
    assert hub.repos["org/model"].commit == commit("b")
    assert contents(tmp_path / "meanwhile") == contents(tmp_path / "before")


def test_a_cached_scan_stays_in_use_until_the_hubs_cache_moves_on(hub: HubServer, model: Path, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    scanned(elsewhere, "--download")  # an older commit is in the cache
    pushed(hub, model, tmp_path, "b")
    scanned(here)
    meta = here / "model_snr_results" / "snr_results_org-model.meta.json"
    assert json.loads(meta.read_text())["commit"] == commit("b")
    again = scanned(here)
    assert (again.err, "from the cached scan" in again.out) == ("", True)
    meta.with_name("snr_results_org-model.json").touch()  # as a copy of the directory does
    scanned(here, "--layer-types", "all")  # and a later run that adds nothing

    pushed(hub, model, tmp_path, "c")
    assert scanned(here).err == ""  # nobody asked the Hub
    scanned(elsewhere, "--download", "--rescan")
    moved = scanned(here)
    assert "is not used: it is of commit bbbbbbbb, the Hub's cache now has cccccccc; scanning again" in moved.err
    assert json.loads(meta.read_text())["commit"] == commit("c")


def test_a_revision_is_scanned_from_the_hub(hub: HubServer, model: Path, tmp_path: Path) -> None:
    scanned(tmp_path / "first")
    pushed(hub, model, tmp_path)
    scanned(tmp_path / "tagged", "--revision", "before-b")
    scan = "model_snr_results/snr_results_org-model.json"
    assert (tmp_path / "tagged" / scan).read_bytes() == (tmp_path / "first" / scan).read_bytes()
    meta = json.loads((tmp_path / "tagged" / scan.replace(".json", ".meta.json")).read_text())
    assert (meta["revision"], meta["commit"]) == ("before-b", commit("a"))


# From Python.


def test_from_python_the_result_is_the_same(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = spectrum.scan(model, results_dir=tmp_path / "of-disk", show_progress=False)
    with caplog.at_level(logging.INFO, "spectrum"):
        there = spectrum.scan("org/model", results_dir=tmp_path / "of-hub", show_progress=False)
    assert there.layers == here.layers
    assert (there.model, there.provenance and there.provenance.commit) == ("org/model", commit("a"))
    assert "of org/model from the Hub, into memory alone" in caplog.text
    assert not (tmp_path / "home").exists()
    forget(hub)
    assert spectrum.scan("org/model", results_dir=tmp_path / "of-hub", show_progress=False) == there
    assert hub.requests == []


def test_from_python_some_layer_types_are_fetched(hub: HubServer, model: Path, tmp_path: Path) -> None:
    spectrum.scan("org/model", "mlp.down_proj", results_dir=tmp_path, show_progress=False)
    assert fetched(hub, model) == of_keys(model, r"mlp\.down_proj")


def test_from_python_warnings_are_python_warnings(hub: HubServer, model: Path, tmp_path: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="the repository also holds an adapter") as warned:
        spectrum.scan("org/model", results_dir=tmp_path, show_progress=False)
    assert [Path(warning.filename) for warning in warned] == [Path(__file__)]
    assert "adapter_config.json" not in hub.sent  # that it is there is enough


def test_from_python_all_files_are_downloaded_if_asked_for(hub: HubServer, model: Path, tmp_path: Path) -> None:
    spectrum.scan("org/model", "mlp.down_proj", results_dir=tmp_path, download=True, show_progress=False)
    snapshot = tmp_path / "home" / "hub" / "models--org--model" / "snapshots" / commit("a")
    assert files_below(snapshot) == files_below(model)


def test_from_python_a_refusal_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["org/model"] = replace(hub.repos["org/model"], access="gated")  # type: ignore[index]
    with pytest.raises(spectrum.SpectrumError, match=r"^org/model is gated: .*HF_TOKEN.*$"):
        spectrum.scan("org/model", results_dir=tmp_path, show_progress=False)
