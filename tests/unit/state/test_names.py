"""Names of variables, beside the tensors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
)

from thalweg.state import (
    Trackable,
    Variable,
    as_variable,
    canonical_name,
    name_of,
    named_variables,
    register_name,
    register_names,
    set_name,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("weight", "weight"),
        ("_orig_mod.weight", "weight"),
        ("0._fsdp_wrapped_module._checkpoint_wrapped_module.1.bias", "0.1.bias"),
        ("module.weight", "module.weight"),
        ("_orig_mod", ""),
    ],
)
def test_canonical_name(path: str, name: str) -> None:
    assert canonical_name(path) == name


def test_names_are_registered_with_a_prefix() -> None:
    layer = nn.Linear(2, 3)
    assert list(register_names(layer, "model")) == ["model.weight", "model.bias"]
    assert name_of(layer.weight) == "model.weight"
    register_names(layer)
    assert name_of(layer.bias) == "bias"


def test_unknown_tensors_have_the_default_name() -> None:
    tensor = torch.ones(1)
    assert name_of(tensor) is None
    assert name_of(tensor, "unnamed") == "unnamed"


def test_a_path_comes_before_a_given_name() -> None:
    owner, kernel = Trackable(), Variable([1.0], name="mine")
    owner.kernel = kernel
    assert name_of(kernel) == "mine"
    register_names(owner, "dense")
    assert name_of(kernel) == "dense.kernel"
    assert kernel.name == "mine"


def test_a_given_name_can_be_taken_back() -> None:
    tensor = torch.ones(1)
    set_name(tensor, "a")
    assert name_of(tensor) == "a"
    set_name(tensor, None)
    assert name_of(tensor) is None


def test_views_share_the_names_of_their_original() -> None:
    layer = nn.Linear(1, 1)
    view = as_variable(layer.weight)
    register_names(layer, "a")
    assert (view.name, name_of(view)) == ("a.weight", "a.weight")


def test_dots_of_a_path_part_its_segments() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    for path, parameter in model.named_parameters():
        register_name(parameter, f"_orig_mod.{path}")
    assert name_of(model[0].weight) == "0.weight"


def test_names_keep_nothing_alive() -> None:
    layer = nn.Linear(1, 1)
    register_names(layer)
    gone: list[bool] = []
    weakref.finalize(layer.weight, gone.append, True)
    del layer
    gc.collect()
    assert gone == [True]


def test_wrappers_leave_no_trace_in_names() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = list(named_variables(plain))
    wrapped = nn.Sequential(checkpoint_wrapper(plain[0]), plain[1])
    assert list(named_variables(wrapped)) == names
    assert list(named_variables(torch.compile(wrapped, backend="eager"))) == names
    assert list(named_variables(nn.DataParallel(plain))) == names


def test_an_attribute_called_module_is_not_a_wrapper() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1, bias=False)

    assert list(named_variables(Holder())) == ["module.weight"]
    both = nn.DataParallel(Holder())
    assert list(named_variables(both)) == ["module.weight"]
    assert list(named_variables({"x": both})) == ["x.module.weight"]


@pytest.mark.parametrize("give", [register_name, set_name])
@pytest.mark.parametrize("arguments", [(3, "x"), (torch.ones(1), 3)])
def test_what_is_no_tensor_or_no_name_is_refused(
    give: Callable[..., None], arguments: tuple[Any, Any]
) -> None:
    text = rf"{give.__name__}: expected a tensor and its name, .*; got 3 \(int\)\."
    with pytest.raises(TypeError, match=text):
        give(*arguments)
    assert name_of(arguments[0]) is None
