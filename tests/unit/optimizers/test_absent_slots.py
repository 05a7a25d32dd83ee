"""A slot that exists only where a flag is set, and the rule that goes without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw


class Largest(tw.Optimizer):
    """Divides by the second moment, or by the largest one so far."""

    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    ams: tw.Flag = tw.Flag(default=False)
    vmax = tw.Slot(when="ams")
    v = tw.Slot()

    @staticmethod
    def update(
        var: Any, vmax: Any, v: Any, grad: Any, *, learning_rate: Any, ams: Any
    ) -> Any:
        v = 0.5 * v + grad * grad
        vmax = torch.maximum(vmax, v) if ams else None
        root = torch.sqrt(vmax if ams else v)
        return var - learning_rate * grad / root, vmax, v


class Plain(tw.Optimizer):
    """The same as `Largest` without the flag."""

    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    v = tw.Slot()

    @staticmethod
    def update(var: Any, v: Any, grad: Any, *, learning_rate: Any) -> Any:
        v = 0.5 * v + grad * grad
        return var - learning_rate * grad / torch.sqrt(v), v


def train(optimizer: tw.Optimizer, weight: torch.Tensor, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        grad = torch.randn(4, 2, generator=generator)
        optimizer.apply_gradients([(grad, weight)])


@pytest.mark.parametrize(
    "options",
    [{}, {"use_ema": True}, {"weight_decay": 0.1, "low_precision_copy": "bfloat16"}],
)
def test_with_the_flag_off_there_is_no_such_slot(options: dict[str, Any]) -> None:
    one, other = (torch.nn.Parameter(torch.ones(4, 2)) for _ in range(2))
    optimizer, plain = Largest(**options), Plain(**options)
    train(optimizer, one)
    train(plain, other)
    assert torch.equal(one, other)
    assert optimizer.get_slot_names() == plain.get_slot_names()


@pytest.mark.parametrize("ams", [False, True])
def test_the_class_keeps_the_contract(ams: bool) -> None:
    tw.testing.check(Largest, ams=ams).raise_if_failed()


def test_the_flag_may_change_during_training() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = Largest()
    train(optimizer, weight)
    optimizer.ams = True
    train(optimizer, weight)
    assert (optimizer.get_slot(weight, "vmax") >= optimizer.get_slot(weight, "v")).all()
    optimizer.ams = False
    kept = optimizer.get_slot(weight, "vmax").clone()
    train(optimizer, weight)
    assert torch.equal(optimizer.get_slot(weight, "vmax"), kept)


def test_a_property_may_ask_for_a_slot_too() -> None:
    class Heavy(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(default=0.5)
        momentum: tw.Hyper = tw.Hyper(default=0.0)
        m = tw.Slot(when="has_momentum")

        @property
        def has_momentum(self) -> bool:
            return self.momentum > 0

        @staticmethod
        def update(
            var: Any, m: Any, grad: Any, *, learning_rate: Any, momentum: Any
        ) -> Any:
            if m is None:
                return var - learning_rate * grad
            m = momentum * m + grad
            return var - learning_rate * m, m

    weight, one = tw.Variable([4.0]), torch.ones(1)
    optimizer = Heavy()
    for _ in range(2):
        optimizer.apply_gradients([(one, weight)])
    assert weight.item() == 3.0
    assert optimizer.get_slot_names() == []
    optimizer.momentum = 0.5
    for _ in range(2):
        optimizer.apply_gradients([(one, weight)])
    assert weight.item() == 3.0 - 0.5 - 0.75


def answer(kind: str, var: Any, v: Any) -> Any:
    return {
        "left out": (var, v),
        "None": (var, None, v),
        "by name": (var, {"v": v}),
        "None by name": (var, {"v": v, "vmax": None}),
    }[kind]


@pytest.mark.parametrize("kind", ["left out", "None", "by name", "None by name"])
def test_a_rule_may_return_none_or_leave_the_slot_out(kind: str) -> None:
    class Answering(tw.Optimizer):
        ams: tw.Flag = tw.Flag(default=False)
        vmax = tw.Slot(when="ams")
        v = tw.Slot()

        @staticmethod
        def update(var: Any, vmax: Any, v: Any, grad: Any) -> Any:
            return answer(kind, var - grad, v + 1)

    weight = tw.Variable([4.0])
    optimizer = Answering()
    optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 3.0
    assert optimizer.get_slot(weight, "v").item() == 1.0


@pytest.mark.parametrize(
    ("given", "text"),
    [("sum", r"Wrong\.update \(.*py:\d+\).*None"), ("value", r"expected 2 results")],
)
def test_what_a_rule_does_with_an_absent_slot_is_refused_by_line(
    given: str, text: str
) -> None:
    class Wrong(tw.Optimizer):
        ams: tw.Flag = tw.Flag(default=False)
        vmax = tw.Slot(when="ams")
        v = tw.Slot()

        @staticmethod
        def update(var: Any, vmax: Any, v: Any, grad: Any) -> Any:
            return var - grad, vmax + v if given == "sum" else v, v

    weight = tw.Variable([4.0])
    with pytest.raises(TypeError, match=text) as refusal:
        Wrong().apply_gradients([(torch.ones(1), weight)])
    assert __file__ in str(refusal.value)
    assert weight.item() == 4.0


def test_a_number_from_outside_is_found_in_such_a_rule() -> None:
    outside = 2.0

    class Frozen(tw.Optimizer):
        ams: tw.Flag = tw.Flag(default=False)
        vmax = tw.Slot(when="ams")

        @staticmethod
        def update(var: Any, vmax: Any, grad: Any) -> Any:
            return var - outside * grad

    with pytest.raises(TypeError, match="outside"):
        Frozen().apply_gradients([(torch.ones(1), tw.Variable([4.0]))])
