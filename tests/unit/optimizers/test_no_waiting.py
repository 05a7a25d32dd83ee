"""No step waits for a GPU: a table of what was tried, on one that is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
    WaitedError,
)
from thalweg import schedules
from thalweg.state import IndexedSlices

SHAPES = ((6, 4), (5,))
RATE = schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
BUILT_IN = [
    name for name in tw.optimizers.names() if name not in ("lossscaleoptimizer",)
]


def variables(place: Any, constraint: Any = None) -> list[tw.Variable]:
    starts = [torch.ones(shape) for shape in SHAPES]
    return [tw.Variable(s.to(place), constraint=constraint) for s in starts]


def pairs_of(
    step: int, held: list[tw.Variable], kind: str = "dense", bad: bool = False
) -> list[Any]:
    """Gradients of a step beside their variables; "rows" has no dense one."""
    generator = torch.Generator().manual_seed(step)
    given = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if bad:
        given[0][1, 2] = torch.inf
    pairs: list[Any] = [(g.to(v.device), v) for g, v in zip(given, held, strict=True)]
    if kind != "dense":
        indices = torch.tensor([4, 1, 4]).to(held[0].device)
        rows = IndexedSlices(pairs[0][0][:3], indices, SHAPES[0])
        pairs[0] = (rows.to_sparse() if kind == "coo" else rows, held[0])
    return pairs[:1] if kind in ("rows", "coo") else pairs


def train(
    optimizer: Any,
    held: list[tw.Variable],
    kind: str = "dense",
    steps: int = 4,
    steady: Callable[[], Any] | None = None,
    bad: tuple[int, ...] = (),
) -> None:
    """Take steps; from the third on in the scope that is given."""
    for step in range(steps):
        pairs = pairs_of(step, held, kind, step in bad)
        if steady is None or step < 2:
            optimizer.apply_gradients(pairs)
        else:
            with steady():
                optimizer.apply_gradients(pairs)


def close(ours: list[tw.Variable], theirs: list[tw.Variable]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(
        torch.allclose(a.detach().cpu(), b.detach(), rtol=1e-5, atol=1e-6)
        for a, b in pairs
    )


@pytest.mark.parametrize("kind", ["dense", "mixed"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_no_optimizer_waits(name: str, kind: str, device: PretendedDevice) -> None:
    make: Any = type(tw.optimizers.get(name))
    here, there = make(), make()
    expected, found = variables("cpu"), variables(DEVICE)
    train(here, expected, kind, 3)
    train(there, found, kind, 3, device.no_waiting)
    assert close(found, expected)


OPTIONS: list[dict[str, Any]] = [
    {"clipvalue": 0.5, "global_clipnorm": 0.5},
    {"clipnorm": 0.5, "weight_decay": 0.1},
    {"nonfinite": "skip"},
    {"nonfinite": "skip", "learning_rate": RATE, "clipvalue": 0.5, "clipnorm": 1.0},
    {"use_ema": True, "ema_overwrite_frequency": 2, "decay": 0.5},
    {"use_ema": True, "ema_overwrite_frequency": 2, "nonfinite": "skip"},
    {"low_precision_copy": "bfloat16", "learning_rate": RATE},
    {"per_variable": {"*": {"learning_rate": tw.scale(0.5)}}},
]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((number, "dense") for number in range(len(OPTIONS))),
        *((number, "mixed") for number in range(len(OPTIONS))),
        *((number, kind) for number in (0, 3) for kind in ("rows", "coo")),
    ],
)
def test_no_option_waits(number: int, kind: str, device: PretendedDevice) -> None:
    here, there = (tw.optimizers.Adam(**OPTIONS[number]) for _ in range(2))
    expected, found = variables("cpu"), variables(DEVICE)
    bad = (1, 3) if "nonfinite" in OPTIONS[number] else ()
    train(here, expected, kind, 5, bad=bad)
    train(there, found, kind, 5, device.no_waiting, bad)
    assert int(there.iterations) == int(here.iterations)
    assert close(found, expected)


@pytest.mark.parametrize("nonfinite", ["off", "skip"])
def test_states_and_constraints_wait_for_nothing(
    nonfinite: Any, device: PretendedDevice
) -> None:
    def constraint(value: torch.Tensor) -> torch.Tensor:
        return value * 0.9  # so that a step that was left out must not be

    here, there = (tw.optimizers.Nadam(0.1, nonfinite=nonfinite) for _ in range(2))
    expected, found = (variables(place, constraint) for place in ("cpu", DEVICE))
    bad = (1, 3) if nonfinite == "skip" else ()
    train(here, expected, bad=bad, steps=5)
    train(there, found, "dense", 5, device.no_waiting, bad)
    caches = [o.state_variables()["momentum_cache"].item() for o in (here, there)]
    assert caches[0] == pytest.approx(caches[1])
    assert close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("clips", [{}, {"clipvalue": 0.5, "global_clipnorm": 1.0}])
def test_a_loss_scale_waits_for_nothing(
    clips: dict[str, Any], dtype: torch.dtype, device: PretendedDevice
) -> None:
    def step(optimizer: Any, held: list[tw.Variable], factor: float) -> None:
        losses = [(v.to(dtype) * v.to(dtype)).float().sum() for v in held]
        optimizer.minimize(torch.stack(losses).sum() * factor, held)

    here, there = (
        tw.optimizers.LossScaleOptimizer(
            tw.optimizers.Adam(RATE, **clips), True, 2.0**12, dynamic_growth_steps=2
        )
        for _ in range(2)
    )
    expected, found = variables("cpu"), variables(DEVICE)
    factors = (1.0, 1e38, 1.0, 1.0, 1e38, 1.0, 1.0)
    for number, factor in enumerate(factors):
        step(here, expected, factor)
        if number < 2:
            step(there, found, factor)
            continue
        with device.no_waiting():
            step(there, found, factor)
    assert there.iterations.item() == here.iterations.item() == len(factors)
    assert float(there.loss_scale) == float(here.loss_scale)
    assert int(there.dynamic_counter) == int(here.dynamic_counter)
    assert there.last_step_applied
    assert here.last_step_applied
    assert close(found, expected)


def test_a_loss_scale_of_sparse_gradients_waits_for_nothing(
    device: PretendedDevice,
) -> None:
    here, there = (
        tw.optimizers.LossScaleOptimizer(tw.optimizers.Adagrad(0.1), True, 8.0)
        for _ in range(2)
    )
    expected, found = variables("cpu"), variables(DEVICE)
    train(here, expected, "mixed", 5, bad=(1, 3))
    train(there, found, "mixed", 5, device.no_waiting, (1, 3))
    assert float(there.loss_scale) == float(here.loss_scale) == 2.0
    assert close(found, expected)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
@pytest.mark.parametrize("scaled", [False, True])
def test_all_of_it_can_be_captured(
    kind: str, scaled: bool, device: PretendedDevice
) -> None:
    def make() -> Any:
        inner = tw.optimizers.Nadam(
            lambda step: 0.1 / (1.0 + float(step)),
            use_ema=True,
            ema_overwrite_frequency=2,
            nonfinite="off" if scaled else "skip",
        )
        if not scaled:
            return inner
        return tw.optimizers.LossScaleOptimizer(inner, True, 8.0)

    def clamped(value: torch.Tensor) -> torch.Tensor:
        return value.clamp(-1, 1)

    constraint = clamped if kind == "dense" else None
    here, there = make(), make()
    expected, found = (variables(place, constraint) for place in ("cpu", DEVICE))
    train(here, expected, kind, 5, bad=(1, 3))
    device.is_on_side_stream = True
    train(there, found, kind, 5, device.capture, (1, 3))
    device.is_on_side_stream = False
    assert there.iterations.item() == here.iterations.item()
    assert close(found, expected)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_the_mean_under_a_loss_scale_waits_for_nothing(
    kind: str, device: PretendedDevice
) -> None:
    chosen = {place: torch.tensor([4, 1, 4]).to(place) for place in ("cpu", DEVICE)}

    def step(optimizer: Any, held: list[tw.Variable], number: int) -> None:
        factor = 1e38 if number == 3 else 1.0 + number
        parts: list[torch.Tensor] = list(held)
        if kind == "mixed":
            rows = chosen["cpu" if held[0].is_cpu else DEVICE]
            parts[0] = torch.nn.functional.embedding(rows, held[0], sparse=True)
        losses = [(part.to(torch.float16) ** 2).float().sum() for part in parts]
        optimizer.minimize(torch.stack(losses).sum() * factor, held)

    here, there = (
        tw.optimizers.LossScaleOptimizer(
            tw.optimizers.Adam(0.1, gradient_accumulation_steps=2), True, 2.0**8, 2
        )
        for _ in range(2)
    )
    expected, found = variables("cpu"), variables(DEVICE)
    for number in range(6):
        step(here, expected, number)
        if number < 4:
            step(there, found, number)
            continue
        with device.no_waiting():
            step(there, found, number)
    assert there.iterations.item() == here.iterations.item() == 3
    assert float(there.loss_scale) == float(here.loss_scale) == 2.0**7
    assert close(found, expected)


# -- what waits, and says so --------------------------------------------------


class ByHand(tw.Optimizer):
    """A class of the Keras 2 kind."""

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> Any:
        del apply_state
        return var.assign_sub(0.1 * grad)

    def _resource_apply_sparse(
        self, grad: Any, var: Any, indices: Any, apply_state: Any = None
    ) -> Any:
        del apply_state
        with torch.no_grad():
            var.handle.index_add_(0, indices.long(), -0.1 * grad)
        return var


@pytest.mark.parametrize("options", [{}, {"nonfinite": "error"}])
def test_classes_that_update_by_hand_wait(
    options: dict[str, Any], device: PretendedDevice
) -> None:
    optimizer, held = ByHand(**options), variables(DEVICE)
    kind = "dense" if options else "mixed"
    with pytest.raises(WaitedError):
        train(optimizer, held, kind, 3, device.no_waiting)
