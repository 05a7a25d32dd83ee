"""A warning shows the line of the user's that led to it, not one far below it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw

X, Y = torch.ones(4, 2), torch.ones(4, 1)


class HalfUsed(nn.Module):
    """A module of which some variables get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def compiled(module: nn.Module) -> tw.Model:
    model = tw.Model(module)
    model.compile(tw.optimizers.SGD(), "mse")
    return model


def pairs() -> list[tuple[Any, tw.Variable]]:
    return [(torch.ones(1), tw.Variable([1.0])), (None, tw.Variable([1.0]))]


def old_name() -> None:
    tw.optimizers.Adam(lr=0.1)


def old_name_of_rules_with_a_constructor() -> None:
    tw.optimizers.Ftrl(lr=0.1)


def missing_gradients() -> None:
    tw.optimizers.SGD().apply_gradients(pairs())


def missing_gradients_in_minimize() -> None:
    first, second = tw.Variable([1.0]), tw.Variable([1.0])
    tw.optimizers.SGD().minimize(lambda: first.sum(), [first, second])


def missing_gradients_in_a_strategy() -> None:
    optimizer, strategy = tw.optimizers.SGD(), tw.distribute.OneDeviceStrategy("cpu")
    with strategy.scope():
        strategy.run(lambda: optimizer.apply_gradients(pairs()))


def missing_gradients_in_fit() -> None:
    compiled(HalfUsed()).fit(X, Y, verbose=0)


def nothing_to_stop_by() -> None:
    stopping = tw.callbacks.EarlyStopping("nothing")
    compiled(nn.Linear(2, 1)).fit(X, Y, verbose=0, callbacks=[stopping])


def nothing_to_save_by() -> None:
    saving = tw.callbacks.ModelCheckpoint("nowhere", "nothing", save_best_only=True)
    compiled(nn.Linear(2, 1)).fit(X, Y, verbose=0, callbacks=[saving])


def data_that_end() -> None:
    compiled(nn.Linear(2, 1)).fit(iter([(X, Y)]), epochs=2, verbose=0)


def a_loss_that_is_lost() -> None:
    callbacks = [tw.callbacks.TerminateOnNaN()]
    compiled(nn.Linear(2, 1)).fit(X * torch.nan, Y, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(
    "call",
    [
        old_name,
        old_name_of_rules_with_a_constructor,
        missing_gradients,
        missing_gradients_in_minimize,
        missing_gradients_in_a_strategy,
        missing_gradients_in_fit,
        nothing_to_stop_by,
        nothing_to_save_by,
        data_that_end,
        a_loss_that_is_lost,
    ],
    ids=lambda call: call.__name__,
)
def test_a_warning_shows_the_user_s_line(
    call: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    lines, first = inspect.getsourcelines(call)
    assert [one.filename for one in said] == [__file__]
    assert said[0].lineno == first + len(lines) - 1
