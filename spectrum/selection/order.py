"""Which layers of a type are selected first? Those of highest SNR, or, as a control, of lowest SNR or by lot."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from spectrum.records import LayerSnr
from spectrum.text import nearest, proposal

HIGHEST, LOWEST = "highest", "lowest"
MAX_SEED = 2**63 - 1
_RANDOM = "random"
_SEEDED = re.compile(rf"{_RANDOM}:(\d{{1,19}})", re.ASCII)


def parse_order(text: object) -> str:
    """An order as typed, without leading zeros of the seed: `highest`, `lowest` or `random:7`.

    Raises ValueError if it is none.
    """
    if isinstance(text, str) and text in (HIGHEST, LOWEST):
        return text
    if isinstance(text, str) and (seeded := _SEEDED.fullmatch(text)) and int(seeded[1]) <= MAX_SEED:
        return f"{_RANDOM}:{int(seeded[1])}"
    expected = f"{HIGHEST}, {LOWEST} or {_RANDOM}:SEED is expected"
    word, colon, _ = text.partition(":") if isinstance(text, str) else ("", "", "")
    if word == _RANDOM:
        what = f"a SEED from 0 to {MAX_SEED}" if colon else "a seed, so that the same layers can be drawn again"
        raise ValueError(f"{_RANDOM} needs {what}, such as {_RANDOM}:1, not {text!r}")
    meant = nearest(word, (HIGHEST, LOWEST, _RANDOM))
    raise ValueError(f"{expected}, not {text!r}{proposal(f'{_RANDOM}:1' if meant == _RANDOM else meant)}")


def by_score(order: str) -> bool:
    """Whether scores decide, and not a lot."""
    return order in (HIGHEST, LOWEST)


def ordered(layers: Iterable[LayerSnr], order: str) -> list[LayerSnr]:
    """The layers of one type, in the order in which they are selected.

    Equal scores stay in the order in which they come, at either end. By lot, layers are sorted by the SHA-256 of
    "SEED:NAME" in UTF-8, so the lot depends on nothing but the seed and the layers' names.
    """
    if order == HIGHEST:
        return sorted(layers, key=lambda layer: -layer.snr)
    if order == LOWEST:
        return sorted(layers, key=lambda layer: layer.snr)
    seed = order.partition(":")[2]
    return sorted(layers, key=lambda layer: _lot(seed, layer.name))


def _lot(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).digest()


def share(percent: str, order: str) -> str:
    """How much is selected of a type, in words: `top 25 percent`, `random 25 percent (seed 7)`."""
    word, _, seed = order.partition(":")
    return f"{'top' if word == HIGHEST else word} {percent} percent{f' (seed {seed})' if seed else ''}"


def control(order: str) -> str:
    """What the names of a control's files say: `lowest`, `random-7`; empty for the highest scores, the default."""
    return "" if order == HIGHEST else order.replace(":", "-")
