"""Keys: equal things are equal, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.compiler import KernelKey, Rule

F = torch.float32


def rule(var: Any, m: Any, grad: Any, *, lr: Any, fast: bool, safe: bool) -> Any:
    return var - lr * grad, m


RULE = Rule.of(rule)
FLAGS = (("fast", True), ("safe", False))


def test_the_order_of_flags_does_not_matter() -> None:
    one = KernelKey(RULE, FLAGS, (F,) * 3)
    assert one == KernelKey(RULE, FLAGS[::-1], (F,) * 3)
    assert hash(one) == hash(KernelKey(RULE, FLAGS[::-1], (F,) * 3))
    assert one != KernelKey(RULE, FLAGS, (F,) * 3, "sum")


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ((RULE, FLAGS[:1], (F,) * 3), ValueError, "the flags fast, safe; got fast"),
        (
            (RULE, (("fast", 1), ("safe", True)), (F,) * 3),
            TypeError,
            "a bool for 'fast'",
        ),
        ((RULE, FLAGS, (F,) * 2), ValueError, "3 dtypes (var, m, grad); got 2"),
        ((RULE, FLAGS, (F, torch.int64, F)), TypeError, "dtype for 'm'; got int64"),
        ((RULE, FLAGS, (F,) * 3, "sums"), ValueError, "Did you mean 'sum'?"),
        (
            (RULE, FLAGS, (F,) * 3, "dense", ("like",) * 2),
            ValueError,
            "1 layouts; got 2",
        ),
        (
            (RULE, FLAGS, (F,) * 3, "dense", ("rows",)),
            ValueError,
            "Did you mean 'row'?",
        ),
        (
            (RULE, FLAGS, (F,) * 3, "dense", (), ("l",)),
            ValueError,
            "Did you mean 'lr'?",
        ),
    ],
)
def test_a_key_that_does_not_fit_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], part: str
) -> None:
    with pytest.raises(error) as caught:
        KernelKey(*arguments)
    assert part in str(caught.value)


def stepped(var: Any, m: Any, grad: Any, *, lr: Any, step: Any) -> Any:
    return var - lr * grad, m + step


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"rounding": ("v",)}, "outputs of the rule; got 'v'"),
        ({"rounding": ("m",)}, "bfloat16 outputs"),
        ({"rounding": ("var",), "layouts": ("row",)}, ""),
        ({"rounding": ("m",), "layouts": ("row",)}, "'m', float32, 'row'"),
        ({"rounding": ("grad",)}, "outputs of the rule; got 'grad'"),
    ],
)
def test_only_halves_of_the_variables_shape_are_rounded_by_chance(
    more: Any, part: str
) -> None:
    dtypes = (torch.bfloat16, F, F)
    if not part:
        assert KernelKey(Rule.of(stepped), (), dtypes, **more).rounding == ("var",)
        return
    with pytest.raises(ValueError, match="kernel of stepped") as caught:
        KernelKey(Rule.of(stepped), (), dtypes, **more)
    assert part in str(caught.value)


def test_a_rule_without_a_step_is_not_rounded_by_chance() -> None:
    with pytest.raises(ValueError, match="takes 'step'"):
        KernelKey(RULE, FLAGS, (torch.bfloat16,) * 3, rounding=("var",))
