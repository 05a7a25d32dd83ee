"""A group: the variables of a step that one kernel updates in one launch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    Kernel,
    KernelKey,
    Rule,
    shape_read,
)
from thalweg.compiler.interpret import program_of
from thalweg.compiler.program import Program
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY
from thalweg.distribute.shards import Whole
from thalweg.errors import describe, message
from thalweg.step.compose import GRADIENT_SCALE, LOW_PRECISION_COPY
from thalweg.step.tensors import is_dense, same_order
from thalweg.step.totals import TotalsJoin

__all__ = ["Group", "Member", "Rounding"]


@dataclass(frozen=True)
class Rounding:
    """What a variable and its slots are rounded by, where that is left to chance.

    Attributes:
        key: Stands for a seed and the variable.
        first: Index of the first element, among those of the whole variable.
    """

    key: int
    first: int = 0


@dataclass(frozen=True, eq=False)
class Member:
    """One variable of a step.

    Attributes:
        rule: The rule, with hyperparameters as scalars.
        tensors: Local variable and slots, in the order of the rule.
        layouts: For each slot "like", "row" or "scalar".
        setting: Number of the row of hyperparameters that holds for it.
        flags: The rule's flags as sorted pairs; none for a rule of an optimizer.
        whole: What the variable is a part of, if other ranks have other parts.
        rounding: What bfloat16 is rounded by; to nearest if None.
    """

    rule: Rule
    tensors: tuple[torch.Tensor, ...]
    layouts: tuple[str, ...]
    setting: int
    flags: tuple[tuple[str, bool], ...] = ()
    whole: Whole | None = None
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        self.check_slots()

    def check_slots(self) -> None:
        """Refuse slots that do not fit the variable, which may have been resized."""
        shape, slots = self.var.shape, self.tensors[1:]
        layouts = self.layouts or ("like",) * len(slots)
        for slot, layout in zip(slots, layouts, strict=True):
            if slot.shape != shape and not _lies_beside(slot, layout, shape):
                self._refuse(slot)
        if "row" in layouts and not self.reduces_rows:
            self._refuse_axes()

    def _refuse_axes(self) -> None:
        """A kernel would find another number of rows than a slot has."""
        axes, ndim = self.program().trace.row_axes, self.var.ndim
        raise ValueError(
            message(
                f"{self.rule.name}: a slot of one number for each row",
                f"reductions over all axes but the first: {ndim - 1} of {ndim}",
                f"over the last {axes}",
                "Reduce with dim=tuple(range(1, var.ndim)), or declare the slot "
                "with shape='like'.",
            )
        )

    def check_cut(self) -> None:
        """Refuse a shard that holds parts of rows, which the rule reads as one."""
        if self.whole is None or not self.program().uses_rows:
            return
        first = _first_axis(self.program().trace.row_axes, self.var)
        if any(axis >= first for axis in self.whole.cut):
            raise ValueError(
                message(
                    f"rule {self.rule.name}",
                    "variables that are cut between rows",
                    f"one of shape {self.shape} cut along {sorted(self.whole.cut)}",
                    f"Shard it along an axis before axis {first}.",
                )
            )

    def _refuse(self, slot: torch.Tensor) -> None:
        """A kernel would write past the end of a slot."""
        name = self.rule.outputs[[s is slot for s in self.tensors].index(True)]
        raise ValueError(
            message(
                f"{self.rule.name}: slot {name}",
                f"the shape that goes with a variable of shape {tuple(self.var.shape)}",
                describe(slot),
                "A variable that was resized needs new slots: make a new optimizer.",
            )
        )

    @property
    def var(self) -> torch.Tensor:
        """The variable."""
        return self.tensors[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The global shape of the variable."""
        return tuple(self.var.shape) if self.whole is None else self.whole.shape

    @property
    def reduces_whole(self) -> bool:
        """Whether the rule reduces over all axes, be it without naming them."""
        program = self.program()
        return program.num_passes > 1 or program.trace.row_axes >= max(self.var.ndim, 1)

    @property
    def reduces_rows(self) -> bool:
        """Whether what it reduces, if anything, is all that lies at one first index."""
        return self.program().trace.row_axes in (0, self.var.ndim - 1)

    @property
    def rounded(self) -> tuple[str, ...]:
        """What is rounded by chance: bfloat16 of the variable's shape, but no copy."""
        if self.rounding is None:
            return ()
        layouts = ("like", *(self.layouts or ("like",) * len(self.rule.slots)))
        parts = zip(self.rule.outputs, self.tensors, layouts, strict=True)
        return tuple(
            name
            for name, tensor, layout in parts
            if tensor.dtype == torch.bfloat16
            and layout == "like"
            and name != LOW_PRECISION_COPY
        )

    @property
    def rounding_columns(self) -> dict[str, float]:
        """The cells of the scalar table that its kernel needs to round by chance."""
        if self.rounding is None or not self.rounded:
            return {}
        return {ROUNDING_KEY: self.rounding.key, FIRST_INDEX: self.rounding.first}

    def key(self, gradient: torch.dtype) -> KernelKey:
        """The kernel that updates it, given the gradient's dtype."""
        return KernelKey(
            self.rule,
            self.flags,
            (*(t.dtype for t in self.tensors), gradient),
            layouts=self.layouts,
            shape=self.shape_read,
            rounding=self.rounded,
        )

    @property
    def shape_read(self) -> tuple[int | None, ...] | None:
        """What the rule reads of the global shape."""
        return shape_read(self.rule, self.flags, self.layouts, self.shape)

    def program(self) -> Program:
        """The passes of the rule over this variable."""
        return program_of(self.rule, self.flags, self.layouts, (), self.shape_read)


def _lies_beside(slot: torch.Tensor, layout: str, shape: torch.Size) -> bool:
    """Whether a slot of a row or a number has the shape that it needs."""
    if layout == "row":
        return slot.shape == shape[:1] + (1,) * (len(shape) - 1)
    return layout == "scalar" and slot.numel() == 1


class Group:
    """The tables of one kernel, filled once and kept from step to step.

    Args:
        kernel: The kernel.
        members: Its variables.
        positions: Where each stands in the step's list of gradients.
        owns_rows: Whether each variable has a scalar row of its own.
    """

    def __init__(
        self,
        kernel: Kernel,
        members: Sequence[Member],
        positions: Sequence[int],
        *,
        owns_rows: bool = False,
    ) -> None:
        self.kernel = kernel
        self.members = list(members)
        self.positions = list(positions)
        self._order = np.array(positions, dtype=np.int64)
        self.variables = [m.var for m in members]
        columns = kernel.columns
        has_rows = ROW_LENGTH in columns.index
        for member in members:
            member.check_cut()
        in_order = has_rows or bool(kernel.key.rounding)
        self._staged = [_Staged.of(m.tensors, in_order=in_order) for m in members]
        self._rows = _assign_rows(kernel, members, owns_rows=owns_rows)
        self._settings = np.array([members[i].setting for i, _ in self._rows])
        num_tensors = len(members[0].tensors) + 1
        self._pointers = np.zeros((len(members), num_tensors), dtype=np.int64)
        self._scalars = np.zeros((len(self._rows), len(columns)), dtype=np.float64)
        self._scalars[:, columns.index[APPLY]] = 1.0
        self._fill_shape_columns(columns.index)
        wanted = [n for n in kernel.key.rule.scalars if n != GRADIENT_SCALE]
        self._host = {n: columns.index[n] for n in wanted if n in columns.index}
        self._seen: dict[str, np.ndarray] = {}
        self._read_pointers()
        self._launch = kernel.bind(self._items(), self._pointers, self._scalars)
        self._join = self._totals_join()
        self._copies: dict[int, torch.Tensor] = {}

    # -- tables ---------------------------------------------------------------

    def _items(self) -> np.ndarray:
        row_of = {
            member: row for row, (_, users) in enumerate(self._rows) for member in users
        }
        items = [
            (i, 0, 0, member.var.numel(), row_of[i])
            for i, member in enumerate(self.members)
        ]
        return np.array(items, dtype=np.int64).reshape(-1, 5)

    def _fill_shape_columns(self, index: Mapping[str, int]) -> None:
        for row, (number, _) in enumerate(self._rows):
            member = self.members[number]
            if ROW_LENGTH in index:
                length = _row_length(self.kernel, member.var)
                self._scalars[row, index[ROW_LENGTH]] = length
            if NUM_ELEMENTS in index:
                self._scalars[row, index[NUM_ELEMENTS]] = math.prod(member.shape)
            for name, cell in member.rounding_columns.items():
                self._scalars[row, index[name]] = cell

    def _totals_join(self) -> TotalsJoin | None:
        """What makes totals of shards those of whole variables; usually nothing."""
        wholes = [self.members[number].whole for number, _ in self._rows]
        if self.kernel.num_passes == 1 or not any(wholes):
            return None
        totals, index = self.kernel.totals, self.kernel.columns.index
        return TotalsJoin(totals, index, wholes, self._table())

    def _table(self) -> torch.Tensor:
        """The scalar table that the passes of the kernel work on."""
        return torch.as_tensor(self._scalars, device="cpu")

    def _read_pointers(self) -> None:
        for i, (member, staged) in enumerate(
            zip(self.members, self._staged, strict=True)
        ):
            tensors = staged.copies if staged else member.tensors
            self._pointers[i, :-1] = [t.data_ptr() for t in tensors]

    def write_scalars(self, values: Mapping[str, np.ndarray]) -> None:
        """Write hyperparameters: for each name one number per setting.

        An array that was written before is taken to be unchanged.
        """
        for name, position in self._host.items():
            column = values[name]
            if self._seen.get(name) is not column:
                self._seen[name] = column
                self._scalars[:, position] = column[self._settings]

    def write_scales(self, scales: np.ndarray) -> None:
        """Write what gradients are multiplied by, given the factors of all of them."""
        own = scales[self._order]
        first = [member for member, _ in self._rows]
        position = self.kernel.columns.index[GRADIENT_SCALE]
        self._scalars[:, position] = own[first]

    # -- a step ---------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether kernels write straight into contiguous variables."""
        return all(s is None for s in self._staged) and all(
            v.is_contiguous() for v in self.variables
        )

    def write_gradients(self, addresses: np.ndarray) -> None:
        """Write where the gradients lie, given the addresses of all of the step."""
        self._pointers[:, -1] = addresses[self._order]

    def read_gradients(self, addresses: np.ndarray) -> None:
        """Tell where the gradients lie, after they were gathered."""
        addresses[self._order] = self._pointers[:, -1]

    def gather_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Write where the gradients lie; those in another order are copied first."""
        for i, var in enumerate(self.variables):
            grad = gradients[self.positions[i]]
            alike = self._staged[i] is None and same_order(grad, var)
            self._pointers[i, -1] = grad.data_ptr() if alike else self._gather(i, grad)

    def _gather(self, number: int, grad: torch.Tensor) -> int:
        """Copy a gradient into the variable's order; the room is made once."""
        if number not in self._copies:
            var = self.variables[number]
            staged = self._staged[number]
            like = var.detach() if staged is None else staged.copies[0]
            with torch.inference_mode(False):  # later steps are outside of that mode
                self._copies[number] = torch.empty_like(like, dtype=grad.dtype)
        self._copies[number].copy_(grad)
        return self._copies[number].data_ptr()

    def run(self, num_threads: int) -> None:
        """Update every variable and slot of the group."""
        staged = [s for s in self._staged if s is not None]
        for copies in staged:
            copies.load()
        self._launch(num_threads, self._join)
        for copies in staged:
            copies.store()


@dataclass(frozen=True, eq=False)
class _Staged:
    """Dense copies of a variable and its slots whose elements do not lie alike."""

    tensors: tuple[torch.Tensor, ...]
    copies: tuple[torch.Tensor, ...]

    @classmethod
    @torch.inference_mode(False)  # later steps are outside of that mode
    def of(cls, tensors: tuple[torch.Tensor, ...], *, in_order: bool) -> _Staged | None:
        """Copies if a kernel cannot run on the tensors; some know one order only."""
        var = tensors[0]
        alike = all(same_order(t, var) for t in tensors if t.shape == var.shape)
        lies_right = var.is_contiguous() or not in_order
        if alike and lies_right and all(map(is_dense, tensors)):
            return None
        return cls(tensors, tuple(t.detach().contiguous().clone() for t in tensors))

    def load(self) -> None:
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            copy.copy_(tensor.detach())

    def store(self) -> None:
        for copy, tensor in zip(self.copies, self.tensors, strict=True):
            tensor.detach().copy_(copy)


def _assign_rows(
    kernel: Kernel, members: Sequence[Member], *, owns_rows: bool
) -> list[tuple[int, list[int]]]:
    """Rows of the scalar table: (a member that shows what is in it, its users).

    A setting has one row, unless the kernel needs to know shapes or keeps totals.
    """
    rows: dict[object, tuple[int, list[int]]] = {}
    index = kernel.columns.index
    for i, member in enumerate(members):
        key: list[object] = [member.setting]
        if ROW_LENGTH in index:
            key.append(_row_length(kernel, member.var))
        if NUM_ELEMENTS in index:
            key.append(math.prod(member.shape))
        is_own = owns_rows or kernel.num_passes > 1 or bool(kernel.key.rounding)
        if is_own or "scalar" in member.layouts:
            key.append(i)
        rows.setdefault(tuple(key), (i, []))[1].append(i)
    return list(rows.values())


def _first_axis(row_axes: int, var: torch.Tensor) -> int:
    """Where a row begins: with the axes a rule reduces over, or with the second."""
    return var.ndim - (row_axes or max(var.ndim - 1, 0))


def _row_length(kernel: Kernel, var: torch.Tensor) -> int:
    """Elements of a row."""
    return math.prod(var.shape[_first_axis(kernel.row_axes, var) :])
