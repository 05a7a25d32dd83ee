"""Model: wrapped modules, steps, compile."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.state import named_variables
from thalweg.training import Model, data_adapter
from thalweg.training.metrics import Mean

X = torch.linspace(-1, 1, 24).reshape(12, 2)
Y = (X.sum(-1, keepdim=True) > 0).to(torch.float32)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


class Chapter(Model):
    """The shape of a hand-written step."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 1)

    def call(self, inputs):
        return self.dense(inputs)

    def train_step(self, data):
        x, y = data_adapter.unpack(data)
        with tw.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compiled_loss(y, y_pred)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        self.compiled_metrics.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


class GAN(Model):
    """Two networks, two optimizers, `compile()` without arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
        self.g_optimizer = tw.optimizers.SGD(0.1)
        self.d_optimizer = tw.optimizers.SGD(0.1)
        self.d_mean = Mean("d_mean")

    def train_step(self, data):
        real = data_adapter.unpack(data)[0]
        noise = torch.ones_like(real)
        with tw.GradientTape() as d_tape:
            fake = self.generator(noise).detach()
            d_loss = (self.discriminator(fake) - self.discriminator(real)).mean()
        self.d_optimizer.minimize(
            d_loss, list(self.discriminator.parameters()), tape=d_tape
        )
        with tw.GradientTape() as g_tape:
            g_loss = -self.discriminator(self.generator(noise)).mean()
        self.g_optimizer.minimize(
            g_loss, list(self.generator.parameters()), tape=g_tape
        )
        self.d_mean.update_state(d_loss)
        return {"d_mean": self.d_mean.result(), "g_loss": g_loss}


def test_a_wrapped_module_keeps_its_names_and_tensors():
    net = network()
    model = Model(net)
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in net.named_parameters()
    ]
    assert list(named_variables(model)) == list(named_variables(net))
    assert list(model.state_dict()) == list(net.state_dict())
    assert [id(one) for one in model.trainable_variables] == [
        id(one) for one in net.parameters()
    ]
    torch.testing.assert_close(model(X), net(X))


def test_a_wrapped_module_moves_loads_and_changes_mode_as_one():
    net = network()
    model = Model(net)
    model.to(torch.float64)
    assert {one.dtype for one in net.parameters()} == {torch.float64}
    model.load_state_dict({k: v * 0 for k, v in model.state_dict().items()})
    assert not any(one.any() for one in net.parameters())
    model.eval()
    assert not net.training
    assert not net[0].training


def test_copies_of_a_wrapped_module_are_whole():
    model = Model(network())
    model.compile("sgd", "mse")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(X), model(X))
        other.fit(X, Y, verbose=0)
        assert (other(X) - model(X)).abs().max() > 0


def test_a_lone_rnn_and_a_compiled_module_can_be_wrapped():
    assert Model(nn.LSTM(2, 3)).to(torch.float64)(X.double())[0].shape == (12, 3)
    compiled: Any = torch.compile(network(), backend="eager")
    names = [name for name, _ in Model(compiled).named_parameters()]
    assert names[0] == "0.weight"


def test_hooks_of_the_model_run():
    model, seen = Model(network()), []
    model.register_forward_hook(lambda *_: seen.append(1))
    model(X)
    assert seen == [1]


def test_the_chapters_step_trains():
    model = Chapter()
    model.compile(tw.optimizers.SGD(0.5), loss="bce", metrics=["accuracy"])
    history = model.fit(X, Y, epochs=20, batch_size=4, verbose=0).history
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert history["accuracy"][-1] > 0.9


def test_two_optimizers_and_compile_without_arguments():
    model = GAN()
    model.compile()
    before = [one.clone() for one in model.trainable_variables]
    history = model.fit(X, epochs=2, batch_size=5, verbose=0).history
    assert list(history) == ["d_mean", "g_loss"]
    assert len(model.variables) == 4
    assert all(
        (one != two).any()
        for one, two in zip(before[:2], model.trainable_variables[:2], strict=True)
    )


@pytest.mark.parametrize("bits", ["call", "forward"])
def test_a_subclass_defines_call_or_forward(bits):
    def run(self, inputs):
        return self.dense(inputs)

    def init(self):
        Model.__init__(self)
        self.dense = nn.Linear(2, 1)

    model = type("Own", (Model,), {bits: run, "__init__": init})()
    model.compile("sgd", "mse")
    assert model.fit(X, Y, verbose=0).history["loss"][0] > 0


def test_dictionaries_and_tuples_become_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(2, 1)

        def forward(self, left, right):
            return self.dense(left) - right

    class One(nn.Module):
        def forward(self, batch):
            return batch["left"]

    model = Model(Two())
    expected = model(X, Y)
    torch.testing.assert_close(model({"left": X, "right": Y}), expected)
    torch.testing.assert_close(model((X, Y)), expected)
    assert Model(One())({"left": 3}) == 3
    model.compile("sgd", "mse")
    model.fit({"left": X, "right": Y}, Y, verbose=0)
    model.fit((X, Y), Y, verbose=0)


def test_metrics_lists_loss_metrics_and_attributes():
    model = Model(network())
    model.tracker = Mean("tracker")
    assert [one.name for one in model.metrics] == ["tracker"]
    model.compile("sgd", "mse", metrics=["mae", "mae"])
    names = [one.name for one in model.metrics]
    assert names == ["loss", "mae", "mae_1", "tracker"]
    model.tracker = None
    assert [one.name for one in model.metrics] == ["loss", "mae", "mae_1"]


def test_add_loss_is_part_of_the_loss():
    class Penalised(Chapter):
        train_step = Model.train_step

        def call(self, inputs):
            outputs = self.dense(inputs)
            self.add_loss(10.0 + 0 * outputs.sum())
            return outputs

    model = Penalised()
    model.compile(tw.optimizers.SGD(0.0), "mse")
    with_penalty = model.fit(X, Y, verbose=0).history["loss"][0]
    without = (model.dense(X) - Y).square().mean().item()
    assert with_penalty == pytest.approx(without + 10, rel=1e-5)
    model.compile(tw.optimizers.SGD(0.0))
    assert model.fit(X, verbose=0).history["loss"][0] == pytest.approx(10)


def test_autocast_computes_in_bfloat16_and_returns_float32():
    seen = []

    class Look(nn.Linear):
        def forward(self, input):  # noqa: A002 torch's name
            outputs = super().forward(input)
            seen.append(outputs.dtype)
            return outputs

    model = Model(Look(2, 1))
    model.compile("sgd", "mse", autocast="bfloat16")
    model.fit(X, Y, verbose=0)
    assert set(seen) == {torch.bfloat16}
    assert model(X).dtype == torch.float32


def test_jit_compile_runs_the_forward_through_torch_compile(monkeypatch):
    calls = []

    def compiler(function):
        calls.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    model = Model(network())
    model.compile("sgd", "mse", jit_compile=True)
    assert len(calls) == 1
    model.fit(X, Y, verbose=0)
    model.compile("sgd", "mse")
    assert model._compiled_call_impl is None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"loss": "msee"}, ValueError, "Did you mean 'mse'"),
        ({"metrics": ["acuracy"]}, ValueError, "Did you mean 'accuracy'"),
        ({"optimizer": "adamm"}, ValueError, "adam"),
        ({"autocast": "float16"}, ValueError, "bfloat16"),
        ({"autocast": "bf16"}, ValueError, "Did you mean 'bfloat16'"),
        ({"loss": 3}, TypeError, "a loss"),
        ({"loss": tw.losses.Loss}, TypeError, "a method items"),
        ({"loss": "nonsense"}, ValueError, "Known: bce, "),
        ({"metrics": ["nonsense"]}, ValueError, "Known: acc, "),
        ({"optimizer": "nonsense"}, ValueError, "Known: adadelta, "),
        ({"optimizer": tw.optimizers.Adam}, TypeError, r"Adam\(\)"),
        ({"optimizer": torch.optim.Adam}, TypeError, "torch's interface"),
    ],
)
def test_compile_refuses_and_changes_nothing(arguments, error, text):
    model = Model(network())
    model.compile("sgd", "mse")
    before = model.optimizer, model.compiled_loss
    with pytest.raises(error, match=text):
        model.compile(**{"optimizer": "adam", "loss": "mae"} | arguments)
    assert (model.optimizer, model.compiled_loss) == before


def test_compile_takes_torchs_dtype_and_names_in_any_spelling():
    model = Model(network())
    metrics = ["BinaryAccuracy", "meanAbsoluteError"]
    model.compile("sgd", "mse", metrics, autocast=torch.bfloat16)
    history = model.fit(X, Y, verbose=0)
    assert history.history.keys() == {"loss", *metrics}


def test_compile_refuses_torchs_optimizers():
    model = Model(network())
    with pytest.raises(TypeError, match="can minimize"):
        model.compile(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"torch.nn.Module"):
        Model(3)  # pyright: ignore[reportArgumentType]
