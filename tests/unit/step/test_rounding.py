"""What optimizers say of rounding by chance: options, labels, refusals."""

from __future__ import annotations

import pytest
import torch

from thalweg.compiler.rounding import rounding_key
from thalweg.step import Rounding
from thalweg.step.rounding import (
    check_roundable,
    checked_rounding,
    labels_of,
    rounding_of,
)

HALF = torch.bfloat16


def test_labels_are_different_and_begin_with_the_names() -> None:
    names = ["a", "", "b", "a", "", "a"]
    labels = labels_of(names)
    assert len(set(labels)) == len(names)
    assert [label.rsplit(" ", 1)[0] for label in labels] == names
    assert labels_of(names[:3]) == labels[:3]


def test_a_variable_without_bfloat16_has_no_chance() -> None:
    wide, half = torch.ones(3), torch.ones(3, dtype=HALF)
    assert rounding_of(0, "w", wide, [wide]) is None
    for variable, slot in ((wide, half), (half, wide)):
        assert rounding_of(4, "w", variable, [slot]) == Rounding(rounding_key(4, "w"))


def test_float16_is_refused_and_the_rest_taken() -> None:
    check_roundable("Own", torch.ones(3), {"m": HALF, "v": torch.float64})
    with pytest.raises(ValueError, match=r"Own: .*float16 for slot 'm'"):
        check_roundable("Own", torch.ones(3), {"m": torch.float16})


def test_a_seed_stands_beside_the_option_only() -> None:
    assert checked_rounding("Own", False, None) == (False, 0)
    assert checked_rounding("Own", True, None) == (True, 0)
    assert checked_rounding("Own", True, 7) == (True, 7)
    with pytest.raises(ValueError, match="0 without it"):
        checked_rounding("Own", False, 0)
