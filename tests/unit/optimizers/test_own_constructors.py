"""Declared classes with an ``__init__`` of their own, and what one may leave out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import thalweg as tw


class Base(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.5, low=0.0)
    scale: tw.Hyper = tw.Hyper(default=2.0, takes_none=True)
    flipped: tw.Flag = tw.Flag(default=False)
    m = tw.Slot()

    @staticmethod
    def update(var, m, grad, *, learning_rate, scale, flipped):
        m = m + grad
        step = learning_rate * scale * m
        return var + step if flipped else var - step, m


class ByKeyword(Base):
    def __init__(self, learning_rate: Any = 0.25, **options: Any) -> None:
        tw.Optimizer.__init__(self, learning_rate=learning_rate, **options)


class ByAttribute(Base):
    def __init__(self, learning_rate: Any = 0.25, name: str | None = None) -> None:
        tw.Optimizer.__init__(self, name)
        self.learning_rate = learning_rate


class BySetHyper(Base):
    def __init__(self, learning_rate: Any = 0.25) -> None:
        tw.Optimizer.__init__(self, "BySetHyper")
        self._set_hyper("learning_rate", learning_rate)


class Defaults(Base):
    def __init__(self) -> None:
        tw.Optimizer.__init__(self)


class Further(Base):
    """Declares more than its base, whose written constructor it calls."""

    power: tw.Hyper = tw.Hyper(default=1.0)

    def __init__(self, learning_rate: Any = 0.25, **options: Any) -> None:
        super().__init__(learning_rate, **options)


class Required(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(low=0.0)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    @staticmethod
    def update(var, grad, *, learning_rate):
        return var - learning_rate * grad


class Without(Base):
    def __init__(self) -> None:
        pass


def stepped(optimizer: Any) -> float:
    variable = tw.Variable([1.0])
    optimizer.apply_gradients([(torch.ones(1), variable)])
    return variable.item()


OWN = ByKeyword, ByAttribute, BySetHyper, Further


@pytest.mark.parametrize("cls", OWN)
def test_numbers_are_those_that_the_constructor_sets(cls: Any) -> None:
    optimizer = cls()
    assert (optimizer.learning_rate, optimizer.scale) == (0.25, 2.0)
    assert stepped(optimizer) == 0.5
    assert stepped(copy.deepcopy(optimizer)) == 0.5
    assert stepped(cls(1.0)) == -1.0
    assert repr(cls(1.0)).startswith(f"{cls.__name__}(learning_rate=1.0, scale=2.0")
    config = optimizer.get_config()
    assert (config["name"], config["learning_rate"]) == (cls.__name__, 0.25)


@pytest.mark.parametrize("cls", [ByKeyword, Further])
def test_what_is_declared_is_taken_by_keyword(cls: Any) -> None:
    optimizer = cls(scale=-4.0, flipped=True, clipnorm=0.5, name="mine")
    assert (optimizer.scale, optimizer.flipped, optimizer.clipnorm) == (-4.0, True, 0.5)
    again = cls.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert cls(scale=None).scale == 2.0
    with pytest.warns(UserWarning, match="`lr` argument is deprecated"):
        assert Required(lr=0.125).learning_rate == 0.125
    with pytest.raises(ValueError, match=r"learning_rate: expected a number >= 0\.0"):
        cls(-1.0)
    with pytest.raises(TypeError, match=r"in thalweg\.optim"):
        cls(torch.nn.Linear(1, 1).parameters())


def test_without_numbers_there_are_defaults() -> None:
    assert repr(Defaults()) == "Defaults(learning_rate=0.5, scale=2.0)"
    assert stepped(Defaults()) == 0.0
    assert Further(power=3.0).power == 3.0


def test_a_number_without_default_or_value_is_asked_for() -> None:
    assert stepped(Required(learning_rate=0.25)) == 0.75
    optimizer, variable = Required(), tw.Variable([1.0])
    assert repr(optimizer) == "Required()"
    uses = (
        lambda: optimizer.learning_rate,
        lambda: optimizer.apply_gradients([(torch.ones(1), variable)]),
        lambda: optimizer.build([variable]),
        optimizer.get_config,
        lambda: optimizer._get_hyper("learning_rate"),
    )
    for use in uses:
        with pytest.raises(KeyError, match="a value of 'learning_rate'; got none"):
            use()
    assert variable.item() == 1.0
    optimizer.learning_rate = 0.25
    assert stepped(optimizer) == 0.75


def test_a_constructor_that_does_not_call_the_first_one_is_told_to() -> None:
    optimizer: Any = Without()
    uses = (
        lambda: optimizer.learning_rate,
        lambda: optimizer.learning_rat,
        lambda: setattr(optimizer, "learning_rate", 0.5),
        lambda: stepped(optimizer),
        optimizer.get_config,
        lambda: optimizer.iterations,
    )
    for use in uses:
        with pytest.raises(AttributeError, match=r"^Without: .* super\(\).__init__\("):
            use()
    assert not hasattr(optimizer, "learning_rate")


def test_no_name_is_answered_by_itself() -> None:
    class Plain(tw.Optimizer):
        def __init__(self, **options: Any) -> None:
            super().__init__("Plain", **options)

    with pytest.raises(TypeError, match=r"learning_rate\. Declare it: .*_set_hyper"):
        Plain(learning_rate=0.1)
    with pytest.raises(TypeError, match=r"Did you mean 'clipnorm'\?"):
        Plain(clipnrom=0.1)


def test_a_property_that_fails_says_what_it_lacks() -> None:
    class Careless(Base):
        @property
        def broken(self) -> Any:
            return self.nothing  # pyright: ignore[reportAttributeAccessIssue]

    with pytest.raises(AttributeError, match="Careless has no attribute 'nothing'"):
        _ = Careless().broken
