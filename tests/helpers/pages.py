"""The parts of the project's pages: blocks of code, commands, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from tests.helpers.paths import ROOT

PLACES = ("*.md", ".github/*.md", "model_snr_results/*.md", "spectrum/**/*.md", "tests/**/*.md")
PAGES = sorted({path.relative_to(ROOT).as_posix() for place in PLACES for path in ROOT.glob(place)})


@dataclass(frozen=True)
class Block:
    """A block of code on a page. language: that of a fenced block; None for an indented block."""

    page: str
    line: int
    language: str | None
    text: str


@dataclass(frozen=True)
class Command:
    """A command on a page. shown: the lines of output under it. config: the last YAML block before it."""

    page: str
    text: str
    shown: tuple[str, ...] = ()
    config: str = ""

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def read(page: str) -> str:
    return (ROOT / page).read_text()


@cache
def blocks(page: str) -> tuple[Block, ...]:
    found: list[Block] = []
    number, lines = 0, read(page).splitlines()
    while number < len(lines):
        start = number
        if fence := re.fullmatch(r"```(\w*)", lines[number]):
            number = lines.index("```", number + 1)
            found.append(Block(page, start + 1, fence[1], "".join(f"{line}\n" for line in lines[start + 1 : number])))
        elif lines[number].startswith("    ") and not lines[number - 1]:
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            found.append(Block(page, start + 1, None, "".join(f"{line[4:]}\n" for line in lines[start:number])))
        number += 1
    return tuple(found)


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> Iterator[Command]:
    config = ""
    for block in blocks(page):
        joined = block.text.replace("\\\n", "")
        if block.language == "yaml":
            config = "".join(f"{line}\n" for line in joined.splitlines() if line != "...")
        elif block.language == "console":
            for shown in joined.removeprefix("$ ").split("\n$ "):
                text, *output = shown.splitlines()
                yield Command(page, text, tuple(output), config)
        elif block.language in (None, "bash", "sh"):
            for text in joined.splitlines():
                yield Command(page, re.sub(r" {2,}", " ", re.sub(r"\s+#.*", "", text)), (), config)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*?)\s*$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def shown_within(shown: Sequence[str], actual: Sequence[str]) -> bool:
    """Whether the shown lines equal the actual ones. A shown line `...` stands for any number of lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else f"{re.escape(line)}\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in actual)) is not None


def timeless(lines: Sequence[str]) -> list[str]:
    """The output without the parts that differ between two runs: the device and the seconds."""
    return [re.sub(r" on \S+ in [\d.]+ s\.$", "", line) for line in lines]
