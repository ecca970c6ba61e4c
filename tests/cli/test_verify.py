"""The command that compares a trained model with its base: what it takes, prints and returns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spectrum.scanning import distributed
from tests.helpers.command import Finished, assert_refused, tiny_llama
from tests.helpers.paths import files_below
from tests.helpers.trained import moving, trained, written_list

HEAD, DOWN = "lm_head.weight", "model.layers.0.mlp.down_proj.weight"

Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "model", num_hidden_layers=2)


@pytest.fixture
def after(base: Path, tmp_path: Path) -> Path:
    return trained(base, tmp_path / "after", moving(HEAD, DOWN))


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    return written_list(tmp_path / "list.yaml", [f"^{HEAD}$", DOWN])


def test_a_list_is_compared_without_a_scan(run: Run, base: Path, after: Path, listing: Path) -> None:
    done = run("--model-name", base, "--verify", after, "--list", listing)
    assert done.status == 0, done.err
    title, verdict, *_ = done.out.split("\n\n")
    assert title == f"{after} against {base}, by {listing}"
    assert verdict == "ok: the 2 parameters on the list moved, and the other 19 did not"
    assert not files_below(Path())  # nothing is written


def test_a_whole_config_is_a_list_too(run: Run, base: Path, after: Path, listing: Path) -> None:
    listing.write_text(f"base_model: org/model\nlearning_rate: 1e-5\n{listing.read_text()}")
    assert run("--model-name", base, "--verify", after, "--list", listing).status == 0


def test_the_selection_of_this_command_is_what_was_to_move(run: Run, base: Path, tmp_path: Path) -> None:
    options = (
        "--model-name",
        base,
        "--yes",
        "--layer-types",
        "mlp.down_proj",
        "--no-embeddings",
        "--top-percent",
        "50",
    )
    assert run(*options, "--results-dir", "scans").status == 0
    (written,) = Path().glob("*.yaml")
    (name,) = re.findall(r"^- (.*)$", written.read_text(), re.MULTILINE)
    right, wrong = (trained(base, tmp_path / key, moving(key)) for key in (f"{name}.weight", HEAD))
    before = files_below(Path())
    done = run(*options, "--results-dir", "scans", "--verify", right)
    assert done.status == 0, done.out
    assert f"by top 50 percent of {base}, without input embedding and output head" in " ".join(done.out.split())
    done = run(*options, "--results-dir", "scans", "--verify", wrong)
    assert done.status == 1
    assert f"problem: moved, but was not to train: {HEAD}\nproblem: was to train, but did not move: {name}.weight" in (
        done.out
    )
    assert files_below(Path()) == before  # no list, no sorted scores


def test_a_percentage_that_nobody_gave_is_named(run: Run, base: Path, after: Path, listing: Path) -> None:
    warning = "--verify compares with the top 50 percent, the default"
    assert warning in run("--model-name", base, "--verify", after, "--yes").err
    for given in (("--top-percent", "50"), ("--top-params", "50"), ("--list", listing)):
        assert warning not in run("--model-name", base, "--verify", after, *given).err


def test_a_model_without_a_cached_scan_is_scanned(run: Run, base: Path, after: Path) -> None:
    done = run("--model-name", base, "--verify", after, "--yes", "--top-params", "80")
    assert done.status == 1
    assert all("model_snr_results" in name for name in files_below(Path()))


def test_a_wrong_trained_model_is_found_before_a_scan_and_the_other_processes_learn_of_it(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(distributed, "join", lambda: steps.append("join"))
    monkeypatch.setattr(distributed, "broadcast", lambda job: steps.append("stop" if job is None else "job"))
    (tmp_path / "empty").mkdir()
    for wrong, words in ((tmp_path / "empty", "has no config.json"), (tmp_path / "nothing", "no directory")):
        assert_refused(run("--model-name", base, "--verify", wrong, "--yes"), words)
        assert steps == ["join", "stop"]
        steps.clear()
    assert not files_below(Path())  # there is no scan


def test_quiet_prints_nothing_if_all_is_well(run: Run, base: Path, after: Path, listing: Path) -> None:
    done = run("--model-name", base, "--verify", after, "--list", listing, "-q")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_quiet_names_the_first_problem(run: Run, base: Path, after: Path, tmp_path: Path) -> None:
    shorter = written_list(tmp_path / "shorter.yaml", [DOWN])
    done = run("--model-name", base, "--verify", after, "--list", shorter, "--quiet")
    assert (done.status, done.out) == (1, "")
    assert done.err == f"spectrum: error: {after}: 1 problem: moved, but was not to train: {HEAD}\n"


def test_problems_are_counted_on_stderr(run: Run, base: Path, after: Path, tmp_path: Path) -> None:
    other = written_list(tmp_path / "other.yaml", ["model.norm"])
    done = run("--model-name", base, "--verify", after, "--list", other)
    assert done.status == 1
    assert done.out.count("problem: ") == 2
    assert done.said("error") == [f"spectrum: error: {after}: 2 problems"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--list", "l.yaml", "--top-percent", "5"), ("--verify with --list does not use --top-percent",)),
        (("--list", "l.yaml", "--rescan", "--device", "cpu"), ("does not use --rescan, --device; leave them out",)),
        (("--format", "peft"), ("--verify does not use --format",)),
        (("--output-dir", "x", "--plot", "x.png"), ("--verify does not use --output-dir, --plot",)),
        (("--compare", "org/other"), ("--verify does not use --compare",)),
        (("--check", "l.yaml"), ("not allowed with argument",)),
        (("--plot-spectrum", "a", "b.png"), ("not allowed with argument",)),
    ],
)
def test_options_that_do_not_matter_are_refused(run: Run, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(run("--model-name", "org/m", "--verify", "org/t", *options), *words, status=2)


def test_a_list_without_a_trained_model_is_refused(run: Run) -> None:
    assert_refused(run("--model-name", "org/m", "--list", "l.yaml"), "--verify", "--check", status=2)


@pytest.mark.parametrize("trained_name", ["", "https://huggingface.co/datasets/a/b"])
def test_what_names_no_model_is_refused(run: Run, trained_name: str) -> None:
    assert_refused(run("--model-name", "org/m", "--verify", trained_name), "--verify", status=2)


def test_a_damaged_shard_is_named_before_a_scan(run: Run, base: Path, after: Path) -> None:
    (shard,) = after.glob("*.safetensors")
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size - 1)
    done = run("--model-name", base, "--verify", after, "--top-percent", "50", "--yes")
    assert done.status == 1
    assert f"{shard} is damaged" in done.err
    assert not files_below(Path())


def test_a_path_that_is_not_there_is_named(run: Run, base: Path, listing: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert_refused(run("--model-name", base, "--verify", missing, "--list", listing), str(missing))
    assert_refused(run("--model-name", missing, "--verify", base, "--list", listing), str(missing))
    assert_refused(run("--model-name", base, "--verify", base, "--list", missing), f"cannot read {missing}")


def test_underscores_and_an_address_with_a_revision_are_understood(
    run: Run, base: Path, listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spectrum.cli.console.options import VerifyOptions, parse

    mode = parse(["--model_name", str(base), "--verify", "https://huggingface.co/org/m/tree/v2"]).mode
    assert isinstance(mode, VerifyOptions)
    assert (mode.verify.name, mode.verify.revision) == ("org/m", "v2")


def test_mistakes_in_names_import_no_torch(base: Path, listing: Path, tmp_path: Path) -> None:
    code = "import sys; from spectrum.cli.entry import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = ["--model-name", str(base), "--verify", str(tmp_path / "nothing"), "--list", str(listing)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert done.stdout == "False\n", done.stderr


def test_the_report_fits_a_terminal(base: Path, after: Path, listing: Path, run: Run) -> None:
    from spectrum.checkpoint.remote.model_names import ModelName
    from spectrum.cli.console.options import ModelOptions, VerifyOptions
    from spectrum.cli.verify import verify
    from spectrum.scanning.request import ScanCallbacks

    said: list[str] = []
    silent = ScanCallbacks(said.append, said.append, lambda _: (None, []), lambda _: None)  # type: ignore[arg-type,return-value]
    options = VerifyOptions(ModelName(str(after)), listing)
    outcome = verify(ModelOptions(str(base)), options, silent, quiet=False, columns=60)
    words = {str(after), str(base), str(listing)}  # which are never broken
    lines = outcome.text.splitlines()
    assert all(len(line) <= 60 or any(word in line for word in words) for line in lines)
