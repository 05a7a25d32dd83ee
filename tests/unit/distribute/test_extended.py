"""StrategyExtended with one replica, and as a base class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from thalweg.distribute import ReduceOp, Strategy, StrategyExtended
from thalweg.state import IndexedSlices, Variable


@pytest.fixture
def extended() -> StrategyExtended:
    return StrategyExtended()


def test_update_gives_a_variable_that_shares_memory(extended: StrategyExtended) -> None:
    weight = nn.Parameter(torch.zeros(2))
    version = weight._version

    def apply(variable: Any, gradient: torch.Tensor, scale: float) -> str:
        assert isinstance(variable, Variable)
        assert variable.handle is weight
        variable.assign_sub(scale * gradient)
        return "done"

    result = extended.update(weight, apply, (torch.ones(2),), {"scale": 0.5})
    assert result == "done"
    assert weight.tolist() == [-0.5, -0.5]
    assert weight._version == version + 1


def test_update_gives_a_variable_itself(extended: StrategyExtended) -> None:
    variable = Variable([1.0], name="v")
    seen = extended.update(variable, lambda v: v)
    assert seen is variable


def test_ungrouped_results_are_a_list(extended: StrategyExtended) -> None:
    assert extended.update(torch.zeros(1), lambda v: 7, group=False) == [7]


def test_update_moves_its_arguments(extended: StrategyExtended) -> None:
    weight = torch.zeros(2, device="meta")
    rows = IndexedSlices(torch.ones(1), torch.tensor([0]), (2,))
    placed = extended.update(
        weight,
        lambda v, *args, **kwargs: (v, args, kwargs),
        args=(torch.ones(2), [torch.ones(1)], rows, "text"),
        kwargs={"extra": torch.ones(1)},
    )
    component, (gradient, nested, moved, text), kwargs = placed
    assert component.is_meta
    assert gradient.is_meta
    assert nested[0].is_meta
    assert moved.device.type == "meta"
    assert text == "text"
    assert kwargs["extra"].is_meta


def test_update_passes_a_gradient_in_place_as_it_is(extended: StrategyExtended) -> None:
    gradient = torch.ones(2)
    assert extended.update(torch.zeros(2), lambda v, g: g, (gradient,)) is gradient


def test_update_refuses_what_is_no_variable(extended: StrategyExtended) -> None:
    with pytest.raises(TypeError, match="expected a Variable or a tensor"):
        extended.update("weight", lambda v: v)  # type: ignore[arg-type]


def test_colocated_variables_lie_where_the_variable_lies(
    extended: StrategyExtended,
) -> None:
    with extended.colocate_vars_with(torch.empty(1, device="meta")):
        inside = Variable([0.0])
    assert inside.is_meta
    assert not Variable([0.0]).is_meta


def test_one_replica_reduces_to_itself(extended: StrategyExtended) -> None:
    tensor = torch.ones(2)
    rows = IndexedSlices(tensor, torch.tensor([0, 1]), (2,))
    assert (extended.num_replicas, extended.replica_id) == (1, 0)
    assert extended.all_reduce(ReduceOp.SUM, [tensor]) == [tensor]
    assert extended.reduce_to("mean", tensor) is tensor
    assert extended.reduce_to("mean", rows) is rows
    assert extended.reduce_to("sum", 3).item() == 3
    assert extended.all_gather(tensor) is tensor
    assert extended.global_count(5) == 5
    assert extended.global_count(tensor) is tensor


def test_reduced_values_go_to_their_destinations(extended: StrategyExtended) -> None:
    there = torch.zeros(2, device="meta")
    rows = IndexedSlices(torch.ones(2), torch.tensor([0, 1]), (2,))
    first, second, third = extended.batch_reduce_to(
        ReduceOp.SUM, [(torch.ones(2), there), (rows, there), (1.5, None)]
    )
    assert first.is_meta
    assert second.device.type == "meta"
    assert third.item() == 1.5


def test_unknown_reduction_is_refused(extended: StrategyExtended) -> None:
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        extended.reduce_to("max", torch.ones(1))


def test_one_replica_applies_its_own_gradients(extended: StrategyExtended) -> None:
    weight, gradient = torch.zeros(1), torch.ones(1)
    pairs = extended.aggregate_gradients(iter([(gradient, weight), (None, weight)]))
    assert pairs[0][0] is gradient
    assert pairs[1][0] is None
    extended.broadcast_initial([weight])
    assert weight._version == 0


def test_vouching_for_the_loss_is_scoped(extended: StrategyExtended) -> None:
    assert not extended.loss_is_global
    with extended.loss_divided_globally():
        assert extended.loss_is_global
    assert not extended.loss_is_global


def test_a_variable_belongs_where_new_ones_are_put(extended: StrategyExtended) -> None:
    assert extended.variable_created_in_scope(torch.zeros(1))
    extended.device = torch.device("meta")
    assert not extended.variable_created_in_scope(torch.zeros(1))
    assert extended.variable_created_in_scope(torch.zeros(1, device="meta"))


class Watching(StrategyExtended):
    """A user's own: no constructor, sees every update."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def update(self, var: Any, fn: Any, *rest: Any, **named: Any) -> Any:
        self.seen.append(var.name)
        return super().update(var, fn, *rest, **named)


def test_a_subclass_sees_every_update() -> None:
    watching = Watching()
    strategy = Strategy(extended=watching)
    variables = [Variable([0.0], name=name) for name in ("a", "b")]
    with strategy.scope():
        for _ in range(2):
            for variable in variables:
                strategy.extended.update(variable, lambda v: v.assign_add([1.0]))
    assert watching.seen == ["a", "b", "a", "b"]
    assert [v.item() for v in variables] == [2.0, 2.0]


def test_only_the_default_update_may_be_left_out() -> None:
    assert StrategyExtended().has_default_update
    assert not Watching().has_default_update

    class Elsewhere(StrategyExtended):
        def colocate_vars_with(self, var: torch.Tensor) -> Any:
            return super().colocate_vars_with(var)

    assert not Elsewhere().has_default_update


def test_one_replica_tells_nobody_of_a_refusal(extended: StrategyExtended) -> None:
    extended.refuse_gradients([torch.ones(2)])
