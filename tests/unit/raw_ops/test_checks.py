"""Resources, gradients and numbers that raw ops refuse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw
from tests.unit.raw_ops.test_raw_ops import (
    DENSE,
    OPS,
    SPARSE,
    arguments_of,
    resources_of,
)
from thalweg.step.batch import Batch, inside_step

SLOTS = [op for op in DENSE + SPARSE if len(OPS[op]["resources"]) > 1]


@pytest.mark.parametrize("op", SLOTS)
def test_one_tensor_for_two_resources_is_refused(op: str) -> None:
    function, names = getattr(tw.raw_ops, op), OPS[op]["resources"]
    arguments = arguments_of(op)
    function(**resources_of(op), **arguments)  # the kinds of the tensors are known
    for first, second in itertools.pairwise(names):
        both = f"({first} and {second}|{second} and {first})"
        for share in (lambda t: t, lambda t: t.detach(), lambda t: t.detach()[:]):
            given: dict[str, Any] = dict(resources_of(op))
            given[second] = share(given[first])
            with pytest.raises(ValueError, match=f"{op}: expected {both} with memory"):
                function(**given, **arguments)
            for tensor in given.values():
                assert torch.equal(tensor, torch.ones(3, 2))


def adam(var: Any, m: Any, v: Any, grad: Any) -> None:
    tw.raw_ops.ResourceApplyAdam(
        var=var,
        m=m,
        v=v,
        beta1_power=0.5,
        beta2_power=0.5,
        lr=0.5,
        beta1=0.5,
        beta2=0.5,
        epsilon=0.5,
        grad=grad,
    )


def test_resources_that_overlap_are_refused() -> None:
    room = torch.ones(12)
    for m, v in ((room[:4], room[3:7]), (room[3:7], room[:4])):
        with pytest.raises(ValueError, match="expected m and v with memory"):
            adam(torch.ones(4), m, v, torch.ones(4))
    assert room.tolist() == [1.0] * 12
    adam(room[:4], room[4:8], room[8:], torch.ones(4))
    columns = torch.ones(4, 3)
    adam(*columns.unbind(1), torch.ones(4))  # not in one another's gaps
    assert columns[:, 0].tolist() == room[:4].tolist()


def test_resources_that_share_are_refused_in_a_batch() -> None:
    batch, room = Batch(), torch.ones(4)
    for _ in range(2):
        with inside_step(batch):
            adam(room, torch.zeros(4), torch.zeros(4), torch.ones(4))
        before = room.tolist()
        for m in (room, room.detach()):
            with pytest.raises(ValueError, match="var and m"), inside_step(batch):
                adam(room, m, torch.zeros(4), torch.ones(4))
        assert room.tolist() == before


def test_a_gradient_may_be_its_variable() -> None:
    for _ in range(3):
        var = torch.ones(4)
        tw.raw_ops.ResourceApplyGradientDescent(var=var, alpha=0.25, delta=var)
        assert var.tolist() == [0.75] * 4


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_that_is_none_is_refused(op: str) -> None:
    resources, name = resources_of(op), OPS[op]["grad"]
    for wrong in (None, "steep", tw.IndexedSlices(torch.ones(1, 2), torch.tensor([1]))):
        given = {**arguments_of(op), name: wrong}
        with pytest.raises(TypeError, match=f"{op}: {name}: expected a tensor; got"):
            getattr(tw.raw_ops, op)(**resources, **given)
    for resource in resources.values():
        assert torch.equal(resource, torch.ones(3, 2))


@pytest.mark.parametrize("op", [op for op in OPS if OPS[op]["has_indices"]])
@pytest.mark.parametrize("wrong", [None, "first", [[0], [1, 2]], object()])
def test_indices_that_are_none_are_refused(op: str, wrong: Any) -> None:
    given = {**resources_of(op), **arguments_of(op), "indices": wrong}
    with pytest.raises(TypeError, match=f"{op}: indices: expected integers; got"):
        getattr(tw.raw_ops, op)(**given)


@pytest.mark.parametrize(
    "wrong",
    [0.5 + 0j, np.complex128(0.5), np.complex64(0.5), torch.tensor(0.5 + 0j), "0.5"],
)
def test_what_equals_a_number_is_no_number(wrong: Any) -> None:
    for alpha in (wrong, 0.5, wrong, 0.5, wrong):
        var = torch.ones(1)
        if alpha is wrong:
            with pytest.raises(TypeError, match="alpha: expected a number"):
                tw.raw_ops.ResourceApplyGradientDescent(
                    var=var, alpha=alpha, delta=torch.ones(1)
                )
            assert var.tolist() == [1.0]
        else:
            tw.raw_ops.ResourceApplyGradientDescent(
                var=var, alpha=alpha, delta=torch.ones(1)
            )
            assert var.tolist() == [0.5]


def without_memory() -> torch.Tensor:
    tensor = torch.ones(3, 2)
    tensor.untyped_storage().resize_(0)
    return tensor


WRONG_RESOURCES: dict[str, Any] = {
    "sparse": lambda: torch.ones(3, 2).to_sparse(),
    "on another device": lambda: torch.ones(3, 2, device="meta"),
    "expanded": lambda: torch.ones(1, 2).expand(3, 2),
    "with elements at one place": lambda: torch.ones(4).as_strided((3, 2), (1, 1)),
    "without memory": without_memory,
    "negated": lambda: torch._neg_view(torch.ones(3, 2)),  # pyright: ignore[reportPrivateImportUsage] - no public way to a contiguous one
    "of eight bits": lambda: torch.ones(3, 2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("op", OPS)
def test_a_resource_that_cannot_be_written_is_refused(op: str) -> None:
    function, names = getattr(tw.raw_ops, op), OPS[op]["resources"]
    function(**resources_of(op), **arguments_of(op))  # kinds and numbers are known
    for name in names:
        for make in WRONG_RESOURCES.values():
            others = {n: r for n, r in resources_of(op).items() if n != name}
            versions = [other._version for other in others.values()]
            with pytest.raises(ValueError, match=f"^{op}"):
                function(**others, **{name: make()}, **arguments_of(op))
            assert versions == [other._version for other in others.values()]
            for other in others.values():
                assert torch.equal(other, torch.ones(3, 2))


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_that_cannot_be_read_is_refused(op: str) -> None:
    function, name = getattr(tw.raw_ops, op), OPS[op]["grad"]
    resources, right = resources_of(op), arguments_of(op)[OPS[op]["grad"]]
    gone = right.clone()
    gone.untyped_storage().resize_(0)
    for wrong in (
        right.to_sparse(),
        right.to("meta"),
        right.to(torch.float8_e4m3fn),
        right.to(torch.complex64),
        right.long(),
        gone,
    ):
        with pytest.raises(ValueError, match=f"^{op}"):
            function(**resources, **{**arguments_of(op), name: wrong})
    for resource in resources.values():
        assert torch.equal(resource, torch.ones(3, 2))


def test_a_number_without_a_value_is_refused() -> None:
    with pytest.raises(TypeError, match="alpha: expected a number or a 0-d tensor"):
        tw.raw_ops.ResourceApplyGradientDescent(
            var=torch.ones(1), alpha=torch.ones((), device="meta"), delta=torch.ones(1)
        )


def test_resources_that_overlap_are_refused_where_their_kind_is_known() -> None:
    room = torch.ones(12)
    adam(room[:4], room[4:8], room[8:], torch.ones(4))
    before = room.tolist()
    for m, v in ((room[:4], room[3:7]), (room[3:7], room[:4]), (room[:4], room[:4])):
        with pytest.raises(ValueError, match="expected m and v with memory"):
            adam(torch.ones(4), m, v, torch.ones(4))
    assert room.tolist() == before


def test_resources_with_gaps_that_overlap_are_refused() -> None:
    room = torch.ones(16)
    with pytest.raises(ValueError, match="expected m and v with memory"):
        adam(torch.ones(4), room[0:8:2], room[2:10:2], torch.ones(4))
    adam(torch.ones(4), room[0:8:2], room[1:9:2], torch.ones(4))


@pytest.mark.parametrize("size", [4, 4000])
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_gradient_beside_its_variable_is_read_before_the_writing(
    size: int, shift: int
) -> None:
    for _ in range(3):
        room = torch.arange(size + 2.0)
        var, grad = room[1 : size + 1], room[1 + shift : size + 1 + shift]
        expected = var - 0.5 * grad
        tw.raw_ops.ResourceApplyGradientDescent(var=var, alpha=0.5, delta=grad)
        assert torch.equal(var, expected)


@pytest.mark.parametrize("name", ["Assign", "AssignAdd", "AssignSub"])
def test_what_cannot_be_written_cannot_be_assigned(name: str) -> None:
    assign = getattr(tw.raw_ops, f"{name}VariableOp")
    for kind in ("sparse", "expanded", "with elements at one place", "without memory"):
        with pytest.raises(ValueError, match=f"^{name}VariableOp: resource"):
            assign(resource=WRONG_RESOURCES[kind](), value=torch.ones(3, 2))
