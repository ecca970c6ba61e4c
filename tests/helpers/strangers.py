"""Modules of strangers, of the names that the command imports."""

from __future__ import annotations

from pathlib import Path

# What the command imports sooner or later. Python itself needs others, `contextlib` for one, to find any module.
SHADOWED = [
    "__future__",
    "accelerate",
    "argparse",
    "filelock",
    "huggingface_hub",
    "json",
    "logging",
    "numpy",
    "prompt_toolkit",
    "safetensors",
    "shutil",
    "signal",
    "torch",
    "tqdm",
    "typing",
    "yaml",
]


def add_strangers(directory: Path, *others: str) -> Path:
    """Modules that stand for those of the same names, where these are looked for; the file that any of them makes."""
    marker = directory / "owned"
    code = f"with open({str(marker)!r}, 'a') as file:\n    file.write(__name__ + chr(10))\n"
    for name in SHADOWED:
        (directory / f"{name}.py").write_text(code)
    for name in ("transformers", *others):
        (directory / name).mkdir()
        for part in ("__init__", "__main__"):
            (directory / name / f"{part}.py").write_text(code)
    return marker
