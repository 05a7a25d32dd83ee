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


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lerning_rate", "'learning_rate'"),
        ("betas", "'beta_1' or 'beta_2'"),
        ("eps", "'epsilon'"),
        ("max_grad_norm", "'global_clipnorm'"),
    ],
)
def test_a_keyword_that_is_close_to_one_is_answered_shortly(
    written: str, meant: str
) -> None:
    with pytest.raises(TypeError, match=f"Did you mean {meant}") as refusal:
        tw.optimizers.AdamW(**{written: 0.1})
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize("further", [{}, {"lr": 0.1}])
@pytest.mark.parametrize("kind", ["generator", "list", "module"])
def test_parameters_are_no_learning_rate(kind: str, further: dict[str, float]) -> None:
    module = torch.nn.Linear(2, 1)
    given: Any = {
        "generator": module.parameters(),
        "list": list(module.parameters()),
        "module": module,
    }[kind]
    with pytest.raises(TypeError, match=r"learning_rate: .* is in thalweg\.optim"):
        tw.optimizers.Adam(given, **further)


def test_dtypes_of_slots_that_nobody_declared_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"Signed: slot_dtypes: .*'mm'.*mean 'm'"):
        Signed(slot_dtypes={"mm": "bfloat16"})
    for name in ("m", "average", "low_precision_copy", "gradient_accumulator"):
        assert Signed(slot_dtypes={name: "bfloat16"}).get_config()["slot_dtypes"]


def test_a_class_that_makes_its_slots_by_hand_may_name_them() -> None:
    class ByHand(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(default=0.5)

        def _create_slots(self, var_list):
            for var in var_list:
                self.add_slot(var, "trace")

        def _resource_apply_dense(self, grad, var, apply_state=None):
            var.assign_sub(self.learning_rate * grad)

    weight = tw.Variable([1.0])
    optimizer = ByHand(slot_dtypes={"trace": "float64"})
    optimizer.apply_gradients([(torch.ones(1), weight)])
    assert optimizer.get_slot(weight, "trace").dtype == torch.float64


def test_declarations_show_how_they_were_written() -> None:
    assert repr(Signed.beta) == "Hyper(default=0.5, low=0.0, below=1.0)"
    assert repr(tw.Hyper(takes_none=True)) == "Hyper(takes_none=True)"
    assert repr(Signed.nesterov) == "Flag(default=False)"


def test_an_optimizer_shows_how_it_was_made() -> None:
    assert repr(Signed()) == "Signed(learning_rate=0.1, beta=0.5)"
    schedule = tw.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    shown = Signed(schedule, nesterov=True, decay=0.25, clipnorm=1.0)
    assert str(shown).startswith("Signed(learning_rate=ExponentialDecay(")
    assert str(shown).endswith("beta=0.5, decay=0.25, nesterov=True, clipnorm=1.0)")
    rate = Signed(torch.tensor(0.25), slot_dtypes={"m": "bfloat16"})
    expected = "Signed(learning_rate=0.25, beta=0.5, slot_dtypes={'m': 'bfloat16'})"
    assert repr(rate) == expected


def test_an_optimizer_can_be_shown_whatever_state_it_is_in() -> None:
    def fails() -> float:
        raise RuntimeError

    assert "fails" in repr(Signed(fails))
    assert "Signed object" in repr(Signed.__new__(Signed))


def test_a_number_in_front_of_the_star_is_told_where_it_belongs() -> None:
    with pytest.raises(TypeError, match=r"update\(var, grad, \*, learning_rate\)"):

        class Wrong(tw.Optimizer):
            learning_rate: tw.Hyper = tw.Hyper(default=0.1)

            @staticmethod
            def update(var, grad, learning_rate):
                return var - learning_rate * grad


@pytest.mark.parametrize(
    ("value", "advice"),
    [(2.0, r"gamma: tw\.Hyper = .*2\.0"), (True, r"gamma: tw\.Flag = .*True")],
)
def test_a_plain_number_is_told_how_to_be_declared(value: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):

        class Wrong(tw.Optimizer):
            learning_rate: tw.Hyper = tw.Hyper(default=0.1)
            gamma = value

            @staticmethod
            def update(var, grad, *, learning_rate, gamma):
                return var - learning_rate * gamma * grad


def test_a_mistyped_argument_is_told_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="Did you mean 'learning_rate'"):

        class Wrong(tw.Optimizer):
            learning_rate: tw.Hyper = tw.Hyper(default=0.1)

            @staticmethod
            def update(var, grad, *, lerning_rate):
                return var - lerning_rate * grad


@pytest.mark.parametrize("name", ["zero_grad", "state_dict", "param_groups"])
def test_names_of_torchs_optimizers_are_told_where_they_are(name: str) -> None:
    optimizer = Signed()
    assert not hasattr(optimizer, name)
    with pytest.raises(AttributeError, match=r"tw\.as_torch\(optimizer, model\)"):
        getattr(optimizer, name)


def test_an_attribute_that_is_close_to_one_is_answered_shortly() -> None:
    with pytest.raises(AttributeError, match=r"Did you mean 'learning_rate'\?$"):
        _ = Signed().learningrate  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match=r"has no attribute 'zzzz'\.$"):
        _ = Signed().zzzz  # pyright: ignore[reportAttributeAccessIssue]


KERAS_2 = {
    "SGD": ("momentum", "nesterov"),
    "Adam": ("beta_1", "beta_2", "epsilon", "amsgrad"),
    "Adamax": ("beta_1", "beta_2", "epsilon"),
    "Nadam": ("beta_1", "beta_2", "epsilon"),
    "Adagrad": ("initial_accumulator_value", "epsilon"),
    "Adadelta": ("rho", "epsilon"),
    "RMSprop": ("rho", "momentum", "epsilon", "centered"),
    "Ftrl": (
        "learning_rate_power",
        "initial_accumulator_value",
        "l1_regularization_strength",
        "l2_regularization_strength",
    ),
}
KERAS_3 = {
    "Lion": ("beta_1", "beta_2", "weight_decay"),
    "Lamb": ("beta_1", "beta_2", "epsilon", "weight_decay"),
}
PLACES = {
    **{name: ("learning_rate", *names, "name") for name, names in KERAS_2.items()},
    **{name: ("learning_rate", *names) for name, names in KERAS_3.items()},
}


@pytest.mark.parametrize("name", PLACES)
def test_arguments_by_position_are_where_keras_has_them(name: str) -> None:
    parameters = inspect.signature(getattr(tw.optimizers, name)).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert tuple(p.name for p in parameters if p.kind is kind) == PLACES[name]


def test_a_name_or_a_decay_may_be_given_by_position() -> None:
    sgd: Any = tw.optimizers.SGD
    assert sgd(0.1, 0.9, False, "mine").get_config()["name"] == "mine"
    lion: Any = tw.optimizers.Lion
    assert lion(0.1, 0.9, 0.99, 0.5).weight_decay == 0.5
    assert lion(0.1, 0.9, 0.99).weight_decay is None
    with pytest.raises(TypeError, match="too many positional arguments"):
        lion(0.1, 0.9, 0.99, 0.5, "mine")


@pytest.mark.parametrize("name", [3, True, b"mine"])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(TypeError, match="Adam: name: expected a string or None"):
        tw.optimizers.Adam(name=name)
    with pytest.raises(TypeError, match=r"SGD: name: .*given by name"):
        tw.optimizers.SGD(0.1, 0.9, False, name)  # pyright: ignore[reportCallIssue]


def test_lion_needs_a_momentum_in_its_direction() -> None:
    with pytest.raises(ValueError, match=r"beta_1: expected a number > 0.0 and < 1.0"):
        tw.optimizers.Lion(beta_1=0.0)
    assert tw.optimizers.Lion(beta_1=1e-3, beta_2=0.0).beta_2 == 0.0


def test_extras_are_given_by_name_only() -> None:
    shown = repr(tw.optimizers.SGD.torch_formula)
    assert shown == "Flag(default=False, kw_only=True)"
    shown = repr(tw.optimizers.Ftrl.beta)
    assert shown == "Hyper(default=0.0, low=0.0, kw_only=True)"
    with pytest.raises(TypeError, match="too many positional"):
        tw.optimizers.Adam(0.1, 0.9, 0.9, 1e-7, False, None, True)  # pyright: ignore[reportCallIssue]
