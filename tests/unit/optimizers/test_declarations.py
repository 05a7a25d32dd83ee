"""Declaring an optimizer: constructor, descriptors, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import thalweg as tw


class Signed(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1, low=0.0)
    beta: tw.Hyper = tw.Hyper(default=0.5, low=0.0, below=1.0)
    nesterov: tw.Flag = tw.Flag(default=False)
    m = tw.Slot()

    @staticmethod
    def update(var, m, grad, *, learning_rate, beta, nesterov):
        m_new = beta * m + grad
        direction = grad + beta * m_new if nesterov else m_new
        return var - learning_rate * torch.sign(direction), m_new


def test_constructor_follows_the_declarations() -> None:
    parameters = inspect.signature(Signed.__init__).parameters
    assert list(parameters) == [
        *("self", "learning_rate", "beta", "nesterov"),
        *("name", "options"),
    ]
    assert Signed(0.5, 0.25, True).get_config() == {
        "name": "Signed",
        "learning_rate": 0.5,
        "decay": 0.0,
        "beta": 0.25,
        "nesterov": True,
    }


def test_flag_chooses_the_formula() -> None:
    one, other = tw.Variable([1.0]), tw.Variable([1.0])
    grads = [torch.tensor([1.0]), torch.tensor([-0.6])]
    plain, ahead = Signed(), Signed(nesterov=True)
    for grad in grads:
        plain.apply_gradients([(grad, one)])
        ahead.apply_gradients([(grad, other)])
    # m = 1, then -0.1: plain steps up; ahead sees -0.6 + 0.5 · -0.1 and does so too.
    assert one.item() == pytest.approx(1.0)
    assert other.item() == pytest.approx(1.0)
    assert plain.get_slot(one, "m").item() == pytest.approx(-0.1)


def test_an_own_constructor_wins() -> None:
    class Halved(Signed):
        def __init__(self, learning_rate: float = 1.0, **kwargs: Any) -> None:
            super().__init__(learning_rate=learning_rate / 2, **kwargs)

    optimizer = Halved(0.5, clipnorm=1.0)
    assert optimizer.learning_rate == 0.25
    assert optimizer.clipnorm == 1.0
    assert optimizer.get_config()["name"] == "Halved"


def test_required_hyperparameter() -> None:
    class Demanding(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(low=0.0)

        @staticmethod
        def update(var, grad, *, learning_rate):
            return var - learning_rate * grad

    with pytest.raises(TypeError, match="learning_rate"):
        Demanding()
    assert Demanding(0.5).learning_rate == 0.5


@pytest.mark.parametrize(
    "name", ["Adadelta", "Adagrad", "Adam", "Adamax", "Nadam", "RMSprop"]
)
def test_no_epsilon_is_the_default_as_in_keras(name: str) -> None:
    optimizer = getattr(tw.optimizers, name)(epsilon=None)
    assert optimizer.epsilon == optimizer.get_config()["epsilon"] == 1e-7
    with pytest.raises(TypeError, match="learning_rate"):
        getattr(tw.optimizers, name)(learning_rate=None)


def test_slots_that_were_not_declared_are_refused() -> None:
    with pytest.raises(TypeError, match="slots"):

        class Wrong(tw.Optimizer):
            learning_rate: tw.Hyper = tw.Hyper(default=0.1)

            @staticmethod
            def update(var, m, grad, *, learning_rate):
                return var - learning_rate * grad, m


def test_arguments_that_were_not_declared_are_refused() -> None:
    with pytest.raises(TypeError, match="momentun"):

        class Wrong(tw.Optimizer):
            learning_rate: tw.Hyper = tw.Hyper(default=0.1)

            @staticmethod
            def update(var, grad, *, learning_rate, momentun):
                return var - learning_rate * momentun * grad


def test_update_must_be_static() -> None:
    with pytest.raises(TypeError, match="static"):

        class Wrong(tw.Optimizer):
            learning_rate: tw.Hyper = tw.Hyper(default=0.1)

            def update(self, var, grad, *, learning_rate):
                return var - learning_rate * grad


def test_step_number_is_a_scalar() -> None:
    class Slowing(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(default=1.0)

        @staticmethod
        def update(var, grad, *, learning_rate, step):
            return var - learning_rate / step * grad

    weight = tw.Variable([0.0])
    optimizer = Slowing()
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == pytest.approx(-(1 + 1 / 2 + 1 / 3))


@pytest.mark.parametrize(
    ("slot", "shape", "value"),
    [
        (tw.Slot(initial=0.5), (4, 3), 0.5),
        (tw.Slot(shape="row", initial="start"), (4, 1), 0.25),
        (tw.Slot(shape="scalar"), (), 0.0),
    ],
)
def test_slot_shapes_and_first_values(
    slot: tw.Slot, shape: tuple[int, ...], value: float
) -> None:
    class Keeping(tw.Optimizer):
        start: tw.Hyper = tw.Hyper(default=0.25)
        kept = slot

    weight = tw.Variable(torch.randn(4, 3))
    optimizer = Keeping()
    optimizer.build([weight])
    kept = optimizer.get_slot(weight, "kept")
    assert tuple(kept.shape) == shape
    assert (kept == value).all()


def test_slot_that_starts_from_the_variable() -> None:
    class Anchored(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(default=0.1)
        anchor = tw.Slot(initial="var")

    weight = tw.Variable(torch.randn(4))
    optimizer = Anchored()
    optimizer.build([weight])
    anchor = optimizer.get_slot(weight, "anchor")
    assert torch.equal(anchor, weight)
    weight.assign(torch.zeros(4))
    assert not torch.equal(anchor, weight)


def test_flags_take_bools_only() -> None:
    with pytest.raises(TypeError, match="nesterov"):
        Signed(nesterov="yes")  # pyright: ignore[reportArgumentType]


def test_class_without_rule_says_what_to_write() -> None:
    weight = tw.Variable([1.0])
    with pytest.raises(NotImplementedError, match="update"):
        tw.Optimizer("empty").apply_gradients([(torch.ones(1), weight)])
