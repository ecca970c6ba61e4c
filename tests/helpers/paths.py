"""Where things lie, and what lies below a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY_LLAMA = ROOT / "tests" / "data" / "tiny-llama"

# What the community published with the reference tool; not part of this project, and not everywhere.
PUBLISHED = ROOT.parent / "shared" / "published_results"


def files_below(directory: Path) -> Sequence[str]:
    """Every file below a directory, to see that nothing was left behind. A lock has to stay, as flock works."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(str(path.relative_to(directory)) for path in files)
