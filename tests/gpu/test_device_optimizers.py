"""Optimizers on a GPU: the steps of the CPU, no waiting, graphs, steps left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import thalweg as tw
from thalweg import schedules
from thalweg.compiler import Rule
from thalweg.compiler.triton_kernel import has_triton
from thalweg.distribute.shards import Whole
from thalweg.state import IndexedSlices
from thalweg.step import Member, Plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_triton(), reason="needs Triton"),
]

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function after which waiting for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad", "lion", "lamb"])
def test_optimizers_take_the_same_steps(name: str) -> None:
    config: dict[str, Any] = {"learning_rate": 0.05}
    here, device = (type(tw.optimizers.get(name))(**config) for _ in range(2))
    starts = [torch.randn(s) for s in ((64, 32), (32,))]
    variables = [tw.Variable(t) for t in starts]
    twins = [tw.Variable(t.to(DEVICE)) for t in starts]
    for _ in range(4):
        gradients = [torch.randn(v.shape) for v in variables]
        here.apply_gradients(zip(gradients, variables, strict=True))
        device.apply_gradients(
            zip([g.to(DEVICE) for g in gradients], twins, strict=True)
        )
    for variable, twin in zip(variables, twins, strict=True):
        assert torch.allclose(variable.detach(), twin.detach().cpu(), rtol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"global_clipnorm": 0.5},
    {"learning_rate": schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)},
    {"use_ema": True, "clipvalue": 0.5, "clipnorm": 1.0, "decay": 0.25},
]


def pairs_of(step: int, variables: Sequence[Tensor], bad: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(step)
    pairs: list[Any] = []
    for variable in variables:
        gradient = torch.randn(variable.shape, generator=generator)
        if bad:
            gradient.flatten()[-1] = torch.nan
        pairs.append((gradient.to(variable.device), variable))
    return pairs


def both(shapes: Sequence[tuple[int, ...]]) -> tuple[list[Any], list[Any]]:
    starts = [torch.randn(shape) for shape in shapes]
    here = [tw.Variable(start) for start in starts]
    return here, [tw.Variable(start.to(DEVICE)) for start in starts]


def close(here: Sequence[Tensor], device: Sequence[Tensor]) -> bool:
    pairs = zip(here, device, strict=True)
    return all(torch.allclose(a, b.cpu(), rtol=1e-5, atol=1e-7) for a, b in pairs)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_that_may_be_left_out_waits_for_nothing(
    options: dict[str, Any], no_waiting: Callable[[], None]
) -> None:
    here, device = (tw.optimizers.Adam(**options, nonfinite="skip") for _ in range(2))
    variables, twins = both(((64, 32), (32,), ()))
    bad = (False, True, False, False, True, False)
    for number, is_bad in enumerate(bad):
        here.apply_gradients(pairs_of(number, variables, is_bad))
    given = [pairs_of(number, twins, is_bad) for number, is_bad in enumerate(bad)]
    device.apply_gradients(given[0])
    no_waiting()
    for pairs in given[1:]:
        device.apply_gradients(pairs)
    torch.cuda.set_sync_debug_mode("default")
    assert device.iterations.is_cuda
    assert device.iterations.item() == here.iterations.item() == 4
    assert device.last_step_applied
    assert close(variables, twins)


def test_a_captured_optimizer_goes_on_with_the_schedule() -> None:
    rate = schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
    here, device = (tw.optimizers.Adam(rate, nonfinite="skip") for _ in range(2))
    variables, twins = both(((64, 32), (32,)))
    pairs = pairs_of(0, twins)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            device.apply_gradients(pairs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.apply_gradients(pairs)
    for _ in range(4):
        graph.replay()
    device.apply_gradients(pairs)
    for _ in range(8):
        here.apply_gradients(pairs_of(0, variables))
    assert device.iterations.item() == 8
    assert close(variables, twins)
    device.iterations.assign(0)
    here.iterations.assign(0)
    for optimizer, held in ((here, variables), (device, twins)):
        optimizer.apply_gradients(pairs_of(1, held))
    assert device.iterations.item() == 1
    assert close(variables, twins)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_capture_without_steps_on_a_stream_before_is_refused() -> None:
    rate = schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
    optimizer, (_, twins) = tw.optimizers.SGD(rate), both(((8,),))
    pairs = pairs_of(0, twins)
    optimizer.apply_gradients(pairs)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match=r"torch\.cuda\.Stream"),
        torch.cuda.graph(graph),
    ):
        optimizer.apply_gradients(pairs)


def test_rows_and_dense_gradients_are_left_out_together() -> None:
    here, device = (tw.optimizers.Adam(0.1, nonfinite="skip") for _ in range(2))
    variables, twins = both(((50, 8), (32,)))
    for number, is_bad in enumerate((False, False, True, False, True)):
        for optimizer, held in ((here, variables), (device, twins)):
            dense = pairs_of(number, held[1:], is_bad)
            generator = torch.Generator().manual_seed(number)
            values = torch.randn((20, 8), generator=generator)
            indices = torch.arange(20) * 7 % 50
            given = IndexedSlices(values, indices).to(held[0].device)
            optimizer.apply_gradients([(given, held[0]), *dense])
    assert device.iterations.item() == here.iterations.item() == 3
    assert not device.last_step_applied
    assert close(variables, twins)


def test_totals_of_shards_are_joined_on_the_device(
    no_waiting: Callable[[], None],
) -> None:
    def trust(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * torch.linalg.vector_norm(var) * grad

    def twice(totals: Tensor, is_maximum: Tensor) -> Tensor:
        return torch.where(is_maximum, totals, 2 * totals)

    shape, rate = (40, 50), {"lr": np.array([0.1])}
    start, gradient = torch.randn(shape), torch.randn(shape)
    whole = torch.cat([start, start])
    half = start.to(DEVICE)
    rest = Whole((80, 50), frozenset({0}), twice)
    members = [
        Member(Rule.of(trust), (whole,), (), 0),
        Member(Rule.of(trust), (half,), (), 0, whole=rest),
    ]
    given = [torch.cat([gradient, gradient]), gradient.to(DEVICE)]
    plans = [Plan("test", [m], [g]) for m, g in zip(members, given, strict=True)]
    for plan, own in zip(plans, given, strict=True):
        plan.load([own], rate)
        plan.run()
    assert torch.allclose(whole[:40], half.cpu(), rtol=1e-6)
    no_waiting()
    plans[1].load(given[1:], rate)
    plans[1].run()


def rows_of(number: int, held: Sequence[Tensor], row: int = 3) -> list[Any]:
    """A sparse gradient of the first variable, and dense ones of the others."""
    generator = torch.Generator().manual_seed(number)
    values = torch.randn((20, *held[0].shape[1:]), generator=generator)
    indices = torch.arange(20) * 7 % held[0].shape[0]
    indices[4] = row
    given = IndexedSlices(values, indices, tuple(held[0].shape)).to(held[0].device)
    return [(given, held[0]), *pairs_of(number, held[1:])]


SPARSE: list[tuple[str, dict[str, Any]]] = [
    ("adam", {}),
    ("adam", {"sparse_update": "exact", "nonfinite": "error"}),
    ("nadam", {"sparse_update": "keras", "use_ema": True}),
    ("lamb", {"learning_rate": 0.01}),
]


@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_a_wrong_index_leaves_a_step_out_and_nothing_waits(
    name: str, options: dict[str, Any], no_waiting: Callable[[], None]
) -> None:
    here, device = (type(tw.optimizers.get(name))(**options) for _ in range(2))
    variables, twins = both(((50, 8), (32,)))
    given = [rows_of(number, twins) for number in range(5)]
    wrong = rows_of(9, twins, row=50)
    for number in range(5):
        here.apply_gradients(rows_of(number, variables))
        if number == 2:
            no_waiting()
        device.apply_gradients(given[number])
    device.apply_gradients(wrong)
    torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(IndexError, match="that step has changed nothing"):
        device.get_weights()
    assert device.iterations.item() == here.iterations.item() == 5
    assert close(variables, twins)


def test_an_inf_is_an_error_later(no_waiting: Callable[[], None]) -> None:
    device = tw.optimizers.Adam(nonfinite="error", global_clipnorm=1.0)
    _, twins = both(((64, 32), (32,)))
    twins[0].name = "kernel"
    good, bad = pairs_of(0, twins), pairs_of(1, twins, bad=True)
    for _ in range(2):
        device.apply_gradients(good)
    before = [twin.detach().clone() for twin in twins]
    no_waiting()
    device.apply_gradients(bad)
    torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(FloatingPointError, match="kernel"):
        _ = device.last_step_applied
    assert all(map(torch.equal, before, twins))
    assert device.iterations.item() == 2
