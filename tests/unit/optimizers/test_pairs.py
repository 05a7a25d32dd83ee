"""What `apply_gradients` refuses, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw

GRADIENT = torch.ones(2)


def made() -> list[torch.Tensor]:
    """One of each kind that can be trained."""
    return [
        tw.Variable([1.0, 2.0], name="weight"),
        torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        torch.tensor([1.0, 2.0], requires_grad=True),
    ]


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("is_first", [True, False])
def test_pairs_the_wrong_way_round_are_refused(kind: int, is_first: bool) -> None:
    variable, grad = made()[kind], GRADIENT.clone()
    optimizer = tw.optimizers.SGD(0.5)
    if not is_first:
        optimizer.apply_gradients([(grad, variable)])
    before, count = variable.detach().clone(), optimizer.iterations.item()
    with pytest.raises(TypeError, match=r"the gradient first.*zip\(gradients, var"):
        optimizer.apply_gradients([(variable, grad)])
    assert torch.equal(variable, before)
    assert torch.equal(grad, GRADIENT)
    assert optimizer.iterations == count


def test_the_refusal_names_the_variable() -> None:
    variable = tw.Variable([1.0, 2.0], name="weight")
    with pytest.raises(TypeError, match=r"\(the variable 'weight', float32 tensor"):
        tw.optimizers.SGD().apply_gradients([(variable, GRADIENT)])
    with pytest.raises(TypeError, match=r"\(a tensor that requires a gradient, "):
        tw.optimizers.SGD().apply_gradients([(made()[2], GRADIENT)])


def test_a_gradient_may_be_a_parameter_and_a_variable_a_plain_tensor() -> None:
    weight, frozen = tw.Variable([1.0, 2.0]), tw.Variable([1.0, 1.0], trainable=False)
    plain = torch.zeros(2)
    optimizer = tw.optimizers.SGD(1.0)
    optimizer.apply_gradients([(made()[1], weight), (frozen, plain)])
    assert weight.tolist() == [0.0, 0.0]
    assert plain.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("pairs", "error", "text"),
    [
        ([GRADIENT], TypeError, "pairs"),
        ([(GRADIENT, 3)], TypeError, "a variable"),
        ([(GRADIENT, tw.Variable([1.0]))], ValueError, "shape"),
        ([(GRADIENT.long(), tw.Variable([1.0, 1.0]))], ValueError, "floating"),
        ([(None, tw.Variable([1.0]))], ValueError, "No gradients provided"),
        ([(3.0, tw.Variable([1.0]))], TypeError, "torch.as_tensor"),
    ],
)
def test_what_is_no_pair_is_refused(pairs: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        tw.optimizers.SGD().apply_gradients(pairs)


def test_a_variable_that_comes_twice_is_refused() -> None:
    weight = tw.Variable([1.0, 2.0], name="weight")
    with pytest.raises(ValueError, match=r"weight .* twice"):
        tw.optimizers.SGD().apply_gradients([(GRADIENT, weight)] * 2)


def test_a_row_that_is_not_there_is_refused() -> None:
    table = tw.Variable(torch.zeros(3, 2))
    slices = tw.IndexedSlices(torch.ones(1, 2), torch.tensor([3]), (3, 2))
    with pytest.raises((IndexError, ValueError), match="3"):
        tw.optimizers.SGD().apply_gradients([(slices, table)])
    assert not table.any()


@pytest.mark.parametrize("shape", [None, ()])
def test_a_variable_without_axes_has_no_rows(shape: Any) -> None:
    slices = tw.IndexedSlices(torch.ones(1), torch.tensor([0]), shape)
    with pytest.raises(ValueError, match=r"has shape \(1,\), the variable has \(\)"):
        tw.optimizers.SGD(1.0).apply_gradients([(slices, torch.zeros(()))])
