"""Updates of sharded variables off the planned path, and their slots: two ranks, gloo.

Classes that update by hand, rules that a strategy calls one variable at a time, and
slots whose first values are tensors: all equal what one process does, or are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.distributed.harness import run_ranks

pytestmark = pytest.mark.distributed

SHAPE = (5, 4)  # uneven: three rows on the first rank, two on the second
ROWS = [1, 3]
RATE, MOMENTUM = 0.25, 0.5
NUMBERS: dict[str, Any] = {"lr": RATE, "momentum": MOMENTUM}


class ByOps(tw.Optimizer):
    """The Keras 2 way: slots made by hand, updated by raw ops."""

    elementwise = True
    learning_rate: tw.Hyper = tw.Hyper(default=RATE)

    def _create_slots(self, var_list: Any) -> None:
        for variable in var_list:
            self.add_slot(variable, "m")

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        m = self.get_slot(var, "m")
        tw.raw_ops.ResourceApplyKerasMomentum(
            var=var.handle, accum=m.handle, grad=grad, **NUMBERS
        )

    def _resource_apply_sparse(
        self, grad: Any, var: Any, indices: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        m = self.get_slot(var, "m")
        tw.raw_ops.ResourceSparseApplyKerasMomentum(
            var=var.handle, accum=m.handle, grad=grad, indices=indices, **NUMBERS
        )


class ByAssignment(ByOps):
    """The same in assignments."""

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        m = self.get_slot(var, "m")
        m.assign(MOMENTUM * m - RATE * grad)
        var.assign_add(m)

    def _resource_apply_sparse(
        self, grad: Any, var: Any, indices: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        m = self.get_slot(var, "m")
        self._resource_scatter_update(m, indices, MOMENTUM * m[indices] - RATE * grad)
        self._resource_scatter_add(var, indices, m[indices])


class OwnUpdate(tw.distribute.StrategyExtended):
    """A strategy that sees every variable in every step."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return super().update(*args, **kwargs)


def _whole(tensor: Any) -> torch.Tensor:
    has_parts = hasattr(tensor, "full_tensor")
    return (tensor.full_tensor() if has_parts else tensor).detach().clone()


def _gradient(kind: str) -> Any:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    if kind == "dense":
        return values
    return tw.IndexedSlices(values[: len(ROWS)], torch.tensor(ROWS), SHAPE)


def _variables() -> dict[str, Callable[[], Any]]:
    """A variable in one process, and the same one cut in every way."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    ones = torch.ones(SHAPE)

    def cut(placement: Any) -> Callable[[], Any]:
        return lambda: torch.nn.Parameter(distribute_tensor(ones, mesh, [placement]))

    cuts = {"0": Shard(0), "1": Shard(1), "whole": Replicate()}
    return {
        "": lambda: tw.Variable(ones),
        **{name: cut(one) for name, one in cuts.items()},
    }


def _by_hand() -> dict[str, list[bool]]:
    options: list[dict[str, Any]] = [{}, {"use_ema": True}, {"weight_decay": 0.125}]
    found: dict[str, list[bool]] = {}
    for cls in (ByOps, ByAssignment):
        for kind in ("dense", "rows"):
            for given in options:
                ends = []
                for make in _variables().values():
                    variable, optimizer = make(), cls(RATE, **given)
                    for _ in range(3):
                        optimizer.apply_gradients([(_gradient(kind), variable)])
                    slots = [s for _, _, s in optimizer.slot_variables()]
                    ends.append([_whole(one) for one in (variable, *slots)])
                found[f"{cls.__name__} {kind} {given}"] = [
                    all(map(torch.equal, end, ends[0])) for end in ends[1:]
                ]
    return found


def _first_values() -> dict[str, Any]:
    values = torch.arange(20.0).reshape(SHAPE)
    given: dict[str, Any] = {
        "tensor": values.double(),
        "function": lambda shape, dtype: values.to(dtype).reshape(shape),
        "number": 0.5,
        "wrong shape": torch.ones(2),
        "wrong name": "foo",
    }
    found: dict[str, Any] = {}
    for name, initializer in given.items():
        ends = []
        for make in _variables().values():
            variable, optimizer = make(), tw.optimizers.SGD(RATE)
            try:
                slot = optimizer.add_slot(variable, "m", initializer)
                ends.append(_whole(slot).tolist())
            except ValueError as problem:
                ends.append(str(problem))
        found[name] = ends
    return found


def _weights() -> list[Any]:
    found = []
    for make in _variables().values():
        variable, optimizer = make(), tw.optimizers.RowWiseAdagrad(RATE)
        optimizer.add_slot(variable, "m", 0.0)
        optimizer.build([variable])
        weights = [weight + 1 for weight in optimizer.get_weights()]
        optimizer.set_weights(weights)
        same = zip(optimizer.get_weights(), weights, strict=True)
        found.append([(one == other).all() for one, other in same])
        saved = torch.arange(20.0).reshape(SHAPE)
        optimizer.restore_slot_variable("m", variable, saved)
        found[-1].append(torch.equal(_whole(optimizer.get_slot(variable, "m")), saved))
    return found


def _cut_rows() -> dict[str, list[Any]]:
    """A rule that reads rows, on variables that are cut through the rows."""
    make = _variables()
    strategies = {
        "default": tw.distribute.get_strategy(),
        "own": tw.distribute.Strategy(OwnUpdate()),
    }
    found: dict[str, list[Any]] = {}
    for name, strategy in strategies.items():
        for kind in ("dense", "rows", "exact"):
            first, cut = make["0"](), make["1"]()
            policy: Any = "rows" if kind == "dense" else kind
            optimizer = tw.optimizers.RowWiseAdagrad(RATE, sparse_update=policy)
            pairs = [(_gradient(kind), first), (_gradient(kind), cut)]
            said = ""
            try:
                strategy.run(optimizer.apply_gradients, (pairs,))
            except ValueError as problem:
                said = str(problem)
            moved = [_whole(v).ne(1.0).any().item() for v in (first, cut)]
            found[f"{name} {kind}"] = [said, moved, int(optimizer.iterations)]
    return found


def _listed_late() -> dict[str, list[bool]]:
    """Training by what a module under FSDP2 shows behind its forward pass."""
    from torch.distributed.fsdp import fully_shard

    def minimized(optimizer: Any, model: Any, loss: Any) -> None:
        optimizer.minimize(loss, list(model.parameters()))

    def applied(optimizer: Any, model: Any, loss: Any) -> None:
        shown = list(model.parameters())
        grads = tw.GradientTape().gradient(loss, shown)
        optimizer.apply_gradients(zip(grads, shown, strict=True))

    def scaled(rate: float, **options: Any) -> Any:
        return tw.LossScaleOptimizer(tw.optimizers.Adam(rate, **options), False, 8.0)

    cycle = {"gradient_accumulation_steps": 2}
    ways: dict[str, Any] = {
        "minimize": (tw.optimizers.Adam, {}, minimized),
        "apply_gradients": (tw.optimizers.Adam, {}, applied),
        "scaled": (scaled, {}, minimized),
        "accumulated": (tw.optimizers.Adam, cycle, minimized),
    }
    found: dict[str, list[bool]] = {}
    for name, (make, options, step) in ways.items():
        ends = []
        for is_sharded in (False, True):
            torch.manual_seed(0)
            model: Any = torch.nn.Linear(4, 5)
            if is_sharded:
                fully_shard(model)
            optimizer = make(RATE, **options)
            for number in range(4):
                inputs = torch.full((2, 4), number + 1.0)
                step(optimizer, model, model(inputs).square().mean())
            slots = [s for _, _, s in optimizer.slot_variables()] if options else []
            ends.append([_whole(one) for one in (*model.parameters(), *slots)])
        found[name] = list(map(torch.equal, *ends))
    return found


def _all() -> dict[str, Any]:
    return {
        "by hand": _by_hand(),
        "first values": _first_values(),
        "weights": _weights(),
        "cut rows": _cut_rows(),
        "listed late": _listed_late(),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    return run_ranks(_all, 2)


def test_a_class_that_updates_by_hand_is_shown_its_part_of_a_slot(ranks):
    for rank in ranks:
        assert len(rank["by hand"]) == 12
        assert all(map(all, rank["by hand"].values())), rank["by hand"]


def test_a_slot_takes_its_part_of_a_first_value(ranks):
    for rank in ranks:
        found = rank["first values"]
        values = torch.arange(20.0).reshape(SHAPE).tolist()
        assert found["tensor"] == found["function"] == [values] * 4
        assert found["number"] == [[[0.5] * 4] * 5] * 4
        for name in ("wrong shape", "wrong name"):
            assert len(set(found[name])) == 1
            assert "initializer: expected 'zeros'" in found[name][0]


def test_weights_are_set_from_what_was_got(ranks):
    for rank in ranks:
        assert len(rank["weights"]) == 4
        assert all(map(all, rank["weights"])), rank["weights"]


def test_rows_that_are_cut_are_refused_before_anything_is_written(ranks):
    for rank in ranks:
        for said, moved, iterations in rank["cut rows"].values():
            assert "expected variables that are cut between rows" in said
            assert (moved, iterations) == ([False, False], 0)


def test_variables_may_be_listed_behind_the_forward_pass(ranks):
    for rank in ranks:
        assert len(rank["listed late"]) == 4
        assert all(map(all, rank["listed late"].values())), rank["listed late"]
