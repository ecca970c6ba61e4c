"""A real browser for tests of the page: Debian's Chromium with its driver, or another Chromium that is on the PATH."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="there is no Chromium with its driver (Debian: chromium chromium-driver)"
)

# Nothing of the browser's own goes to the network, and as root it has no sandbox.
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


@contextmanager
def browser(*arguments: str) -> Iterator[Chrome]:
    """Chromium without a window, with an empty profile. What scripts and policies complain of is in its log.

    Args:
        arguments: further ones of its command line.
    """
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (*_ARGUMENTS, f"--user-data-dir={profile}", *arguments):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = Chrome(options=options, service=Service(str(DRIVER)))
        try:
            driver.set_window_size(1280, 900)
            yield driver
        finally:
            driver.quit()


def complaints(driver: Chrome) -> list[str]:
    """The errors and warnings in the browser's log since the last call."""
    entries: list[dict[str, str]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


def open_page(driver: Chrome, path: Path) -> None:
    """Open a file as a user does, from disk."""
    driver.get(path.resolve().as_uri())


def retype(driver: Chrome, field_id: str, text: str) -> None:
    """Type a text into a field, in place of what it holds."""
    field = driver.find_element("id", field_id)
    driver.execute_script("arguments[0].select()", field)
    field.send_keys(text)


def allow_clipboard(driver: Chrome) -> None:
    """Let pages read and write the clipboard without a question."""
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})


def stop_emulation(driver: Chrome) -> None:
    """Show pages as on a desk again: in the window's size, with a mouse, on a screen, without preferences."""
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
