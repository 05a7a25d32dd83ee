"""Hyperparameters of an own class whose names mean something elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

import thalweg as tw


class Brief(tw.Optimizer):
    lr: tw.Hyper = tw.Hyper(default=1.0, low=0.0)  # pyright: ignore[reportIncompatibleVariableOverride]

    @staticmethod
    def update(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad


class Both(Brief):
    learning_rate: tw.Hyper = tw.Hyper(default=0.25)


def test_a_hyperparameter_called_lr_comes_back_from_its_configuration() -> None:
    config = Brief(0.5).get_config()
    assert config == {"name": "Brief", "lr": 0.5}
    assert Brief.from_config(config).lr == 0.5
    saved = tw.optimizers.serialize(Brief(0.5))
    again: Any = tw.optimizers.deserialize(saved, {"Brief": Brief})
    again.lr = 0.125
    assert again.get_config() == {"name": "Brief", "lr": 0.125}
    schedule = tw.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    again = Brief.from_config(Brief(schedule).get_config())
    assert again.lr == 0.5
    assert isinstance(again._get_hyper("lr"), type(schedule))


def test_a_class_with_a_hyperparameter_called_lr_keeps_the_contract() -> None:
    tw.testing.check(Brief).raise_if_failed()


def test_beside_it_a_learning_rate_is_another_one() -> None:
    optimizer = Both.from_config(Both(lr=0.5, learning_rate=0.75).get_config())
    optimizer.lr = 0.125
    assert (optimizer.lr, optimizer.learning_rate) == (0.125, 0.75)


def test_elsewhere_lr_is_the_old_name_of_the_learning_rate() -> None:
    optimizer = tw.optimizers.SGD.from_config({"lr": 0.5})
    assert optimizer.lr == optimizer.learning_rate == 0.5
    optimizer.lr = 0.25
    assert optimizer.learning_rate == 0.25


def test_an_own_constructor_may_have_an_argument_called_lr() -> None:
    class Own(tw.Optimizer):
        def __init__(self, lr: float = 0.5, **options: Any) -> None:
            super().__init__(**options)
            self._set_hyper("learning_rate", lr)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "lr": self.learning_rate}  # pyright: ignore[reportAttributeAccessIssue]

    assert Own.from_config(Own(0.125).get_config()).learning_rate == 0.125


@pytest.mark.parametrize("name", ["self", "name", "options", "step"])
@pytest.mark.parametrize("field", [tw.Hyper(default=1.0), tw.Flag(default=False)])
def test_a_reserved_name_is_refused_as_such(name: str, field: Any) -> None:
    with pytest.raises(TypeError, match=rf"Wrong\.{name}: .*{name!r}.*reserved"):
        type("Wrong", (tw.Optimizer,), {name: field})
