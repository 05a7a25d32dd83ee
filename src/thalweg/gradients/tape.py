"""GradientTape: TensorFlow's interface on the record that torch keeps anyway."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from thalweg.errors import message
from thalweg.gradients import nest
from thalweg.gradients.arguments import (
    UnconnectedGradients,
    check_batches,
    check_tensor,
    check_watchable,
    fills_with_zeros,
    flat_tensors,
    seeds_of,
)
from thalweg.gradients.engines import Gradient, Pass, Point, differentiate, node_of
from thalweg.gradients.jacobians import batch_jacobian_rows, jacobian_rows
from thalweg.gradients.scope import Scope
from thalweg.state import as_gradient, creation_index, handle_of

_requires_grad = attrgetter("requires_grad")
_anywhere = nullcontext()
_logger = logging.getLogger("thalweg")


class GradientTape:
    """Records a computation and differentiates it.

    Inside `with GradientTape() as tape:` torch records as it always does, at no
    further cost; the tape decides what to make of it when it is asked. A tape that
    was never entered, or entered after the computation, sees all that torch has
    recorded.

    Args:
        persistent: Whether several gradients may be asked for. The memory of the
            graph is then kept until its tensors are gone.
        watch_accessed_variables: Whether variables are sources without being watched.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor(3.0))
        >>> with GradientTape() as tape:
        ...     y = x * x
        >>> tape.gradient(y, x)
        tensor(6.)
    """

    def __init__(
        self, persistent: bool = False, watch_accessed_variables: bool = True
    ) -> None:
        self._persistent = persistent
        self._watches_variables = watch_accessed_variables
        self._scope = Scope()
        self._warned = False

    def __repr__(self) -> str:
        kind = "persistent GradientTape" if self._persistent else "GradientTape"
        return f"<{kind}, {self._scope.stage}>"

    def __enter__(self) -> GradientTape:
        self._scope.open()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._scope.is_open:
            self._scope.close()

    def watch(self, tensor: Any) -> None:
        """Make tensors sources, even if they are no variables.

        A tensor that does not require gradients does so while the tape's scope is
        open, and is as before when it closes.

        Args:
            tensor: A tensor, a variable, or a nested structure of them.

        Raises:
            ValueError: If something in it is not a tensor, or was made in inference
                mode.
        """
        found = nest.flatten(tensor)
        for item in found:
            check_watchable(item)
        for item in found:
            self._scope.watch(handle_of(item))

    def stop_recording(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is recorded on this tape.

        Raises:
            RuntimeError: If the tape has not recorded anything yet, or was used up.
            ValueError: If the tape is closed.
        """
        return self._scope.pause()

    def reset(self) -> None:
        """Forget everything recorded and watched so far, and record on.

        Raises:
            ValueError: If the tape is not recording.
        """
        self._scope.reset()

    def watched_variables(self) -> tuple[torch.Tensor, ...]:
        """Return the variables that were watched, in the order of their creation.

        These are the variables explicitly watched, and the trainable ones that were
        read, as far as a result still lives or was the target of a gradient.
        """
        record = self._scope.record
        found = [watch.tensor for watch in record.watches.values()]
        if self._watches_variables:
            found += [leaf for leaf in record.leaves() if leaf.requires_grad]
        unique = {id(v): v for v in found if isinstance(v, nn.Parameter)}
        return tuple(sorted(unique.values(), key=creation_index))

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: UnconnectedGradients | str = UnconnectedGradients.NONE,
    ) -> Any:
        """Differentiate the sum of the targets.

        Args:
            target: A tensor or a nested structure of tensors; of one that is not
                scalar the sum of its elements is differentiated.
            sources: A tensor or a nested structure of tensors.
            output_gradients: For each target a tensor of its shape, or a number: the
                weights of its elements. All ones by default.
            unconnected_gradients: "none" or "zero": what is returned for a source
                that the target does not depend on.

        Returns:
            The structure of `sources` with, for each, a tensor of its shape,
            `IndexedSlices` for one read by sparse lookups only, or None.

        Raises:
            RuntimeError: If the tape is not persistent and was used before.
            TypeError: If targets or sources are not tensors, or `output_gradients`
                have another dtype than the targets.
            ValueError: If `unconnected_gradients` is unknown, or
                `output_gradients` do not fit the targets.
        """
        self._begin("gradient")
        fills = fills_with_zeros(unconnected_gradients)
        targets = flat_tensors("target of GradientTape.gradient", target)
        sources, flat, inputs = self._sources("gradient", sources)
        grads = self._gradients(targets, seeds_of(targets, output_gradients), inputs)
        if fills:
            grads = [
                torch.zeros_like(source) if grad is None else grad
                for grad, source in zip(grads, flat, strict=True)
            ]
        self._scope.is_spent = not self._persistent
        return grads if sources is flat else nest.pack(sources, grads)

    def jacobian(
        self,
        target: torch.Tensor,
        sources: Any,
        unconnected_gradients: UnconnectedGradients | str = UnconnectedGradients.NONE,
        parallel_iterations: int | None = None,
        experimental_use_pfor: bool = True,
    ) -> Any:
        """Differentiate every element of a target.

        Args:
            target: A tensor.
            sources: A tensor or a nested structure of tensors.
            unconnected_gradients: As in `gradient`.
            parallel_iterations: How many elements are done at once; all by default.
            experimental_use_pfor: Whether elements are done together at all.

        Returns:
            The structure of `sources` with tensors of shape target.shape +
            source.shape, or None.

        Raises:
            RuntimeError: If the tape is not persistent and was used before, or is not
                persistent and `experimental_use_pfor` is False.
            TypeError: If target or sources are not tensors.
            ValueError: If `unconnected_gradients` is unknown.
        """
        self._begin("jacobian")
        fills = fills_with_zeros(unconnected_gradients)
        chunk = self._chunk("jacobian", parallel_iterations, experimental_use_pfor)
        check_tensor("target of GradientTape.jacobian", target)
        sources, flat, inputs = self._sources("jacobian", sources)
        used = [f for f, point in zip(flat, inputs, strict=True) if point is not None]
        found = self._rows(
            handle_of(target),
            inputs,
            lambda request: jacobian_rows(request, target, used, chunk),
        )
        if fills:
            found = [
                source.new_zeros((*target.shape, *source.shape)) if g is None else g
                for g, source in zip(found, flat, strict=True)
            ]
        self._scope.is_spent = not self._persistent
        return nest.pack(sources, found)

    def batch_jacobian(
        self,
        target: torch.Tensor,
        source: torch.Tensor,
        unconnected_gradients: UnconnectedGradients | str = UnconnectedGradients.NONE,
        parallel_iterations: int | None = None,
        experimental_use_pfor: bool = True,
    ) -> torch.Tensor:
        """Differentiate row i of a target by row i of a source, for each i.

        Args:
            target: Shape [b, ...]; row i must depend on row i of the source only.
            source: Shape [b, ...].
            unconnected_gradients: Checked; without a connection the result is zero.
            parallel_iterations: How many elements of a row are done at once.
            experimental_use_pfor: Whether elements are done together at all.

        Returns:
            Shape [b, target.shape[1:], source.shape[1:]].

        Raises:
            RuntimeError: As for `jacobian`.
            TypeError: If target or source is not a tensor.
            ValueError: If either has no second dimension, or the first ones differ.
        """
        self._begin("batch_jacobian")
        fills_with_zeros(unconnected_gradients)
        check_tensor("target of GradientTape.batch_jacobian", target)
        check_tensor("source of GradientTape.batch_jacobian", source)
        check_batches(target, source)
        chunk = self._chunk(
            "batch_jacobian", parallel_iterations, experimental_use_pfor
        )
        _, _, inputs = self._sources("batch_jacobian", source)
        (found,) = self._rows(
            handle_of(target),
            inputs,
            lambda request: [batch_jacobian_rows(request, target, source, chunk)],
        )
        self._scope.is_spent = not self._persistent
        if found is None:
            return target.new_zeros((*target.shape, *source.shape[1:]))
        return found

    def _begin(self, method: str) -> None:
        scope = self._scope
        scope.check_unspent(method)
        if not scope.is_open:
            return
        if not self._persistent:
            scope.close()
        elif not self._warned:
            self._warned = True
            _logger.warning(
                "Calling GradientTape.%s on a persistent tape inside its context is "
                "significantly less efficient than calling it outside the context: "
                "the gradient itself is recorded. Do so only for higher orders.",
                method,
            )

    def _sources(
        self, method: str, sources: Any
    ) -> tuple[Any, list[torch.Tensor], Sequence[Point | None]]:
        """Return the structure, its leaves, and where their gradients end."""
        is_plain = self._watches_variables and not self._scope.record.watches
        if isinstance(sources, list) and is_plain:
            try:  # The usual case, a list of parameters, is read only once.
                if all(map(_requires_grad, sources)):
                    return sources, sources, sources
            except AttributeError:
                pass
        sources = nest.settle(sources)
        flat = flat_tensors(f"sources of GradientTape.{method}", sources)
        return sources, flat, [self._end(handle_of(source)) for source in flat]

    def _gradients(
        self,
        targets: list[torch.Tensor],
        seeds: list[Gradient],
        inputs: Sequence[Point | None],
    ) -> list[Any]:
        request = self._request(targets, seeds, inputs)
        if request is None:
            return [None] * len(inputs)
        with self._kept_inside(request):
            found = differentiate(request, not self._persistent)
        # Of the kinds of tensors a gradient can be, only sparse ones are translated.
        found = [g if g is None or not g.is_sparse else as_gradient(g) for g in found]
        return _spread(found, inputs)

    def _rows(
        self,
        target: torch.Tensor,
        inputs: Sequence[Point | None],
        engine: Callable[[Pass], list[Gradient]],
    ) -> list[Any]:
        request = self._request([target], [None], inputs)
        if request is None:
            return [None] * len(inputs)
        with self._kept_inside(request):
            return _spread(engine(request), inputs)

    def _request(
        self,
        targets: list[torch.Tensor],
        seeds: list[Gradient],
        inputs: Sequence[Point | None],
    ) -> Pass | None:
        """Return the pass between what is connected, None if nothing is."""
        starts: list[Point] = []
        weights: list[Gradient] = []
        for target, seed in zip(targets, seeds, strict=True):
            start = self._start(target)
            if start is not None:
                starts.append(start)
                weights.append(_explicit(target, start, seed))
        used = [point for point in inputs if point is not None]
        if not starts or not used:
            return None
        creates = self._scope.records_gradients()
        retains = creates or self._persistent or self._scope.is_needed_again()
        return Pass(starts, weights, used, retains, creates)

    def _start(self, target: torch.Tensor) -> Point | None:
        """Return where the gradient of a target starts, None if it has none."""
        record = self._scope.record
        watch = record.watches.get(id(target))
        if watch is not None:
            return watch.edge
        node = target.grad_fn
        if node is None:
            leaf = handle_of(target)
            return leaf if leaf.requires_grad else None
        if not record.targets or record.targets[-1] is not node:
            record.targets.append(node)
        return None if record.forgets(node) else target

    def _end(self, source: torch.Tensor) -> Point | None:
        """Return where the gradient of a source ends, None if it has none."""
        record = self._scope.record
        watch = record.watches.get(id(source))
        if watch is not None:
            return source if source.is_leaf and source.requires_grad else watch.edge
        if not source.requires_grad:
            return None
        if self._watches_variables or record.reaches_watched(source.grad_fn):
            return source
        return None

    def _kept_inside(self, request: Pass) -> AbstractContextManager[None]:
        """Return a context in which gradients do not leave this tape's record."""
        record = self._scope.record
        if not record.since and not record.gaps:
            return _anywhere
        nodes = map(node_of, request.targets)
        return record.cut([node for node in nodes if node is not None])

    def _chunk(self, method: str, parallel: int | None, together: bool) -> int:
        """Return how many elements are done at once, 0 for all."""
        if together:
            return parallel or 0
        if not self._persistent:
            raise RuntimeError(
                message(
                    f"GradientTape.{method}",
                    "a persistent tape where experimental_use_pfor is False",
                    "one that is not",
                    "GradientTape must be created with persistent=True for that.",
                )
            )
        return 1


def _explicit(target: torch.Tensor, start: Point, seed: Gradient) -> Gradient:
    """Return the weights of a target, None where torch takes ones by itself."""
    if seed is not None:
        return seed
    if start is target and not target.ndim and not target.is_complex():
        return None
    return torch.ones_like(target)


def _spread(found: list[Any], inputs: Sequence[Point | None]) -> list[Any]:
    """Put None where an input was not part of the pass."""
    if len(found) == len(inputs):
        return found
    rest = iter(found)
    return [None if point is None else next(rest) for point in inputs]
