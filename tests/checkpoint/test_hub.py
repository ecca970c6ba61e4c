"""Models by repository id, against a Hub on loopback: what is downloaded, what is not asked again, every refusal."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub.hf_api import RepoSibling

from spectrum.checkpoint import hub
from spectrum.checkpoint.local import ResolvedModel, check_local, resolve_local
from spectrum.errors import CheckpointError, HubError
from spectrum.text import amount
from tests.helpers.hub_client import ask
from tests.helpers.hub_server import TOKEN, HubServer, Repo, Revision, closed_endpoint, commit
from tests.helpers.paths import TINY_LLAMA, files_below
from tests.helpers.processes import Command, assert_refused, commands

INDEX = "model.safetensors.index.json"
MODEL = ("config.json", "model.safetensors")
SHARDS = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}


def with_files(directory: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


CONFIG = (TINY_LLAMA / "config.json").read_bytes()
# What lies beside the weights of many a repository, and would be far more to download than they are.
BESIDE: Mapping[str, str | bytes] = {
    "README.md": "A model.",
    "tokenizer.json": "{}",
    "generation_config.json": "{}",
    "modeling_llama.py": "raise SystemExit('code of the repository')",
    "pytorch_model.bin": b"the same weights again",
    "pytorch_model.bin.index.json": "{}",
    "training_args.bin": b"\0",
    "model.onnx": b"\0",
    "onnx/model.safetensors": b"\0",
    "original/config.json": "{}",
    "model-00003-of-00002.safetensors": b"no shard of the index",
}
CUSTOM_CODE: Mapping[str, str] = {
    "configuration_custom.py": "from transformers import LlamaConfig\n\n\n"
    "class CustomConfig(LlamaConfig):\n    model_type = 'custom-llama'\n",
    "modeling_custom.py": "from transformers import LlamaForCausalLM\n\n"
    "from .configuration_custom import CustomConfig\n\n\n"
    "class CustomForCausalLM(LlamaForCausalLM):\n    config_class = CustomConfig\n",
}


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repo]:
    root = tmp_path_factory.mktemp("repos")
    state = {k: v for name in SHARDS for k, v in safetensors.torch.load_file(TINY_LLAMA / name).items()}
    sharded = with_files(shutil.copytree(TINY_LLAMA, root / "sharded"), BESIDE)
    single = with_files(root / "single", {"config.json": CONFIG, "model.safetensors": safetensors.torch.save(state)})
    archive = with_files(root / "archive", {"config.json": CONFIG, **BESIDE})
    torch.save(state, archive / "pytorch_model.bin")
    custom_config = json.loads(CONFIG) | {
        "model_type": "custom-llama",
        "architectures": ["CustomForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_custom.CustomConfig",
            "AutoModelForCausalLM": "modeling_custom.CustomForCausalLM",
        },
    }
    custom = shutil.copytree(single, root / "custom")
    with_files(custom, {"config.json": json.dumps(custom_config), "README.md": "A model.", **CUSTOM_CODE})
    with_files(single, BESIDE)

    def repo(name: str, files: Mapping[str, str | bytes]) -> Repo:
        return Repo(with_files(root / name, files), commit("e"))

    def index(name: str, content: str) -> Repo:
        return repo(name, {"config.json": CONFIG, "model-1.safetensors": b"\0", INDEX: content})

    return {
        "org/sharded": Repo(sharded, commit("a"), refs={"v1": Revision(single, commit("b"))}),
        "org/tagged": Repo(sharded, commit("a"), refs={"v1": Revision(single, commit("b"))}),
        "org/addressed": Repo(sharded, commit("a"), refs={"v1": Revision(single, commit("b"))}),
        "org/archive": Repo(archive, commit("c")),
        "org/kept": Repo(single, commit("a")),
        "org/moving": Repo(single, commit("a")),
        "org/growing": Repo(single, commit("a")),
        "org/offline": Repo(single, commit("a")),
        "org/partly": Repo(sharded, commit("a")),
        "org/checked": Repo(single, commit("a")),
        "org/undownloaded": Repo(single, commit("a")),
        "org/custom": Repo(custom, commit("d")),
        "org/allowed": Repo(custom, commit("d")),
        "org/gated": Repo(single, commit("a"), access="gated"),
        "org/gated-metadata": Repo(single, commit("a"), access="gated-metadata"),
        "org/gated-granted": Repo(single, commit("a"), access="gated"),
        "org/private": Repo(single, commit("a"), access="private"),
        "org/private-granted": Repo(single, commit("a"), access="private"),
        "org/down": Repo(single, commit("a"), access="down"),
        "org/zero-3": repo(
            "zero-3", {"config.json": CONFIG, "zero_to_fp32.py": "", "global_step8/x.pt": b"", "training_args.bin": b""}
        ),
        "org/training-run": repo("training-run", {f"checkpoint-{n}/{f}": b"" for n in (9, 10) for f in MODEL}),
        "org/no-config-but-onnx": repo("no-config-but-onnx", {"decoder.onnx": b""}),
        "org/with-adapter": Repo(
            with_files(Path(shutil.copytree(single, root / "with-adapter")), {"adapter_config.json": "{}"}), commit("a")
        ),
        "org/large": Repo(sharded, commit("a")),
        "org/no-config": repo("no-config", {"model.safetensors": b"\0", "README.md": "A model."}),
        "org/no-weights": repo("no-weights", {"config.json": CONFIG, "README.md": "A model."}),
        "org/adapter": repo("adapter", {"adapter_config.json": "{}", "adapter_model.safetensors": b"\0"}),
        "org/gguf": repo("gguf", {"config.json": CONFIG, "model-Q4_K_M.gguf": b"GGUF"}),
        "org/other-names": repo("other-names", {"config.json": CONFIG, "weights.safetensors": b"\0"}),
        "org/index-no-json": index("index-no-json", "{"),
        "org/index-no-map": index("index-no-map", '{"metadata": {}}'),
        "org/index-of-numbers": index("index-of-numbers", '{"weight_map": {"a": 1}}'),
        "org/index-too-deep": index("index-too-deep", "[" * 200_000),
        "org/index-escapes": index("index-escapes", '{"weight_map": {"a": "../../../config.json"}}'),
        "org/shard-missing": index("shard-missing", '{"weight_map": {"a": "model-2.safetensors"}}'),
    }


@pytest.fixture(scope="module")
def server(repos: dict[str, Repo]) -> Iterator[HubServer]:
    with HubServer(repos) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf-home")


@pytest.fixture(scope="module")
def online(server: HubServer, home: Path) -> Iterator[Command]:
    with commands(home, HF_ENDPOINT=server.endpoint) as run:
        yield run


def asked(server: HubServer, repo: str) -> set[str]:
    """Files of a repository that were asked for, whether for their content or only for their headers."""
    paths = [path.partition(f"/{repo}/resolve/") for _, path in server.requests]
    return {name.partition("/")[2] for _, found, name in paths if found}


def sidecar(directory: Path, slug: str) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((directory / "model_snr_results" / f"snr_results_{slug}.meta.json").read_text())
    return meta


@pytest.mark.parametrize("how", [(), ("--download",)], ids=["ranges", "download"])
def test_only_config_and_weights_are_read_and_the_commit_is_recorded(
    server: HubServer, online: Command, tmp_path: Path, how: tuple[str, ...]
) -> None:
    done = online("--model-name", "org/sharded", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked(server, "org/sharded") == {"config.json", INDEX} | SHARDS
    made = sidecar(tmp_path, "org-sharded")
    assert (made["revision"], made["commit"], made["fingerprint"]) == (None, commit("a"), None)
    assert files_below(tmp_path) == [
        "model_snr_results/snr_results_org-sharded.json",
        "model_snr_results/snr_results_org-sharded.meta.json",
        "snr_results_org-sharded_sorted.json",
        "snr_results_org-sharded_unfrozenparameters_50percent.yaml",
    ]


def test_the_address_of_a_page_stands_for_the_id_and_the_revision(
    server: HubServer, online: Command, tmp_path: Path
) -> None:
    address = f"{server.endpoint}/org/addressed/blob/v1/config.json"
    assert online("--model-name", address, cwd=tmp_path).returncode == 0
    made = sidecar(tmp_path, "org-addressed")
    assert (made["revision"], made["commit"]) == ("v1", commit("b"))


@pytest.mark.parametrize("name", ["tini", "checkpoints/tini"])
def test_a_directory_that_is_nearly_called_so_is_proposed(online: Command, tmp_path: Path, name: str) -> None:
    meant = name.replace("tini", "tiny")
    (tmp_path / meant).mkdir(parents=True)
    done = online("--model-name", name, cwd=tmp_path)
    assert_refused(done, f"there is no directory {name!r} here", f"did you mean {meant}?")


def test_a_revision_is_scanned_instead_of_the_default_and_recorded(
    server: HubServer, online: Command, tmp_path: Path
) -> None:
    assert online("--model-name", "org/tagged", "--revision", "v1", cwd=tmp_path).returncode == 0
    assert asked(server, "org/tagged") == {"config.json", "model.safetensors"}
    made = sidecar(tmp_path, "org-tagged")
    assert (made["revision"], made["commit"]) == ("v1", commit("b"))

    # Its scan serves this revision and this commit by name, and neither the default nor another.
    for same in ("v1", commit("b")):
        again = online("--model-name", "org/tagged", "--revision", same, cwd=tmp_path)
        assert (again.returncode, again.stderr) == (0, "")
    default = online("--model-name", "org/tagged", cwd=tmp_path)
    assert default.returncode == 0
    assert "is not used: it is of revision v1; scanning again" in default.stderr
    made = sidecar(tmp_path, "org-tagged")
    assert (made["revision"], made["commit"]) == (None, commit("a"))
    main = online("--model-name", "org/tagged", "--revision", "main", cwd=tmp_path)  # the default by its name
    assert (main.returncode, main.stderr) == (0, "")


def test_a_download_that_a_cached_scan_makes_pointless_is_not_passed_over(
    server: HubServer, online: Command, tmp_path: Path
) -> None:
    assert online("--model-name", "org/undownloaded", cwd=tmp_path).returncode == 0
    done = online("--model-name", "org/undownloaded", "--download", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        0,
        "spectrum: the cached scan is used, so nothing is downloaded; --rescan downloads the model first\n",
    )


@pytest.mark.parametrize("network", ["offline", "closed"])
def test_a_config_alone_in_the_cache_is_not_taken_for_a_broken_model(
    server: HubServer, online: Command, home: Path, tmp_path: Path, network: str
) -> None:
    (tmp_path / "list.yaml").write_text("unfrozen_parameters:\n- model.layers.0\n")
    online("--model-name", "org/checked", "--check", "list.yaml", cwd=tmp_path)
    with (
        closed_endpoint() as nowhere,
        commands(home, HF_ENDPOINT=nowhere, HF_HUB_OFFLINE="1" if network == "offline" else "0") as run,
    ):
        done = run("--model-name", "org/checked", cwd=tmp_path)
        assert_refused(done, "the Hub's cache on this machine has no weights of org/checked", "check the network")


def test_a_repository_of_a_torch_archive_is_scanned(server: HubServer, online: Command, tmp_path: Path) -> None:
    done = online("--model-name", "org/archive", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked(server, "org/archive") == {"config.json", "pytorch_model.bin"}


def test_a_second_run_asks_nothing_of_the_network(server: HubServer, online: Command, tmp_path: Path) -> None:
    assert online("--model-name", "org/kept", cwd=tmp_path).returncode == 0
    before = len(server.requests)
    again = online("--model-name", "org/kept", "--top-percent", "25", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "from the cached scan" in again.stdout
    assert server.requests[before:] == []


def test_a_scan_of_a_commit_that_the_hubs_cache_has_moved_on_from_is_not_used(
    server: HubServer, repos: dict[str, Repo], online: Command, tmp_path: Path
) -> None:
    first, elsewhere = tmp_path / "first", tmp_path / "elsewhere"
    first.mkdir()
    elsewhere.mkdir()
    assert online("--model-name", "org/moving", "--download", cwd=first).returncode == 0
    repos["org/moving"] = Repo(repos["org/moving"].root, commit("f"))
    assert online("--model-name", "org/moving", cwd=first).stderr == ""  # nobody asked the Hub
    assert online("--model-name", "org/moving", "--download", cwd=elsewhere).returncode == 0  # moves the cache
    done = online("--model-name", "org/moving", cwd=first)
    assert done.returncode == 0
    assert "is not used: it is of commit aaaaaaaa, the Hub's cache now has ffffffff; scanning again" in done.stderr
    assert sidecar(first, "org-moving")["commit"] == commit("f")


def test_types_are_added_to_a_scan_from_its_own_commit(
    server: HubServer, repos: dict[str, Repo], online: Command, tmp_path: Path
) -> None:
    some = ("--model-name", "org/growing", "--layer-types", "mlp.up_proj")
    assert online(*some, cwd=tmp_path).returncode == 0
    before = repos["org/growing"]
    repos["org/growing"] = Repo(before.root, commit("f"), refs={"before": Revision(before.root, commit("a"))})
    done = online(*some, "mlp.down_proj", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = sidecar(tmp_path, "org-growing")
    assert (made["revision"], made["commit"]) == (None, commit("a"))
    assert online(*some, "mlp.down_proj", cwd=tmp_path).stderr == ""  # and it stays in use


@pytest.mark.parametrize("repo", ["org/gated-granted", "org/private-granted"])
def test_a_token_with_access_opens_a_repository(online: Command, tmp_path: Path, repo: str) -> None:
    done = online("--model-name", repo, cwd=tmp_path, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr


def test_code_of_a_repository_is_neither_downloaded_nor_run_without_the_flag(
    server: HubServer, online: Command, tmp_path: Path
) -> None:
    done = online("--model-name", "org/custom", cwd=tmp_path)
    assert_refused(done, "custom-llama", "--trust-remote-code")
    assert not any(name.endswith(".py") for name in asked(server, "org/custom"))
    assert files_below(tmp_path) == []


def test_code_of_a_repository_runs_with_the_flag(server: HubServer, online: Command, tmp_path: Path) -> None:
    done = online("--model-name", "org/allowed", "--trust-remote-code", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked(server, "org/allowed") == {"config.json", "model.safetensors", *CUSTOM_CODE}
    assert sidecar(tmp_path, "org-allowed")["model_class"] == "CustomForCausalLM"


REFUSALS: Mapping[str, tuple[list[str], dict[str, str], tuple[str, ...]]] = {
    "no-such-repository": (["org/none"], {}, ("'org/none'", "no such repository", "HF_TOKEN", "hf auth login")),
    "no-such-repository-without-owner": (["none"], {}, ("'none'", "no directory", "no such repository")),
    "no-such-repository-for-this-token": (["org/none"], {"HF_TOKEN": "hf_other"}, ("'org/none'", "no such repository")),
    "private-without-token": (["org/private"], {}, ("'org/private'", "if it is private, set HF_TOKEN")),
    "private-for-another": (["org/private"], {"HF_TOKEN": "hf_other"}, ("'org/private'", "if it is private")),
    "gated": (["org/gated"], {}, ("org/gated is gated", "ask for access", "HF_TOKEN")),
    "gated-for-another": (["org/gated"], {"HF_TOKEN": "hf_other"}, ("org/gated is gated", "ask for access")),
    "gated-metadata": (["org/gated-metadata"], {}, ("org/gated-metadata is gated", "ask for access")),
    "gated-metadata-for-another": (["org/gated-metadata"], {"HF_TOKEN": "hf_other"}, ("is gated", "ask for access")),
    "no-such-revision": (["org/sharded", "--revision", "v9"], {}, ("org/sharded", "no revision 'v9'")),
    "down": (["org/down"], {}, ("'org/down'", "does not answer", "503")),
    "invalid-id": (["not a repo"], {}, ("'not a repo'", "neither a directory here nor the id of a repository")),
    "invalid-id-with-dashes": (["a--b"], {}, ("'a--b'", "neither a directory here nor the id of a repository")),
    "no-config": (["org/no-config"], {}, ("org/no-config has no config.json",)),
    "no-weights": (["org/no-weights"], {}, ("org/no-weights has no weight files", "model.safetensors")),
    "zero-3": (["org/zero-3"], {}, ("org/zero-3 holds no whole weights", "`python zero_to_fp32.py . OUTPUT_DIR`")),
    "training-run": (["org/training-run"], {}, ("org/training-run", "checkpoint-10 of a local copy")),
    "onnx": (["org/no-config-but-onnx"], {}, ("org/no-config-but-onnx", "exported to run (decoder.onnx)")),
    "adapter": (["org/adapter"], {}, ("org/adapter holds an adapter", "merge it into its base model")),
    "gguf": (["org/gguf"], {}, ("org/gguf holds GGUF files only", "use the original checkpoint")),
    "other-names": (["org/other-names"], {}, ("org/other-names", "weights.safetensors", "save_pretrained")),
    "index-no-json": (["org/index-no-json"], {}, (INDEX, "not valid JSON")),
    "index-no-map": (["org/index-no-map"], {}, (INDEX, "no weight_map")),
    "index-of-numbers": (["org/index-of-numbers"], {}, (INDEX, "no weight_map")),
    "index-too-deep": (["org/index-too-deep"], {}, (INDEX, "not valid JSON")),
    "index-escapes": (["org/index-escapes"], {}, (INDEX, "'../../../config.json'", "not a file of the model's")),
    "shard-missing": (["org/shard-missing"], {}, ("lacks the shard model-2.safetensors",)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_repository_and_what_to_do(online: Command, tmp_path: Path, case: str) -> None:
    args, environment, words = REFUSALS[case]
    done = online("--model-name", *args, cwd=tmp_path, **environment)
    assert_refused(done, *words)
    assert files_below(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", ["offline", "closed"])
def test_without_a_network_what_was_downloaded_is_scanned_and_the_rest_refused(
    online: Command, home: Path, tmp_path: Path, network: str
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    assert online("--model-name", "org/offline", "--download", cwd=there).returncode == 0
    assert online("--model-name", "org/partly", "--download", cwd=there).returncode == 0
    (interrupted,) = home.glob("hub/models--org--partly/snapshots/*/model-00002-of-00002.safetensors")
    interrupted.unlink()
    with (
        closed_endpoint() as nowhere,
        commands(home, HF_ENDPOINT=nowhere, HF_HUB_OFFLINE="1" if network == "offline" else "0") as run,
    ):
        for args, words in {
            ("org/none",): ("'org/none'", "its cache has no repository of that name;"),
            ("org/offline", "--revision", "v9"): ("'org/offline'", "no repository of that name at revision 'v9';"),
            ("org/partly",): ("models--org--partly", "lacks the shard model-00002-of-00002.safetensors"),
            ("not a repo",): ("neither a directory here nor the id of a repository",),
        }.items():
            done = run("--model-name", *args, cwd=here)
            assert_refused(done, *words)
            if network == "offline" and "no repository of that name" in done.stderr:
                assert "HF_HUB_OFFLINE" in done.stderr
        assert files_below(here) == []
        done = run("--model-name", "org/offline", cwd=here)
        assert done.returncode == 0, done.stderr
    made = files_below(here)
    assert len(made) == 4
    assert all((here / file).read_bytes() == (there / file).read_bytes() for file in made)


def test_an_adapter_beside_the_weights_of_a_repository_is_warned_of(
    server: HubServer, online: Command, tmp_path: Path
) -> None:
    done = online("--model-name", "org/with-adapter", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: the repository also holds an adapter" in done.stderr
    assert asked(server, "org/with-adapter") == {"config.json", "model.safetensors"}


def test_a_list_for_a_repository_without_a_model_is_refused_with_what_it_holds(online: Command, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("unfrozen_parameters:\n- model.layers.0\n")
    done = online("--model-name", "org/no-config-but-onnx", "--check", "list.yaml", cwd=tmp_path)
    assert_refused(done, "org/no-config-but-onnx", "exported to run (decoder.onnx)")


# Without a process of its own: what needs neither the Hub nor torch.


def test_a_download_that_fails_midway_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The config and the index came; then the disk was full. Saying that a shard is missing would send the user to
    # download the model again, in vain.
    class Api:
        def model_info(self, *_: object, **__: object) -> Any:
            files = [RepoSibling(file.name) for file in TINY_LLAMA.iterdir()]
            return SimpleNamespace(sha=commit("a"), siblings=files)

    def download(*_: object, allow_patterns: list[str], **__: object) -> str:
        for name in allow_patterns:
            if name.endswith(".safetensors"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            shutil.copy(TINY_LLAMA / name, tmp_path)
        return str(tmp_path)

    def in_cache(*_: object, **__: object) -> str:
        return str(tmp_path / "config.json")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", in_cache)
    with pytest.raises(CheckpointError, match=os.strerror(errno.ENOSPC)):
        downloaded("org/model")


@pytest.mark.parametrize("name", ["./model", "../model", "/nowhere/model", "~/no-such-model", "a/b/c", ""])
def test_a_path_that_is_not_there_is_no_repository_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no directory"):
        resolve_local(name)


def test_a_path_below_a_directory_that_is_closed_to_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: Any, **options: Any) -> os.stat_result:
        if "closed/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return unpatched(path, **options)

    unpatched = os.stat
    monkeypatch.setattr(os, "stat", stat)
    model = tmp_path / "closed" / "model"
    with pytest.raises(CheckpointError) as refused:
        check_local(str(model))
    assert str(refused.value) == f"cannot read {model}: Permission denied; allow this user to read it"


def test_a_path_that_is_too_long_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="there is no directory '/a"):
        check_local("/" + "a" * 300)


@pytest.mark.parametrize("name", ["gpt2", "org/model", "not a repo"])
def test_a_name_that_is_no_path_may_be_a_repository_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_local(name) is None
    (tmp_path / name).mkdir(parents=True)
    assert resolve_local(name) == ResolvedModel(Path(name), None)  # a directory of that name goes before


# The size of a download.

SIZES = {name: (TINY_LLAMA / name).stat().st_size for name in SHARDS}


@pytest.fixture
def cache(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's client in this process, which asks the server here."""
    ask(monkeypatch, server.endpoint, tmp_path)
    return tmp_path / "hub"


def downloaded(repo: str) -> Path:
    return hub.resolve(repo, None, remote_code=False, download=True).directory


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, free=free))


def test_a_download_that_does_not_fit_is_refused_before_it_begins(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, sum(SIZES.values()) - 1)
    before = len(server.requests)
    with pytest.raises(HubError) as refusal:
        downloaded("org/large")
    needed = amount(sum(SIZES.values()))
    assert str(refusal.value).startswith(
        f"org/large does not fit: {needed} are to be downloaded, and the disk of {cache} has {needed} free; "
    )
    assert "HF_HOME" in str(refusal.value)
    assert not any(shard in path for _, path in server.requests[before:] for shard in SHARDS)

    with_free(monkeypatch, sum(SIZES.values()))
    assert downloaded("org/large").name == commit("a")


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # this client does not go on with parts
def test_what_the_cache_has_needs_no_space(
    repos: dict[str, Repo], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = downloaded("org/large")
    with_free(monkeypatch, 0)
    assert downloaded("org/large") == folder
    # The next commit has the same weights: the blobs serve it too.
    monkeypatch.setitem(repos, "org/large", Repo(repos["org/large"].root, commit("b")))
    assert downloaded("org/large").name == commit("b")
    # A part of a shard that an older client has left is gone on with.
    monkeypatch.setitem(repos, "org/large", Repo(repos["org/large"].root, commit("c")))
    shard = max(SHARDS, key=SIZES.__getitem__)
    blob = (folder / shard).resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    os.truncate(blob.with_name(f"{blob.name}.incomplete"), SIZES[shard] - 1000)
    for link in cache.glob(f"models--org--large/snapshots/*/{shard}"):
        link.unlink()
    with_free(monkeypatch, 999)
    with pytest.raises(HubError, match=r"does not fit: 1 kB are to be downloaded, .* has 999 B free"):
        downloaded("org/large")
    with_free(monkeypatch, 1000)
    assert downloaded("org/large").name == commit("c")


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # the client takes the zeros for what they say
@pytest.mark.parametrize("told", [None, SimpleNamespace(total=0, free=0)])
def test_a_disk_that_does_not_tell_its_space_is_downloaded_to(
    told: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: object) -> Any:
        if told is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return told

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert downloaded("org/large").is_dir()
