"""Names of devices, and what the CUDA driver says, without torch."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spectrum.compute.device_names import check_device_name, num_driver_gpus
from spectrum.errors import DeviceError


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps", "xpu:1", "meta"])
def test_a_device_has_its_name(name: str) -> None:
    check_device_name(name)
    assert name == "auto" or str(torch.device(name)) == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpu", "cuda"),
        ("GPU", "cuda"),
        ("gpus", "cuda"),
        ("cuda:x", "cuda"),
        ("nvidia", "cuda"),
        ("gpu0", "cuda:0"),
        ("gpu:1", "cuda:1"),
        ("cuda0", "cuda:0"),
        ("cuda 2", "cuda:2"),
        ("cuda:01", "cuda:1"),
        ("3", "cuda:3"),
        ("0,1", "auto"),
        ("cuda:0,cuda:1", "auto"),
        ("all", "auto"),
        ("CPU", "cpu"),
        ("cup", "cpu"),
        ("cudda", "cuda"),
        ("Auto", "auto"),
    ],
)
def test_a_misspelt_device_gets_a_proposal(name: str, meant: str) -> None:
    with pytest.raises(DeviceError) as refused:
        check_device_name(name)
    assert str(refused.value) == f"{name!r} is not a device; did you mean {meant}?"
    check_device_name(meant)


@pytest.mark.parametrize("name", ["", "banana", "cpu,", "cuda\n", "\N{ARABIC-INDIC DIGIT FIVE}"])
def test_what_is_no_device_is_answered_with_those_that_are(name: str) -> None:
    with pytest.raises(DeviceError, match="is not a device"):
        check_device_name(name)


@pytest.mark.parametrize(
    ("init", "counted", "expected"),
    [(0, 0, 3), (100, 0, 0), (0, 100, 0)],
    ids=["three GPUs", "no GPU", "no count"],
)
def test_the_driver_counts_the_gpus(init: int, counted: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(pointer: Any) -> int:
        pointer._obj.value = 3
        return counted

    driver = SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert num_driver_gpus() == expected


@pytest.mark.parametrize("driver", [OSError("libcuda.so.1: cannot open shared object file"), None])
def test_without_a_driver_there_are_none(driver: OSError | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if driver is not None:
            raise driver
        return SimpleNamespace()  # a library of that name with other functions

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert num_driver_gpus() == 0
