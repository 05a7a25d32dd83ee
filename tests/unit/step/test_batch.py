"""Raw ops of a step that are launched together give what single calls give."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.compiler import Launch
from thalweg.step.batch import Batch, flush, inside_step, is_inside_step

Work = Callable[[int], None]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of items of each launch of several variables."""
    seen: list[int] = []
    run = Launch.__call__

    def counted(self: Launch, *arguments: Any) -> None:
        seen.append(self.num_items)
        run(self, *arguments)

    monkeypatch.setattr(Launch, "__call__", counted)
    return seen


class Model:
    """Some variables with a slot each, and steps over them."""

    def __init__(self, sizes: tuple[int, ...] = (3, 5, 70)) -> None:
        self.variables = [tw.Variable(torch.ones(n)) for n in sizes]
        self.slots = [torch.zeros(n) for n in sizes]

    def momentum(self, number: int, **changed: Any) -> None:
        for var, accum in zip(self.variables, self.slots, strict=True):
            arguments = {
                "grad": torch.full_like(accum, number + 1.0),
                "momentum": 0.5,
                "lr": 0.125 * (number + 1),
                **changed,
            }
            tw.raw_ops.ResourceApplyMomentum(var=var.handle, accum=accum, **arguments)

    def state(self) -> list[list[float]]:
        return [t.tolist() for t in (*self.variables, *self.slots)]


def compare(work: Callable[[Model, int], None], steps: int = 4) -> Batch:
    """Run steps with a batch and without; the same bits must come out."""
    batch, together, single = Batch(), Model(), Model()
    for number in range(steps):
        with inside_step(batch):
            work(together, number)
        work(single, number)
        assert together.state() == single.state(), number
    return batch


def test_a_step_that_comes_again_is_one_launch(launches: list[int]) -> None:
    compare(Model.momentum)
    assert launches == [3, 3, 3]


def test_numbers_of_each_call_are_its_own() -> None:
    def work(model: Model, number: int) -> None:
        for position, var in enumerate(model.variables):
            tw.raw_ops.ResourceApplyGradientDescent(
                var=var, alpha=float(position + number), delta=torch.ones_like(var)
            )

    compare(work)


def test_ops_and_flags_are_grouped(launches: list[int]) -> None:
    def work(model: Model, number: int) -> None:
        for position, (var, accum) in enumerate(
            zip(model.variables, model.slots, strict=True)
        ):
            tw.raw_ops.ResourceApplyMomentum(
                var=var,
                accum=accum,
                grad=torch.full_like(accum, 0.25),
                momentum=0.5,
                lr=0.5 + number,
                use_nesterov=position == 1,
            )

    compare(work, steps=2)
    assert sorted(launches) == [1, 2]


def test_calls_on_one_variable_keep_their_order() -> None:
    def work(model: Model, number: int) -> None:
        model.momentum(number)
        tw.raw_ops.ResourceApplyMomentum(
            var=model.variables[0],
            accum=model.slots[0],
            grad=torch.full((3,), -3.0),
            momentum=0.25,
            lr=1.0,
        )

    compare(work)


def test_a_gradient_in_a_variable_is_read_after_it_was_written() -> None:
    def work(model: Model, number: int) -> None:
        model.momentum(number)
        source = model.slots[0] if number > 1 else torch.ones(3)
        tw.raw_ops.ResourceApplyGradientDescent(
            var=model.slots[2][:3], alpha=0.5, delta=source
        )

    compare(work)

    def overlapping(model: Model, number: int) -> None:
        tw.raw_ops.ResourceApplyGradientDescent(
            var=model.variables[0], alpha=0.5, delta=torch.ones(3)
        )
        source = model.variables[0].detach() if number == 2 else torch.ones(3)
        tw.raw_ops.ResourceApplyGradientDescent(
            var=model.slots[0], alpha=0.5, delta=source
        )

    compare(overlapping)


@pytest.mark.parametrize(
    "change",
    [
        {"grad": 0.5},
        {"lr": torch.tensor(0.25)},
        {"momentum": 1},
        {"use_nesterov": True},
    ],
)
def test_a_step_may_differ_from_the_one_before(change: dict[str, Any]) -> None:
    def work(model: Model, number: int) -> None:
        changed = change if number % 2 else {}
        if "grad" in changed:
            model.variables, model.slots = model.variables[:1], model.slots[:1]
            changed = {"grad": torch.full((6,), 0.5)[::2]}
        model.momentum(number, **changed)

    compare(work)


def test_other_memory_is_noticed() -> None:
    def work(model: Model, number: int) -> None:
        if number == 2:
            model.variables[1].data = torch.full((5,), 7.0)
        model.momentum(number)

    compare(work)


@pytest.mark.parametrize(
    "seen_as",
    [
        lambda room: room[:16].view(4, 4).t(),
        lambda room: room[:20].view(4, 5)[:, :4],
        lambda room: room[:8].view(torch.bfloat16).view(4, 4),
        lambda room: room[:32].view(torch.float64).view(4, 4),
    ],
    ids=["transposed", "with gaps", "bfloat16", "float64"],
)
def test_the_same_memory_in_another_way_is_noticed(
    seen_as: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    outcomes: list[list[Any]] = []
    for batch in (Batch(), None):
        room = torch.arange(64.0).mul_(0.0625)
        tensors = [room[:16].view(4, 4), torch.ones(4, 4)]
        variable, slot = tensors
        variable, slot = torch.nn.Parameter(variable), torch.nn.Parameter(slot)
        for number in range(6):
            if number == 3:
                variable.data = seen_as(room)
            with inside_step(batch):
                tw.raw_ops.ResourceApplyMomentum(
                    var=variable,
                    accum=slot,
                    grad=torch.arange(16.0).view(4, 4) * 0.0625,
                    momentum=0.5,
                    lr=0.5,
                )
        outcomes.append([variable.tolist(), slot.tolist(), room.tolist()])
    assert repr(outcomes[0]) == repr(outcomes[1])


def test_a_wrong_call_is_refused_by_its_op_and_changes_nothing_alone() -> None:
    for steps in (0, 2):
        batch, model = Batch(), Model()
        for number in range(steps):
            with inside_step(batch):
                model.momentum(number)
        before = model.state()
        with (
            pytest.raises(ValueError, match=r"ResourceApplyMomentum: .*grad"),
            inside_step(batch),
        ):
            model.momentum(0, grad=torch.ones(4))
        assert model.state() == before
        assert batch.num_waiting == 0


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(3, device="meta"),
        torch.ones(3).to_sparse(),
        torch._neg_view(torch.full((3,), -1.0)),  # pyright: ignore[reportPrivateImportUsage] - no public way to a contiguous one
        torch.ones(6)[::2],
    ],
    ids=["meta", "sparse", "negated", "gaps"],
)
def test_a_step_with_unusual_gradients_acts_as_single_calls_do(
    grad: torch.Tensor,
) -> None:
    batch, together, single = Batch(), Model((3,)), Model((3,))

    def work(model: Model, number: int) -> str:
        try:
            model.momentum(number, **({"grad": grad} if number == 2 else {}))
            flush()
        except ValueError as error:
            return str(error)
        return ""

    for number in range(4):
        with inside_step(batch):
            outcome = work(together, number)
        assert outcome == work(single, number)
        assert together.state() == single.state()


def test_a_step_that_fails_leaves_nothing_waiting() -> None:
    batch, model = Batch(), Model()
    before = model.state()

    def fail() -> None:
        with inside_step(batch):
            model.momentum(0)
            raise KeyError("elsewhere")

    with pytest.raises(KeyError):
        fail()
    assert model.state() == before
    assert not is_inside_step()
    flush()
    assert model.state() == before


def test_what_is_not_collected_comes_after_what_waits() -> None:
    def work(model: Model, number: int) -> None:
        model.momentum(number)
        first = model.variables[0]
        value = tw.raw_ops.ReadVariableOp(resource=first)
        tw.raw_ops.AssignVariableOp(resource=first, value=value * 2)
        model.momentum(number)
        tw.raw_ops.ResourceScatterAdd(resource=first, indices=[1], updates=1.0)

    compare(work)


def test_version_counters_rise() -> None:
    batch, model = Batch(), Model()
    for number in range(3):
        versions = [v._version for v in (*model.variables, *model.slots)]
        with inside_step(batch):
            model.momentum(number)
        after = [v._version for v in (*model.variables, *model.slots)]
        assert all(b > a for a, b in zip(versions, after, strict=True))


def test_a_copy_starts_afresh() -> None:
    batch, model = Batch(), Model()
    for number in range(2):
        with inside_step(batch):
            model.momentum(number)
    for other in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        copied, single = Model(), Model()
        with inside_step(other):
            copied.momentum(0)
        single.momentum(0)
        assert copied.state() == single.state()


def test_scopes_nest() -> None:
    outer, inner, model = Batch(), Batch(), Model()
    with inside_step(outer):
        model.momentum(0)
        with inside_step(inner):
            model.momentum(1)
            assert (outer.num_waiting, inner.num_waiting) == (3, 3)
        assert outer.num_waiting == 3
        with inside_step():
            assert is_inside_step()
        flush()
        assert outer.num_waiting == 0
    assert not is_inside_step()


def test_what_a_scalar_tensor_holds_is_read_when_the_op_is_called() -> None:
    def work(model: Model, number: int) -> None:
        rate = torch.tensor(0.5)
        model.momentum(number, lr=rate)
        rate.fill_(8.0)

    compare(work)


def test_signs_of_zero_are_told_apart() -> None:
    def work(model: Model, number: int) -> None:
        for sign, var in zip((1.0, -1.0, 1.0), model.variables, strict=True):
            var.assign(torch.zeros_like(var))
            tw.raw_ops.ResourceApplyGradientDescent(
                var=var, alpha=sign * 0.0, delta=torch.full_like(var, number + 1.0)
            )
        signs = [torch.signbit(var).any().item() for var in model.variables]
        model.slots[0].fill_(float(signs.count(True)))

    compare(work)


@pytest.mark.parametrize("which", ["variable", "slot", "gradient"])
def test_memory_that_is_gone_is_refused(which: str) -> None:
    for batch in (Batch(), None):
        model, grad = Model((3,)), torch.ones(3)
        for number in range(2):
            with inside_step(batch):
                model.momentum(number, grad=grad)
        tensors = {"variable": model.variables[0], "slot": model.slots[0]}
        tensors["gradient"] = grad
        tensors.pop(which).data.untyped_storage().resize_(0)
        before = [t.tolist() for t in tensors.values()]
        with pytest.raises(ValueError, match="without memory"), inside_step(batch):
            model.momentum(2, grad=grad)
        assert [t.tolist() for t in tensors.values()] == before


def test_slots_and_numbers_may_be_exchanged() -> None:
    def work(model: Model, number: int) -> None:
        if number in (2, 4):
            model.slots[0] = torch.full((3,), 5.0)
        model.momentum(number // 2, momentum=0.5 if number < 5 else 0.25)

    compare(work, steps=8)


def test_gradients_that_move_are_found() -> None:
    kept = [torch.full((8,), float(i)) for i in range(8)]

    def work(model: Model, number: int) -> None:
        for place, (var, accum) in enumerate(
            zip(model.variables, model.slots, strict=True)
        ):
            grad = kept[(number + place) % 8][: min(len(var), 8)]
            if len(grad) == len(var):
                tw.raw_ops.ResourceApplyMomentum(
                    var=var, accum=accum, grad=grad, momentum=0.5, lr=0.5
                )

    compare(work, steps=6)
