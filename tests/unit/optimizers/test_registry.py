"""Optimizers by name."""

from __future__ import annotations

import pytest

import thalweg as tw


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_every_name_makes_its_class(name: str) -> None:
    optimizer = tw.optimizers.get(name.upper())
    assert type(optimizer).__name__.lower() == name
    again = tw.optimizers.get(tw.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def test_an_unknown_name_is_told_once() -> None:
    with pytest.raises(ValueError, match="Did you mean 'adam'") as refusal:
        tw.optimizers.get("adm")
    assert str(refusal.value).count("rmsprop") == 1


def test_a_class_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match=r"the class Adam\. .*: Adam\(\)\."):
        tw.optimizers.get(tw.optimizers.Adam)
    with pytest.raises(TypeError, match="For example 'adam'"):
        tw.optimizers.get(3)


def test_a_wrapper_is_no_optimizer_by_itself() -> None:
    with pytest.raises(ValueError, match=r"LossScaleOptimizer\(optimizer\)"):
        tw.optimizers.get("LossScaleOptimizer")
