"""Checks of unusual variables: empty, 0-d, strided, channels last."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thalweg.state import Variable
from thalweg.testing.reference import member_of
from thalweg.testing.report import expect
from thalweg.testing.subject import (
    Subject,
    expect_close,
    expect_same_bits,
    gradients,
    train,
    variables,
)

__all__ = ["empty_and_zero_dimensional", "strides"]

_IMAGES = (2, 3, 4, 5)


def empty_and_zero_dimensional(subject: Subject) -> str:
    """Variables without elements or without axes take a step beside others."""
    zero, one = _smallest(subject, ()), _smallest(subject, (1,))
    # A gradient may well leave a number where it is, but then in any shape.
    if subject.is_by_hand or _reads_shape(subject):
        expect(zero.ne(0.5) == one.ne(0.5), f"{_moved(zero)}, {_moved(one)}")
    else:
        what = "the 0-d variable and one of shape (1,)"
        expect_same_bits(what, [zero.reshape(1)], [one])
    return "shapes (0,), (0, 4), (3, 0), ()"


def _smallest(subject: Subject, last: tuple[int, ...]) -> torch.Tensor:
    """Three steps on empty variables and one of a single element, which is returned."""
    names = ("layer.bias", "layer.weight", "embedding.weight", "scale")
    shapes = ((0,), (0, 4), (3, 0), last)
    held = [
        Variable(torch.full(shape, 0.5), name=name)
        for name, shape in zip(names, shapes, strict=True)
    ]
    optimizer = subject.make()
    train(optimizer, held, range(3 * subject.cycle))
    expect(int(optimizer.iterations) == 3, "iterations is not 3 after three steps")
    for variable, shape in zip(held, shapes, strict=True):
        expect(tuple(variable.shape) == shape, f"{shape} became {variable.shape}")
    return held[-1].detach()


def _reads_shape(subject: Subject) -> bool:
    held, optimizer = variables(), subject.make()
    optimizer.build(held)
    return member_of(optimizer, held[0]).shape_read is not None


def _moved(variable: torch.Tensor) -> str:
    verb = "moves" if variable.item() != 0.5 else "does not move"
    return f"a variable of shape {tuple(variable.shape)} {verb}"


def strides(subject: Subject) -> str:
    """Any order of elements, in variable or gradient, gives the same numbers."""
    orders: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        "with gaps": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    }
    plain = _run(subject, _same, _same)
    for name, order in orders.items():
        for where, run in (
            ("variable", _run(subject, order, _same)),
            ("gradient", _run(subject, _same, order)),
            ("variable and gradient", _run(subject, order, order)),
        ):
            # A norm adds up in the order of memory.
            expect_alike = expect_close if subject.has_clips else expect_same_bits
            expect_alike(f"{where} {name}", [run], [plain])
    return f"{', '.join(orders)} as contiguous ones"


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _run(
    subject: Subject,
    order: Callable[[torch.Tensor], torch.Tensor],
    order_of_gradient: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    names = ("layer.weight", "layer.bias", "scale", "embedding.weight")
    held = [Variable(torch.ones(_IMAGES), name=name) for name in names]
    first = torch.linspace(-1.0, 1.0, held[0].numel()).reshape(_IMAGES)
    held[0].data = order(first)
    optimizer = subject.make()
    optimizer.build(held)
    for step in range(3 * subject.cycle):
        (grad,) = gradients(step, shapes=[_IMAGES])
        optimizer.apply_gradients([(order_of_gradient(grad), held[0])])
    expect(held[0].stride() == order(first).stride(), "the strides were changed")
    return held[0].detach()
