"""Time per step of `Model.fit` beside a bare torch loop and Keras 3 on torch.

Scikit-learn's digits, an MLP 64-128-10 with ReLU, batches of 32 in a new order each
epoch, Adam with its defaults, cross-entropy, no metrics: the same work for all. Each
round trains every contender for some epochs, in turns. Keras is measured where it is
installed (the `bench` extra).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import thalweg as tw
from benchmarks import devices
from benchmarks.harness import interleaved, report, summary

BATCH_SIZE = 32
EPOCHS = 4
ROUNDS = 15
THREADS = 2
BOUND_TO_LOOP = 1.05
BOUND_TO_KERAS = 2.0

Arrays = tuple[np.ndarray, np.ndarray]


def digits() -> Arrays:
    """Return pixels in [0, 1] and class numbers."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)


def num_steps(data: Arrays) -> int:
    """Return the steps that one timing takes."""
    return EPOCHS * -(-len(data[0]) // BATCH_SIZE)


def module() -> nn.Sequential:
    """Return the classifier, with the same first values each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def bare_loop(data: Arrays) -> Callable[[], float]:
    """Return a contender: the loop that the torch tutorials write."""
    x, y = (torch.from_numpy(array) for array in data)
    model = module()
    optimizer = torch.optim.Adam(model.parameters())
    loss_function = nn.CrossEntropyLoss()

    def run() -> float:
        start = time.perf_counter()
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH_SIZE):
                loss = loss_function(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return (time.perf_counter() - start) / num_steps(data)

    return run


def thalweg_fit(data: Arrays) -> Callable[[], float]:
    """Return a contender: `Model.fit` of this package."""
    model = tw.Model(module())
    model.compile("adam", loss="sparse_categorical_crossentropy")

    def run() -> float:
        start = time.perf_counter()
        model.fit(*data, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
        return (time.perf_counter() - start) / num_steps(data)

    return run


def keras_fit(data: Arrays) -> Callable[[], float] | None:
    """Return a contender: `Model.fit` of Keras 3 on torch, or None without Keras."""
    os.environ["KERAS_BACKEND"] = "torch"
    try:
        import keras  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=loss)

    def run() -> float:
        start = time.perf_counter()
        # Keras annotates `verbose` as str and documents 0.
        silent: Any = 0
        model.fit(*data, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=silent)
        return (time.perf_counter() - start) / num_steps(data)

    return run


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    devices.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = digits()
    contenders = {"torch loop": bare_loop(data), "thalweg fit": thalweg_fit(data)}
    keras = keras_fit(data)
    if keras is not None:
        contenders["keras fit"] = keras
    timings = interleaved(contenders, arguments.rounds)
    figures = {name: summary(seconds) for name, seconds in timings.items()}
    loop, fit = (figures[name]["median"] for name in ("torch loop", "thalweg fit"))
    verdicts = {"fit_over_loop": round(fit / loop, 3), "at_most": BOUND_TO_LOOP}
    if keras is not None:
        ratio = figures["keras fit"]["median"] / fit
        verdicts |= {"keras_over_fit": round(ratio, 3), "at_least": BOUND_TO_KERAS}
    rows = [
        {"contender": name, **{f"{k}_us": round(1e6 * v, 1) for k, v in row.items()}}
        for name, row in figures.items()
    ]
    report("fit", rows, verdicts)


if __name__ == "__main__":
    main()
