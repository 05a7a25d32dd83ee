"""Rules on one variable of a GPU: bits of the CPU, no waiting, graphs, streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.codegen.bits import same_bits
from tests.unit.step.pretended_device import DEVICE, PretendedDevice, pretended_device
from thalweg.compiler import Rule
from thalweg.step import device_single, launch, launch_dense

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.fixture
def there() -> Iterator[PretendedDevice]:
    with pretended_device() as device:
        yield device


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[Rule]:
    """Rules that no kernel has run."""
    seen: list[Rule] = []
    interpret = launch.interpret

    def noting(rule: Rule, *arguments: Any) -> Any:
        seen.append(rule)
        return interpret(rule, *arguments)

    monkeypatch.setattr(launch, "interpret", noting)
    return seen


def momentum(
    var: Any, m: Any, grad: Any, *, lr: Any, rate: Any, is_mean: bool
) -> tuple[Any, Any]:
    m_new = rate * m + (1 - rate if is_mean else 1.0) * grad
    return var - lr * m_new / (torch.sqrt(torch.abs(m_new)) + 1e-3), m_new


RULE = Rule.of(momentum)


def numbers(lr: float = 0.5) -> dict[str, float]:
    return {"lr": lr, "rate": 0.9}


def apply(tensors: list[Tensor], lr: float = 0.5, *, is_mean: bool = True) -> None:
    launch_dense(RULE, {"is_mean": is_mean}, tensors, numbers(lr))


def agree(there: PretendedDevice, found: list[Tensor], wanted: list[Tensor]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(same_bits(there.look(a), b) for a, b in pairs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_the_cpu(
    dtype: torch.dtype, there: PretendedDevice, interpreted: list[Rule]
) -> None:
    here = [torch.randn(37, 30), torch.randn(37, 30), torch.randn(37, 30)]
    here = [here[0].to(dtype), here[1], here[2].to(dtype)]
    own = [tensor.to(DEVICE) for tensor in here]
    for lr, is_mean in ((0.5, True), (0.25, True), (0.25, False)):
        versions = [tensor._version for tensor in own]
        apply(own, lr, is_mean=is_mean)
        apply(here, lr, is_mean=is_mean)
        assert agree(there, own, here)
        changed = [t._version > v for t, v in zip(own, versions, strict=True)]
        assert changed == [True, True, False]
    assert interpreted == []


def test_variables_of_a_size_take_turns_and_nothing_waits(
    there: PretendedDevice,
) -> None:
    here = [[torch.randn(50) for _ in range(3)] for _ in range(4)]
    own = [[tensor.to(DEVICE) for tensor in tensors] for tensors in here]
    apply([tensor.clone() for tensor in own[0]])
    with there.no_waiting():
        for number, tensors in enumerate(own):
            apply(tensors, 0.1 * number)
    for number, tensors in enumerate(here):
        apply(tensors, 0.1 * number)
        assert agree(there, own[number], tensors)


def test_a_gradient_in_another_order_is_copied(
    there: PretendedDevice, interpreted: list[Rule]
) -> None:
    here = [torch.randn(4, 6), torch.randn(4, 6), torch.randn(6, 4).T]
    own = [tensor.to(DEVICE) for tensor in here]
    assert not own[2].is_contiguous()
    apply(own)
    apply(here)
    assert agree(there, own, here)
    assert interpreted == []


def test_what_no_kernel_takes_is_interpreted(
    there: PretendedDevice, interpreted: list[Rule]
) -> None:
    def centered(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * (grad - grad.mean(-1, keepdim=True))

    here = [torch.randn(4, 6), torch.randn(4, 6)]
    own = [tensor.to(DEVICE) for tensor in here]
    launch_dense(Rule.of(centered), {}, own, {"lr": 0.5})
    launch_dense(Rule.of(centered), {}, here, {"lr": 0.5})
    assert agree(there, own, here)
    here = [torch.randn(6, 4).T, torch.randn(4, 6), torch.randn(4, 6)]
    own = [tensor.to(DEVICE) for tensor in here]
    apply(own)
    apply(here)
    assert agree(there, own, here)
    # On the CPU a kernel takes neither of them, either.
    assert interpreted == [Rule.of(centered), Rule.of(centered), RULE, RULE]
    empty = [torch.zeros(0).to(DEVICE) for _ in range(3)]
    apply(empty)
    assert interpreted[4:] == []


def test_a_graph_keeps_its_tables(there: PretendedDevice) -> None:
    here = [[torch.randn(20) for _ in range(3)] for _ in range(2)]
    own = [[tensor.to(DEVICE) for tensor in tensors] for tensors in here]
    apply([tensor.clone() for tensor in own[0]])
    with there.graph() as graph:
        for tensors in own:
            apply(tensors)
    for tensors in here:
        apply(tensors)
    graph.replay()
    # A call behind the capture writes into tables of its own.
    apply(own[1], 0.125)
    apply(here[1], 0.125)
    graph.replay()
    for tensors in here:
        apply(tensors)
    for number, tensors in enumerate(here):
        assert agree(there, own[number], tensors)


def test_streams_wait_for_the_last_that_used_the_tables(
    there: PretendedDevice,
) -> None:
    own = [torch.randn(20).to(DEVICE) for _ in range(3)]
    for there.is_on_side_stream in (False, False, True, False):
        apply(own)
    default, side = there.streams
    assert (default.waited_for, side.waited_for) == ([side], [default])


def test_not_more_tables_are_kept_than_are_useful(
    there: PretendedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_single, "_launches", device_single._Launches())
    monkeypatch.setattr(device_single, "_MOST_KNOWN", 2)
    for count in (1, 2, 3, 3):
        apply([torch.randn(count).to(DEVICE) for _ in range(3)])
    assert len(device_single._launches._known) == 1
