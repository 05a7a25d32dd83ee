"""The optimizer under test, with variables and gradients that are always the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thalweg.optimizers import Hyper, Optimizer
from thalweg.schedules import LearningRateSchedule
from thalweg.state import IndexedSlices, Variable
from thalweg.testing.report import expect

__all__ = [
    "SHAPES",
    "INEXACT_BOUND",
    "Subject",
    "another_value",
    "error",
    "expect_close",
    "expect_same_bits",
    "expect_same_state",
    "gradients",
    "slices",
    "state_of",
    "train",
    "variables",
]

SHAPES: Mapping[str, tuple[int, ...]] = {
    "layer.weight": (5, 7),
    "layer.bias": (7,),
    "scale": (),
    "embedding.weight": (6, 3),
}
"""Names and shapes of the variables that an optimizer is tried on."""

INEXACT_BOUND = 1e-6
"""Largest error after a step, as a share of the largest element, where an operation
or an order of sums may differ in last bits."""


@dataclass(frozen=True)
class Subject:
    """A class and the arguments it is made with.

    Attributes:
        cls: The optimizer class.
        arguments: Keyword arguments of its constructor.
    """

    cls: type[Optimizer]
    arguments: Mapping[str, Any]

    def make(self) -> Any:
        """A new optimizer."""
        return self.cls(**self.arguments)

    @property
    def title(self) -> str:
        """The call that makes it, as text."""
        given = ", ".join(f"{n}={value!r}" for n, value in self.arguments.items())
        return f"{self.cls.__name__}({given})"

    @property
    def cycle(self) -> int:
        """How many calls of ``apply_gradients`` make a step."""
        return self.make().gradient_accumulation_steps or 1

    @property
    def is_by_hand(self) -> bool:
        """Whether the class overrides the update instead of declaring a rule."""
        return bool(self.make()._applies_by_hand)

    @property
    def has_clips(self) -> bool:
        """Whether gradients are clipped or transformed on their way."""
        made = self.make()
        clips = (made.clipvalue, made.clipnorm, made.global_clipnorm)
        return any(c is not None for c in clips) or bool(made.gradient_transformers)

    @property
    def holds_functions(self) -> bool:
        """Whether there are functions of the user's among the arguments."""
        made = self.make()
        hypers = [h for h in made._hyper.values() if callable(h)]
        own = [h for h in hypers if not isinstance(h, LearningRateSchedule)]
        return bool(own or made.gradient_transformers or made.gradient_aggregator)


def another_value(field: Hyper | None, value: Any) -> float | None:
    """A number that a hyperparameter may have in place of another.

    Args:
        field: Its declaration; None where the class has none.
        value: The number, or a schedule or callable.

    Returns:
        The number, near the other one; None if there is none, or none to replace.
    """
    if callable(value) and not isinstance(value, torch.Tensor):
        return None
    number, field = float(value), field or Hyper(default=0.0, low=0.0)
    candidates = (0.5 * number, number + 0.25, number - 0.25, 2 * number, number + 1)
    allowed = (c for c in candidates if c != number and field.allows(c))
    return next(allowed, None)


def variables(dtype: torch.dtype = torch.float32) -> list[Variable]:
    """New variables of `SHAPES`, always with the same values."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for name, shape in SHAPES.items():
        value = 0.1 + torch.randn(shape, generator=generator, dtype=torch.float64)
        # Rounded to bfloat16, so that every dtype starts from the same values.
        start = (0.25 * value).to(torch.bfloat16).to(dtype)
        made.append(Variable(start, name=name))
    return made


def gradients(
    step: int,
    dtype: torch.dtype = torch.float32,
    shapes: Iterable[Sequence[int]] = tuple(SHAPES.values()),
) -> list[torch.Tensor]:
    """The gradients of a step, one for each shape."""
    generator = torch.Generator().manual_seed(1000 + step)
    made = [torch.randn(tuple(s), generator=generator) for s in shapes]
    return [grad.to(torch.bfloat16).to(dtype) for grad in made]


def train(optimizer: Any, held: Sequence[torch.Tensor], steps: Iterable[int]) -> None:
    """Take steps with the gradients of their numbers."""
    shapes = [tuple(v.shape) for v in held]
    for step in steps:
        grads = gradients(step, held[0].dtype, shapes)
        optimizer.apply_gradients(zip(grads, held, strict=True))


def slices(step: int) -> IndexedSlices:
    """A sparse gradient of the embedding: four rows of values, one index twice."""
    generator = torch.Generator().manual_seed(2000 + step)
    values = torch.randn((4, SHAPES["embedding.weight"][1]), generator=generator)
    return IndexedSlices(values, torch.tensor([4, 1, 4, 2]), SHAPES["embedding.weight"])


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in which any NaN equals any other."""
    plain = tensor.detach().clone()
    if plain.is_floating_point():
        plain[plain.isnan()] = 12345.0
    return plain


def expect_same_bits(
    what: str, ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]
) -> None:
    """Fail a check unless tensors are equal, bit for bit.

    Args:
        what: Begins the message.
        ours: Tensors.
        theirs: As many others.

    Raises:
        CheckFailedError: If an element differs.
    """
    for a, b in zip(ours, theirs, strict=True):
        one, other = _comparable(a), _comparable(b)
        shapes = tuple(one.shape), tuple(other.shape)
        expect(shapes[0] == shapes[1], f"{what}: shapes {shapes[0]} and {shapes[1]}")
        differing = int((one != other).sum())
        expect(not differing, f"{what}: {differing} of {one.numel()} elements differ")


def error(
    ours: torch.Tensor, theirs: torch.Tensor, allowed: torch.Tensor | float = 0.0
) -> float:
    """Largest difference as a share of the largest element; NaN is infinite.

    Args:
        ours: A tensor.
        theirs: What it is held against.
        allowed: For each element how much of a difference does not count.
    """
    if not theirs.numel():
        return 0.0
    differences = (ours.double() - theirs.double()).abs() - allowed
    difference = differences.clamp(min=0.0).max().item()
    largest = theirs.double().abs().max().item()
    found = difference / largest if largest else difference
    return float("inf") if math.isnan(found) else found


def expect_close(
    what: str, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]
) -> None:
    """Fail a check unless tensors are equal up to their last bits.

    Args:
        what: Begins the message.
        ours: Tensors.
        theirs: As many others.

    Raises:
        CheckFailedError: If an element is further off than `INEXACT_BOUND`, or four
            units in the last place of the largest element.
    """
    worst = max(map(error, ours, theirs))
    bound = max(INEXACT_BOUND, 4 * max(torch.finfo(t.dtype).eps for t in ours))
    expect(worst <= bound, f"{what}: they differ by {worst:.1e}, not {bound:.0e}")


def state_of(optimizer: Any, held: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of variables and of everything the optimizer keeps, by name."""
    number_of = {id(v): i for i, v in enumerate(held)}
    state = {f"variable {i}": v for i, v in enumerate(held)}
    slots: set[int] = set()
    for variable, name, slot in optimizer.slot_variables():
        slots.add(id(slot))
        if id(variable) in number_of:
            state[f"{name} of variable {number_of[id(variable)]}"] = slot
    others = [w for w in optimizer.weights if id(w) not in slots]
    state |= {f"weight {i}": weight for i, weight in enumerate(others)}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def expect_same_state(
    what: str, ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]
) -> None:
    """Fail a check unless two states have the same names and bits."""
    missing = sorted(set(ours) ^ set(theirs))
    expect(not missing, f"{what}: only one has {', '.join(missing)}")
    for name, tensor in ours.items():
        expect_same_bits(f"{what}, {name}", [tensor], [theirs[name]])
