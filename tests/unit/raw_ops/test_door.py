"""What a dense raw op takes for numbers and tensors, called once and once more."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import DEVICE, pretended_device
from thalweg import rules
from thalweg.compiler.triton_kernel import TritonKernel
from thalweg.raw_ops import door
from thalweg.step.batch import Batch, inside_step


def descend(alpha: Any, size: int = 2, start: float = 1.0) -> torch.Tensor:
    weight = torch.full((size,), start)
    tw.raw_ops.ResourceApplyGradientDescent(
        var=weight, alpha=alpha, delta=torch.ones(size)
    )
    return weight


@pytest.mark.parametrize(
    "half",
    [
        0.5,
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.float64),
        torch.nn.Parameter(torch.tensor(0.5)),
        tw.Variable(0.5),
        np.float32(0.5),
        np.array(0.5),
    ],
    ids=["float", "tensor", "float64", "parameter", "variable", "numpy", "array"],
)
def test_a_number_may_come_as_anything_that_holds_one(half: Any) -> None:
    for _ in range(3):
        assert descend(half).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("whole", [1, True, torch.tensor(1), np.int64(1)])
def test_a_number_may_be_whole(whole: Any) -> None:
    for _ in range(3):
        assert descend(whole, start=3.0).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([0.5], TypeError),
        ("half", TypeError),
        (None, TypeError),
        (torch.tensor([0.5]), ValueError),
        (np.array([0.5]), ValueError),
    ],
)
def test_what_is_no_number_is_refused_each_time(wrong: Any, error: Any) -> None:
    for _ in range(2):
        with pytest.raises(error, match="ResourceApplyGradientDescent: alpha"):
            descend(wrong)


def test_a_tensor_is_read_in_every_call() -> None:
    alpha = torch.tensor(0.5)
    assert descend(alpha).tolist() == [0.5, 0.5]
    alpha.fill_(0.25)
    assert descend(alpha).tolist() == [0.75, 0.75]


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0)])
def test_zeros_of_both_signs_are_told_apart(order: tuple[float, float]) -> None:
    for _ in range(3):
        for zero in order:
            found = descend(zero, start=-0.0)
            expected = -0.0 - zero * 1.0
            assert math.copysign(1, found[0]) == math.copysign(1, expected)


def test_nan_and_infinity_are_numbers() -> None:
    for _ in range(2):
        assert descend(math.nan).isnan().all()
        assert descend(math.inf).tolist() == [-math.inf, -math.inf]


def test_flags_that_follow_from_numbers_follow_them_each_time() -> None:
    def proximal(l1: Any) -> float:
        weight = torch.ones(1)
        tw.raw_ops.ResourceApplyProximalGradientDescent(
            var=weight, alpha=0.5, l1=l1, l2=0.0, delta=torch.ones(1)
        )
        return weight.item()

    for l1, expected in 2 * [(0.5, 0.25), (0.0, 0.5), (torch.tensor(0.5), 0.25)]:
        assert proximal(l1) == expected


def test_a_number_that_an_op_refuses_is_refused_each_time() -> None:
    weight, accum = torch.ones(1), torch.ones(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="lr: expected a positive scalar"):
            tw.raw_ops.ResourceApplyProximalAdagrad(
                var=weight, accum=accum, lr=0.0, l1=0.5, l2=0.5, grad=torch.ones(1)
            )
    assert (weight.item(), accum.item()) == (1.0, 1.0)


def momentum(nesterov: Any) -> float:
    """What becomes of a weight; nothing if the flag is refused."""
    weight, accum = torch.ones(1), torch.zeros(1)
    try:
        tw.raw_ops.ResourceApplyMomentum(
            var=weight,
            accum=accum,
            lr=0.5,
            grad=torch.ones(1),
            momentum=0.5,
            use_nesterov=nesterov,
        )
    except TypeError:
        assert (weight.item(), accum.item()) == (1.0, 0.0)
        raise
    return weight.item()


@pytest.mark.parametrize("is_set", [True, 1, np.True_, np.int64(1), torch.tensor(True)])
@pytest.mark.parametrize("is_unset", [False, 0, np.False_, 0.0, torch.tensor(False)])
def test_a_flag_is_what_it_is_taken_for(is_set: Any, is_unset: Any) -> None:
    for _ in range(2):
        assert (momentum(is_set), momentum(is_unset)) == (0.25, 0.5)


NO_FLAGS = {
    "text": "no",
    "none": None,
    "two": 2,
    "half": 0.5,
    "large": 1 << 2000,
    "list": [True],
    "tensor": torch.ones(2),
    "number": torch.tensor(1.0),
    "bools": torch.tensor([True]),
    "array": np.ones(2, bool),
    "meta": torch.tensor(True, device="meta"),
}


@pytest.mark.parametrize("wrong", NO_FLAGS.values(), ids=NO_FLAGS)
def test_what_is_no_bool_is_no_flag(wrong: Any) -> None:
    words = "ResourceApplyMomentum: use_nesterov: expected True or False; got "
    for is_known in (False, True):
        if is_known:
            momentum(True)
        with pytest.raises(TypeError, match=words):
            momentum(wrong)
        with pytest.raises(TypeError, match=words), inside_step(Batch()):
            momentum(wrong)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_MOST_KNOWN", 4)
    own = door.Door("ApplyDescent", rules.gradient_descent)
    for number in range(1, 20):
        alpha = number / 1024
        for given in (alpha, torch.tensor(alpha)):
            weight = torch.ones(2)
            with inside_step(Batch()):
                own.run((weight, torch.ones(2)), (given,))
            assert weight.tolist() == [1 - alpha] * 2
        assert 0 < len(own._deeds) <= 4


def transposed(value: float) -> torch.Tensor:
    return torch.full((3, 2), value).T


def with_gaps(value: float) -> torch.Tensor:
    return torch.full((2, 6), value)[:, ::2]


def plain(value: float) -> torch.Tensor:
    return torch.full((2, 3), value)


def negated(value: float) -> torch.Tensor:
    return torch._neg_view(torch.full((2, 3), -value))  # pyright: ignore[reportPrivateImportUsage] - no public way to a contiguous one


@pytest.mark.parametrize("make_var", [plain, transposed, with_gaps])
@pytest.mark.parametrize("make_accum", [plain, transposed])
@pytest.mark.parametrize("make_grad", [plain, transposed, with_gaps, negated])
def test_elements_may_lie_in_any_order(
    make_var: Callable[[float], torch.Tensor],
    make_accum: Callable[[float], torch.Tensor],
    make_grad: Callable[[float], torch.Tensor],
) -> None:
    numbers = torch.arange(6.0).reshape(2, 3)
    for _ in range(2):
        var, accum = make_var(1.0), make_accum(0.0)
        grad = make_grad(0.0)
        accum.add_(numbers)
        grad.add_(2 * numbers)
        versions = var._version, accum._version, grad._version
        tw.raw_ops.ResourceApplyMomentum(
            var=var, accum=accum, lr=0.5, grad=grad, momentum=0.5
        )
        assert torch.equal(accum, 2.5 * numbers)
        assert torch.equal(var, 1 - 1.25 * numbers)
        assert torch.equal(grad, 2 * numbers)
        assert var._version > versions[0]
        assert accum._version > versions[1]
        assert grad._version == versions[2]


def test_a_gradient_that_is_its_variable_turned_is_read_before_the_writing() -> None:
    weight = torch.arange(4.0).reshape(2, 2)
    expected = weight - 0.5 * weight.T
    tw.raw_ops.ResourceApplyGradientDescent(var=weight, alpha=0.5, delta=weight.T)
    assert torch.equal(weight, expected)


def test_numbers_are_the_same_in_a_batch() -> None:
    def work(alphas: list[Any]) -> list[float]:
        weights = [torch.full((2,), -0.0) for _ in alphas]
        for weight, alpha in zip(weights, alphas, strict=True):
            tw.raw_ops.ResourceApplyGradientDescent(
                var=weight, alpha=alpha, delta=torch.ones(2)
            )
        flush_batch()
        return [math.copysign(1, w[0]) * abs(w[0].item()) for w in weights]

    def flush_batch() -> None:
        tw.raw_ops.ReadVariableOp(resource=torch.zeros(1))

    batch = Batch()
    for alphas in ([0.0, -0.0, 1, torch.tensor(0.5)], [-0.0, 0.0, True, 0.5]) * 2:
        with inside_step(batch):
            together = work(alphas)
        alone = work(alphas)
        assert list(map(str, together)) == list(map(str, alone))


def test_a_number_too_large_for_a_float_is_refused() -> None:
    var = torch.ones(2)
    with pytest.raises(TypeError, match="larger int"):
        tw.raw_ops.ResourceApplyGradientDescent(
            var=var, alpha=10**400, delta=torch.ones(2)
        )
    assert var.tolist() == [1.0, 1.0]


def test_an_own_op_that_has_run_can_be_copied() -> None:
    @tw.raw_op
    def descend(var, grad, *, lr):
        return var - lr * grad

    descend(var=torch.ones(2), grad=torch.ones(2), lr=0.5)
    var = torch.ones(2)
    copy.deepcopy(descend)(var=var, grad=torch.ones(2), lr=0.5)
    assert var.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_call_on_a_gpu_is_a_launch_that_waits_for_nothing(
    is_batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real device is no mode of dispatch, and brings no tracing with it.
    monkeypatch.setattr(door, "is_traced", lambda: False)
    here = [[torch.randn(6, 4), torch.ones(6, 4)] for _ in range(3)]
    before = [[tensor.clone() for tensor in tensors] for tensors in here]
    gradient = torch.randn(6, 4)

    batches = {id(here): Batch(), 0: Batch()}

    def step(held: Any, grad: torch.Tensor) -> None:
        batch = batches.get(id(held), batches[0])
        with inside_step(batch if is_batch else None):
            for var, accum in held:
                tw.raw_ops.ResourceApplyAdagrad(var=var, accum=accum, lr=0.1, grad=grad)

    for _ in range(4):
        step(here, gradient)
    with pretended_device() as device:
        own = [[tensor.to(DEVICE) for tensor in tensors] for tensors in before]
        there = gradient.to(DEVICE)
        step(own, there)
        step(own, there)
        started: list[object] = []
        start = TritonKernel.start

        def counted(self: TritonKernel, *args: Any, **kwargs: Any) -> None:
            started.append(self)
            start(self, *args, **kwargs)

        monkeypatch.setattr(TritonKernel, "start", counted)
        with device.no_waiting():
            step(own, there)
        assert len(started) == (1 if is_batch else 3)
        with device.graph() as graph:
            step(own, there)
        graph.replay()
        for tensors, wanted in zip(own, here, strict=True):
            for found, expected in zip(tensors, wanted, strict=True):
                assert torch.equal(device.look(found), expected)
