"""Slots that are declared wrongly: refused by class and name, before a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw


def class_with(**options: Any) -> type[tw.Optimizer]:
    class Keeping(tw.Optimizer):
        lr: tw.Hyper = tw.Hyper(default=0.25)  # pyright: ignore[reportIncompatibleVariableOverride]
        ams: tw.Flag = tw.Flag(default=False)
        kept = tw.Slot(**options)

        @staticmethod
        def update(var: Any, kept: Any, grad: Any, *, lr: Any) -> Any:
            return var - lr * grad, kept

    return Keeping


AT_DEFINITION = [
    ({"shape": "rows"}, r"shape: expected one of \('like', .*got 'rows'.*mean 'row'\?"),
    ({"shape": (3,)}, r"shape: expected one of .*got \(3,\)"),
    ({"dtype": "bfloat61"}, r"dtype: expected a dtype among .*; got 'bfloat61'"),
    ({"dtype": torch.int32}, r"dtype: expected a dtype among .*; got torch\.int32"),
    ({"initial": None}, r"initial: expected a number, 'var' or .*; got None"),
]


@pytest.mark.parametrize(("options", "text"), AT_DEFINITION)
def test_a_wrong_slot_is_refused_when_the_class_is_made(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"Keeping\.kept: {text}"):
        class_with(**options)


def test_the_name_of_a_slot_is_the_one_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"Keeping\.mine: shape"):
        class_with(shape="rows", name="mine")


AT_CONSTRUCTION = [
    ({"initial": "learning_rate"}, r"initial: .*'learning_rate'. Did you mean 'lr'\?"),
    ({"initial": "zeros"}, r"initial: expected a number, 'var' or .*got 'zeros'"),
    ({"when": "amsgrad"}, r"when: expected the name of a flag .*Did you mean 'ams'\?"),
    ({"when": "zzzz"}, r"when: .*zzzz: tw\.Flag = tw\.Flag\(default=False\)"),
]


@pytest.mark.parametrize(("options", "text"), AT_CONSTRUCTION)
def test_a_slot_that_asks_for_what_is_not_there_is_refused(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=rf"Keeping\.kept: {text}"):
        class_with(**options)()


def test_what_an_own_constructor_sets_later_may_be_asked_for() -> None:
    class Later(class_with(initial="start", when="wants")):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._set_hyper("start", 0.5)
            self.wants = True

    weight = tw.Variable([1.0])
    optimizer = Later()
    optimizer.build([weight])
    assert optimizer.get_slot(weight, "kept").item() == 0.5


def test_what_a_subclass_declares_may_be_asked_for() -> None:
    class Sub(class_with(initial="start", when="wants")):
        start: tw.Hyper = tw.Hyper(default=0.5)
        wants: tw.Flag = tw.Flag(default=True)

    weight = tw.Variable([1.0])
    optimizer = Sub()
    optimizer.build([weight])
    assert optimizer.get_slot(weight, "kept").item() == 0.5


def test_a_hyperparameter_that_is_not_there_is_told_by_name() -> None:
    with pytest.raises(
        KeyError, match=r"SGD: .*got 'momentun'. Did you mean 'momentum'"
    ):
        tw.optimizers.SGD().hyper_in_force("momentun")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_dtype_of_a_slot_may_be_given_by_name(dtype: Any) -> None:
    weight = tw.Variable([1.0])
    optimizer = class_with(dtype=dtype)()
    optimizer.apply_gradients([(torch.ones(1), weight)])
    assert optimizer.get_slot(weight, "kept").dtype == torch.bfloat16
    other = class_with(dtype=dtype)(slot_dtypes={"kept": "float64"})
    other.build([weight])
    assert other.get_slot(weight, "kept").dtype == torch.float64
    text = class_with(dtype=dtype)().kernel_source()
    assert "kept bfloat16" in text
