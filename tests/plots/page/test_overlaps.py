"""Names that are part of others: as a search of every name in every other one finds them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spectrum.plots.page.overlaps import overlaps

NAMES = st.lists(
    st.lists(st.sampled_from(["a", "ab", "b", "ba", "a_b"]), min_size=1, max_size=4).map(".".join), max_size=9
)


@given(NAMES, NAMES, st.sampled_from(["", "b.", "ab.a."]))
def test_all_are_found_and_no_others(names: list[str], others: list[str], before: str) -> None:
    expected = {
        name: found
        for name in names
        if (found := [i for i, other in enumerate(others) if name in before + other and name != other])
    }
    assert overlaps(names, others, before) == expected
