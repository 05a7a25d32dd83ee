"""Steps on a GPU that wait for nothing, and whole steps in CUDA graphs.

The same is shown without a GPU, on one that is pretended, in tests/unit/optimizers and
tests/unit/optim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.gpu.test_device_optimizers import both, close, pairs_of
from thalweg import optim, schedules
from thalweg.compiler.triton_kernel import has_triton
from thalweg.state import IndexedSlices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_triton(), reason="needs Triton"),
]

DEVICE = torch.device("cuda", 0)
SHAPES = ((64, 32), (32,))
RATE = schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)


@contextmanager
def no_waiting() -> Iterator[None]:
    """In this scope waiting for the device raises."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def mixed(step: int, held: list[Any], bad: bool = False) -> list[Any]:
    """Rows for the first variable, dense gradients for the others."""
    (gradient, variable), *rest = pairs_of(step, held, bad)
    indices = (torch.arange(20) * 7 % 9).to(variable.device)
    rows = IndexedSlices(gradient[:20], indices, tuple(variable.shape))
    return [(rows, variable), *rest]


def warmed_up(step: Callable[[], object], count: int) -> torch.cuda.CUDAGraph:
    """Steps on a stream of its own, as torch asks for, and then a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(count):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("kind", ["dense", "mixed"])
@pytest.mark.parametrize(
    "name", [n for n in tw.optimizers.names() if n != "lossscaleoptimizer"]
)
def test_no_optimizer_waits(name: str, kind: str) -> None:
    if name == "lamb" and kind == "mixed":
        pytest.skip("its sparse gradients become dense ones, which waits")
    here, device = (type(tw.optimizers.get(name))() for _ in range(2))
    variables, twins = both(SHAPES)
    make = mixed if kind == "mixed" else pairs_of
    for step in range(4):
        here.apply_gradients(make(step, variables))
    given = [make(step, twins) for step in range(4)]
    for pairs in given[:2]:
        device.apply_gradients(pairs)
    torch.cuda.synchronize()
    with no_waiting():
        for pairs in given[2:]:
            device.apply_gradients(pairs)
    assert close(variables, twins)


@pytest.mark.parametrize("clips", [{}, {"clipvalue": 0.5, "global_clipnorm": 1.0}])
def test_a_dynamic_loss_scale_waits_for_nothing(clips: dict[str, Any]) -> None:
    def step(optimizer: Any, held: list[Any], factor: float) -> None:
        loss = torch.stack([(v * v).sum() for v in held]).sum()
        optimizer.minimize(loss * factor, held)

    here, device = (
        tw.optimizers.LossScaleOptimizer(
            tw.optimizers.Adam(RATE, **clips), True, 2.0**12, dynamic_growth_steps=2
        )
        for _ in range(2)
    )
    variables, twins = both(SHAPES)
    factors = (1.0, 1e38, 1.0, 1.0, 1e38, 1.0, 1.0)
    for number, factor in enumerate(factors):
        step(here, variables, factor)
        if number < 2:
            step(device, twins, factor)
            torch.cuda.synchronize()
            continue
        with no_waiting():
            step(device, twins, factor)
    assert device.iterations.item() == here.iterations.item() == len(factors)
    assert float(device.loss_scale) == float(here.loss_scale)
    assert device.last_step_applied
    assert close(variables, twins)


def test_a_wrong_index_is_told_later() -> None:
    optimizer, (_, twins) = tw.optimizers.SGD(0.1, momentum=0.9), both(SHAPES)
    optimizer.apply_gradients(mixed(0, twins)[:1])
    before = twins[0].detach().clone()
    values = torch.ones(2, 32, device=DEVICE)
    indices = torch.tensor([3, 64], device=DEVICE)
    good = mixed(1, twins)[:1]
    torch.cuda.synchronize()
    with no_waiting():
        optimizer.apply_gradients([(IndexedSlices(values, indices), twins[0])])
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match="that step has changed nothing"):
        optimizer.apply_gradients(good)
    assert torch.equal(twins[0], before)
    optimizer.apply_gradients(good)
    optimizer.apply_gradients([(IndexedSlices(values, indices), twins[0])])
    with pytest.raises(IndexError, match="indices from 0"):
        optimizer.get_weights()


def nadam() -> Any:
    options: dict[str, Any] = {"use_ema": True, "ema_overwrite_frequency": 3}
    return tw.optimizers.Nadam(0.1, **options)


def skipping_adam() -> Any:
    return tw.optimizers.Adam(RATE, nonfinite="skip", global_clipnorm=0.5)


def scaled_sgd() -> Any:
    inner = tw.optimizers.SGD(RATE, momentum=0.9)
    return tw.optimizers.LossScaleOptimizer(inner, True, 4.0, dynamic_growth_steps=2)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
@pytest.mark.parametrize("make", [nadam, skipping_adam, scaled_sgd])
def test_replays_go_on(make: Callable[[], Any], kind: str) -> None:
    here, device = make(), make()
    variables, twins = both(SHAPES)
    pairs_for = mixed if kind == "mixed" else pairs_of
    pairs = pairs_for(0, twins)
    graph = warmed_up(lambda: device.apply_gradients(pairs), 3)
    values = pairs[1][0]
    for step in range(3, 8):
        was = values.clone()
        if step == 5 and make is not nadam:
            values.flatten()[-1:].fill_(torch.nan)
        graph.replay()
        values.copy_(was)
    device.apply_gradients(pairs)
    for step in range(9):
        is_bad = step == 5 and make is not nadam
        here.apply_gradients(pairs_for(0, variables, is_bad))
    assert device.iterations.item() == here.iterations.item()
    if make is scaled_sgd:
        assert float(device.loss_scale) == float(here.loss_scale)
    assert close(variables, twins)


DROP_INS: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {"capturable": True}),
    ("NAdam", {"capturable": True}),
    ("RMSprop", {"capturable": True}),
    ("ASGD", {"capturable": True}),
    ("SGD", {"momentum": 0.5}),
]


def alike(here: list[Any], device: list[Any]) -> bool:
    """Equal up to the rounding of other formulas in float32."""
    pairs = zip(here, device, strict=True)
    return all(torch.allclose(a, b.cpu(), rtol=1e-4, atol=1e-5) for a, b in pairs)


def twins_of(
    name: str, options: dict[str, Any], **extras: Any
) -> tuple[Any, Any, list[Any], list[Any], torch.Tensor]:
    """torch's optimizer on the CPU, ours on the device with a rate that lies there."""
    variables, twins = both(SHAPES)
    rate = torch.tensor(0.25, device=DEVICE)
    takes = {key: value for key, value in options.items() if key != "capturable"}
    here = getattr(torch.optim, name)(variables, lr=0.25, **takes)
    device = getattr(optim, name)(twins, lr=rate, **options, **extras)
    for held in (variables, twins):
        for gradient, variable in pairs_of(0, held):
            variable.grad = gradient
    return here, device, variables, twins, rate


@pytest.mark.parametrize(("name", "options"), DROP_INS)
def test_a_captured_drop_in_follows_its_scheduler(
    name: str, options: dict[str, Any]
) -> None:
    here, device, variables, twins, _ = twins_of(name, options)
    # Before the first step, which a scheduler wants to have seen.
    chains = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (here, device)]
    graph = warmed_up(device.step, 3)
    for _ in range(3):
        here.step()
    for _ in range(4):
        here.step()
        graph.replay()
        for chain in chains:
            chain.step()
    here.step()
    device.step()
    assert alike(variables, twins)
    if name != "SGD":
        assert device.state[twins[0]]["step"].device == DEVICE
        assert device.state[twins[0]]["step"].item() == 8


@pytest.mark.parametrize(("name", "options"), DROP_INS)
def test_a_drop_in_waits_for_nothing(name: str, options: dict[str, Any]) -> None:
    here, device, variables, twins, _ = twins_of(name, options, nonfinite="skip")
    for _ in range(2):
        here.step()
        device.step()
    bad = [torch.full_like(v, torch.nan) for v in twins]
    good = [v.grad for v in twins]
    torch.cuda.synchronize()
    with no_waiting():
        for given in (bad, good, bad):
            for variable, gradient in zip(twins, given, strict=True):
                variable.grad = gradient
            device.step()
    here.step()
    assert not device.last_step_applied
    assert alike(variables, twins)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_the_host_cannot_capture_its_count() -> None:
    _, device, _, _, _ = twins_of("Adam", {})
    device.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="keeps count"), torch.cuda.graph(graph):
        device.step()


def test_a_whole_step_of_training_is_captured() -> None:
    here, device = (
        tw.optimizers.LossScaleOptimizer(tw.optimizers.Adam(RATE), True, 2.0**10)
        for _ in range(2)
    )
    variables, twins = both(SHAPES)

    def step(optimizer: Any, held: list[Any]) -> None:
        loss = torch.stack([(v * v).sum() for v in held]).sum()
        optimizer.minimize(loss, held)

    graph = warmed_up(lambda: step(device, twins), 3)
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        step(here, variables)
    assert device.iterations.item() == 7
    assert close(variables, twins)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_capture_over_other_variables_is_refused() -> None:
    optimizer, (_, twins) = tw.optimizers.Adam(RATE), both(SHAPES)
    pairs, graph = pairs_of(0, twins), torch.cuda.CUDAGraph()
    optimizer.apply_gradients(pairs[:1])
    torch.cuda.synchronize()
    refused = pytest.raises(RuntimeError, match="a step before it")
    with refused, torch.cuda.graph(graph):
        optimizer.apply_gradients(pairs)
    optimizer.apply_gradients(pairs)
    assert optimizer.iterations.item() == 2


def test_replays_go_on_beside_larger_steps() -> None:
    def rows(count: int) -> IndexedSlices:
        values = torch.ones(count, 32, device=DEVICE)
        return IndexedSlices(values, torch.arange(count, device=DEVICE))

    table, other = (tw.Variable(torch.ones(SHAPES[0], device=DEVICE)) for _ in range(2))
    optimizer, others = (tw.optimizers.SGD(0.125) for _ in range(2))
    pairs = [(rows(3), table)]
    graph = warmed_up(lambda: optimizer.apply_gradients(pairs), 2)
    for _ in range(2):
        graph.replay()
        others.apply_gradients([(rows(64), other)])
        optimizer.apply_gradients([(rows(40), table)])
    assert table[:, 0].tolist() == [0.25] * 3 + [0.75] * 37 + [1.0] * 24
    assert other[:, 0].tolist() == [0.75] * 64
