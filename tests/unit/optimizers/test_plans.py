"""Steps over other variables than the last one's, and plans that are kept for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.optimizers import optimizer as module
from thalweg.step import Plan

SHAPES = ((3,), (2, 2), (4, 3))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that are made."""
    plans: list[Plan] = []
    make = Plan.__init__

    def count(self: Plan, *arguments: Any, **options: Any) -> None:
        plans.append(self)
        make(self, *arguments, **options)

    monkeypatch.setattr(Plan, "__init__", count)
    return plans


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were looked at one by one, in each such step."""
    lengths: list[int] = []
    take = module.take_pairs

    def count(pairs: Any) -> Any:
        lengths.append(len(pairs))
        return take(pairs)

    monkeypatch.setattr(module, "take_pairs", count)
    return lengths


def variables() -> list[tw.Variable]:
    return [
        tw.Variable(torch.ones(s), name=f"v{number}") for number, s in enumerate(SHAPES)
    ]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def rows(gradient: torch.Tensor) -> tw.IndexedSlices:
    return tw.IndexedSlices(gradient[:2], torch.tensor([2, 0]), tuple(gradient.shape))


def steps(kinds: str, number: int = 8) -> Iterator[tuple[list[Any], list[bool]]]:
    """Gradients of steps, and which variables have one.

    Args:
        kinds: In turn a: all dense, n: none for the last, r: rows of the last, f: the
            first alone.
        number: How many steps.
    """
    for step in range(number):
        given: list[Any] = [*gradients(step)]
        kind = kinds[step % len(kinds)]
        if kind == "n":
            given[2] = None
        if kind == "r":
            given[2] = rows(given[2])
        if kind == "f":
            given[1:] = [None, None]
        yield given, [one is not None for one in given]


@pytest.mark.parametrize(
    ("kinds", "most"), [("an", 2), ("aann", 2), ("ar", 2), ("anf", 3)]
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_sets_of_variables_may_take_turns(
    kinds: str, most: int, made: list[Plan]
) -> None:
    own, alone = variables(), variables()
    optimizer, others = (
        tw.optimizers.Adagrad(0.1),
        [tw.optimizers.Adagrad(0.1) for _ in own],
    )
    for given, _ in steps(kinds):
        optimizer.apply_gradients(zip(given, own, strict=True))
    count = len(made)
    for given, has in steps(kinds):
        for one, variable, gradient, is_there in zip(
            others, alone, given, has, strict=True
        ):
            if is_there:
                one.apply_gradients([(gradient, variable)])
    assert all(map(torch.equal, own, alone))
    assert count == most


@pytest.mark.parametrize("kinds", ["a", "an", "nnna", "n"])
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_steps_that_are_known_are_not_looked_at_one_by_one(
    kinds: str, looked_at: list[int]
) -> None:
    optimizer, own = tw.optimizers.SGD(0.1, momentum=0.5), variables()
    for number, (given, _) in enumerate(steps(kinds, 16)):
        if number == 8:
            looked_at.clear()
        optimizer.apply_gradients(zip(given, own, strict=True))
        assert int(optimizer.iterations) == number + 1
    assert looked_at == []


def test_variables_without_a_gradient_are_told_once_for_each_set() -> None:
    optimizer, own = tw.optimizers.SGD(0.1), variables()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for given, _ in steps("nnaanf", 12):
            optimizer.apply_gradients(zip(given, own, strict=True))
    assert len(told) == 2
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply_gradients([(None, variable) for variable in own])


def test_another_variable_without_a_gradient_is_not_taken_for_the_first() -> None:
    optimizer, own = tw.optimizers.SGD(1.0), variables()
    given = gradients(0)
    with pytest.warns(UserWarning, match="v2"):
        optimizer.apply_gradients([*zip(given[:2], own, strict=False), (None, own[2])])
    late = tw.Variable(torch.ones(3), name="late")
    with pytest.warns(UserWarning, match="late"):
        optimizer.apply_gradients([*zip(given[:2], own, strict=False), (None, late)])
    assert len(optimizer.variables()) == 1  # the count: SGD has no slots
    assert [key for key, _ in optimizer._trackable_children() if "absent" in key] == []


def test_a_plan_of_other_factors_does_not_serve() -> None:
    given = [torch.tensor([3.0, 4.0]), torch.tensor([30.0, 40.0])]
    own = [tw.Variable(torch.zeros(2)) for _ in given]
    optimizer = tw.optimizers.SGD(1.0, global_clipnorm=1.0)
    optimizer.apply_gradients(zip(given, own, strict=True))
    for variable in own:
        variable.assign(torch.zeros(2))
    optimizer.global_clipnorm, optimizer.clipnorm = None, 1.0
    optimizer.apply_gradients(zip(given, own, strict=True))
    expected = torch.tensor([-0.6, -0.8])
    for variable in own:
        torch.testing.assert_close(variable.detach(), expected)


def test_few_plans_are_kept_and_none_of_variables_that_moved(made: list[Plan]) -> None:
    optimizer, own = tw.optimizers.SGD(1.0), [tw.Variable([1.0]) for _ in range(8)]
    for variable in own:
        optimizer.apply_gradients([(torch.ones(1), variable)])
    assert len(made) == 8
    for variable in (*reversed(own[3:]), own[0]):  # the last five are known, no other
        optimizer.apply_gradients([(torch.ones(1), variable)])
    assert len(made) == 9
    own[0].data = torch.zeros(1)
    optimizer.apply_gradients([(torch.ones(1), own[0])])
    assert len(made) == 10
    assert [v.tolist() for v in own] == [[-1.0]] + [[0.0]] * 2 + [[-1.0]] * 5
