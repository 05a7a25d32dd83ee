"""How targets, outputs and sample weights are laid against each other."""

from __future__ import annotations

import torch

from thalweg.errors import describe, message

Tensor = torch.Tensor


def no_tensor(name: str, value: object) -> TypeError:
    """The error for a loss or metric whose function returned no tensor."""
    action = "Return one number an item, or their mean."
    return TypeError(message(name, "a tensor", describe(value), action))


def aligned(name: str, y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Give targets the shape and floating dtype of the outputs.

    A missing or superfluous trailing axis of one element is put right; nothing else
    is broadcast, since (N, 1) against (N,) would silently make (N, N).

    Raises:
        ValueError: If the shapes differ otherwise.
    """
    if y_true.shape != y_pred.shape:
        if y_true.ndim + 1 == y_pred.ndim and y_pred.shape[-1] == 1:
            y_true = y_true.unsqueeze(-1)
        elif y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
            y_true = y_true.squeeze(-1)
    if y_true.shape != y_pred.shape:
        expected = f"targets of the outputs' shape {tuple(y_pred.shape)}"
        action = "Change the model's last layer or the targets."
        raise ValueError(message(name, expected, describe(y_true), action))
    return y_true if y_true.dtype == y_pred.dtype else y_true.to(y_pred.dtype)


def weighted(items: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Multiply items by weights that lie along their first axes.

    Raises:
        ValueError: If the shape of the weights does not begin that of the items.
    """
    if sample_weight is None:
        return items
    weight = sample_weight
    if weight.ndim > items.ndim and weight.shape[-1] == 1:
        weight = weight.squeeze(-1)
    if weight.shape != items.shape[: weight.ndim]:
        action = "Give one weight a sample."
        expected = f"sample_weight of shape {tuple(items.shape)}"
        raise ValueError(message("loss", expected, describe(weight), action))
    trailing = (1,) * (items.ndim - weight.ndim)
    return items * weight.reshape(*weight.shape, *trailing).to(items.dtype)
