"""Optimizers that break their contract, each in one way, and one that keeps it."""

from __future__ import annotations

from typing import Any

import torch

import thalweg as tw


class Momentum(tw.Optimizer):
    """Keeps every promise."""

    learning_rate: tw.Hyper = tw.Hyper(default=0.1, low=0.0)
    beta: tw.Hyper = tw.Hyper(default=0.9)
    m = tw.Slot()

    @staticmethod
    def update(
        var: Any, m: Any, grad: Any, *, learning_rate: float, beta: float
    ) -> tuple[Any, Any]:
        m_new = beta * m + grad
        return var - learning_rate * m_new, m_new


class Cancelling(Momentum):
    """Loses digits in float32: adds a large number and takes it away."""

    @staticmethod
    def update(
        var: Any, m: Any, grad: Any, *, learning_rate: float, beta: float
    ) -> tuple[Any, Any]:
        m_new = beta * m + grad
        return (var + 4096.0 - learning_rate * m_new) - 4096.0, m_new


class Forgetful(Momentum):
    """Keeps a number in Python that no checkpoint knows."""

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self.seen = 0

    def _transform_gradients(self, grads_and_vars: Any) -> Any:
        self.seen += 1
        return [(grad / self.seen, var) for grad, var in grads_and_vars]


class Configless(tw.Optimizer):
    """Takes an argument that its configuration leaves out."""

    def __init__(self, rate: float = 0.1, name: str = "Configless") -> None:
        super().__init__(name)
        self._set_hyper("rate", rate)

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        var.assign_sub(grad * self._get_hyper("rate"))


class Nameless(Momentum):
    """Keeps nothing but a name in its configuration."""

    def get_config(self) -> dict[str, Any]:
        return {"name": "nameless"}


class Flagless(Momentum):
    """Leaves a flag out of its configuration."""

    flipped: tw.Flag = tw.Flag(default=False)

    def get_config(self) -> dict[str, Any]:
        return {k: v for k, v in super().get_config().items() if k != "flipped"}


class Uneven(Momentum):
    """Has a clip that its configuration leaves out."""

    def __init__(self, clipnorm: float | None = 0.01, **options: Any) -> None:
        super().__init__(clipnorm=clipnorm, **options)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "clipnorm": 0.5}


class Spilling(Configless):
    """Lets a gradient of one variable reach the next one."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self._serialize_hyperparameter("rate")}

    def _transform_gradients(self, grads_and_vars: Any) -> Any:
        dense = [grad for grad, _ in grads_and_vars if isinstance(grad, torch.Tensor)]
        if not dense:
            return grads_and_vars
        total = sum(grad.sum() for grad in dense)
        return [(grad + 0 * total, var) for grad, var in grads_and_vars]


class Allocating(Momentum):
    """Makes a new tensor for every gradient."""

    def _transform_gradients(self, grads_and_vars: Any) -> Any:
        return [(grad * 1.0, var) for grad, var in grads_and_vars]


class Hasty(Momentum):
    """Writes before it checks."""

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        with torch.no_grad():
            pairs[0][1].mul_(0.99)
        return super().apply_gradients(pairs, *args, **kwargs)


class Truncating(Momentum):
    """Clears the last bit of bfloat16 after the rule's own rounding."""

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        applied = super().apply_gradients(pairs, *args, **kwargs)
        for variable in (v for _, v in pairs if v.dtype == torch.bfloat16):
            variable.detach().view(torch.int16).bitwise_and_(~1)
        return applied


class Stuck(Momentum):
    """Leaves variables without axes where they are."""

    def _transform_gradients(self, grads_and_vars: Any) -> Any:
        return [(grad if grad.ndim else 0 * grad, var) for grad, var in grads_and_vars]


class Summing(Momentum):
    """Applies the sum of a cycle's gradients instead of their mean."""

    def _transform_gradients(self, grads_and_vars: Any) -> Any:
        number = self.gradient_accumulation_steps or 1
        return [(number * grad, var) for grad, var in grads_and_vars]


class WrongRows(Configless):
    """Moves all rows for a sparse gradient."""

    get_config = Spilling.get_config

    def _resource_apply_sparse(
        self, grad: Any, var: Any, indices: Any, apply_state: Any = None
    ) -> None:
        del indices, apply_state
        var.assign_sub(torch.ones_like(var) * grad.sum() * self._get_hyper("rate"))
