"""The lower half of a strategy: where variables lie and how updates reach them.

`StrategyExtended` is complete for one replica on one device. It is documented for
subclassing: `Strategy(extended=MyExtended())` has its `colocate_vars_with` and
`update` called for every variable in every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from thalweg.distribute.collectives import SCALAR_ACTION, ReduceOp, check_axis
from thalweg.distribute.components import (
    component_of,
    container_of,
    is_distributed,
    place_arguments,
)
from thalweg.state import IndexedSlices, as_variable, colocate_with, handle_of

Pair = tuple[Any, Tensor]
Value = TypeVar("Value", Tensor, IndexedSlices)

_loss_is_global: ContextVar[bool] = ContextVar("loss_is_global", default=False)


class StrategyExtended:
    """Placement and communication of one strategy; subclasses may replace any part.

    A subclass that only watches or redirects updates overrides `update`. One that
    has several replicas overrides `num_replicas`, `replica_id`, `all_reduce`,
    `all_gather` and `aggregate_gradients`. No constructor argument is needed, and
    `super().__init__()` need not be called.

    Example:
        >>> class Counting(StrategyExtended):
        ...     calls = 0
        ...     def update(self, var, fn, args=(), kwargs=None, group=True):
        ...         self.calls += 1
        ...         return super().update(var, fn, args, kwargs, group)
        >>> extended = Counting()
        >>> weight = torch.zeros(2)
        >>> _ = extended.update(weight, lambda v, delta: v.assign_sub(delta),
        ...                     args=(torch.ones(2),))
        >>> weight, extended.calls
        (tensor([-1., -1.]), 1)
    """

    device: torch.device | None = None
    """Where new variables of the strategy's scope are put; None: where torch does."""

    gradient_reduction: ReduceOp = ReduceOp.SUM
    """What `aggregate_gradients` makes of the gradients of several replicas."""

    @property
    def num_replicas(self) -> int:
        """How many replicas take each step together."""
        return 1

    @property
    def replica_id(self) -> int:
        """Which of the replicas this process is."""
        return 0

    @property
    def has_default_update(self) -> bool:
        """Whether placement and update are the ones defined here.

        Only then may a step that is repeated leave them out.
        """
        own = type(self)
        return (
            own.update is StrategyExtended.update
            and own.colocate_vars_with is StrategyExtended.colocate_vars_with
        )

    # ------------------------------------------------------------- placement

    def variable_scope(self) -> AbstractContextManager[object]:
        """What `Strategy.scope` enters: variables made in it go to `device`."""
        if self.device is None or self.device == torch.get_default_device():
            return contextlib.nullcontext()
        return _new_variables_on(self.device)

    def replica_scope(self) -> AbstractContextManager[object]:
        """What `Strategy.run` enters: `device` is the current one of its kind."""
        if self.device is None or self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.device(self.device)

    def colocate_vars_with(self, var: Tensor) -> AbstractContextManager[object]:
        """Open a scope in which new variables lie where a variable lies.

        Args:
            var: a variable; its device and, for a DTensor, mesh and placements count.

        Returns:
            A context manager.

        Example:
            >>> from thalweg.state import Variable
            >>> extended = StrategyExtended()
            >>> with extended.colocate_vars_with(torch.empty(1, device="meta")):
            ...     Variable([0.0]).device
            device(type='meta')
        """
        return colocate_with(var)

    def variable_created_in_scope(self, var: Tensor) -> bool:
        """Whether a variable lies where this strategy's scope puts new ones.

        A torch parameter does not know in which scope it was made, so its place
        decides; sharded variables, and all where `device` is None, belong anywhere.

        Args:
            var: a variable.

        Returns:
            bool: false if the variable was made for another device.
        """
        handle = handle_of(var)
        if self.device is None or is_distributed(handle):
            return True
        return handle.device == self.device

    # --------------------------------------------------------------- updates

    def update(
        self,
        var: Tensor,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        group: bool = True,
    ) -> Any:
        """Run ``fn(component, *args, **kwargs)`` on each local component of a variable.

        Args:
            var: a parameter, `Variable` or DTensor.
            fn: what writes the component; it is given a `Variable` that shares
                memory with ``var`` or with its local shard.
            args: tensors and `IndexedSlices`, also nested, are moved to the
                variable's device and cut as the variable is; others are passed on.
            kwargs: treated like ``args``.
            group: whether the result is one value or a list of one a component.

        Returns:
            What ``fn`` returned, in a list where ``group`` is false.

        Raises:
            ValueError: an argument is a DTensor on another mesh.
        """
        handle = handle_of(var)
        device = handle.device
        if is_distributed(handle):
            component = component_of(handle)
            placed = [place_arguments(a, handle) for a in args]
        else:
            component = as_variable(var)
            # This runs for every variable in every step: tensors that are in place
            # already, nearly all, are told apart at the least cost.
            placed = [
                a
                if type(a) is Tensor and a.device == device
                else place_arguments(a, handle)
                for a in args
            ]
        named = place_arguments(kwargs, handle) if kwargs else {}
        result = fn(component, *placed, **named)
        return result if group else [result]

    def value_container(self, value: Tensor) -> Tensor:
        """The variable that a component given to an update function belongs to.

        Args:
            value: the component, or any variable.

        Returns:
            Tensor: the DTensor of a local shard; a plain variable's handle.
        """
        return container_of(value)

    # --------------------------------------------------------- communication

    def all_reduce(self, op: ReduceOp, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Reduce tensors over the replicas; with one replica they are the result.

        Args:
            op: ``ReduceOp.SUM`` or ``ReduceOp.MEAN``.
            tensors: the same number, shapes and dtypes on every replica.

        Returns:
            list[Tensor]: new tensors, or the same with one replica.
        """
        del op
        return list(tensors)

    def all_gather(self, value: Value, axis: int = 0) -> Value:
        """Lay the values of all replicas end to end.

        Args:
            value: a tensor, or `IndexedSlices`, which know no other axis than 0.
            axis: which axis of a tensor grows.

        Returns:
            The joined value; the same object with one replica.

        Raises:
            ValueError: the tensor has no such axis.
        """
        if isinstance(value, Tensor):
            check_axis("gather", value, axis, SCALAR_ACTION)
        return value

    def reduce_to(
        self, reduce_op: ReduceOp | str, value: Any, destinations: Tensor | None = None
    ) -> Any:
        """Reduce one value over the replicas and put it where a variable lies.

        Args:
            reduce_op: ``"sum"`` or ``"mean"``.
            value: a tensor, a number, or `IndexedSlices`.
            destinations: a variable; None leaves the result where the value was.

        Returns:
            The reduced tensor or rows.

        Raises:
            ValueError: the reduction is unknown.
        """
        return self.batch_reduce_to(reduce_op, [(value, destinations)])[0]

    def batch_reduce_to(
        self,
        reduce_op: ReduceOp | str,
        value_destination_pairs: Iterable[tuple[Any, Tensor | None]],
    ) -> list[Any]:
        """Reduce many values over the replicas in a few messages.

        Args:
            reduce_op: ``"sum"`` or ``"mean"``.
            value_destination_pairs: (value, variable or None), as for `reduce_to`.

        Returns:
            list: the reduced values, in order.

        Raises:
            ValueError: the reduction is unknown.
        """
        op = ReduceOp.of(reduce_op)
        pairs = list(value_destination_pairs)
        results: list[Any] = [
            v if isinstance(v, IndexedSlices) else torch.as_tensor(v) for v, _ in pairs
        ]
        dense = [i for i, r in enumerate(results) if isinstance(r, Tensor)]
        for i, tensor in zip(
            dense, self.all_reduce(op, [results[i] for i in dense]), strict=True
        ):
            results[i] = tensor
        for i, rows in enumerate(results):
            if isinstance(rows, IndexedSlices):
                results[i] = self._reduce_rows(op, rows)
        return [
            r if d is None else place_arguments(r, handle_of(d))
            for r, (_, d) in zip(results, pairs, strict=True)
        ]

    def _reduce_rows(self, op: ReduceOp, rows: IndexedSlices) -> IndexedSlices:
        """Rows add up when they are applied, so joining them is their sum."""
        joined = self.all_gather(rows)
        if op is ReduceOp.MEAN and self.num_replicas > 1:
            return joined.with_values(joined.values / self.num_replicas)
        return joined

    def aggregate_gradients(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Reduce the gradients of all replicas; with one replica there is no more.

        Args:
            pairs: (gradient or None, variable); the same variables in the same
                order on every replica, None where a replica has no gradient.

        Returns:
            list: the pairs with the gradients to apply, alike on every replica; the
            argument itself where nothing changed.
        """
        return pairs if isinstance(pairs, list) else list(pairs)

    def refuse_gradients(self, variables: Iterable[Tensor]) -> None:
        """Let the other replicas know that this one refuses its gradients.

        Called in place of `aggregate_gradients`, where these would wait for it.

        Args:
            variables: those of its pairs, in their order.
        """
        del variables

    def broadcast_initial(self, variables: Iterable[Tensor]) -> None:
        """Give all replicas the values of the first, once for each variable."""
        del variables

    def global_count(self, count: Any) -> Any:
        """Add up a count over the replicas: what a mean loss divides by.

        Args:
            count: a number of items, or a tensor of one.

        Returns:
            The sum, of the argument's type.
        """
        if isinstance(count, Tensor):
            return self.all_reduce(ReduceOp.SUM, [count])[0]
        if self.num_replicas == 1:
            return count
        return self._sum_number(count)

    def _sum_number(self, number: float) -> float:
        dtype = torch.int64 if isinstance(number, int) else torch.float64
        tensor = torch.tensor(number, dtype=dtype, device=self.device)
        return self.all_reduce(ReduceOp.SUM, [tensor])[0].item()

    @contextlib.contextmanager
    def loss_divided_globally(self) -> Iterator[None]:
        """Vouch, in this scope, that the loss was divided by the global count.

        Summed gradients are right then, and nothing is said about them.
        """
        token = _loss_is_global.set(True)
        try:
            yield
        finally:
            _loss_is_global.reset(token)

    @property
    def loss_is_global(self) -> bool:
        """Whether `loss_divided_globally` is in force."""
        return _loss_is_global.get()


@contextlib.contextmanager
def _new_variables_on(device: torch.device) -> Iterator[None]:
    """Put parameters and `Variable`s made in this scope on a device."""
    with torch.device(device), colocate_with(torch.empty(0, device=device)):
        yield
