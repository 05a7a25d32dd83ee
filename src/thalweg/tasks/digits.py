"""The digits task: 1,797 handwritten digits of 8 × 8 pixels, classified by an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from thalweg.errors import message
from thalweg.tasks.task import Problem, Split, Task
from thalweg.training import Model

_NUM_TEST = 360
_SPLIT_SEED = 0
_BRIGHTEST = 16.0


def load() -> Problem:
    """Read scikit-learn's digits and split them, always alike.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    pixels, labels = _read()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    x = (pixels[order] / _BRIGHTEST).astype(np.float32)
    y = labels[order].astype(np.int64)
    return Problem(
        train=Split(x[_NUM_TEST:], y[_NUM_TEST:]),
        test=Split(x[:_NUM_TEST], y[:_NUM_TEST]),
        build_model=build_model,
        loss="sparse_categorical_crossentropy",
        metrics=("accuracy",),
        figure=_accuracy,
        report=lambda model: _describe(model, x[:_NUM_TEST], y[:_NUM_TEST]),
    )


def build_model() -> Model:
    """Return the untrained classifier, 64-256-10."""
    return Model(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))


def _read() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits  # an optional dependency
    except ModuleNotFoundError as error:
        action = "Install the extra: pip install 'thalweg[demo]'."
        raise ModuleNotFoundError(
            message("task digits", "scikit-learn", "none", action)
        ) from error
    data: Any = load_digits()
    return data.data, data.target


def _accuracy(logs: Mapping[str, float]) -> float:
    return logs["accuracy"]


def _describe(model: Model, x: np.ndarray, y: np.ndarray) -> list[str]:
    guesses = np.asarray(model.predict(x, verbose=0)).argmax(-1)
    wrong = np.flatnonzero(guesses != y)
    pairs = ", ".join(f"{y[row]} read as {guesses[row]}" for row in wrong[:8])
    return [f"{len(wrong)} of {len(y)} test digits are misread: {pairs or 'none'}"]


TASK = Task(
    name="digits",
    summary="handwritten digits of 8 × 8 pixels, an MLP",
    figure_name="test_accuracy",
    optimizer="adam",
    learning_rate=2e-3,
    epochs=30,
    batch_size=32,
    load=load,
    higher_is_better=True,
    num_threads=1,
)
