"""Views of memory by address."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thalweg.compiler.views import ItemViews, tensor_of, view_memory

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_is_the_memory(dtype: torch.dtype) -> None:
    tensor = torch.arange(6, dtype=torch.float32).to(dtype)
    view = tensor_of(view_memory(tensor.data_ptr() + 2 * dtype.itemsize, 3, dtype))
    assert view.dtype == dtype
    assert view.tolist() == [2, 3, 4]
    view[0] = 9
    assert tensor.tolist() == [0, 1, 9, 3, 4, 5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_elements_need_no_address(dtype: torch.dtype) -> None:
    assert tensor_of(view_memory(0, 0, dtype)).shape == (0,)


def test_offsets_count_elements() -> None:
    var, grad = torch.arange(8.0), torch.arange(8.0).to(torch.bfloat16)
    pointers = np.array([[var.data_ptr(), grad.data_ptr()]])
    items = np.array([[0, 2, 5, 3, 0], [0, 6, 0, 2, 0]])
    found = ItemViews((var.dtype, grad.dtype), items, pointers).memory
    lists = [[tensor_of(view).tolist() for view in own] for own in found]
    assert lists == [[[2, 3, 4], [5, 6, 7]], [[6, 7], [0, 1]]]


def test_only_what_moved_is_made_again() -> None:
    var, first, second = torch.zeros(4), torch.ones(4), torch.full((4,), 2.0)
    pointers = np.array([[var.data_ptr(), first.data_ptr()]])
    views = ItemViews((var.dtype,) * 2, np.array([[0, 0, 0, 4, 0]]), pointers)
    own = views.memory[0]
    kept = own[0]
    pointers[0, 1] = second.data_ptr()
    views.move(pointers)
    assert views.memory[0] is own
    assert own[0] is kept
    assert tensor_of(own[1]).tolist() == [2.0] * 4


def test_a_gradient_that_is_written_is_copied_each_time() -> None:
    var = torch.ones(4)
    pointers = np.array([[var.data_ptr(), var.data_ptr()]])
    views = ItemViews((var.dtype,) * 2, np.array([[0, 0, 0, 4, 0]]), pointers)
    for number in (3.0, 5.0):
        var.fill_(number)
        assert views.part()
        var.zero_()
        assert tensor_of(views.memory[0][1]).tolist() == [number] * 4


def test_a_gradient_that_was_parted_is_read_anew() -> None:
    # The gradient of both launches is x; in the first one it is the variable, too.
    x, y = np.full(3, 2.0, np.float32), np.zeros(3, np.float32)
    items = np.array([[0, 0, 0, 3, 0]])
    pointers = np.array([[x.ctypes.data, x.ctypes.data]])
    views = ItemViews([torch.float32, torch.float32], items, pointers)
    assert views.part()
    x[:] = 7.0
    pointers[0, 0] = y.ctypes.data
    views.move(pointers)
    assert not views.part()
    assert views.memory[0][1].tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("length", [0, 2])
def test_views_of_halves_made_in_inference_mode_can_be_written_later(
    length: int,
) -> None:
    own = torch.zeros(2, dtype=torch.bfloat16)
    with torch.inference_mode():
        view = view_memory(own.data_ptr(), length, torch.bfloat16)
    assert isinstance(view, torch.Tensor)
    view.fill_(1.0)
    assert own.tolist() == [1.0 if length else 0.0] * 2
