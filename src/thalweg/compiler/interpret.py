"""Evaluate a rule's graph by the reference column: the oracle, in tensors.

It is the fallback too for reductions and touched rows; `blocks` is for the rest.

Operands have the compute type and at least one dimension, a scalar is rounded once
where it meets a tensor, and results are rounded once to the storage type. Scalars are
Python floats, because torch's 0-d float64 functions round differently from C's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from thalweg.compiler.graph import (
    Operand,
    Space,
    expect_operation,
    expect_reduction,
    is_mask,
    label_of,
    operands_of,
    operation_of,
    reduction_of,
    space_of,
)
from thalweg.compiler.key import KernelKey
from thalweg.compiler.passes import NUM_ELEMENTS, optimize
from thalweg.compiler.program import (
    ROW_LENGTH,
    Program,
    compute_dtype,
    lower,
    with_rounding,
)
from thalweg.compiler.reductions import over_rows, over_variable
from thalweg.compiler.rule import Rule
from thalweg.compiler.storing import RoundOutput, round_to_nearest, rounder
from thalweg.compiler.trace import ShapeNeededError, trace

__all__ = [
    "Interpreter",
    "interpret",
    "interpret_program",
    "program_for",
    "program_of",
]


@cache
def program_of(
    rule: Rule,
    flags: tuple[tuple[str, bool], ...],
    layouts: tuple[str, ...] = (),
    device_scalars: tuple[str, ...] = (),
    shape: tuple[int | None, ...] | None = None,
) -> Program:
    """Trace, optimize and lower a rule; the result is kept.

    Args:
        rule: The rule.
        flags: A bool for each flag, as pairs.
        layouts: For each slot "like", "row" or "scalar".
        device_scalars: Scalars that an earlier kernel writes.
        shape: Global shape of the variable, if the rule reads it.

    Returns:
        The program.

    Raises:
        TraceError: If the rule cannot be compiled.
    """
    return lower(optimize(trace(rule, dict(flags), layouts, shape)), device_scalars)


def program_for(key: KernelKey) -> Program:
    """The program of a kernel.

    Args:
        key: What it is made for.

    Raises:
        TraceError: If the rule cannot be compiled.
    """
    kind = key.rule, key.flags, key.layouts, key.device_scalars, key.shape
    return with_rounding(program_of(*kind), key.rounding)


def interpret(
    rule: Rule,
    flags: Mapping[str, bool],
    tensors: Sequence[Tensor],
    scalars: Mapping[str, float],
    layouts: Sequence[str] = (),
    rounded: Sequence[str] = (),
) -> tuple[Tensor, ...]:
    """Compute a rule on whole tensors without changing them.

    Args:
        rule: The rule.
        flags: A bool for each of its flags.
        tensors: Variable, slots and gradient in the order of the rule.
        scalars: A number for each scalar of the rule, and what `rounded` needs.
        layouts: For each slot "like", "row" or "scalar"; all "like" by default.
        rounded: Outputs that are rounded stochastically, see `rounding`.

    Returns:
        New variable and new slots, each of the shape and dtype of the old one.

    Raises:
        TraceError: If the rule cannot be compiled.

    Example:
        >>> def descent(var, delta, *, alpha):
        ...     return var - alpha * delta
        >>> one = torch.ones(2)
        >>> interpret(Rule.of(descent), {}, (one, one), {"alpha": 0.25})
        (tensor([0.7500, 0.7500]),)
    """
    pairs, shape = tuple(sorted(flags.items())), tuple(tensors[0].shape)
    try:
        program = program_of(rule, pairs, tuple(layouts))
    except ShapeNeededError:
        program = program_of(rule, pairs, tuple(layouts), (), shape)
    return interpret_program(with_rounding(program, tuple(rounded)), tensors, scalars)


def interpret_program(
    program: Program,
    tensors: Sequence[Tensor],
    scalars: Mapping[str, float],
    places: np.ndarray[Any, Any] | None = None,
    turn: int = 0,
) -> tuple[Tensor, ...]:
    """Compute a program on tensors without changing them.

    Args:
        program: The program; what it knows of a shape may be that of more rows.
        tensors: Variable, slots and gradient in the order of the rule.
        scalars: A number for each scalar of the rule, and what rounding needs.
        places: For stochastic rounding, where in the variable each element lies; in
            order if None.
        turn: For it, how many gradients of the same elements came before.

    Returns:
        New variable and new slots, each of the shape and dtype of the old one.
    """
    rule, shape = program.trace.rule, tuple(tensors[0].shape)
    dtypes = tuple(tensor.dtype for tensor in tensors)
    numbers = {name: float(value) for name, value in scalars.items()}
    numbers[NUM_ELEMENTS] = float(tensors[0].numel())
    if program.uses_rows:
        axes = program.trace.row_axes or _row_axes(program, tensors)
        numbers[ROW_LENGTH] = float(math.prod(shape[len(shape) - axes :]))
    for name, tensor in zip(rule.tensors, tensors, strict=True):
        if space_of(program.inputs[name]) == Space.SCALAR:
            numbers[name] = float(tensor.detach().reshape(-1)[0])
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    places = np.arange(tensors[0].numel()) if places is None else places
    round_output = rounder(program, numbers, places, turn)
    results = _interpreter(program, dtypes).run(flat, numbers, round_output)
    return tuple(
        old.detach().clone()
        if new is None
        else new.expand(old.numel()).reshape(old.shape).clone()
        for new, old in zip(results, tensors, strict=False)
    )


@cache
def _interpreter(program: Program, dtypes: tuple[torch.dtype, ...]) -> Interpreter:
    return Interpreter(program, dtypes)


def _row_axes(program: Program, tensors: Sequence[Tensor]) -> int:
    row = tensors[program.trace.layouts.index("row")]
    shape = list(tensors[0].shape)
    for axes in range(len(shape) + 1):
        if math.prod(shape[: len(shape) - axes]) == row.numel():
            return axes
    return 0


class _Step(NamedTuple):
    """One operation on tensors; a constant operand is a tensor already."""

    node: fx.Node
    function: Callable[..., Tensor]
    operands: tuple[fx.Node | Tensor, ...]


class Interpreter:
    """A program that is evaluated node by node.

    Args:
        program: The program.
        dtypes: Storage dtypes of variable, slots and gradient.
    """

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self.program = program
        self.dtypes = tuple(dtypes)
        self.compute = compute_dtype(dtypes)
        self._steps: dict[int, list[_Step]] = {}

    def run(
        self,
        tensors: Sequence[Tensor],
        scalars: Mapping[str, float],
        round_output: RoundOutput | None = None,
    ) -> list[Tensor | None]:
        """Run all passes on one variable.

        Args:
            tensors: Flat tensors in the order of the rule.
            scalars: A number for each host and device column in use.
            round_output: See `outputs`.

        Returns:
            For each output flat values of the storage dtype, None where nothing is
            stored. A value that does not vary has one element.
        """
        known = dict(scalars)
        loaded = self.load(tensors, known)
        for number in range(self.program.num_passes - 1):
            for node, term in self.terms(number, loaded, self.rounded(known)):
                known[label_of(node)] = over_variable(term, expect_reduction(node))
        return self.outputs(loaded, self.rounded(known), round_output)

    def load(
        self, tensors: Sequence[Tensor], scalars: Mapping[str, float]
    ) -> dict[fx.Node, Tensor]:
        """The tensors that are read, in the compute type; by rows if rows matter."""
        program = self.program
        width = int(scalars[ROW_LENGTH]) if program.uses_rows else None
        loaded: dict[fx.Node, Tensor] = {}
        for name, tensor in zip(program.trace.rule.tensors, tensors, strict=True):
            node = program.inputs[name]
            if space_of(node) == Space.SCALAR or not node.users:
                continue
            wide = tensor.to(self.compute)
            columns = 1 if space_of(node) == Space.ROW else width
            loaded[node] = wide if columns is None else wide.reshape(-1, columns)
        return loaded

    def rounded(self, scalars: Mapping[str, float]) -> dict[fx.Node, Tensor]:
        """Evaluate scalars in float64 and round those that meet tensors.

        Args:
            scalars: A number for each host and device column; what depends on a
                missing one is left out.

        Returns:
            Tensors of one element, of the compute type, or bool for a mask.
        """
        program, numbers = self.program, dict[fx.Node, float]()
        for node in (*program.inputs.values(), *program.totals):
            if space_of(node) == Space.SCALAR and label_of(node) in scalars:
                numbers[node] = float(scalars[label_of(node)])
        for node in program.scalar_nodes:
            operands = [
                numbers.get(o) if isinstance(o, fx.Node) else o
                for o in operands_of(node)
            ]
            if None not in operands:
                numbers[node] = expect_operation(node).scalar(*operands)
        return {
            node: self._constant(number, is_mask(node))
            for node, number in numbers.items()
            if any(u.op == "output" or space_of(u) != Space.SCALAR for u in node.users)
            or any(reduction_of(u) for u in node.users)
        }

    def terms(
        self,
        number: int,
        loaded: Mapping[fx.Node, Tensor],
        rounded: Mapping[fx.Node, Tensor],
    ) -> list[tuple[fx.Node, Tensor]]:
        """The reductions of a reading pass and the tensors they reduce."""
        totals = self.program.totals_of(number)
        terms = [operands_of(node)[0] for node in totals]
        values = self._evaluate(number, terms, loaded, rounded)
        return list(zip(totals, [v for v in values if v is not None], strict=True))

    def outputs(
        self,
        loaded: Mapping[fx.Node, Tensor],
        rounded: Mapping[fx.Node, Tensor],
        round_output: RoundOutput | None = None,
    ) -> list[Tensor | None]:
        """The results of the writing pass, flat, in their storage dtypes.

        Args:
            loaded: What `load` gave.
            rounded: What `rounded` gave.
            round_output: Rounds an output, given its position, its values and its
                storage dtype; to nearest by default.
        """
        values = self._evaluate(-1, self.program.outputs, loaded, rounded)
        convert = round_output or round_to_nearest
        return [
            None if value is None else convert(position, value.reshape(-1), dtype)
            for position, (value, dtype) in enumerate(
                zip(values, self.dtypes, strict=False)
            )
        ]

    def _evaluate(
        self,
        number: int,
        sinks: Sequence[Operand | None],
        loaded: Mapping[fx.Node, Tensor],
        rounded: Mapping[fx.Node, Tensor],
    ) -> list[Tensor | None]:
        steps = self._steps.get(number)
        if steps is None:
            steps = self._steps[number] = self._compile(sinks)
        values = {**rounded, **loaded}
        is_on_cpu = all(tensor.device.type == "cpu" for tensor in loaded.values())
        for node, function, operands in steps:
            given = [o if isinstance(o, Tensor) else values[o] for o in operands]
            values[node] = function(*(given if is_on_cpu else _on_one_device(given)))
        return [
            values[s]
            if isinstance(s, fx.Node)
            else s
            if s is None
            else self._constant(s)
            for s in sinks
        ]

    def _compile(self, sinks: Sequence[Operand | None]) -> list[_Step]:
        """The operations on tensors and rows that sinks need, in order."""
        return [
            _Step(node, _function(node), tuple(map(self._operand, *_masked(node))))
            for node in _order(self.program, sinks)
        ]

    def _operand(self, operand: Operand, mask: bool) -> fx.Node | Tensor:
        return (
            operand if isinstance(operand, fx.Node) else self._constant(operand, mask)
        )

    def _constant(self, value: float, mask: bool = False) -> Tensor:
        if mask:
            return torch.tensor([bool(value)], device="cpu")
        return torch.tensor([value], dtype=self.compute, device="cpu")


def _masked(node: fx.Node) -> tuple[tuple[Operand, ...], list[bool]]:
    operands = operands_of(node)
    return operands, [is_mask(operand) for operand in operands]


def _function(node: fx.Node) -> Callable[..., Tensor]:
    op = operation_of(node)
    if op is not None:
        return op.reference
    return partial(over_rows, reduction=expect_reduction(node))


def _order(program: Program, sinks: Sequence[Operand | None]) -> list[fx.Node]:
    """The calls above scalars that sinks need, in order."""
    wanted: set[fx.Node] = set()
    waiting = [s for s in sinks if isinstance(s, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node.op != "call_function" or space_of(node) == Space.SCALAR:
            continue
        if node not in wanted:
            wanted.add(node)
            waiting += [o for o in operands_of(node) if isinstance(o, fx.Node)]
    return [node for node in program.trace.graph.nodes if node in wanted]


def _on_one_device(tensors: list[Tensor]) -> list[Tensor]:
    """Move scalars, which are made on the CPU, to where the tensors are."""
    targets = [t.device for t in tensors if t.device.type != "cpu"]
    return [tensor.to(targets[0]) for tensor in tensors] if targets else tensors
