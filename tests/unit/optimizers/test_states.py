"""States of an optimizer: numbers that `next_states` moves on, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw


class Counting(tw.Optimizer):
    """Divides by one more in each step; subclasses say how the count goes on."""

    learning_rate: tw.Hyper = tw.Hyper(default=1.0)
    count = tw.State(initial=1.0)
    total = tw.State(initial=0.5)

    @staticmethod
    def update(var: Any, grad: Any, *, learning_rate: Any, count: Any) -> Any:
        return var - learning_rate / count * grad


def step_of(given: Any) -> tuple[tw.Optimizer, tw.Variable]:
    class Given(Counting):
        def next_states(self, step):
            return given(self, step) if callable(given) else given

    return Given(), tw.Variable([4.0])


@pytest.mark.parametrize("make", [float, np.float32, torch.tensor])
def test_states_that_are_named_move_and_others_stay(make: Any) -> None:
    optimizer, weight = step_of(lambda self, _: {"count": make(self.count + 1.0)})
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 4.0 - 1.0 - 0.5
    states = optimizer.state_variables()
    assert {n: s.item() for n, s in states.items()} == {"count": 3.0, "total": 0.5}


WRONG = [
    (
        {"coumt": 2.0},
        r"Given\.next_states: .* states; got 'coumt'. Did you mean 'count'\?",
    ),
    ({"count": 2.0, "c": 1.0}, r"Given\.next_states: .*got 'c'"),
    ({"count": "two"}, r"next_states: expected a number as the new 'count'; got 'two'"),
    ({"count": torch.ones(2)}, r"a number as the new 'count'; got float32 tensor"),
    ({"count": None}, r"a number as the new 'count'; got None"),
    (None, r"next_states: expected new values by name; got None"),
    (2.0, r"next_states: expected new values by name; got 2\.0"),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("shows_kernel", [False, True])
def test_wrong_states_are_refused_before_anything_is_written(
    given: Any, text: str, is_sparse: bool, shows_kernel: bool
) -> None:
    optimizer, weight = step_of(given)
    if shows_kernel:  # binds the rule, too
        optimizer.kernel_source()
    grad = torch.ones(1)
    for _ in range(2):
        pair = tw.IndexedSlices(grad, torch.tensor([0])) if is_sparse else grad
        with pytest.raises(TypeError, match=text):
            optimizer.apply_gradients([(pair, weight)])
    assert weight.item() == 4.0
    assert optimizer.iterations.item() == 0
    assert [s.item() for s in optimizer.state_variables().values()] == [1.0, 0.5]


class ByHand(Counting):
    """Updates without a rule, and makes its slots itself."""

    def _create_slots(self, var_list: Any) -> None:
        for variable in var_list:
            self.add_slot(variable, "m")

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        var.assign_sub(grad / self.count)


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_a_class_that_updates_by_hand_is_refused_before_it_writes(
    given: Any, text: str
) -> None:
    class Given(ByHand):
        def next_states(self, step):
            return given

    optimizer, held = Given(), [tw.Variable([4.0]), tw.Variable([5.0])]
    for _ in range(2):
        with pytest.raises(TypeError, match=text):
            optimizer.apply_gradients([(torch.ones(1), v) for v in held])
    assert [weight.item() for weight in held] == [4.0, 5.0]
    assert optimizer.iterations.item() == 0


def test_states_move_where_an_override_makes_the_slots() -> None:
    class Given(ByHand):
        def next_states(self, step):
            return {"count": self.count + 1.0}

    optimizer, weight = Given(), tw.Variable([4.0])
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 4.0 - 1.0 - 0.5
    assert [w.item() for w in optimizer.weights] == [2, 3.0, 0.5, 0.0]


def test_a_name_that_comes_later_is_refused_before_a_state_is_written() -> None:
    def given(self: Any, step: float) -> dict[str, float]:
        return {"count": 2.0} if step == 1 else {"count": 3.0, "c": 1.0}

    optimizer, weight = step_of(given)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    with pytest.raises(TypeError, match="got 'c'"):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert optimizer.state_variables()["count"].item() == 2.0


def test_they_are_told_the_number_of_the_step_that_was_taken() -> None:
    seen: list[float] = []

    def given(self: Any, step: float) -> dict[str, float]:
        seen.append(step)
        return {}

    optimizer, weight = step_of(given)
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert seen == [1, 1, 2, 3]  # the first is the check before the first step
