"""Checks of the steady state: nothing compiled, nothing allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thalweg.compiler import compilation
from thalweg.state import Variable
from thalweg.testing.reference import has_kernel, member_of
from thalweg.testing.report import NotApplicableError, expect
from thalweg.testing.subject import Subject, gradients, train, variables

__all__ = ["compiles_once", "allocates_nothing"]


class Allocations(TorchDispatchMode):
    """Names the operations that make memory of their own while it is entered.

    An operation whose results share memory with its arguments, such as a view or an
    update in place, makes none.

    Attributes:
        names: The operations, in order, repeated ones too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, and note it if it allocated."""
        del types
        known = _storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if _storages(result) - known:
            self.names.append(str(func))
        return result


def _storages(tree: object) -> set[int]:
    """Addresses of the memory of all tensors in a structure that have elements."""
    tensors = (t for t in tree_leaves(tree) if isinstance(t, torch.Tensor))
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


@contextmanager
def new_kernels() -> Iterator[list[str]]:
    """Names the rules that were compiled in the block, once it has ended."""
    before, names = set(compilation._KERNELS), list[str]()
    yield names
    names += [k.rule.name for k in compilation._KERNELS if k not in before]


def compiles_once(subject: Subject) -> str:
    """Later steps compile nothing: another rate, other values, other variables."""
    held, optimizer, cycle = variables(), subject.make(), subject.cycle
    train(optimizer, held, range(cycle))
    reads_sizes = not subject.is_by_hand and member_of(optimizer, held[0]).shape_read
    shape = tuple(held[0].shape) if reads_sizes else (4, 3)
    with new_kernels() as names:
        train(optimizer, held, range(cycle, 3 * cycle))
        _change_rate(optimizer)
        train(optimizer, held, range(3 * cycle, 5 * cycle))
        more = [*held, Variable(torch.ones(shape), name="layer.extra")]
        train(optimizer, more, range(5 * cycle, 7 * cycle))
        train(optimizer, held[::2], range(7 * cycle, 9 * cycle))
    expect(not names, f"compiled after the first step: {', '.join(names)}")
    return "also with another learning rate, with more variables and with fewer"


def allocates_nothing(subject: Subject) -> str:
    """Later steps allocate no tensor: another rate, other values, fewer variables."""
    if subject.is_by_hand:
        raise NotApplicableError("the class updates by hand, with tensors of its own")
    if subject.holds_functions:
        raise NotApplicableError("functions may make tensors of their own")
    held, optimizer, cycle = variables(), subject.make(), subject.cycle
    train(optimizer, held, range(2 * cycle))
    if not has_kernel(member_of(optimizer, held[0]), held[0].dtype):
        raise NotApplicableError("there is no C compiler: the interpreter runs")
    made: list[str] = []
    for step in range(2 * cycle, 8 * cycle):
        if step == 4 * cycle:
            _change_rate(optimizer)
        taken = held if step < 6 * cycle else held[::2]
        grads = gradients(step, shapes=[tuple(v.shape) for v in taken])
        with Allocations() as counting:
            optimizer.apply_gradients(zip(grads, taken, strict=True))
        made += counting.names
    names = ", ".join(sorted(set(made)))
    expect(not made, f"{len(made)} tensors allocated in six steps, by {names}")
    return "also with another learning rate, and with fewer variables"


def _change_rate(optimizer: Any) -> None:
    if "learning_rate" in optimizer._hyper:
        optimizer.learning_rate = 0.5 * optimizer.learning_rate
