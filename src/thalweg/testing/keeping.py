"""Checks of what outlives an optimizer: configuration, copies, checkpoints."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from thalweg.checkpoint import Checkpoint
from thalweg.state import Variable
from thalweg.testing.report import NotApplicableError, expect
from thalweg.testing.subject import (
    Subject,
    another_value,
    expect_same_bits,
    expect_same_state,
    state_of,
    train,
    variables,
)

__all__ = ["config_round_trip", "deepcopy", "pickled", "save_and_resume"]


def config_round_trip(subject: Subject) -> str:
    """``from_config(get_config())``, through JSON, makes an equal optimizer."""
    optimizer = subject.make()
    again = _made_again(subject, optimizer)
    lost = [text for one in _with_another_number(subject) if (text := _lost(*one))]
    expect(not lost, f"get_config does not keep {', '.join(lost)}")
    if subject.holds_functions:
        return "through JSON; functions are no part of it"
    held, others = variables(), variables()
    calls = range(3 * subject.cycle)
    train(optimizer, held, calls)
    train(again, others, calls)
    what = "the optimizer from get_config() takes other steps"
    expect_same_bits(what, others, held)
    return "through JSON; the copy takes the same steps"


def _made_again(subject: Subject, optimizer: Any) -> Any:
    """What a class makes of the configuration of an optimizer, which must be alike."""
    config = optimizer.get_config()
    again = subject.cls.from_config(json.loads(json.dumps(config)))
    expect(type(again) is subject.cls, f"from_config made a {type(again).__name__}")
    other = again.get_config()
    names = sorted(set(config) | set(other))
    differing = [n for n in names if config.get(n) != other.get(n)]
    expect(not differing, f"get_config differs after a round trip in {differing}")
    return again


def _with_another_number(subject: Subject) -> Iterator[tuple[Subject, str]]:
    """The subject with each hyperparameter and flag in turn at another value.

    A configuration that keeps nothing is not seen where all stand at their defaults.
    """
    optimizer, cls = subject.make(), subject.cls
    named = inspect.signature(cls).parameters.keys() & optimizer._hyper.keys()
    values = {
        name: another_value(cls._hypers_declared.get(name), optimizer._hyper[name])
        for name in dict.fromkeys([*cls._hypers_declared, *sorted(named)])
    }
    values |= {name: not getattr(optimizer, name) for name in cls._flags_declared}
    for name, value in values.items():
        if value is not None:
            yield replace(subject, arguments={**subject.arguments, name: value}), name


def _lost(subject: Subject, name: str) -> str:
    """What has become of a number in a round trip; empty if it was kept."""
    try:
        optimizer = subject.make()
    except (TypeError, ValueError):
        return ""  # no argument of this constructor, or not beside the others
    before, after = (
        getattr(o, name) for o in (optimizer, _made_again(subject, optimizer))
    )
    return "" if before == after else f"{name}: {before} comes back as {after}"


def deepcopy(subject: Subject) -> str:
    """A deep copy goes on with the same bits, by itself."""
    held, optimizer = variables(), subject.make()
    train(optimizer, held, range(3))
    _expect_twins(subject, optimizer, held, *copy.deepcopy((optimizer, held)))
    return "goes on with the same bits"


def pickled(subject: Subject) -> str:
    """A pickled copy goes on with the same bits."""
    home = sys.modules.get(subject.cls.__module__)
    if getattr(home, subject.cls.__qualname__, None) is not subject.cls:
        raise NotApplicableError("the class is not at the top of a module")
    held, optimizer = variables(), subject.make()
    if subject.holds_functions:
        raise NotApplicableError("functions among the arguments cannot be pickled")
    train(optimizer, held, range(3))
    twins = pickle.loads(pickle.dumps((optimizer, held)))
    _expect_twins(subject, optimizer, held, *twins)
    return "goes on with the same bits"


def save_and_resume(subject: Subject) -> str:
    """A checkpoint restored into new objects goes on with the same bits."""
    held, optimizer = variables(), subject.make()
    train(optimizer, held, range(3))
    others, other = variables(), subject.make()
    with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
        path = _checkpoint(held, optimizer).save(Path(folder) / "saved")
        _checkpoint(others, other).restore(path).assert_consumed()
    _expect_twins(subject, optimizer, held, other, others)
    return "goes on with the same bits in new objects"


def _checkpoint(held: list[Variable], optimizer: Any) -> Checkpoint:
    return Checkpoint(model={v.name: v for v in held}, optimizer=optimizer)


def _expect_twins(
    subject: Subject, one: Any, held: list[Any], other: Any, others: list[Any]
) -> None:
    """Fail a check unless two optimizers go on alike, without touching each other."""
    before, calls = state_of(other, others), range(3, 3 + 3 * subject.cycle)
    train(one, held, calls)
    what = "a step of the one moves the other"
    expect_same_state(what, state_of(other, others), before)
    train(other, others, calls)
    ours, theirs = state_of(other, others), state_of(one, held)
    expect_same_state("three steps later", ours, theirs)
