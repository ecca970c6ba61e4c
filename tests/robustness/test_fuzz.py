"""A little of the fuzzing in `tests/robustness/fuzz.py`, the same inputs each time."""

from __future__ import annotations

import pytest

from tests.robustness.fuzz import TARGETS, Arena, Campaign

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_input_is_read_or_refused_in_a_line(arena: Arena, target: str) -> None:
    campaign = Campaign(target, arena)
    campaign.run(40, derandomize=True)
    assert campaign.tried >= 40
