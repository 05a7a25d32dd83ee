"""What is saved as a value: states of objects, generators, schedules, plain values."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from thalweg.checkpoint.encoding import is_plain
from thalweg.checkpoint.randomness import generator_access
from thalweg.errors import CheckpointError, describe, message
from thalweg.schedules import LearningRateSchedule, deserialize, serialize


@runtime_checkable
class Stateful(Protocol):
    """An object that can give its state as plain values and tensors, and take it."""

    def state_dict(self) -> Any:
        """The state: None, bool, int, float, str, tensors, lists and dicts of such."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state that `state_dict` gave."""
        ...


class Value(NamedTuple):
    """Something that is saved as a value: how to read it, how to put it back.

    `holds_tensors` tells whether its state may contain tensors; `is_per_rank`,
    whether each rank has a value of its own.
    """

    get: Callable[[], Any]
    put: Callable[[Any], object]
    holds_tensors: bool = True
    is_per_rank: bool = False


class PartsOfRanks(NamedTuple):
    """How a reader puts together the slots that each rank has for itself.

    Attributes:
        ranks: How many ranks there are.
        reduction: What they would make of them: "sum", "mean" or "other".
    """

    ranks: int = 1
    reduction: str = "sum"

    @classmethod
    def read(cls, content: Any) -> PartsOfRanks | None:
        """What a manifest says of them; None if that makes no sense."""
        if not isinstance(content, dict) or content.keys() != set(cls._fields):
            return None
        found = cls(**content)
        is_count = type(found.ranks) is int and found.ranks > 1
        return found if is_count and found.reduction in _REDUCTIONS else None


_REDUCTIONS = ("sum", "mean", "other")


def parts_key(owner: str) -> str:
    """Key of what a reader has to know of the slots that are stored by rank.

    Example:
        >>> parts_key("optimizer")
        'optimizer/.parts'
    """
    return f"{owner}/.parts"


def value_of(key: str, value: Any, replace: Callable[[Any], object]) -> Value:
    """How an object that is not walked is saved and restored.

    Args:
        key: Its key, for the error text.
        value: The object.
        replace: Puts another object in its place.

    Raises:
        CheckpointError: If it is none of the kinds that can be saved.
    """
    access = generator_access(value)
    if access is not None:
        return Value(*access, is_per_rank=True)
    if isinstance(value, LearningRateSchedule):
        return Value(
            lambda: serialize(value),
            lambda config: _put_schedule(value, config, replace),
            holds_tensors=False,
        )
    if isinstance(value, Stateful):
        per_rank = bool(getattr(value, "is_per_rank", False))
        return Value(value.state_dict, lambda new: _load(value, new), True, per_rank)
    if not is_plain(value):
        raise CheckpointError(
            message(
                f"Checkpoint '{key}'",
                "a module, a Trackable, an optimizer, a tensor, a random number "
                "generator, a schedule, a plain value, or an object with "
                "state_dict() and load_state_dict()",
                describe(value),
                "Leave it out, or give it these two methods.",
            )
        )
    return Value(lambda: value, lambda new: _put_plain(value, new, replace), False)


def extra_state(module: nn.Module) -> Value | None:
    """The extra state of a module that defines one."""
    if type(module).get_extra_state is nn.Module.get_extra_state:
        return None
    return Value(module.get_extra_state, module.set_extra_state)


def _put_schedule(
    schedule: LearningRateSchedule, new: Any, replace: Callable[[Any], object]
) -> None:
    """Schedules do not change: another one takes the place of one that differs."""
    if new != serialize(schedule):
        cls = type(schedule)
        replace(deserialize(new, {cls.__name__: cls}))


def _load(owner: Stateful, state: Any) -> None:
    owner.load_state_dict(_in_form(state, owner.state_dict()))


def _in_form(new: Any, old: Any) -> Any:
    """Give counters and ordered dictionaries their type back, as `old` has them.

    The format knows one kind of dictionary; torch's `MultiStepLR` counts on a Counter.
    """
    if isinstance(new, dict) and isinstance(old, dict):
        table = {key: _in_form(item, old.get(key)) for key, item in new.items()}
        return type(old)(table) if type(old) in (Counter, OrderedDict) else table
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [_in_form(*pair) for pair in zip(new, old, strict=True)]
    return new


def _put_plain(old: Any, new: Any, replace: Callable[[Any], object]) -> None:
    """Replace a plain value; a dict or list stays the same object."""
    if isinstance(old, dict) and isinstance(new, dict):
        old.clear()
        old.update(new)
    elif isinstance(old, list) and isinstance(new, list):
        old[:] = new
    else:
        replace(new)
