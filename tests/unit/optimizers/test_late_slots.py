"""Flags and numbers set during training that ask for slots not made yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw

Change = Callable[[Any], None]


def set_to(name: str, value: Any) -> Change:
    return lambda optimizer: setattr(optimizer, name, value)


CHANGES = [
    (tw.optimizers.Adam, set_to("amsgrad", True), "vhat"),
    (tw.optimizers.AdamW, set_to("amsgrad", True), "vhat"),
    (tw.optimizers.SGD, set_to("momentum", 0.5), "momentum"),
    (tw.optimizers.RMSprop, set_to("momentum", 0.5), "momentum"),
    (tw.optimizers.RMSprop, set_to("centered", True), "mg"),
]


def gradient(seed: int) -> torch.Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))


def given(kind: str, seed: int) -> Any:
    if kind == "dense":
        return gradient(seed)
    return tw.IndexedSlices(gradient(seed)[:3], torch.tensor([0, 4, 0]), (6, 2))


@pytest.mark.parametrize(("cls", "change", "slot"), CHANGES)
@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("options", [{}, {"clipnorm": 1.0}])
@pytest.mark.parametrize("before", [1, 4])
def test_a_slot_is_made_in_the_step_that_needs_it(
    cls: Any,
    change: Change,
    slot: str,
    kind: str,
    options: dict[str, Any],
    before: int,
) -> None:
    known, looked_at = cls(0.1, **options), cls(0.1, **options)
    pair = tw.Variable(torch.ones(6, 2)), tw.Variable(torch.ones(6, 2))
    for seed in range(before + 4):
        if seed == before:
            change(known)
            change(looked_at)
            looked_at.build([pair[1]])
        known.apply_gradients([(given(kind, seed), pair[0])])
        looked_at.apply_gradients([(given(kind, seed), pair[1])])
    assert slot in known.get_slot_names()
    assert torch.equal(*pair)
    found = (o.get_slot(v, slot) for o, v in zip((known, looked_at), pair, strict=True))
    assert torch.equal(*found)


def test_what_a_step_will_do_can_be_asked_after_a_change() -> None:
    optimizer, variable = tw.optimizers.Adam(), tw.Variable([1.0])
    optimizer.apply_gradients([(torch.ones(1), variable)])
    optimizer.amsgrad = True
    assert str(optimizer.explain())
    optimizer.apply_gradients([(torch.ones(1), variable)])
    assert int(optimizer.iterations) == 2
