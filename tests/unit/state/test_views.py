"""Parameters and tensors with the face of a Variable."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from thalweg.state import Variable, as_variable, register_names


def positive(value: torch.Tensor) -> torch.Tensor:
    return value.clamp(min=0)


def test_views_share_memory_and_version() -> None:
    parameter = nn.Parameter(torch.ones(2))
    view = as_variable(parameter)
    assert isinstance(view, Variable)
    assert view.handle is parameter
    assert view.trainable
    assert not view.requires_grad
    version = parameter._version
    view.assign_add([1.0, 1.0])
    assert (parameter._version, view._version) == (version + 1, version + 1)
    with torch.no_grad():
        view.mul_(2)
    assert parameter.tolist() == [4.0, 4.0]
    assert parameter._version == version + 2
    (view.value() ** 2).sum().backward()
    assert parameter.grad is not None


def test_views_are_kept_and_variables_returned() -> None:
    parameter = nn.Parameter(torch.ones(2))
    variable = Variable(1.0)
    assert as_variable(variable) is variable
    assert as_variable(parameter) is as_variable(parameter)
    view = as_variable(parameter)
    assert as_variable(view) is view


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(2, 2),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(3),
        torch.empty(2, 2, device="meta"),
    ],
)
def test_stale_views_are_made_anew(data: torch.Tensor) -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    stale = as_variable(parameter)
    if data.is_meta:
        parameter = nn.Parameter(data)
    else:
        parameter.data = data
    fresh = as_variable(parameter)
    assert fresh is not stale
    assert (fresh.shape, fresh.dtype) == (data.shape, data.dtype)
    assert fresh.data_ptr() == parameter.data_ptr()


def test_other_strides_make_a_view_stale() -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    as_variable(parameter)
    parameter.data = parameter.data.t()
    assert as_variable(parameter).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_views_keep_nothing_alive_and_outlive_their_original() -> None:
    parameter = nn.Parameter(torch.ones(2))
    watcher = weakref.ref(parameter)
    view = as_variable(parameter)
    del parameter
    gc.collect()
    assert watcher() is None
    assert view.handle is view
    assert view.assign([3.0, 3.0]).tolist() == [3.0, 3.0]
    copied = copy.deepcopy(view)
    assert (type(copied), copied.tolist()) == (Variable, [3.0, 3.0])
    assert copied.handle is copied


def test_views_have_name_and_constraint_of_their_original() -> None:
    layer = nn.Linear(1, 1)
    view = as_variable(layer.weight)
    assert view.name == "Variable"
    register_names(layer, "dense")
    assert view.name == "dense.weight"
    view.name = "kernel"
    view.constraint = positive
    assert as_variable(layer.weight).name == "kernel"
    assert as_variable(layer.weight).constraint is positive
    view.trainable = False
    assert not layer.weight.requires_grad


def test_views_of_other_layouts_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a dense tensor"):
        as_variable(torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match="got 3"):
        as_variable(3)  # pyright: ignore[reportArgumentType]
