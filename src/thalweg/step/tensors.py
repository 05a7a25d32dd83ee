"""What a kernel can write through a pointer, and what must be copied first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.errors import describe, message, with_article
from thalweg.step.overlaps import first_overlap, shares_elements

__all__ = [
    "check_overlap",
    "check_readable",
    "check_writable",
    "is_dense",
    "same_order",
]

_FREED = "without memory"
_OTHER_LAYOUT = "of another layout"
_ADVICE = {
    _FREED: "Its storage was freed; make a new one.",
    _OTHER_LAYOUT: "Pass tensor.to_dense(), or its rows to an op on rows.",
}


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in any order of axes."""
    if tensor.is_contiguous():
        return True
    expected = 1
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(axes):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_order(tensor: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether element i in memory is element i in memory of the other one."""
    if tensor.is_contiguous() and like.is_contiguous():
        return True
    axes = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    return all(size == 1 or own == other for size, own, other in axes)


def check_readable(where: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that cannot be read through a pointer.

    Args:
        where: Text that begins the message.
        name: Name of the tensor.
        tensor: The tensor.

    Raises:
        ValueError: If it is sparse, lazily negated or conjugated, or has elements
            but no memory.
    """
    _refuse(where, name, tensor, _unreadable(tensor))


def check_writable(where: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor whose elements cannot each be written through a pointer.

    Args:
        where: Text that begins the message.
        name: Name of the tensor.
        tensor: The tensor.

    Raises:
        ValueError: If it cannot be read, or has elements that share memory.
    """
    problem = _unreadable(tensor)
    if not problem and not tensor.is_contiguous() and shares_elements(tensor):
        problem = "expanded or the like: elements share memory"
    _refuse(where, name, tensor, problem)


def check_overlap(where: str, variables: Sequence[torch.Tensor]) -> None:
    """Refuse variables that share memory: the order of updates would matter.

    Args:
        where: Text that begins the message.
        variables: The variables of one step; those on devices are not looked at.

    Raises:
        ValueError: If two have memory in common; it tells their numbers.
    """
    pair = first_overlap(variables)
    if pair is not None:
        raise ValueError(
            message(
                where,
                "variables with memory of their own",
                f"variables {pair[0]} and {pair[1]}, which overlap",
                "Pass a tied variable once.",
            )
        )


def _unreadable(tensor: torch.Tensor) -> str:
    if tensor.layout is not torch.strided:
        return _OTHER_LAYOUT
    if tensor.is_neg() or tensor.is_conj():
        return "lazily negated or conjugated"
    if tensor.numel() and tensor.device.type == "cpu" and not tensor.data_ptr():
        return _FREED
    return ""


def _refuse(where: str, name: str, tensor: torch.Tensor, problem: str) -> None:
    if problem:
        raise ValueError(
            message(
                f"{where}: {name}",
                "a strided tensor with its own memory",
                f"{with_article(describe(tensor))} that is {problem}",
                _ADVICE.get(problem, "Pass a copy of it (tensor.clone())."),
            )
        )
