"""All raw ops together: names, signatures, writes, refusals."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.compat import reference_data

OPS = reference_data.document("raw_ops")["ops"]
DENSE = [n for n in OPS if n.startswith("ResourceApply")]
SPARSE = [n for n in OPS if n.startswith("ResourceSparseApply")]
SCATTER = [n for n in OPS if n.startswith("ResourceScatter")]


def resources_of(op: str, rows: int = 3) -> dict[str, tw.Variable]:
    return {n: tw.Variable(torch.ones(rows, 2)) for n in OPS[op]["resources"]}


def arguments_of(op: str) -> dict[str, Any]:
    """A call that is right, without the resources."""
    info = OPS[op]
    arguments: dict[str, Any] = dict.fromkeys(info["hypers"], 0.5)
    if "lr_power" in arguments:
        arguments["lr_power"] = -0.5
    rows = 2 if info["has_indices"] else 3
    arguments[info["grad"]] = torch.full((rows, 2), 0.25)
    if info["has_indices"]:
        arguments["indices"] = torch.tensor([2, 0])
    return arguments


def call(op: str, resources: dict[str, tw.Variable], **arguments: Any) -> None:
    handles = {name: resource.handle for name, resource in resources.items()}
    getattr(tw.raw_ops, op)(**handles, **arguments)


def test_all_ops_are_there() -> None:
    assert (len(DENSE), len(SPARSE), len(SCATTER)) == (18, 12, 7)
    assert set(OPS) <= set(tw.raw_ops.list())
    assert tw.raw_ops.list() == sorted(tw.raw_ops.list())
    assert all(callable(getattr(tw.raw_ops, name)) for name in tw.raw_ops.list())


@pytest.mark.parametrize("op", OPS)
def test_arguments_have_tensorflows_names_and_order(op: str) -> None:
    parameters = inspect.signature(getattr(tw.raw_ops, op)).parameters
    ours = ["check_indices"] if OPS[op]["has_indices"] else []
    assert list(parameters) == [*OPS[op]["args"], "name", *ours]
    for name, default in OPS[op]["attrs"].items():
        assert parameters[name].default is default
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())


@pytest.mark.parametrize("op", OPS)
def test_variables_are_written_in_place(op: str) -> None:
    resources = resources_of(op)
    versions = {name: r._version for name, r in resources.items()}
    call(op, resources, **arguments_of(op))
    assert all(r._version > versions[name] for name, r in resources.items())
    is_largest = op == "ResourceScatterMax"  # of 1 and 0.25
    first = next(iter(resources.values()))
    assert torch.equal(first, torch.ones(3, 2)) == is_largest


@pytest.mark.parametrize("op", DENSE + SPARSE)
def test_scalars_may_be_tensors(op: str) -> None:
    numbers, tensors = resources_of(op), resources_of(op)
    arguments = arguments_of(op)
    call(op, numbers, **arguments)
    scalars = {n: torch.tensor(arguments[n]) for n in OPS[op]["hypers"]}
    call(op, tensors, **{**arguments, **scalars})
    for name in numbers:
        assert torch.equal(numbers[name], tensors[name])
    name = OPS[op]["hypers"][0]
    with pytest.raises(ValueError, match=f"{op}: .* expected a scalar"):
        call(op, tensors, **{**arguments, name: torch.ones(2)})
    with pytest.raises(TypeError, match=op):
        call(op, tensors, **{**arguments, name: "fast"})


@pytest.mark.parametrize("op", DENSE + SPARSE)
def test_wrong_shapes_are_refused_before_writing(op: str) -> None:
    resources, arguments = resources_of(op), arguments_of(op)
    for name in [*OPS[op]["resources"][1:], OPS[op]["grad"]]:
        wrong = {**resources}
        changed = {**arguments}
        if name in wrong:
            wrong[name] = tw.Variable(torch.ones(3, 4))
        else:
            changed[name] = torch.ones(3, 4)
        with pytest.raises(ValueError, match=op):
            call(op, wrong, **changed)
    for resource in resources.values():
        assert torch.equal(resource, torch.ones(3, 2))


@pytest.mark.parametrize("op", SPARSE + SCATTER)
@pytest.mark.parametrize("outside", [-1, 3])
def test_an_index_out_of_range_is_refused_before_writing(op: str, outside: int) -> None:
    resources, arguments = resources_of(op), arguments_of(op)
    arguments["indices"] = torch.tensor([0, outside], dtype=torch.int32)
    with pytest.raises(ValueError, match=f"{op}: Index {outside} at offset 1"):
        call(op, resources, **arguments)
    for resource in resources.values():
        assert torch.equal(resource, torch.ones(3, 2))


@pytest.mark.parametrize("op", SPARSE)
def test_duplicates_act_one_after_the_other(op: str) -> None:
    together, single = resources_of(op), resources_of(op)
    arguments = arguments_of(op)
    values = torch.tensor([[0.5, 0.25], [0.125, -1.0], [0.75, 2.0]])
    for row in values:
        one = {"grad": row[None], "indices": torch.tensor([1])}
        call(op, single, **{**arguments, **one})
    three = {"grad": values, "indices": torch.tensor([1, 1, 1])}
    call(op, together, **{**arguments, **three})
    for name in together:
        assert torch.equal(together[name], single[name])


@pytest.mark.parametrize("op", OPS)
def test_no_rows_and_no_elements(op: str) -> None:
    info, arguments = OPS[op], arguments_of(op)
    if info["has_indices"]:
        resources = resources_of(op)
        arguments["indices"] = torch.zeros(0, dtype=torch.int64)
        arguments[info["grad"]] = torch.zeros(0, 2)
    else:
        resources = resources_of(op, rows=0)
        arguments[info["grad"]] = torch.zeros(0, 2)
    call(op, resources, **arguments)
    for resource in resources.values():
        assert torch.equal(resource, torch.ones_like(resource))


@pytest.mark.parametrize("op", ["ResourceSparseApplyFtrl", "ResourceSparseApplyFtrlV2"])
def test_ftrl_refuses_what_tensorflow_refuses(op: str) -> None:
    resources, arguments = resources_of(op), arguments_of(op)
    for name, wrong in {"lr": 0.0, "l1": -1.0, "l2": -1.0, "lr_power": 0.5}.items():
        with pytest.raises(ValueError, match=f"{op}: {name}"):
            call(op, resources, **{**arguments, name: wrong})
    with pytest.raises(ValueError, match=f"{op}: lr"):
        call(op, resources, **{**arguments, "lr": float("nan")})
    assert torch.equal(resources["linear"], torch.ones(3, 2))
    scaled = {**arguments, "multiply_linear_by_lr": True}
    call(op, resources, **{**scaled, "lr": 0.0})
    with pytest.raises(ValueError, match=f"{op}: lr"):
        call(op, resources, **{**scaled, "lr": -1.0})


@pytest.mark.parametrize(
    "op", ["ResourceApplyProximalAdagrad", "ResourceSparseApplyProximalAdagrad"]
)
def test_proximal_adagrad_refuses_what_tensorflow_refuses(op: str) -> None:
    resources, arguments = resources_of(op), arguments_of(op)
    for name, wrong in {"lr": 0.0, "l1": -1.0, "l2": -1.0}.items():
        with pytest.raises(ValueError, match=f"{op}: {name}"):
            call(op, resources, **{**arguments, name: wrong})
    assert torch.equal(resources["accum"], torch.ones(3, 2))


def test_a_negative_l1_is_read_as_none() -> None:
    op = "ResourceApplyProximalGradientDescent"
    below, zero = resources_of(op), resources_of(op)
    arguments = arguments_of(op)
    call(op, below, **{**arguments, "l1": -3.0})
    call(op, zero, **{**arguments, "l1": 0.0})
    assert torch.equal(below["var"], zero["var"])


@pytest.mark.parametrize("op", ["ResourceApplyFtrl", "ResourceApplyFtrlV2"])
def test_the_root_and_the_power_agree(op: str) -> None:
    root, power = resources_of(op), resources_of(op)
    arguments = arguments_of(op)
    call(op, root, **{**arguments, "l1": 0.01})
    call(op, power, **{**arguments, "l1": 0.01, "lr_power": -0.5 - 1e-12})
    for name in root:
        torch.testing.assert_close(root[name], power[name])
