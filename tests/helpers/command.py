"""The command within this process, how a run of it ended, and tiny checkpoints for it."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spectrum.cli.entry import main


@dataclass(frozen=True)
class Finished:
    """How a run ended, and what it said."""

    status: int
    out: str
    err: str

    def said(self, start: str) -> list[str]:
        """The notes that begin so, wherever the progress bar has left the cursor."""
        return re.findall(rf"spectrum: {re.escape(start)}.*", self.err)


def run(directory: Path, *args: str | Path, err: io.StringIO | None = None, debug: bool = False) -> Finished:
    """Run the command in a working directory, without a terminal.

    err: what is to stand for its stderr. debug: with the switch that has exceptions shown as they are.
    """
    out, err = io.StringIO(), err or io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(directory)
        if debug:
            patch.setenv("SPECTRUM_DEBUG", "1")
        else:
            patch.delenv("SPECTRUM_DEBUG", raising=False)
        status: Any
        try:
            status = main([*map(str, args)])
        except SystemExit as stop:  # of the parser of arguments
            status = stop.code
    return Finished(status, out.getvalue(), err.getvalue())


def assert_refused(done: Finished, *words: str, status: int = 1) -> None:
    """The command failed as it should: its status, one line that has these words, no traceback, nothing on stdout."""
    assert done.status == status, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("spectrum: error: ")]
    assert len(lines) == 1, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


def tiny_llama(directory: Path, dtype: str = "float32", shards_of: str | None = None, **config: Any) -> Path:
    """Save a Llama with random weights, of one layer but for what its config says; return the directory.

    shards_of: how large each of its files may be; None for a single one.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "tie_word_embeddings": False}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | heads | config)))
    model.to(getattr(torch, dtype))
    with redirect_stderr(io.StringIO()):  # a progress bar
        model.save_pretrained(directory, max_shard_size=shards_of or "1GB")
    (directory / "generation_config.json").unlink()  # which is no matter of ours
    return directory
