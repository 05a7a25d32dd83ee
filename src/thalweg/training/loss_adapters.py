"""Losses that were not written for this package, and the lookup by name.

A function or a `torch.nn` loss is given the face of `Loss`: items where it can give
them, else its mean, weighted by the number of samples.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from thalweg.errors import describe, message, nearest
from thalweg.training.alignment import no_tensor, weighted
from thalweg.training.losses import NAMES, Loss
from thalweg.training.structure import flatten

Tensor = torch.Tensor


class FunctionLoss(Loss):
    """A loss that is an ordinary function.

    Args:
        function: (y_true, y_pred) to one number an item, or to their mean. A function
            whose first parameter is called `input`, as torch's are, is called with
            (y_pred, y_true).
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__(getattr(function, "__name__", type(function).__name__))
        self._function = function
        self._is_swapped = _first_parameter(function) == "input"

    def _call(self, y_true: Any, y_pred: Any) -> Tensor:
        pair = (y_pred, y_true) if self._is_swapped else (y_true, y_pred)
        found: object = self._function(*pair)
        if not isinstance(found, Tensor):
            raise no_tensor(self.name, found)
        return found

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """What the function returns."""
        return self._call(y_true, y_pred)

    def total(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """Sum the items, or take a mean as that of as many items as samples."""
        items = self._call(y_true, y_pred)
        if items.ndim:
            return weighted(items, sample_weight).sum(), items.numel()
        if sample_weight is not None:
            raise ValueError(_no_items(self.name))
        rows = num_rows(y_true, y_pred)
        return _sum_of_mean(items, rows), rows

    def mean(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, int | Tensor]:
        """The mean, as the function gives it where it does."""
        items = self._call(y_true, y_pred)
        if items.ndim:
            return items.mean(), items.numel()
        return items, num_rows(y_true, y_pred)


class TorchLoss(FunctionLoss):
    """A loss module of torch, called with (y_pred, y_true).

    With `reduction="mean"`, sum and count are those by which the module divides
    (class weights and `ignore_index` included). With `reduction="sum"` the sum is
    kept and never divided.

    Args:
        module: For example `torch.nn.CrossEntropyLoss()`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.name = type(module).__name__
        self.module = module
        self._is_swapped = True
        self._per_item = _with_reduction(module, "none")
        self.is_averaged = getattr(module, "reduction", "mean") != "sum"
        self.has_ignored_items = isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss))
        self.has_class_weights = getattr(module, "weight", None) is not None

    def total(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """Sum and count of the module's items."""
        if self._per_item is None:
            return super().total(y_true, y_pred, sample_weight)
        self._follow(y_pred)
        items = self._per_item(y_pred, y_true)
        if self.has_ignored_items and not y_true.is_floating_point():
            count: int | Tensor = self._weight_of(y_true, items.dtype)
        else:
            count = items.numel()
        return weighted(items, sample_weight).sum(), count

    def mean(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, int | Tensor]:
        """The module's own value; only for labels that all count alike."""
        self._follow(y_pred)
        value = self._call(y_true, y_pred)
        if value.ndim:
            return value.mean(), value.numel()
        return value, _num_targets(y_true, y_pred)

    def label_limit(self, y_pred: Tensor) -> int | None:
        """The size of torch's class axis, which is the second."""
        if not self.has_ignored_items:
            return None
        return y_pred.shape[1] if y_pred.ndim > 1 else y_pred.shape[0]

    @property
    def ignore_class(self) -> int:
        """The label that the module passes over."""
        return int(getattr(self.module, "ignore_index", -100))

    def _weight_of(self, y_true: Tensor, dtype: torch.dtype) -> Tensor:
        kept = y_true != self.ignore_class
        weight = getattr(self.module, "weight", None)
        if weight is None or not self.is_averaged:
            return kept.sum()
        return (weight[y_true * kept] * kept).sum().to(dtype)

    def _follow(self, y_pred: Tensor) -> None:
        """Move class weights to where the outputs are."""
        weight = getattr(self.module, "weight", None)
        if isinstance(weight, Tensor) and weight.device != y_pred.device:
            self.module.to(y_pred.device)
            self._per_item = _with_reduction(self.module, "none")


def get(identifier: str | Callable[..., Any] | Loss) -> Loss:
    """Return the loss that a name, a function or a module stands for.

    Args:
        identifier: A name of `losses.NAMES` (upper and lower case alike), a Loss or
            a class of them, a `torch.nn` loss, or a function of (y_true, y_pred).

    Raises:
        ValueError: If the name is unknown; the nearest known one is said.
        TypeError: If it is none of these.

    Example:
        >>> get("mse").name
        'mean_squared_error'
    """
    if isinstance(identifier, str):
        known = {name.replace("_", ""): make for name, make in NAMES.items()}
        make = known.get(identifier.lower().replace("_", ""))
        if make is None:
            action = nearest(identifier, NAMES)
            raise ValueError(message("loss", "a known name", repr(identifier), action))
        return make()
    if isinstance(identifier, Loss):
        if (
            type(identifier).items is Loss.items
            and type(identifier).total is Loss.total
        ):
            expected, action = "a loss with a method items", "Derive a class from Loss."
            raise TypeError(message("loss", expected, describe(identifier), action))
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, (Loss, nn.Module)):
        return get(identifier())
    if isinstance(identifier, nn.Module):
        return TorchLoss(identifier)
    if callable(identifier):
        return FunctionLoss(identifier)
    action = "Pass a name, a function of (y_true, y_pred) or a torch.nn loss."
    raise TypeError(message("loss", "a loss", describe(identifier), action))


def num_rows(y_true: Any, y_pred: Any) -> int:
    """Return how many samples a batch has, by its targets or outputs."""
    if isinstance(y_true, Tensor) and y_true.ndim:
        return y_true.shape[0]
    leaves = [*flatten(y_true), *flatten(y_pred)]
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    return sizes[0] if sizes else 1


def _num_targets(y_true: Tensor, y_pred: Tensor) -> int:
    # Distributions over the classes count once, not once a class.
    is_distribution = y_true.is_floating_point() and y_pred.ndim > 1
    return y_true.shape[0] if is_distribution else y_true.numel()


def _sum_of_mean(mean: Tensor, rows: int) -> Tensor:
    # The mean over no items is NaN, and so is its gradient; nothing adds nothing.
    return mean * rows if rows else torch.nan_to_num(mean) * 0.0


def _with_reduction(module: nn.Module, reduction: str) -> Any:
    if not hasattr(module, "reduction"):
        return None
    other = copy.copy(module)
    other.__dict__["reduction"] = reduction
    return other


def _first_parameter(function: Callable[..., Any]) -> str | None:
    try:
        return next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        # Built-in functions of torch have no signature; all of them take outputs first.
        return "input"


def _no_items(name: str) -> str:
    action = "Return one loss an item, without the mean."
    return message(name, "one number an item, to weight them", "a mean", action)
