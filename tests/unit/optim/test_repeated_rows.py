"""Steps with sparse gradients of torch's kind: repeated ones do what first ones do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from thalweg import optim
from thalweg.optim import replay
from thalweg.step.rows import RowPlan

ROWS, WIDTH = 50, 8
Parameters = list[torch.nn.Parameter]
Make = Callable[[Parameters], Any]
MAKES: list[Make] = [
    lambda params: optim.SparseAdam(params, lr=0.1),
    lambda params: optim.Adagrad(params, lr=0.1, lr_decay=0.01),
    lambda params: optim.SGD(params, lr=0.1),
    lambda params: optim.RowWiseAdagrad(params, lr=0.1),
]


class Counted:
    """How many plans of rows were made, and how many steps were taken by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.taken = 0
        counted = self

        class Counting(RowPlan):
            def __init__(self, updates: Any) -> None:
                counted.made += 1
                super().__init__(updates)

            def run(self) -> None:
                counted.taken += 1
                super().run()

        monkeypatch.setattr(replay, "RowPlan", Counting)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def tables(count: int = 2) -> Parameters:
    generator = torch.Generator().manual_seed(99)
    values = [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(count)]
    parameters = [torch.nn.Parameter(value) for value in values]
    for parameter in parameters:
        parameter.grad_dtype = None  # type: ignore[attr-defined]
    return parameters


def rows(seed: int, count: int = 20, dtype: Any = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(ROWS, (1, count), generator=generator)
    values = torch.randn(count, WIDTH, generator=generator).to(dtype)
    shape = (ROWS, WIDTH)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


def give(parameters: Parameters, seed: int, **how: Any) -> None:
    for number, parameter in enumerate(parameters):
        parameter.grad = rows(10 * seed + number, **how)


def step_anew(
    make: Make, parameters: Parameters, state: dict[str, Any]
) -> dict[str, Any]:
    """A step of an optimizer that has taken none: nothing is repeated."""
    optimizer = make(parameters)
    optimizer.load_state_dict(state)
    optimizer.step()
    return optimizer.state_dict()


def assert_same(first: Parameters, second: Parameters) -> None:
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("make", MAKES)
def test_repeated_steps_have_the_bits_of_first_ones(make: Make, plans: Counted) -> None:
    own, other = tables(), tables()
    optimizer, state = make(own), make(other).state_dict()
    for seed in range(6):
        for parameters in (own, other):
            give(parameters, seed, count=20 + seed)
        optimizer.step()
        state = step_anew(make, other, state)
    assert_same(own, other)
    assert (plans.made, plans.taken) == (1, 5)
    for key, mine in optimizer.state_dict()["state"].items():
        for name, value in mine.items():
            assert torch.equal(value, state["state"][key][name])


def test_beside_dense_gradients_rows_are_repeated_too(plans: Counted) -> None:
    own, other = tables(3), tables(3)
    optimizer = optim.Adagrad(own, lr=0.1)
    expected = torch.optim.Adagrad(other, lr=0.1)
    for seed in range(5):
        for parameters in (own, other):
            give(parameters[:2], seed)
            parameters[2].grad = torch.full((ROWS, WIDTH), 1.0 + seed)
        optimizer.step()
        with torch.sparse.check_sparse_tensor_invariants():
            expected.step()
    torch.testing.assert_close(own, other)
    assert (plans.made, plans.taken) == (1, 4)


def test_moved_parameters_other_dtypes_and_no_rows_make_another_plan(
    plans: Counted,
) -> None:
    own, other, make = tables(), tables(), MAKES[0]
    optimizer, state = make(own), make(other).state_dict()
    changes: list[dict[str, Any]] = [
        *({}, {}, {}),
        *({"count": 0}, {}, {}),
        *({"dtype": torch.bfloat16}, {"dtype": torch.bfloat16}, {}),
    ]
    for seed, how in enumerate(changes):
        if seed == 2:
            own[0].data = own[0].data.clone()
        for parameters in (own, other):
            give(parameters, seed, **how)
        optimizer.step()
        state = step_anew(make, other, state)
    assert_same(own, other)
    assert plans.made > 1
    assert 0 < plans.taken < len(changes)


@pytest.mark.parametrize("place", [ROWS, -1])
def test_a_wrong_index_changes_nothing_and_later_steps_go_on(
    place: int, plans: Counted
) -> None:
    own, other = tables(), tables()
    optimizer, twin = MAKES[0](own), MAKES[0](other)
    for seed in range(3):
        for parameters in (own, other):
            give(parameters, seed)
        optimizer.step()
        twin.step()
    give(own, 3)
    values, shape = torch.ones(1, WIDTH), (ROWS, WIDTH)
    wrong = torch.tensor([[place]])
    own[1].grad = torch.sparse_coo_tensor(wrong, values, shape, check_invariants=False)
    with pytest.raises(IndexError, match=str(place)):
        optimizer.step()
    assert_same(own, other)
    for parameters in (own, other):
        give(parameters, 4)
    optimizer.step()
    twin.step()
    assert_same(own, other)
    assert plans.taken > 2


def test_a_gradient_that_lies_in_the_table_is_read_before_it_is_written(
    plans: Counted,
) -> None:
    own, other = tables(1), tables(1)
    optimizer, twin = (optim.SGD(parameters, lr=0.5) for parameters in (own, other))
    indices = torch.tensor([[3, 1, 2, 0]])
    for _ in range(5):
        before = other[0].detach()[:4].clone()
        for parameters, values in ((own, own[0].detach()[:4]), (other, before)):
            parameters[0].grad = torch.sparse_coo_tensor(
                indices, values, (ROWS, WIDTH), check_invariants=False
            )
        optimizer.step()
        twin.step()
        assert_same(own, other)
    assert plans.made > 0


def test_versions_count_every_repeated_step() -> None:
    own = tables(1)
    optimizer = MAKES[0](own)
    seen = []
    for seed in range(5):
        give(own, seed)
        optimizer.step()
        seen.append(own[0]._version)
    assert all(before < after for before, after in pairwise(seen))
