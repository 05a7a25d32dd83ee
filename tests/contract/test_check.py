"""The package's own optimizers keep the contract that `testing.check` states."""

from __future__ import annotations

import inspect

import pytest

import thalweg as tw
from thalweg.compiler.build import can_compile
from thalweg.testing import Line, Report, check

OPTIMIZERS = {
    name: cls
    for name in tw.optimizers.__all__
    if inspect.isclass(cls := getattr(tw.optimizers, name))
    and issubclass(cls, tw.Optimizer)
    and cls is not tw.Optimizer
}
SETTINGS = {"*bias": {"weight_decay": 0.0}, "scale": {"learning_rate": 0.1}}
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)


def skipped(report: Report) -> list[Line]:
    """The lines that a compiler would not have helped."""
    missing = "" if can_compile() else "there is no C compiler"
    return [x for x in report.skipped if not (missing and missing in x.detail)]


@every_optimizer
def test_with_its_defaults(cls: type[tw.Optimizer]) -> None:
    report = check(cls)
    report.raise_if_failed()
    assert skipped(report) == []


@every_optimizer
def test_with_every_flag_turned(cls: type[tw.Optimizer]) -> None:
    for name, flag in cls._flags_declared.items():
        check(cls, **{name: not flag.default}).raise_if_failed()


@every_optimizer
def test_with_clips_and_settings(cls: type[tw.Optimizer]) -> None:
    check(
        cls,
        learning_rate=0.05,
        clipvalue=0.8,
        global_clipnorm=2.0,
        weight_decay=0.01,
        per_variable=SETTINGS,
    ).raise_if_failed()


@every_optimizer
def test_with_decay_and_settings(cls: type[tw.Optimizer]) -> None:
    report = check(cls, learning_rate=0.05, weight_decay=0.01, per_variable=SETTINGS)
    report.raise_if_failed()
    assert skipped(report) == []


@every_optimizer
def test_with_averages_copies_and_a_check_of_gradients(cls: type[tw.Optimizer]) -> None:
    report = check(
        cls,
        learning_rate=0.05,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=2,
        nonfinite="skip",
        low_precision_copy="bfloat16",
    )
    report.raise_if_failed()
    (line,) = skipped(report)
    assert line.name == "NaN and inf stay local"


@every_optimizer
def test_with_cycles_of_gradients(cls: type[tw.Optimizer]) -> None:
    report = check(cls, gradient_accumulation_steps=3)
    report.raise_if_failed()
    assert skipped(report) == []


@every_optimizer
def test_with_16_bits_rounded_by_chance(cls: type[tw.Optimizer]) -> None:
    report = check(cls, stochastic_rounding=True, slot_dtypes="variable")
    report.raise_if_failed()
    assert skipped(report) == []


@every_optimizer
def test_with_slots_of_16_bits(cls: type[tw.Optimizer]) -> None:
    slots = dict.fromkeys(cls._slots_declared, "bfloat16")
    report = check(cls, slot_dtypes=slots)
    report.raise_if_failed()
    assert skipped(report) == []
