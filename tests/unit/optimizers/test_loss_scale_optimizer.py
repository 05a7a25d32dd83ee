"""An optimizer around another one scales losses and leaves out what overflowed."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.gradients.loss_scale import times

INF = float("inf")


def wrapped(inner: Any = None, **options: Any) -> tw.LossScaleOptimizer:
    inner = tw.optimizers.SGD(0.5) if inner is None else inner
    return tw.LossScaleOptimizer(inner, **{"initial_scale": 8.0, **options})


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def loss_of(model: nn.Module, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 3, generator=generator)
    return (model(x.to(next(model.parameters()).dtype)) ** 2).float().mean()


def test_losses_are_scaled_and_gradients_unscaled():
    optimizer = wrapped()
    assert float(optimizer.loss_scale) == 8.0
    assert optimizer.get_scaled_loss(torch.tensor(2.0)).item() == 16.0
    assert optimizer.get_scaled_loss(lambda: torch.tensor(2.0))().item() == 16.0
    half = optimizer.get_scaled_loss(torch.tensor(2.0, dtype=torch.float16))
    assert half.dtype == torch.float16
    rows = tw.IndexedSlices(torch.full((1, 1), 4.0), torch.tensor([0]))
    dense, sparse, none = optimizer.get_unscaled_gradients(
        [torch.tensor([16.0]), rows, None]
    )
    assert (dense.item(), sparse.values.item(), none) == (2.0, 0.5, None)


def test_the_defaults_are_those_of_keras():
    optimizer = tw.LossScaleOptimizer(tw.optimizers.SGD())
    assert optimizer.dynamic
    assert (optimizer.initial_scale, float(optimizer.loss_scale)) == (2**15, 2**15)
    assert optimizer.dynamic_growth_steps == 2000
    assert int(optimizer.dynamic_counter) == 0
    assert isinstance(optimizer.inner_optimizer, tw.optimizers.SGD)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clips": {"clipvalue": 0.1, "clipnorm": 0.5},
    "global": {"global_clipnorm": 0.3, "use_ema": True, "weight_decay": 0.1},
    "functions": {
        "gradient_transformers": [lambda pairs: [(2 * g, v) for g, v in pairs]]
    },
    "aggregator": {"gradient_aggregator": lambda pairs: [(2 * g, v) for g, v in pairs]},
    "accumulates": {"gradient_accumulation_steps": 2, "clipnorm": 0.5},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_scale_of_a_power_of_two_changes_no_bit(variant, dynamic):
    plain, scaled = model_of(), model_of()
    reference = tw.optimizers.Adam(0.05, **VARIANTS[variant])
    optimizer = wrapped(
        tw.optimizers.Adam(0.05, **VARIANTS[variant]),
        dynamic=dynamic,
        dynamic_growth_steps=2 if dynamic else None,
    )
    for number in range(6):
        one, two = list(plain.parameters()), list(scaled.parameters())
        reference.minimize(loss_of(plain, number), one)
        optimizer.minimize(lambda n=number: loss_of(scaled, n), two)
        assert [same_bits(*pair) for pair in zip(one, two, strict=True)] == [True] * 4
    assert int(optimizer.iterations) == int(reference.iterations)
    steps = int(optimizer.iterations)
    assert float(optimizer.loss_scale) == (8.0 * 2 ** (steps // 2) if dynamic else 8.0)


def test_a_tape_that_recorded_the_loss_is_used():
    weight = tw.Variable([3.0])
    with tw.GradientTape() as tape:
        loss = (weight * weight).sum()
    wrapped().minimize(loss, [weight], tape=tape)
    assert weight.item() == 0.0


@pytest.mark.parametrize("kind", ["dense", "sparse", "by hand"])
@pytest.mark.parametrize("through", ["minimize", "apply_gradients"])
def test_overflow_skips_counts_and_halves(kind, through):
    class ByHand(tw.optimizers.SGD):
        def _resource_apply_dense(self, grad, var, apply_state=None):
            var.assign_sub(grad)

    inner = (ByHand if kind == "by hand" else tw.optimizers.SGD)(1.0, momentum=0.5)
    optimizer, weight = wrapped(inner), tw.Variable(torch.ones(3, 1))

    def loss(factor: float) -> torch.Tensor:
        used = nn.functional.embedding(
            torch.tensor([1]), weight, sparse=kind == "sparse"
        )
        return (used if kind == "sparse" else weight).sum() * factor

    def step(factor: float) -> None:
        if through == "minimize":
            optimizer.minimize(lambda: loss(factor), [weight])
            return
        scaled = optimizer.get_scaled_loss(loss(factor))
        grads = torch.autograd.grad(scaled, [weight])
        grads = optimizer.get_unscaled_gradients(map(tw.state.as_gradient, grads))
        optimizer.apply_gradients(zip(grads, [weight], strict=True))

    step(0.25)
    assert weight[1].item() == 0.75
    step(INF)
    assert weight[1].item() == 0.75
    assert not optimizer.last_step_applied
    assert (int(optimizer.iterations), float(optimizer.loss_scale)) == (2, 4.0)
    assert int(optimizer.dynamic_counter) == 0
    step(0.25)
    assert optimizer.last_step_applied
    assert (int(optimizer.iterations), int(optimizer.dynamic_counter)) == (3, 1)


def test_a_fixed_scale_does_not_look_for_inf():
    weight, optimizer = tw.Variable([1.0]), wrapped(dynamic=False)
    optimizer.apply_gradients([(torch.tensor([INF]), weight)])
    assert weight.item() == -INF
    assert (optimizer.dynamic_counter, optimizer.dynamic_growth_steps) == (None, None)
    assert float(optimizer.loss_scale) == 8.0


def test_a_cycle_of_accumulation_is_one_step_of_the_scale():
    weight = tw.Variable([1.0])
    inner = tw.optimizers.SGD(0.5, gradient_accumulation_steps=3)
    optimizer = wrapped(inner, dynamic_growth_steps=2)
    seen = []
    for factor in (1, INF, 1, 1, 2, 3, 1, 1, 1):
        optimizer.minimize(lambda f=factor: (f * weight).sum(), [weight])
        seen.append((float(optimizer.loss_scale), int(optimizer.iterations)))
    assert seen == [(8, 0), (8, 0), *[(4, 1)] * 3, *[(4, 2)] * 3, (8, 3)]
    assert weight.item() == 1.0 - 0.5 * 2 - 0.5 * 1


def test_float16_gradients_that_would_vanish_arrive():
    weight = tw.Variable(torch.zeros(1, dtype=torch.float32))
    optimizer = wrapped(tw.optimizers.SGD(1.0), initial_scale=2.0**15)

    def loss() -> torch.Tensor:
        # The gradient of the cast is 1e-8, less than the least number of float16.
        return (weight.half() * torch.tensor(1e-4).half()).float().sum() * 1e-4

    optimizer.minimize(loss, [weight])
    assert weight.item() == pytest.approx(-1e-8, rel=1e-2)


def test_an_override_of_apply_gradients_sees_unscaled_gradients():
    class Watching(tw.optimizers.SGD):
        def apply_gradients(self, grads_and_vars, *args, **kwargs):
            pairs = list(grads_and_vars)
            self.seen = [gradient.item() for gradient, _ in pairs]
            return super().apply_gradients(pairs, *args, **kwargs)

    weight, inner = tw.Variable([1.0]), Watching(1.0)
    wrapped(inner).minimize(lambda: (weight * 0.5).sum(), [weight])
    assert inner.seen == [0.5]
    assert weight.item() == 0.5


def test_other_attributes_are_those_of_the_inner_optimizer():
    optimizer, weight = wrapped(tw.optimizers.Adam(0.1)), tw.Variable([1.0])
    optimizer.build([weight])
    assert optimizer.get_slot(weight, "m").item() == 0.0
    assert (optimizer.learning_rate, optimizer.beta_1, optimizer.lr) == (0.1, 0.9, 0.1)
    optimizer.learning_rate = 0.2
    optimizer.beta_1 = 0.8
    inner = optimizer.inner_optimizer
    assert (inner.learning_rate, inner.beta_1) == (0.2, 0.8)
    assert optimizer.iterations is inner.iterations
    assert list(map(id, optimizer.weights)) == list(map(id, inner.weights))
    assert list(map(id, optimizer.variables)) == list(map(id, inner.variables))
    with pytest.raises(AttributeError, match="no attribute 'learning_rat'"):
        _ = optimizer.learning_rat
    with pytest.raises(AttributeError):
        optimizer.dynamic = False


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_goes_on_by_itself(how):
    optimizer, weight = wrapped(tw.optimizers.Adam(0.1)), tw.Variable([1.0])
    optimizer.apply_gradients([(torch.tensor([INF]), weight)])
    copied, own = how((optimizer, weight))
    copied.apply_gradients([(torch.tensor([INF]), own)])
    assert (float(optimizer.loss_scale), float(copied.loss_scale)) == (4.0, 2.0)
    assert (int(optimizer.iterations), int(copied.iterations)) == (1, 2)


def test_a_checkpoint_takes_the_inner_one_for_the_owner_of_slots():
    optimizer = wrapped(tw.optimizers.Adam(0.1))
    assert not isinstance(optimizer, tw.state.SlotOwner)
    assert isinstance(optimizer.inner_optimizer, tw.state.SlotOwner)
    with pytest.raises(AttributeError, match="slot_variables"):
        _ = optimizer.slot_variables


def test_a_call_that_is_refused_leaves_the_scale():
    weight, optimizer = tw.Variable([1.0]), wrapped()
    for gradient, says in ((torch.ones(2), "has shape"), (None, "No gradients")):
        with pytest.raises(ValueError, match=says):
            optimizer.apply_gradients([(gradient, weight)])
    optimizer.apply_gradients([])
    assert (float(optimizer.loss_scale), int(optimizer.dynamic_counter)) == (8.0, 0)
    optimizer.inner_optimizer.apply_gradients([(torch.tensor([INF]), weight)])
    assert weight.item() == -INF  # by itself it checks nothing, as before


def test_the_configuration_holds_the_inner_one():
    optimizer = wrapped(tw.optimizers.Adam(0.1, clipnorm=1.0), dynamic_growth_steps=5)
    config = json.loads(json.dumps(optimizer.get_config()))
    assert config["inner_optimizer"]["class_name"] == "Adam"
    again = tw.LossScaleOptimizer.from_config(config)
    assert again.get_config() == config
    found = tw.optimizers.get(tw.optimizers.serialize(optimizer))
    assert isinstance(found, tw.LossScaleOptimizer)
    assert tw.optimizers.get(found) is found
    assert "lossscaleoptimizer" not in tw.optimizers.names()
    assert tw.mixed_precision.LossScaleOptimizer is tw.LossScaleOptimizer


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"inner_optimizer": "sgd"}, TypeError, "an Optimizer"),
        ({"inner_optimizer": "wrapped"}, TypeError, "once"),
        ({"dynamic": 8.0}, TypeError, "True or False"),
        ({"dynamic": False}, ValueError, "initial_scale"),
        ({"dynamic": False, "initial_scale": INF}, ValueError, "initial_scale"),
        (
            {"dynamic": False, "initial_scale": 2.0, "dynamic_growth_steps": 3},
            ValueError,
            "dynamic_growth_steps=None",
        ),
        ({"initial_scale": 0.5}, ValueError, "initial_scale"),
        ({"dynamic_growth_steps": 0}, ValueError, "growth_steps"),
    ],
)
def test_other_arguments_are_refused(options, kind, says):
    given = {"inner_optimizer": tw.optimizers.SGD(), **options}
    if given["inner_optimizer"] == "wrapped":
        given["inner_optimizer"] = wrapped()
    with pytest.raises(kind, match=says):
        tw.LossScaleOptimizer(**given)


def test_fit_trains_with_it():
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    y = x.sum(dim=1, keepdim=True)
    figures = []
    for wraps in (False, True):
        model = tw.Model(model_of())
        inner = tw.optimizers.Adam(0.05)
        optimizer = wrapped(inner, dynamic_growth_steps=3) if wraps else inner
        model.compile(optimizer, loss="mse")
        history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        figures.append(history.history["loss"])
    assert figures[0] == figures[1]
    assert figures[0][-1] < figures[0][0]
    assert float(optimizer.loss_scale) == 8.0 * 2**4


def test_fit_computes_in_float16_with_it():
    dtypes = []

    class Watched(nn.Linear):
        def forward(self, given):
            result = super().forward(given)
            dtypes.append(result.dtype)
            return result

    torch.manual_seed(0)
    x = torch.randn(32, 3)
    y = x.sum(dim=1, keepdim=True)
    model = tw.Model(Watched(3, 1))
    with pytest.raises(ValueError, match="LossScaleOptimizer"):
        model.compile(tw.optimizers.Adam(0.05), loss="mse", autocast="float16")
    optimizer = wrapped(tw.optimizers.Adam(0.05), initial_scale=2.0**40)
    model.compile(optimizer, loss="mse", autocast="float16")
    history = model.fit(x, y, batch_size=4, epochs=6, verbose=0).history["loss"]
    assert set(dtypes) == {torch.float16}
    assert history[-1] < history[0]
    # So large a scale overflowed, step by step, until the gradients fitted.
    assert float(optimizer.loss_scale) < 2.0**40
    assert int(optimizer.iterations) == 6 * 8


@pytest.mark.parametrize(
    ("inner", "action"),
    [
        (torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), "GradScaler"),
        ("adam", "Pass an optimizer, such as"),
        (tw.optimizers.Adam, "Pass an optimizer, such as"),
    ],
)
def test_what_is_no_optimizer_of_this_interface_is_refused(
    inner: Any, action: str
) -> None:
    with pytest.raises(TypeError, match=action):
        tw.optimizers.LossScaleOptimizer(inner)


def test_a_representation_names_optimizer_and_scale() -> None:
    inner = tw.optimizers.SGD(0.5)
    text = repr(tw.optimizers.LossScaleOptimizer(inner, initial_scale=8.0))
    assert text == f"LossScaleOptimizer({inner!r}, loss_scale=8)"


def test_a_scale_of_half_precision_is_not_rounded_to_its_dtype() -> None:
    values = torch.tensor([1.0, 2.0], dtype=torch.float16)
    large = times(values * 2.0**-14, torch.tensor(2.0**17))
    assert large.tolist() == [8.0, 16.0]
    small = times(values, torch.tensor(2.0**-20, dtype=torch.float64))
    assert small.tolist() == [
        2.0**-20,
        2.0**-19,
    ]


def test_averages_are_asked_for_by_a_bool() -> None:
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="use_ema"):
        tw.optimizers.Adam(use_ema=wrong)
