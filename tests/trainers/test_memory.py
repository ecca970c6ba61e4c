"""Memory that training takes: by hand, and as torch and bitsandbytes really occupy it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from spectrum.records import ModelInfo, Parameter
from spectrum.trainers import memory
from spectrum.trainers.memory import OPTIMIZERS, SHARDINGS, UNSHARDED, Sharding

SHARDING = {sharding.name: sharding for sharding in (UNSHARDED, *SHARDINGS)}

MIXED, PURE, EIGHT_BIT = "AdamW, mixed precision", "AdamW, pure bf16", "8-bit AdamW, bf16"


def parameters(**more: Parameter) -> dict[str, Parameter]:
    """9996 elements: 800 of an embedding that the head is tied to, and matrices of 4096, 5000 and 100."""
    embedding = Parameter((100, 8), "bfloat16", module="Embedding")
    return {
        "embed.weight": embedding,
        "large.weight": Parameter((64, 64), "bfloat16"),
        "largest.weight": Parameter((50, 100), "bfloat16"),
        "small.weight": Parameter((10, 10), "bfloat16"),
        "head.weight": Parameter((100, 8), "bfloat16", tied_to="embed.weight"),
        **more,
    }


def model(known: dict[str, Parameter]) -> ModelInfo:
    return ModelInfo("SomeForCausalLM", known, (), None, None)


def needed(names: Iterable[str], known: dict[str, Parameter], optimizer: str, sharding: Sharding, devices: int) -> int:
    """Bytes on a device to train the named ones of these parameters."""
    info = model(known)
    trained, everything = (memory.parameter_sizes(some, info) for some in (names, known))
    return memory.bytes_per_device(trained, everything, optimizer, sharding, devices)


TRAINED = ["head.weight", "large.weight", "small.weight"]  # 4996 elements


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], 0),
        (["small.weight"], 100),
        (["embed.weight", "small.weight"], 900),
        # Tied: the elements of both are the same ones, whichever is named, and in whichever order.
        (["head.weight"], 800),
        (["head.weight", "embed.weight"], 800),
        (["embed.weight", "small.weight", "head.weight"], 900),
        (["small.weight", "small.weight"], 100),
        (["no such.weight"], 0),
        (["no such.weight", "large.weight"], 4096),
        ([*parameters()], 9996),
    ],
    ids=str,
)
def test_elements_are_counted_once(names: list[str], expected: int) -> None:
    assert model(parameters()).num_elements(names) == expected


def test_parameters_of_any_number_of_dimensions_have_elements() -> None:
    shapes = {"stack": Parameter((4, 5, 6), "bfloat16"), "scalar": Parameter((), "float32")}
    more = parameters(**shapes, none=Parameter((0, 8), "bfloat16"))
    assert model(more).num_elements(["stack", "scalar", "none"]) == 121


# By hand. All: 9996 elements; trained: 4996. Of those, 4096 are of a parameter that is large enough for 8-bit states of
# one byte each, two of them, with a scale of 4 bytes for each 256: 2 (4096 + 64). The other 900 have two of 4 bytes.
STATE_8BIT = 2 * (4096 + 64) + 900 * 8


@pytest.mark.parametrize(
    ("optimizer", "sharding", "devices", "expected"),
    [
        (MIXED, "one device", 1, 9996 * 4 + 4996 * (4 + 8)),
        (PURE, "one device", 1, 9996 * 2 + 4996 * (2 + 4)),
        (EIGHT_BIT, "one device", 1, 9996 * 2 + 4996 * 2 + STATE_8BIT),
        # DeepSpeed: weights and gradients of 2 bytes, float32 copies of what trains beside two moments.
        (MIXED, "ZeRO-2", 4, 9996 * 2 + 4996 * (2 + 12) // 4),
        (MIXED, "ZeRO-3", 4, (9996 * 2 + 4996 * (2 + 12)) // 4),
        (MIXED, "FSDP", 4, (9996 * 4 + 4996 * (4 + 8)) // 4),
        # So it does whatever the weights: its optimizers see float32.
        (PURE, "ZeRO-2", 2, 9996 * 2 + 4996 * (2 + 12) // 2),
        (PURE, "ZeRO-3", 4, (9996 * 2 + 4996 * (2 + 12)) // 4),
        (PURE, "FSDP", 3, (9996 * 2 + 4996 * (2 + 4)) // 3),
        (EIGHT_BIT, "ZeRO-2", 2, 9996 * 2 + (4996 * (2 + 4) + STATE_8BIT) // 2),
        (EIGHT_BIT, "FSDP", 2, (9996 * 2 + 4996 * 2 + STATE_8BIT) // 2),
        # What does not divide is rounded up: 49968 / 5 = 9993.6.
        (PURE, "FSDP", 5, 9994),
        # One device alone shares with nobody, however many there are.
        (PURE, "one device", 8, 9996 * 2 + 4996 * (2 + 4)),
    ],
)
def test_memory_is_what_one_reckons_by_hand(optimizer: str, sharding: str, devices: int, expected: int) -> None:
    assert needed(TRAINED, parameters(), optimizer, SHARDING[sharding], devices) == expected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("sharding", [UNSHARDED, *SHARDINGS], ids=lambda sharding: sharding.name)
def test_what_does_not_train_takes_its_weights_alone(optimizer: str, sharding: Sharding) -> None:
    weight = OPTIMIZERS[optimizer][sharding.is_deepspeed].weight
    nothing = needed([], parameters(), optimizer, sharding, 4)
    assert nothing == 9996 * weight // (4 if sharding.divides_weights else 1)
    # Names of the same values, and of none, change nothing.
    named = needed(TRAINED, parameters(), optimizer, sharding, 4)
    assert named > nothing
    assert needed([*TRAINED, "embed.weight", "x"], parameters(), optimizer, sharding, 4) == named


# A parameter of 8-bit states has one more scale for each block begun; one that is too small has none.
@pytest.mark.parametrize(
    ("elements", "state"), [(4095, 4095 * 8), (4096, 2 * (4096 + 16 * 4)), (4097, 2 * (4097 + 17 * 4))]
)
def test_states_of_8_bits_begin_at_4096_elements(elements: int, state: int) -> None:
    one = {"w": Parameter((elements,), "bfloat16")}
    assert needed(["w"], one, EIGHT_BIT, UNSHARDED, 1) == elements * (2 + 2) + state


def test_states_of_embeddings_are_never_of_8_bits() -> None:
    # The Trainer of transformers has bitsandbytes keep them in float32.
    one = {"w": Parameter((4096, 2), "bfloat16", module="Embedding")}
    assert needed(["w"], one, EIGHT_BIT, UNSHARDED, 1) == 8192 * (2 + 2 + 8)


# As it really is.


class Tiny(torch.nn.Module):
    """A model with a tied head and a norm; of 8-bit AdamW's parameters some are too small, some no multiple of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(90, 70)
        self.frozen = torch.nn.Linear(70, 90)
        self.up = torch.nn.Linear(90, 64, bias=False)
        self.norm = torch.nn.LayerNorm(64)
        self.down = torch.nn.Linear(64, 70)
        self.head = torch.nn.Linear(70, 90, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.up(self.frozen(self.embed(tokens))))
        logits: torch.Tensor = self.head(self.down(hidden))
        return logits


FREEZE = [
    pytest.param(["frozen.weight", "frozen.bias"], id="most trains"),
    pytest.param(["frozen.weight", "frozen.bias", "up.weight", "norm.bias", "down.bias"], id="half trains"),
    pytest.param(["embed.weight"], id="embeddings stay"),
    pytest.param([], id="all trains"),
]


def trained(dtype: torch.dtype, freeze: Iterable[str], optimizer: Callable[..., Any]) -> tuple[Tiny, Any]:
    """A model of this dtype after one step, as a trainer makes it: under autocast where weights are float32."""
    torch.manual_seed(0)
    model = Tiny().to(dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(freeze))
    stepping = optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        loss = model(torch.arange(90)[None]).float().logsumexp(-1).mean()
    loss.backward()
    stepping.step()
    return model, stepping


def occupied(model: Tiny, stepping: Any, apart: Iterable[str]) -> int:
    """Bytes of weights, gradients and optimizer states, short of the states of these names."""
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += [
        value
        for states in stepping.state.values()
        for name, value in states.items()
        if isinstance(value, torch.Tensor) and name not in set(apart)
    ]
    return sum(tensor.nbytes for tensor in held)


def reckoned(model: Tiny, optimizer: str) -> int:
    owner: dict[int, str] = {}
    known = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        first = owner.setdefault(id(value), name)
        known[name] = Parameter(tuple(value.shape), "bfloat16", tied_to=None if first == name else first)
    assert any(parameter.tied_to for parameter in known.values())
    names = [name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad]
    return needed(names, known, optimizer, UNSHARDED, 1)


@pytest.mark.parametrize("freeze", FREEZE)
@pytest.mark.parametrize(("optimizer", "dtype"), [(MIXED, torch.float32), (PURE, torch.bfloat16)], ids=str)
def test_torch_takes_what_is_reckoned(optimizer: str, dtype: torch.dtype, freeze: list[str]) -> None:
    model, stepping = trained(dtype, freeze, torch.optim.AdamW)
    assert len(stepping.state) == len(list(model.parameters())) - len(freeze)
    assert occupied(model, stepping, ["step"]) == reckoned(model, optimizer)  # a counter for each, of 4 bytes


@pytest.mark.parametrize("freeze", FREEZE)
def test_bitsandbytes_takes_what_is_reckoned(freeze: list[str]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, stepping = trained(torch.bfloat16, freeze, bitsandbytes.optim.AdamW8bit)
    sizes = {parameter.numel(): states["state1"].dtype for parameter, states in stepping.state.items()}
    assert {dtype for size, dtype in sizes.items() if size < 4096} == {torch.float32}
    assert {dtype for size, dtype in sizes.items() if size >= 4096} == {torch.uint8}
    # What an 8-bit value stands for: one table for each of the two states, however many parameters there are.
    tables = ["qmap1", "qmap2"]
    found = [states[name].data_ptr() for states in stepping.state.values() for name in tables if name in states]
    assert len(set(found)) == len(tables)
    assert occupied(model, stepping, tables) == reckoned(model, EIGHT_BIT)
