"""What a step does, as text: a table of its kernels, and the kernels themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from thalweg.compiler import KernelKey, Rule, kernel_source
from thalweg.distribute import local_tensor
from thalweg.errors import message
from thalweg.optimizers.accumulating import Accumulating
from thalweg.optimizers.slots import Entry
from thalweg.state import name_of
from thalweg.step import CLIPVALUE, GRADIENT_SCALE
from thalweg.step.explain import Part, explain

__all__ = ["Inspection"]


class Inspection(Accumulating):
    """The part of `Optimizer` that tells what a step does."""

    def explain(self) -> str:
        """Say which kernel updates which variable, and how long that should take.

        Returns:
            A table with a line for each built variable, then one for each kernel; a
            kernel is one launch. Clips by norm and ``nonfinite`` read the gradients
            before it, which is not counted. Times are bytes over the bandwidth that
            ``thalweg bench`` measured on this machine, with as many threads as it
            names; what a call itself costs, tens of µs, comes on top, and is nearly
            all of a small model's step. A variable whose gradients were sparse has the
            kernel of touched rows, with the bytes and the time of one row; one that
            had gradients of both kinds has both.

        Example:
            >>> optimizer = tw.optimizers.Adam()
            >>> optimizer.build([("weight", tw.Variable(torch.zeros(1000)))])
            >>> print(optimizer.explain())
            Adam: variables: 1, launches: 1, 28.0 kB, ...
            variable  shape  rule  kernel   bytes    expected
            weight    1000   adam  adam #1  28.0 kB  ...
        """
        if self._applies_by_hand:
            return f"{self._name}: {type(self).__name__} updates by hand, without rule."
        return explain(self._name, self._parts(self._built()))

    def kernel_source(self, device: str = "cpu", sparse: bool | None = None) -> str:
        """The text of the kernels that update variables, to read.

        Nothing is built, and no such device is needed. After a step these are the
        kernels in use; before the first one those of the built variables, or of a
        float32 matrix if there is none yet.

        Args:
            device: ``"cpu"`` for C, ``"cuda"`` for Triton.
            sparse: True for the kernels that sparse gradients run, False for those of
                dense ones. By default those in use, before the first step the dense
                ones.

        Returns:
            The text of each kernel, one after the other.

        Raises:
            TypeError: If the class updates by hand, without a rule, or if only rows are
                updated, for which its rule has no kernel.
            ValueError: If the device is another one.

        Example:
            >>> text = tw.optimizers.SGD().kernel_source("cuda")
            >>> text.splitlines()[2]
            'tensors: var float32, delta float32'
            >>> text = tw.optimizers.SGD().kernel_source(sparse=True)
            >>> text.splitlines()[0]
            '/* gradient_descent, sum'
        """
        if self._applies_by_hand:
            raise TypeError(
                message(
                    f"{self._name}.kernel_source",
                    "a class whose `update` is a rule",
                    f"{type(self).__name__}, which updates by hand",
                    "Write the formula as a static method `update`.",
                )
            )
        keys = dict.fromkeys(self._kernel_keys(sparse))
        if not keys:
            raise TypeError(
                message(
                    f"{self._name}.kernel_source",
                    "a rule with a kernel of touched rows",
                    f"{type(self).__name__} with variables that have none",
                    "Their rows are interpreted; sparse=False gives the dense kernel.",
                )
            )
        return "\n".join(kernel_source(key, device) for key in keys)

    def _kernel_keys(self, sparse: bool | None) -> list[KernelKey]:
        built = self._built()
        planned = [k.key for k in self._plan.kernels] if self._plan else []
        if sparse is None:
            rows = [part for part in self._parts(built) if part.rows is not None]
            planned += [part.key for part in rows if part.is_compiled]
            if rows:
                return planned
        if planned and not sparse:
            return planned
        shown = built or [self._example()]
        if not sparse:
            return [self._whole(entry).key for entry in shown]
        rows = map(self._rows, shown)
        return [part.key for part in rows if part.is_compiled]

    def _built(self) -> list[Entry]:
        built = [e for e in self._entries.values() if e.built_for is not None]
        if built:  # a flag that was set since may ask for a slot of the next step
            self._create_all_weights([entry.variable for entry in built])
        return built

    def _parts(self, entries: Sequence[Entry]) -> Iterator[Part]:
        """What the last steps did with some variables, or a step will do."""
        planned = set(map(id, self._plan.variables)) if self._plan else set()
        for number, entry in enumerate(entries):
            name = name_of(entry.variable) or f"variable {number}"
            if entry.rows is None or id(local_tensor(entry.variable)) in planned:
                yield self._whole(entry, name)
            if entry.rows is not None:
                yield self._rows(entry, name)

    def _whole(
        self, entry: Entry, name: str = "", columns: tuple[str, ...] | None = None
    ) -> Part:
        """The update of a variable with a dense gradient.

        Args:
            entry: What is kept for the variable.
            name: Its name.
            columns: Scalars of transforms in front of the rule where no plan says; by
                default those of a step whose gradients are all dense.
        """
        rule = self._planned_rule()
        if rule is None:
            transforms = self._folded_transforms([]) if columns is None else None
            folded = transforms.columns if transforms is not None else columns
            rule = self._bound_rule(folded or ())
        var = local_tensor(entry.variable)
        member = self._member(rule, entry, var)
        dtype = self._plan.gradient_dtype(var) if self._plan else None
        return Part(name, member, dtype or var.dtype)

    def _planned_rule(self) -> Rule | None:
        """The rule of the plan in use; None if flags have been set since.

        It has the scalars of clips only where these were part of its pass.
        """
        rule = self._plan_rule
        if self._plan is None or rule is None:
            return None
        columns = tuple(n for n in (CLIPVALUE, GRADIENT_SCALE) if n in rule.scalars)
        return rule if self._bound_rule(columns) is rule else None

    def _rows(self, entry: Entry, name: str = "") -> Part:
        """The update of a variable with a sparse gradient."""
        var = local_tensor(entry.variable)
        member = self._member(self._bound_rule(), entry, var)
        mode, dtype = entry.rows or (self._row_mode(member), var.dtype)
        if mode == "exact" or mode == "decay":
            return self._whole(entry, name, ())
        return Part(name, member, dtype, mode)

    def _example(self) -> Entry:
        """A float32 matrix with its slots, without memory; of slots dtypes count."""
        var = torch.empty((2, 2), dtype=torch.float32, device="meta")
        dtype_of = self._settings.slot_dtype
        slots = {
            name: torch.empty_like(var, dtype=dtype_of(name, slot.dtype, var.dtype))
            for name, slot in self.active_slots().items()
        }
        return Entry(var, slots)
