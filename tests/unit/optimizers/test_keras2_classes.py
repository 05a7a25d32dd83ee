"""What single classes of Keras 2.6 do beside their formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.optimizers import (
    Adadelta,
    Adagrad,
    AdamW,
    Ftrl,
    Lamb,
    Nadam,
    RMSprop,
    RowWiseAdagrad,
)


def step(optimizer: tw.Optimizer, *variables: tw.Variable) -> None:
    optimizer.apply_gradients([(torch.ones_like(v), v) for v in variables])


def slices_of(rows: list[int], table: torch.Tensor) -> tw.IndexedSlices:
    values = torch.ones(len(rows), *table.shape[1:])
    return tw.IndexedSlices(values, torch.tensor(rows), tuple(table.shape))


# -- Nadam ---------------------------------------------------------------------


def test_nadam_ignores_decay_and_calls_its_own_so() -> None:
    optimizer = Nadam(0.5, decay=0.75, schedule_decay=0.25)
    assert optimizer.get_config()["decay"] == 0.25
    assert "schedule_decay" not in optimizer.get_config()
    again = Nadam.from_config(optimizer.get_config())
    assert again.schedule_decay == 0.25
    step(optimizer, tw.Variable([1.0]))
    assert optimizer._decayed_lr() == 0.5


def test_nadam_refuses_schedules() -> None:
    schedule = tw.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    config = tw.optimizers.schedules.serialize(schedule)
    optimizer = Nadam(0.25)
    with pytest.raises(ValueError, match="does not support schedules"):
        Nadam(schedule)
    with pytest.raises(ValueError, match="does not support schedules"):
        Nadam.from_config({"learning_rate": config})
    with pytest.raises(ValueError, match="does not support schedules"):
        optimizer.learning_rate = schedule
    assert optimizer.learning_rate == 0.25


def test_nadams_cache_is_the_product_of_momenta() -> None:
    optimizer, weight = Nadam(beta_1=0.5, schedule_decay=1.0), tw.Variable([1.0])
    assert float(optimizer.momentum_cache) == 1.0
    product = 1.0
    for number in range(1, 4):
        step(optimizer, weight)
        product *= 0.5 * (1 - 0.5 * 0.96**number)
        assert float(optimizer.momentum_cache) == pytest.approx(product, rel=1e-14)
    assert [w.name for w in optimizer.weights][:2] == [
        "Nadam/iter",
        "Nadam/momentum_cache",
    ]


def test_a_refused_step_leaves_the_cache() -> None:
    optimizer, weight = Nadam(), tw.Variable([1.0])
    step(optimizer, weight)
    before = float(optimizer.momentum_cache)
    with pytest.raises(ValueError, match="apply_gradients"):
        optimizer.apply_gradients([(torch.ones(2), weight)])
    assert float(optimizer.momentum_cache) == before


def test_the_cache_is_saved_by_name(tmp_path: Any) -> None:
    weight, optimizer = tw.Variable([1.0]), Nadam(0.1)
    for _ in range(3):
        step(optimizer, weight)
    tw.Checkpoint(weight=weight, optimizer=optimizer).save(tmp_path / "saved")
    other, fresh = tw.Variable([0.0]), Nadam(0.1)
    found = tw.Checkpoint(weight=other, optimizer=fresh).restore(tmp_path / "saved")
    assert "optimizer/momentum_cache" in found.restored
    step(optimizer, weight)
    step(fresh, other)
    assert torch.equal(weight, other)


# -- what Keras does with rows that have no gradient -----------------------------


@pytest.mark.parametrize("cls", [Nadam, RMSprop])
@pytest.mark.parametrize("centered", [False, True])
def test_keras_decays_all_rows_and_moves_some(
    cls: type[tw.Optimizer], centered: bool
) -> None:
    flags = {"centered": centered} if cls is RMSprop else {}
    table, dense = tw.Variable(torch.randn(4, 2)), tw.Variable(torch.zeros(4, 2))
    dense.assign(table)
    optimizer, whole = cls(0.1, sparse_update="keras", **flags), cls(0.1, **flags)
    for row in ([1, 3, 1], [0, 1]):
        before, slices = table.detach().clone(), slices_of(row, table)
        dense.assign(table)
        optimizer.apply_gradients([(slices, table)])
        whole.apply_gradients([(slices.to_dense(), dense)])
        touched = torch.zeros(4, dtype=torch.bool)
        touched[row] = True
        assert torch.equal(table.detach()[touched], dense.detach()[touched])
        assert torch.equal(table.detach()[~touched], before[~touched])
    for name in optimizer.get_slot_names():
        assert torch.equal(optimizer.get_slot(table, name), whole.get_slot(dense, name))


def test_rmsprop_with_momentum_touches_only_the_rows() -> None:
    table = tw.Variable(torch.ones(4, 2))
    optimizer = RMSprop(0.1, momentum=0.5, sparse_update="keras")
    optimizer.apply_gradients([(slices_of([2], table), table)])
    optimizer.apply_gradients([(slices_of([1], table), table)])
    rms = optimizer.get_slot(table, "rms")[:, 0].tolist()
    assert rms == pytest.approx([0.0, 0.1, 0.1, 0.0])


# -- Ftrl ------------------------------------------------------------------------


def test_ftrl_ignores_lr() -> None:
    with pytest.warns(UserWarning, match="lr"):
        optimizer = Ftrl(lr=0.75)
    assert optimizer.learning_rate == 0.001


def test_ftrl_reads_a_changed_power() -> None:
    """The square root is a kernel of its own; a change takes the other one."""
    changed, fresh = tw.Variable([0.5]), tw.Variable([0.5])
    optimizer = Ftrl(0.1)
    step(optimizer, changed)
    fresh.assign(changed)
    other = Ftrl(0.1, learning_rate_power=-0.75)
    other.build([fresh])
    other.set_weights(optimizer.get_weights())
    optimizer.learning_rate_power = -0.75
    step(optimizer, changed)
    step(other, fresh)
    assert torch.equal(changed, fresh)
    assert not torch.equal(optimizer.get_slot(changed, "linear"), torch.zeros(1))


def test_ftrl_takes_a_power_per_variable() -> None:
    variables = [tw.Variable([0.5], name="a"), tw.Variable([0.5], name="b")]
    alone = tw.Variable([0.5], name="c")
    table = {"b": {"learning_rate_power": -0.75}}
    step(Ftrl(0.1, per_variable=table), *variables)
    step(Ftrl(0.1, learning_rate_power=-0.75), alone)
    torch.testing.assert_close(variables[1], alone)
    step(Ftrl(0.1), fresh := tw.Variable([0.5]))
    torch.testing.assert_close(variables[0].detach(), fresh.detach())


@pytest.mark.parametrize(
    "name",
    [
        "initial_accumulator_value",
        "l1_regularization_strength",
        "l2_regularization_strength",
        "l2_shrinkage_regularization_strength",
    ],
)
def test_ftrl_refuses_negative_strengths(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Ftrl(**{name: -0.5})
    with pytest.raises(ValueError, match="learning_rate_power"):
        Ftrl(learning_rate_power=0.5)


# -- others ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Adadelta, Adagrad, RMSprop])
def test_weights_without_a_step_count_are_taken(cls: type[tw.Optimizer]) -> None:
    weight, optimizer = tw.Variable([1.0]), cls()
    step(optimizer, weight)
    arrays = [np.full_like(w, 0.5) for w in optimizer.get_weights()[1:]]
    optimizer.set_weights(arrays)
    assert int(optimizer.iterations) == 0
    assert all((w == 0.5).all() for w in optimizer.get_weights()[1:])


def test_row_wise_slots_have_one_number_a_row() -> None:
    shapes = {(5,): (5,), (4, 3): (4, 1), (4, 3, 2): (4, 1, 1), (): ()}
    variables = [tw.Variable(torch.ones(shape)) for shape in shapes]
    optimizer = RowWiseAdagrad(0.5, initial_accumulator_value=3.0, epsilon=0.0)
    step(optimizer, *variables)
    for variable, shape in zip(variables, shapes.values(), strict=True):
        accumulator = optimizer.get_slot(variable, "accumulator")
        assert accumulator.shape == shape
        assert torch.equal(accumulator, torch.full(shape, 4.0))
        assert torch.equal(variable, torch.full_like(variable, 0.75))


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 4, 2)])
def test_row_wise_rows_are_the_dense_update(shape: tuple[int, ...]) -> None:
    table, dense = tw.Variable(torch.randn(shape)), tw.Variable(torch.zeros(shape))
    dense.assign(table)
    by_rows, by_whole = RowWiseAdagrad(0.1), RowWiseAdagrad(0.1)
    for _ in range(3):
        slices = slices_of([1, 4, 1], table)
        by_rows.apply_gradients([(slices, table)])
        by_whole.apply_gradients([(slices.to_dense(), dense)])
    assert torch.equal(table, dense)


def test_lamb_moves_by_a_share_of_the_norm() -> None:
    weight = tw.Variable(torch.tensor([3.0, 4.0]))
    step(Lamb(0.1, epsilon=0.0), weight)
    moved = torch.tensor([3.0, 4.0]) - weight.detach()
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-6)


def test_adamw_needs_a_weight_decay() -> None:
    assert AdamW().weight_decay == 0.004
    with pytest.raises(ValueError, match="Use Adam"):
        AdamW(weight_decay=None)


def test_a_class_of_ones_own_may_keep_a_state() -> None:
    class Counting(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(default=1.0)
        total = tw.State(initial=2.0)

        @staticmethod
        def update(var: Any, grad: Any, *, learning_rate: Any, total: Any) -> Any:
            return var - learning_rate * total * grad

    weight, optimizer = tw.Variable([5.0]), Counting()
    step(optimizer, weight)
    assert weight.tolist() == [3.0]
    assert float(optimizer.total) == 2.0


def test_names_are_found_without_a_list() -> None:
    assert {"adamw", "ftrl", "lamb", "rowwiseadagrad"} <= set(tw.optimizers.names())
    assert "counting" not in tw.optimizers.names()


# -- options of classes that update by hand ------------------------------------


class ByHand(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=1.0)

    def _resource_apply_dense(
        self, grad: torch.Tensor, var: Any, apply_state: Any = None
    ) -> None:
        var.assign_sub(self.learning_rate * grad)


class OwnUpdate(tw.distribute.StrategyExtended):
    """A strategy that overrides `update`, so that no plan is made."""

    def update(self, var, fn, args=(), kwargs=None, group=True):
        return super().update(var, fn, args, kwargs, group)


@pytest.mark.parametrize("how", ["by hand", "by a strategy"])
def test_clips_and_checks_hold_without_a_plan(how: str) -> None:
    def after(gradient: list[float], **options: Any) -> list[float]:
        weight = tw.Variable([0.0, 0.0], name="weight")
        strategy = tw.distribute.Strategy(OwnUpdate())
        if how == "by hand":
            optimizer: Any = ByHand(1.0, **options)
        else:
            with strategy.scope():
                optimizer = tw.optimizers.SGD(1.0, **options)
        for _ in range(2):  # the second step is like the first
            pairs = [(torch.tensor(gradient), weight)]
            strategy.run(optimizer.apply_gradients, (pairs,))
        return weight.tolist()

    assert after([3.0, 4.0], clipvalue=1.0) == [-2.0, -2.0]
    assert after([3.0, 4.0], clipnorm=2.5) == [-3.0, -4.0]
    assert after([3.0, 4.0], global_clipnorm=2.5) == [-3.0, -4.0]
    assert after([3.0, float("nan")], nonfinite="skip") == [0.0, 0.0]
    with pytest.raises(FloatingPointError, match="weight"):
        after([3.0, float("inf")], nonfinite="error")
