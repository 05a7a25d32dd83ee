"""Clips, checks and averages, folded into the step of every optimizer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.contract.test_optimizers import every_optimizer
from thalweg.gradients import clip_by_global_norm, clip_by_norm, clip_by_value

SHAPES = ((5, 3), (4,), (), (0, 2))
CLIPS: dict[str, Any] = {
    "clipvalue": clip_by_value,
    "clipnorm": clip_by_norm,
    "global_clipnorm": clip_by_global_norm,
}


def make_variables(dtype: torch.dtype = torch.float64) -> list[tw.Variable]:
    generator = torch.Generator().manual_seed(1)
    return [
        tw.Variable(torch.randn(shape, generator=generator, dtype=dtype), name=f"v{i}")
        for i, shape in enumerate(SHAPES)
    ]


def make_gradients(step: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]


def state_of(optimizer: tw.Optimizer, variables: list[tw.Variable]) -> list[Any]:
    tensors = [*variables, *optimizer.weights]
    return [t.detach().clone() for t in tensors]


def train(optimizer: tw.Optimizer, num_steps: int = 3) -> list[tw.Variable]:
    variables = make_variables()
    for step in range(num_steps):
        optimizer.apply_gradients(zip(make_gradients(step), variables, strict=True))
    return variables


@pytest.mark.parametrize("option", CLIPS)
@every_optimizer
def test_a_folded_clip_is_the_clip(cls: type[tw.Optimizer], option: str) -> None:
    clip = CLIPS[option]
    folded = train(cls(**{option: 0.3}))
    apart = train(cls(gradient_transformers=[lambda pairs: clip(pairs, 0.3)]))
    plain = train(cls())
    torch.testing.assert_close(
        [v.detach() for v in folded],
        [v.detach() for v in apart],
        rtol=1e-12,
        atol=1e-14,
    )
    if cls.__name__ != "Lion":  # its steps are signs
        assert not torch.equal(folded[0], plain[0])


@every_optimizer
def test_all_clips_together_keep_their_order(cls: type[tw.Optimizer]) -> None:
    folded = train(cls(clipvalue=0.9, clipnorm=1.1))
    in_order = [
        lambda pairs: clip_by_value(pairs, 0.9),
        lambda pairs: clip_by_norm(pairs, 1.1),
    ]
    apart = train(cls(gradient_transformers=in_order))
    torch.testing.assert_close(
        [v.detach() for v in folded],
        [v.detach() for v in apart],
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clips", [{}, {"clipvalue": 1.0}, {"clipnorm": 1.0}])
@every_optimizer
def test_a_step_on_a_bad_gradient_is_left_out(
    cls: type[tw.Optimizer], clips: dict[str, float], bad: float
) -> None:
    optimizer, variables = cls(nonfinite="skip", **clips), make_variables()
    optimizer.apply_gradients(zip(make_gradients(0), variables, strict=True))
    before = state_of(optimizer, variables)
    gradients = make_gradients(1)
    gradients[1][2] = bad
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    assert not optimizer.last_step_applied
    assert int(optimizer.iterations) == 1
    for old, new in zip(before, state_of(optimizer, variables), strict=True):
        assert torch.equal(old, new)
    optimizer.apply_gradients(zip(make_gradients(2), variables, strict=True))
    assert optimizer.last_step_applied
    assert int(optimizer.iterations) == 2


@pytest.mark.parametrize("is_sparse", [False, True])
@every_optimizer
def test_an_error_names_the_variable(cls: type[tw.Optimizer], is_sparse: bool) -> None:
    optimizer, variables = cls(nonfinite="error"), make_variables()
    tw.state.register_names({"dense": variables[0], "bad": variables[1]})
    optimizer.build(variables[:2])
    before = state_of(optimizer, variables)
    bad: Any = torch.tensor([1.0, math.nan, 0.0, 0.0], dtype=torch.float64)
    if is_sparse:
        bad = tw.IndexedSlices(bad[:2], torch.tensor([3, 0]))
    with pytest.raises(FloatingPointError, match="in that of bad"):
        optimizer.apply_gradients(
            [(torch.ones_like(variables[0]), variables[0]), (bad, variables[1])]
        )
    for old, new in zip(before, state_of(optimizer, variables), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("bound", [0.0, 1.0])
@pytest.mark.parametrize("option", CLIPS)
def test_a_gradient_of_zeros_stays_that(option: str, bound: float) -> None:
    variable = tw.Variable([1.0, 2.0])
    optimizer = tw.optimizers.SGD(0.5, **{option: bound})
    optimizer.apply_gradients([(torch.zeros(2), variable)])
    assert variable.tolist() == [1.0, 2.0]


def test_an_overflowing_norm_is_no_bad_gradient() -> None:
    weight = tw.Variable(torch.zeros(2, dtype=torch.float64))
    optimizer = tw.optimizers.SGD(1e-300, nonfinite="skip")
    huge = torch.full((2,), 1e200, dtype=torch.float64)
    optimizer.apply_gradients([(huge, weight)])
    assert optimizer.last_step_applied
    assert float(weight.detach()[0]) == pytest.approx(-1e-100)


@every_optimizer
def test_the_average_follows_the_variable(cls: type[tw.Optimizer]) -> None:
    optimizer, variables = cls(use_ema=True, ema_momentum=0.8), make_variables()
    averages: list[torch.Tensor] = []
    for step in range(4):
        optimizer.apply_gradients(zip(make_gradients(step), variables, strict=True))
        now = [v.detach().clone() for v in variables]
        averages = (
            [0.8 * a + (1 - 0.8) * v for a, v in zip(averages, now, strict=True)]
            if averages
            else now
        )
    kept = [optimizer.get_slot(v, "average").detach() for v in variables]
    torch.testing.assert_close(kept, averages, rtol=1e-14, atol=0.0)
    same = [v.detach() for v in train(cls(), 4)]
    assert all(map(torch.equal, [v.detach() for v in variables], same))


@every_optimizer
def test_averages_of_touched_rows(cls: type[tw.Optimizer]) -> None:
    table = tw.Variable(torch.randn(6, 2, dtype=torch.float64))
    optimizer = cls(use_ema=True, ema_momentum=0.5)
    if cls is tw.optimizers.Lamb:
        optimizer = cls(use_ema=True, ema_momentum=0.5, sparse_update="exact")
    before = table.detach().clone()
    slices = tw.IndexedSlices(
        torch.ones(3, 2, dtype=torch.float64), torch.tensor([4, 1, 4])
    )
    for _ in range(2):
        optimizer.apply_gradients([(slices, table)])
    average = optimizer.get_slot(table, "average").detach()
    untouched = torch.tensor([0, 2, 3, 5])
    if cls is not tw.optimizers.Lamb:
        assert torch.equal(average[untouched], before[untouched])
    assert not torch.equal(average[1], before[1])
    assert not torch.equal(average[1], table.detach()[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_optimizer
def test_the_copy_is_the_rounded_variable(
    cls: type[tw.Optimizer], dtype: torch.dtype
) -> None:
    optimizer = cls(low_precision_copy=dtype)
    variables = make_variables(torch.float32)
    for step in range(2):
        pairs = zip(make_gradients(step, torch.float32), variables, strict=True)
        optimizer.apply_gradients(pairs)
    for variable in variables:
        copy = optimizer.get_slot(variable, "low_precision_copy")
        assert copy.dtype == dtype
        assert torch.equal(copy.detach(), variable.detach().to(dtype))


@every_optimizer
def test_everything_at_once_makes_a_round_trip(cls: type[tw.Optimizer]) -> None:
    options: dict[str, Any] = {
        "clipvalue": 0.5,
        "global_clipnorm": 1.0,
        "weight_decay": 0.01,
        "nonfinite": "skip",
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 2,
        "low_precision_copy": "bfloat16",
    }
    optimizer = cls(**options)
    again = cls.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert options.items() <= optimizer.get_config().items()
    for one, other in zip(train(optimizer), train(again), strict=True):
        assert torch.equal(one, other)


class ByHand(tw.Optimizer):
    """A class of the Keras 2 kind."""

    def __init__(self, **options: Any) -> None:
        super().__init__("ByHand", **options)

    def _resource_apply_dense(
        self, grad: torch.Tensor, var: Any, apply_state: Any = None
    ) -> None:
        var.assign_sub(grad)

    def _resource_apply_sparse(
        self, grad: torch.Tensor, var: Any, indices: torch.Tensor, **_: Any
    ) -> None:
        self._resource_scatter_add(var, indices, -grad)


def test_averages_and_copies_of_a_class_that_writes_by_hand() -> None:
    optimizer = ByHand(use_ema=True, ema_momentum=0.5, low_precision_copy="bfloat16")
    weight, table = tw.Variable([1.0, 2.0]), tw.Variable(torch.zeros(3, 1))
    for _ in range(2):
        slices = tw.IndexedSlices(torch.ones(1, 1), torch.tensor([2]))
        optimizer.apply_gradients([(torch.ones(2), weight), (slices, table)])
    assert weight.detach().tolist() == [-1.0, 0.0]
    assert optimizer.get_slot(weight, "average").tolist() == [-0.5, 0.5]
    assert optimizer.get_slot(table, "average").tolist() == [[0.0], [0.0], [-1.5]]
    copy = optimizer.get_slot(table, "low_precision_copy")
    assert torch.equal(copy.detach(), table.detach().bfloat16())


def test_constraints_and_overwrites_reach_the_copy() -> None:
    weight = tw.Variable([1.0, 2.0], constraint=lambda value: value.clamp(min=0.5))
    optimizer = tw.optimizers.SGD(1.0, low_precision_copy="bfloat16")
    optimizer.apply_gradients([(torch.ones(2), weight)])
    assert weight.detach().tolist() == [0.5, 1.0]
    copy = optimizer.get_slot(weight, "low_precision_copy")
    assert copy.detach().tolist() == [0.5, 1.0]


def test_steps_and_saving_are_refused_among_averages() -> None:
    weight = tw.Variable([1.0])
    optimizer = tw.optimizers.SGD(1.0, use_ema=True)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    with optimizer.ema_scope():
        with pytest.raises(RuntimeError, match="outside ema_scope"):
            optimizer.apply_gradients([(torch.ones(1), weight)])
        with pytest.raises(RuntimeError, match="saving"):
            list(optimizer.slot_variables())
    assert weight.detach().tolist() == [0.0]
    with pytest.raises(RuntimeError, match="use_ema=True"):
        tw.optimizers.SGD(1.0).ema_scope().__enter__()


def test_a_copy_is_refused_among_averages() -> None:
    weight = tw.Variable([1.0])
    optimizer = tw.optimizers.SGD(1.0, use_ema=True)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    with optimizer.ema_scope(), pytest.raises(RuntimeError, match="copying"):
        copy.deepcopy(optimizer)
    assert copy.deepcopy(optimizer).use_ema


@every_optimizer
def test_dtypes_of_unknown_slots_are_refused(cls: type[tw.Optimizer]) -> None:
    with pytest.raises(ValueError, match=r"slot_dtypes.*'nope'"):
        cls(slot_dtypes={"nope": "bfloat16"})
