"""Variables and views."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.state import (
    IndexedSlices,
    Variable,
    as_variable,
    constrained,
    creation_index,
    handle_of,
    name_of,
    named_variables,
    register_names,
)


def positive(value: torch.Tensor) -> torch.Tensor:
    return value.clamp(min=0)


@pytest.mark.parametrize(
    ("value", "dtype", "trainable"),
    [
        (1.0, torch.float32, True),
        ([[1.0, 2.0]], torch.float32, True),
        (3, torch.int64, False),
        ([True, False], torch.bool, False),
        (np.float64(2.0), torch.float64, True),
        (np.zeros((2, 3)), torch.float64, True),
        (torch.zeros(2, dtype=torch.bfloat16), torch.bfloat16, True),
        (1j, torch.complex64, True),
        (lambda: torch.ones(2), torch.float32, True),
    ],
)
def test_initial_values(value: Any, dtype: torch.dtype, trainable: bool) -> None:
    variable = Variable(value)
    assert isinstance(variable, nn.Parameter)
    assert (variable.dtype, variable.trainable) == (dtype, trainable)
    assert variable.requires_grad is trainable
    expected = value() if callable(value) else value
    assert torch.equal(variable.detach(), torch.as_tensor(expected))


def test_python_floats_follow_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    assert Variable(0.1).dtype == torch.float64


def test_dtype_converts() -> None:
    assert Variable([1, 2], dtype=torch.float16).dtype == torch.float16
    assert Variable(0.1, dtype=torch.float64).item() == 0.1
    assert Variable(2.0, dtype=torch.int32).trainable is False


def test_the_data_are_copied() -> None:
    tensor, array = torch.zeros(2), np.zeros(2, np.float32)
    from_tensor, from_array = Variable(tensor), Variable(array)
    from_variable = Variable(from_tensor)
    tensor += 1
    array += 1
    from_tensor.assign([5.0, 5.0])
    assert from_variable.tolist() == from_array.tolist() == [0.0, 0.0]


def test_memory_is_dense_and_strides_are_kept() -> None:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert Variable(image).stride() == image.stride()
    assert Variable(torch.ones(1).expand(3)).assign([1.0, 2.0, 3.0]).sum().item() == 6
    assert Variable(torch.arange(6.0)[::2]).is_contiguous()


def test_lazy_conjugates_are_resolved() -> None:
    assert not Variable(torch.tensor([1j]).conj()).is_conj()


def test_inference_mode_makes_ordinary_variables() -> None:
    with torch.inference_mode():
        variable = Variable(torch.ones(2))
    (variable * 2).sum().backward()
    assert variable.grad is not None


def test_arrays_that_torch_cannot_look_at() -> None:
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert Variable(frozen).tolist() == [0.0, 1.0, 2.0]
    assert Variable(np.arange(3.0)[::-1]).tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "value", ["text", None, [[1.0], [1.0, 2.0]], object(), np.array(["a"]), [10**40]]
)
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="Variable: expected a tensor, array"):
        Variable(value)


def test_sparse_values_are_refused() -> None:
    with pytest.raises(TypeError, match=r"sparse_coo\. Call to_dense"):
        Variable(torch.eye(2).to_sparse())


def test_names() -> None:
    variable = Variable(1.0)
    assert variable.name == "Variable"
    variable.name = "alpha"
    assert (variable.name, name_of(variable)) == ("alpha", "alpha")
    assert Variable(1.0, name="beta").name == "beta"
    assert "beta" in repr(Variable(1.0, name="beta"))


def test_results_of_operations_are_plain_tensors() -> None:
    variable = Variable([1.0, 2.0])
    results = (variable + 1, variable.detach(), variable[0], variable.value())
    assert all(type(result) is torch.Tensor for result in results)


def test_values_are_snapshots_connected_to_the_variable() -> None:
    variable = Variable([1.0, 2.0])
    before = variable.read_value()
    variable.assign([3.0, 4.0])
    assert before.tolist() == [1.0, 2.0]
    (variable.value() * 2).sum().backward()
    assert variable.grad is not None
    assert variable.grad.tolist() == [2.0, 2.0]


def test_numpy() -> None:
    variable = Variable([1.5, 2.5], dtype=torch.bfloat16)
    array = variable.numpy()
    assert array.dtype == np.float32
    array += 1
    assert variable.tolist() == [1.5, 2.5]
    assert np.asarray(Variable([1.0])).tolist() == [1.0]
    assert Variable(3).numpy().dtype == np.int64


def test_assignments() -> None:
    variable = Variable([1.0, 2.0])
    assert variable.assign(np.array([3.0, 4.0])) is variable
    assert variable.assign_add([1, 1]) is variable
    assert variable.assign_sub(torch.tensor([0.5, 0.5])) is variable
    assert variable.tolist() == [3.5, 4.5]
    variable.assign([0.0, 0.0], use_locking=True, name="op", read_value=False)
    assert variable.tolist() == [0.0, 0.0]


def test_assigned_python_numbers_keep_their_digits() -> None:
    assert Variable(0.0, dtype=torch.float64).assign(0.1).item() == 0.1


def test_assignments_bump_the_version() -> None:
    variable = Variable([1.0])
    for method in (variable.assign, variable.assign_add, variable.assign_sub):
        version = variable._version
        method([1.0])
        assert variable._version == version + 1
    product = variable * variable
    variable.assign([2.0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_assigning_leaves_no_trace_in_the_graph() -> None:
    variable = Variable([1.0])
    variable.assign(torch.ones(1, requires_grad=True) * 2)
    assert variable.is_leaf
    assert variable.requires_grad


def test_assigning_its_own_memory_in_another_order() -> None:
    variable = Variable([[1.0, 2.0], [3.0, 4.0]])
    variable.assign(variable.t())
    assert variable.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    variable.assign_add(variable.t())
    assert variable.tolist() == [[2.0, 5.0], [5.0, 8.0]]
    variable.assign_sub(variable)
    assert variable.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("method", ["assign", "assign_add", "assign_sub"])
@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (1.0, ValueError, r"of 'w': expected shape \(2,\); got float32 tensor"),
        ([1.0], ValueError, "nothing is broadcast"),
        ([1j, 2j], TypeError, "Convert the value first"),
        ("ab", TypeError, "nested list of numbers; got 'ab'"),
        (IndexedSlices(torch.ones(1), torch.tensor([0]), (2,)), TypeError, "1 row"),
    ],
)
def test_refused_assignments_change_nothing(
    method: str, value: object, error: type[Exception], match: str
) -> None:
    variable = Variable([1.0, 2.0], name="w")
    version = variable._version
    with pytest.raises(error, match=match):
        getattr(variable, method)(value)
    assert (variable.tolist(), variable._version) == ([1.0, 2.0], version)


def test_fractions_do_not_go_into_integers() -> None:
    variable = Variable([1, 2])
    with pytest.raises(TypeError, match=r"an int64 tensor.*can hold"):
        variable.assign([0.5, 1.5])
    assert variable.assign_add([1, 1]).tolist() == [2, 3]


def test_trainable_can_change() -> None:
    variable = Variable([1.0], trainable=False)
    assert not variable.requires_grad
    variable.trainable = True
    assert variable.requires_grad
    with pytest.raises(ValueError, match="floating point or complex"):
        Variable(1).trainable = True


def test_constraint() -> None:
    variable = Variable([-1.0], constraint=positive)
    assert variable.constraint is positive
    variable.constraint = None
    assert variable.constraint is None


def test_modules_register_and_move_variables() -> None:
    module = nn.Module()
    module.scale = Variable([1.0, 2.0], constraint=positive)
    original = module.scale
    assert list(dict(module.named_parameters())) == ["scale"]
    module.to(torch.float64)
    assert module.scale is original
    assert (original.dtype, original.constraint) == (torch.float64, positive)
    module.load_state_dict({"scale": torch.tensor([3.0, 4.0])})
    assert original.tolist() == [3.0, 4.0]
    assert type(module.state_dict()["scale"]) is torch.Tensor


def test_torch_optimizers_and_compile_take_variables() -> None:
    module = nn.Module()
    module.scale = Variable([1.0])
    module.forward = lambda x: x * module.scale
    compiled = torch.compile(module, backend="eager")
    compiled(torch.tensor([3.0])).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    assert module.scale.tolist() == [-0.5]


def copies(value: Any) -> list[Any]:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    return [copy.deepcopy(value), pickle.loads(pickle.dumps(value)), loaded]


def test_copies_keep_what_belongs_to_the_variable() -> None:
    variable = Variable([1.0], trainable=False, name="w", constraint=positive)
    for copied in copies(variable):
        assert type(copied) is Variable
        assert (copied.name, copied.trainable) == ("w", False)
        assert copied.constraint is positive
        copied.assign([2.0])
        assert variable.tolist() == [1.0]
        assert creation_index(copied) > creation_index(variable)


def test_copies_keep_ties() -> None:
    variable = Variable([1.0])
    parameter = nn.Parameter(torch.ones(1))
    for one, two in copies([variable, variable]):
        assert one is two
    for view, original in copies([as_variable(parameter), parameter]):
        assert view.handle is original


def test_pickle_keeps_attributes() -> None:
    variable = Variable([1.0])
    variable.tag = "embedding"  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(variable)).tag == "embedding"


def test_variables_are_loaded_without_unpickling_code() -> None:
    file = io.BytesIO()
    torch.save(Variable([1.0], name="w"), file)
    file.seek(0)
    assert torch.load(file, weights_only=True).name == "w"


def test_order_of_creation() -> None:
    variables = [Variable(1.0) for _ in range(3)]
    indices = [creation_index(variable) for variable in variables]
    assert indices == sorted(set(indices))
    parameter = nn.Parameter(torch.ones(1))
    assert creation_index(parameter) > indices[-1]
    assert creation_index(as_variable(parameter)) == creation_index(parameter)


def test_handles() -> None:
    variable, tensor = Variable(1.0), torch.ones(1)
    assert variable.handle is variable
    assert handle_of(variable) is variable
    assert handle_of(tensor) is tensor
    assert handle_of(as_variable(tensor)) is tensor
    with pytest.raises(TypeError, match="got 'w'"):
        handle_of("w")


def test_a_parameter_is_not_a_variable() -> None:
    assert not isinstance(nn.Parameter(torch.ones(1)), Variable)
    assert isinstance(Variable(1.0), nn.Parameter)


def test_variables_in_a_model_have_their_path_as_name() -> None:
    layer = nn.Module()
    layer.kernel = Variable([1.0])
    assert list(register_names(layer)) == list(named_variables(layer)) == ["kernel"]
    assert layer.kernel.name == "kernel"


def test_a_variable_is_a_key_by_identity() -> None:
    first, second = Variable([1.0, 2.0]), Variable([1.0, 2.0])
    table = {first: "first", second: "second"}
    assert (table[first], table[second]) == ("first", "second")
    assert torch.ones(2) not in table
    copied = copy.deepcopy(first)
    assert hash(copied) != hash(first)
    assert copied not in table


def test_a_handle_is_the_variable_itself() -> None:
    variable = Variable([1.0, 2.0])
    assert variable.handle is variable
    with pytest.raises(AttributeError):
        variable.handle = torch.zeros(2)
    gone: list[bool] = []
    weakref.finalize(variable, gone.append, True)
    gc.disable()
    try:
        del variable  # nothing of it refers to itself
        assert gone == [True]
    finally:
        gc.enable()


def test_torch_compiles_a_handle() -> None:
    variable = Variable([1.0, 2.0])

    def double(value: torch.Tensor) -> torch.Tensor:
        return variable.handle * value

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert compiled(torch.full((2,), 2.0)).tolist() == [2.0, 4.0]


def test_the_constrained_are_found_by_any_of_their_faces() -> None:
    free, bound = Variable([1.0]), Variable([1.0], constraint=torch.relu)
    parameter = torch.nn.Parameter(torch.ones(2))
    view = as_variable(parameter)
    assert constrained([free, parameter]) == []
    view.constraint = torch.relu
    (own, other) = constrained([free, bound, parameter])
    assert own is bound
    assert other is view
    (again,) = constrained([view])
    assert again is view
    view.constraint = bound.constraint = None
    assert constrained([free, bound, parameter, view]) == []
