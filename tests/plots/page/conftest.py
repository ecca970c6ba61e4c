"""What the tests of the page share: browsers, since each takes a second to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.helpers.browser import browser
from tests.helpers.page_engine import engine_in_browser

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    """A browser in which nothing moves by itself. Each module has its own, since tests change what it shows and how."""
    with browser("--force-prefers-reduced-motion") as driver:
        yield driver


@pytest.fixture(scope="package")
def engine() -> Iterator[Chrome]:
    """A browser that knows the page's engine. Its functions keep nothing, so that all modules share it."""
    with engine_in_browser() as driver:
        yield driver
