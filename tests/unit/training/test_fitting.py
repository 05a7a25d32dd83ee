"""fit, evaluate and predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.training import Model
from thalweg.training.callbacks import Callback

COUNT = 23
X = np.random.default_rng(0).normal(size=(COUNT, 4))
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def model_of(seed: int = 0, rate: float = 0.1, **options) -> Model:
    torch.manual_seed(seed)
    model = Model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    settings: dict[str, Any] = {"loss": "sparse_categorical_crossentropy"} | options
    model.compile(tw.optimizers.SGD(rate), **settings)
    return model


def weights(model: Model) -> torch.Tensor:
    return torch.cat([one.detach().reshape(-1) for one in model.parameters()])


class Pairs(Dataset):
    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.tensor(X[index]), int(Y[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Pairs()[index] for index in range(COUNT)])


def test_fit_is_the_bare_loop_bit_for_bit():
    model = model_of()
    torch.manual_seed(1)
    model.fit(X, Y, epochs=2, batch_size=5, verbose=0)
    bare = model_of()
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    x, y = torch.tensor(X, dtype=torch.float32), torch.tensor(Y)
    for _ in range(2):
        for rows in torch.randperm(COUNT, generator=generator).split(5):
            loss = functional.cross_entropy(bare(x[rows]), y[rows])
            loss.backward()
            with torch.no_grad():
                for one in bare.parameters():
                    assert one.grad is not None
                    one -= 0.1 * one.grad
                    one.grad = None
    assert torch.equal(weights(model), weights(bare))


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X, Y),
        lambda: (torch.tensor(X), torch.tensor(Y, dtype=torch.int32)),
        lambda: (X.tolist(), Y.tolist()),
        lambda: (TensorDataset(torch.tensor(X), torch.tensor(Y)), None),
        lambda: (Pairs(), None),
        lambda: (Stream(), None),
        lambda: (DataLoader(Pairs(), batch_size=32), None),
        lambda: (Batches(), None),
    ],
)
def test_every_kind_of_data_gives_the_same_figures(data):
    model = model_of(rate=0.0, metrics=["accuracy"])
    x, y = data()
    history = model.fit(x, y, verbose=0, shuffle=False).history
    expected = model.evaluate(X, Y, verbose=0)
    assert history["loss"][0] == pytest.approx(expected[0], rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(expected[1])


class Batches:
    def __iter__(self):
        yield X[:9], Y[:9]
        yield X[9:], Y[9:]


def test_figures_are_means_over_items_also_of_an_uneven_last_batch():
    model = model_of(rate=0.0, metrics=["accuracy"])
    figures = model.evaluate(X, Y, batch_size=7, verbose=0, return_dict=True)
    outputs = torch.tensor(model.predict(X, batch_size=4))
    loss = functional.cross_entropy(outputs, torch.tensor(Y))
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-6)
    accuracy = (outputs.argmax(-1).numpy() == Y).mean()
    assert figures["accuracy"] == pytest.approx(accuracy)


def test_validation_split_takes_the_last_samples_and_data_go_before():
    model = model_of(rate=0.0)
    history = model.fit(X, Y, validation_split=0.3, verbose=0).history
    cut = int(COUNT * 0.7)
    expected = model.evaluate(X[cut:], Y[cut:], verbose=0)
    assert history["val_loss"][0] == pytest.approx(expected)
    history = model.fit(
        X, Y, validation_split=0.3, validation_data=(X[:5], Y[:5]), verbose=0
    ).history
    expected = model.evaluate(X[:5], Y[:5], verbose=0)
    assert history["val_loss"][0] == pytest.approx(expected)


def test_weights_of_samples_and_classes():
    def gradient_step(**options):
        model = model_of()
        model.fit(X, Y, batch_size=COUNT, shuffle=False, verbose=0, **options)
        return weights(model)

    by_class = {0: 1.0, 1: 3.0, 2: 0.5}
    by_sample = np.array([by_class[int(label)] for label in Y])
    one = gradient_step(class_weight=by_class)
    torch.testing.assert_close(one, gradient_step(sample_weight=by_sample))
    both = gradient_step(class_weight=by_class, sample_weight=by_sample)
    torch.testing.assert_close(both, gradient_step(sample_weight=by_sample**2))
    reference = model_of()
    outputs = reference(torch.tensor(X, dtype=torch.float32))
    losses = functional.cross_entropy(outputs, torch.tensor(Y), reduction="none")
    (torch.tensor(by_sample) * losses).mean().backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(one, weights(reference))


def test_predict_keeps_the_mode_and_the_structure():
    class Two(nn.Module):
        def forward(self, inputs):
            return {"sum": inputs.sum(-1), "all": (inputs, self.training)[0]}

    model = Model(Two())
    found = model.predict(X, batch_size=10)
    assert found["sum"].shape == (COUNT,)
    np.testing.assert_allclose(found["all"], X.astype(np.float32))
    assert model.training


def test_steps_per_epoch_and_iterators_go_on_where_they_were():
    seen = []

    class Watch(Model):
        def train_step(self, data):
            seen.append(int(data[0]))
            return {"value": data[0].float().mean()}

    model = Watch()
    model.compile()
    stream = ((torch.tensor([number]),) for number in range(100))
    history = model.fit(stream, epochs=3, steps_per_epoch=2, verbose=0).history
    assert seen == [0, 1, 2, 3, 4, 5]
    assert history == {"value": [0.5, 2.5, 4.5]}


def test_data_that_end_early_end_training():
    model = model_of()
    batches = iter([(X[:3], Y[:3])])
    with pytest.warns(UserWarning, match="ended before epoch 2"):
        history = model.fit(batches, epochs=3, verbose=0)
    assert history.epoch == [0]
    with pytest.raises(ValueError, match="at least one batch"):
        model.fit(batches, verbose=0)


def test_own_figures_are_means_over_samples():
    class Own(Model):
        def train_step(self, data):
            return {"first": data.float().mean()}

    model = Own()
    model.compile()
    history = model.fit(torch.arange(5.0), batch_size=2, shuffle=False, verbose=0)
    assert history.history["first"] == [2.0]


def test_initial_epoch_and_reproducible_orders():
    model = model_of()
    assert model.fit(X, Y, initial_epoch=2, epochs=4, verbose=0).epoch == [2, 3]
    runs = []
    for _ in range(2):
        model = model_of()
        torch.manual_seed(3)
        model.fit(X, Y, batch_size=4, verbose=0)
        runs.append(weights(model))
    assert torch.equal(*runs)


def test_a_run_resumes_in_the_middle_of_an_epoch():
    whole = model_of()
    torch.manual_seed(5)
    kept = {}

    class Keep(Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.data_position.epoch == 1 and batch == 2:
                kept["position"] = self.model.data_position.state_dict()
                kept["model"] = {
                    k: v.clone() for k, v in self.model.state_dict().items()
                }

    whole.fit(X, Y, epochs=3, batch_size=4, verbose=0, callbacks=[Keep()])
    resumed = model_of(seed=9)
    resumed.load_state_dict(kept["model"])
    resumed.data_position.load_state_dict(kept["position"])
    history = resumed.fit(X, Y, epochs=3, batch_size=4, verbose=0)
    assert history.epoch == [1, 2]
    assert torch.equal(weights(whole), weights(resumed))


def test_freezing_between_epochs_is_seen():
    class Freeze(Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert isinstance(self.model, Model)
            self.model.trainable = False
            next(iter(self.model.parameters())).requires_grad_(True)

    model = model_of()
    kept = {}

    class Keep(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kept["bias"] = model.state_dict()["0.bias"].clone()

    model.fit(X, Y, epochs=2, verbose=0, callbacks=[Keep(), Freeze()])
    assert torch.equal(model.state_dict()["0.bias"], kept["bias"])


BAD = [
    ({"x": X[:0], "y": Y[:0]}, ValueError, "at least one sample"),
    ({"y": Y[:-1]}, ValueError, "x 23, y 22"),
    ({"x": None}, ValueError, "x=None"),
    ({"x": 3}, TypeError, "data"),
    ({"x": np.array([["a"] * 4] * COUNT)}, TypeError, "an array of numbers"),
    ({"y": np.where(np.arange(COUNT) == 4, 7, Y)}, ValueError, r"7 at y\[4\]"),
    ({"y": np.where(np.arange(COUNT) == 4, -1, Y)}, ValueError, r"-1 at y\[4\]"),
    ({"epochs": 0}, ValueError, "epochs >= 1"),
    ({"epochs": 1.5}, TypeError, "epochs as an int"),
    ({"batch_size": 0}, ValueError, "batch_size >= 1"),
    ({"verbose": 3}, ValueError, "verbose 0, 1 or 2"),
    ({"callbacks": [3]}, TypeError, "a Callback"),
    ({"validation_split": 1.0}, ValueError, "validation_split < 1"),
    ({"validation_split": 0.99}, ValueError, "samples on both sides"),
    ({"validation_data": (X,)}, ValueError, "two or three parts"),
    ({"validation_data": (X, Y[:3])}, ValueError, "validation_data"),
    ({"class_weight": {0: 1.0, 2: 1.0}}, ValueError, "none for class 1"),
    ({"sample_weight": np.ones(3)}, ValueError, "sample_weight 3"),
    ({"x": Pairs()}, ValueError, "no y"),
    (
        {"x": DataLoader(Pairs()), "y": None, "batch_size": 3},
        ValueError,
        "no batch_size",
    ),
    ({"x": Pairs(), "y": None, "validation_split": 0.5}, ValueError, "arrays to split"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_fit_refuses_and_changes_nothing(change, error, text):
    model = model_of()
    before, state = weights(model).clone(), torch.get_rng_state()
    with pytest.raises(error, match=text):
        model.fit(**{"x": X, "y": Y, "verbose": 0} | change)
    assert torch.equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.history is None
    assert model.training


def test_labels_of_loaders_are_checked_before_their_step():
    wrong = np.where(np.arange(COUNT) == 20, 5, Y)
    loader = DataLoader(
        TensorDataset(torch.tensor(X), torch.tensor(wrong)), batch_size=COUNT
    )
    model = model_of()
    before = weights(model).clone()
    with pytest.raises(ValueError, match=r"5 at y\[20\]"):
        model.fit(loader, verbose=0)
    assert torch.equal(weights(model), before)


def test_fit_before_compile_and_without_optimizer():
    model = Model(nn.Linear(4, 3))
    for method in (model.fit, model.evaluate):
        with pytest.raises(RuntimeError, match="compile"):
            method(X, Y)
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="an optimizer"):
        model.fit(X, Y)


def test_binary_targets_out_of_range():
    model = Model(nn.Linear(4, 1))
    model.compile("sgd", "bce")
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.fit(X, Y * 2.0, verbose=0)


def test_ignored_labels_do_not_count():
    labels = Y.copy()
    labels[:10] = -100
    model = model_of(rate=0.0, metrics=["accuracy"])
    history = model.fit(X, labels, batch_size=4, verbose=0).history
    loss, accuracy = model.evaluate(X[10:], Y[10:], verbose=0)
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(accuracy)


@pytest.mark.parametrize("clip", [{}, {"clipnorm": 1.0}])
def test_an_error_in_fit_names_variables(clip):
    model = model_of()
    model.compile(tw.optimizers.SGD(0.1, nonfinite="error", **clip), "mse")
    x, y = X.copy(), np.zeros((COUNT, 3))
    x[0] = np.nan
    with pytest.raises(FloatingPointError, match=r"0\.weight.*2\.bias"):
        model.fit(x, y, batch_size=COUNT, verbose=0)


def test_fit_knows_names_for_settings_of_single_variables():
    model = model_of()
    optimizer = tw.optimizers.SGD(0.1, per_variable={"2.*": {"learning_rate": 0.0}})
    model.compile(optimizer, "sparse_categorical_crossentropy")
    before = [one.detach().clone() for one in model.parameters()]
    model.fit(X, Y, verbose=0)
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same == [False, False, True, True]


def test_a_history_shows_its_last_figures():
    model = model_of()
    history = model.fit(X, Y, epochs=2, verbose=0)
    figure = history.history["loss"][-1]
    assert repr(history) == f"<History of 2 epochs: loss {figure:.4g}>"
    assert repr(tw.training.History()) == "<History of 0 epochs>"


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(), nn.CrossEntropyLoss])
def test_targets_that_are_missing_are_told(loss):
    model = model_of(loss=loss)
    before = weights(model)
    with pytest.raises(ValueError, match=r"expected targets; got none\. Pass y"):
        model.fit(X, verbose=0)
    assert torch.equal(weights(model), before)


def test_a_function_may_do_without_targets():
    model = model_of(loss=lambda y_true, y_pred: y_pred.square())
    assert model.fit(X, verbose=0).epoch == [0]


class Late(tw.optimizers.SGD):
    """As on a device, which tells of the last step when it is asked."""

    @property
    def last_step_applied(self) -> bool:
        raise FloatingPointError("a NaN in the last step")


def test_fit_raises_what_a_device_found_in_its_last_step():
    model = model_of()
    model.compile(Late(0.1), "sparse_categorical_crossentropy")
    with pytest.raises(FloatingPointError, match="in the last step"):
        model.fit(X, Y, verbose=0)
