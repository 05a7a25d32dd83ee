"""Comparing optimizers: one budget for all, and a verdict that may be none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.tasks.test_training_run import LINE
from thalweg.tasks import Grid, Standing, compare, verdict


def standing(name: str, *figures: float) -> Standing:
    return Standing(name, 0.1, figures, 1.0, False)


def test_each_optimizer_has_the_same_grid() -> None:
    said: list[str] = []
    grid = Grid(rates=3, seeds=2, epochs=2)
    found = compare(LINE, ["adam", "SGD"], grid, said.append)
    assert [one.optimizer for one in found] == ["SGD", "Adam"]
    assert all(len(one.figures) == 2 and one.seconds > 0 for one in found)
    sgd, adam = found
    assert sgd.mean < adam.mean  # Adam's rates are too small for so few steps
    assert (adam.learning_rate, adam.is_at_edge) == (0.004, True)
    assert sgd.learning_rate in grid.around(0.01)
    assert said[0].startswith("Adam: test loss ")
    assert said[0].endswith("with learning rate 0.004")
    again = compare(LINE, ["adam"], grid)
    assert again[0].figures == adam.figures


def test_a_higher_figure_may_be_the_better_one() -> None:
    turned = replace(LINE, higher_is_better=True)
    grid = Grid(rates=3, seeds=1, epochs=1)
    (best,) = compare(turned, ["sgd"], grid)
    assert best.learning_rate == 0.0025  # it has learnt least
    (one,) = compare(turned, ["sgd"], replace(grid, rates=1))
    assert (one.learning_rate, one.is_at_edge) == (0.01, False)


def test_a_run_that_failed_is_the_worst() -> None:
    problem = LINE.load()

    figures = iter([math.nan, 1.0])

    def figure(logs: Mapping[str, float]) -> float:
        del logs
        return next(figures)

    failing = replace(LINE, load=lambda: replace(problem, figure=figure))
    found = compare(failing, ["adam", "sgd"], Grid(rates=1, seeds=1, epochs=1))
    assert [one.optimizer for one in found] == ["SGD", "Adam"]
    assert math.isnan(found[1].mean)


def test_a_verdict_needs_seeds_that_do_not_overlap() -> None:
    a, b, c = standing("A", 1.0, 2.0), standing("B", 2.5, 3.0), standing("C", 1.9, 9.0)
    assert verdict(LINE, [a, b]) == "A is best, with every seed"
    assert verdict(LINE, [a, b, c]) == "no clear difference between A, C"
    assert "too few runs" in verdict(LINE, [standing("A", 1.0), b])
    assert verdict(LINE, [a]) == "A is the only one: name others to compare it with"
    higher = replace(LINE, higher_is_better=True)
    assert verdict(higher, [b, a]) == "B is best, with every seed"


@pytest.mark.parametrize(
    ("numbers", "part"),
    [
        ({"rates": 2}, "rates: expected an odd number; got 2"),
        ({"seeds": 0}, "seeds: expected a number ≥ 1; got 0. Pass --seeds 1"),
        ({"batch_size": 0}, "Pass --batch-size 1 or more"),
    ],
)
def test_a_grid_that_is_none_is_refused(numbers: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        compare(LINE, ["adam"], Grid(**numbers))


@pytest.mark.parametrize("names", [[], ["adam", "ADAM"]])
def test_optimizers_are_named_once(names: list[str]) -> None:
    with pytest.raises(ValueError, match="Name at least one, and each once"):
        compare(LINE, names, Grid())
    with pytest.raises(ValueError, match="Did you mean 'adam'"):
        compare(LINE, ["adm"], Grid())
