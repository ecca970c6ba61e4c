"""The command with little memory: it may take LIMIT MiB over what it has after its imports.

Run as a script. The limit is one of the process's own, of virtual memory; or that of its group, whose files for the
limit and for what is used are named by GROUP, with a colon between them.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch  # noqa: F401 - here and below: for the memory that it takes
from transformers import LlamaForCausalLM  # noqa: F401 - which imports all that there is to a model

from spectrum.cli import entry


def _limit_process(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_group(limit: Path, used: Path, size: int) -> None:
    limit.write_text(f"{int(used.read_text()) + size}\n")


if __name__ == "__main__":
    _size = int(os.environ["LIMIT"]) << 20
    if "GROUP" in os.environ:
        _limit, _used = map(Path, os.environ["GROUP"].split(":"))
        _limit_group(_limit, _used, _size)
    else:
        _limit_process(_size)
    entry.command()
