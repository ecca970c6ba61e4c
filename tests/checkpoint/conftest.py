"""Fixtures that several tests of checkpoints share."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def fp8_is_read() -> None:
    try:
        importlib.import_module("transformers.integrations.finegrained_fp8")
    except ModuleNotFoundError as error:
        pytest.skip(f"this transformers needs a package to dequantize fp8: {error}")
