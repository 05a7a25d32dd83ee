"""What a step does, as text: a table of its kernels, and the kernels themselves."""

from __future__ import annotations

import torch

from thalweg.compiler import KernelKey, kernel_source
from thalweg.distribute import local_tensor
from thalweg.errors import message
from thalweg.optimizers.accumulating import Accumulating
from thalweg.optimizers.slots import Entry
from thalweg.state import name_of
from thalweg.step import Member
from thalweg.step.explain import explain

__all__ = ["Inspection"]

# Storage dtypes a gradient may have where it is not the variable's.
_OTHERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Inspection(Accumulating):
    """The part of `Optimizer` that tells what a step does."""

    def explain(self) -> str:
        """Say which kernel updates which variable, and how long that should take.

        Returns:
            A table with a line for each built variable, then one for each kernel; a
            kernel is one launch. Times are bytes over the bandwidth that ``thalweg
            bench`` measured on this machine.

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
        built = [e for e in self._entries.values() if e.built_for is not None]
        uses = [
            (name_of(entry.variable) or f"variable {number}", *self._use(entry))
            for number, entry in enumerate(built)
        ]
        return explain(self._name, uses)

    def kernel_source(self, device: str = "cpu") -> str:
        """The text of the kernels that update variables, to read.

        Nothing is built, and no such device is needed. After a step these are the
        kernels in use; before the first one those of the built variables, or of a
        float32 matrix if there is none yet.

        Args:
            device: ``"cpu"`` for C, ``"cuda"`` for Triton.

        Returns:
            The text of each kernel, one after the other.

        Raises:
            TypeError: If the class updates by hand, without a rule.
            ValueError: If the device is another one.

        Example:
            >>> text = tw.optimizers.SGD().kernel_source("cuda")
            >>> text.splitlines()[2]
            'tensors: var float32, delta float32'
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
        return "\n".join(kernel_source(key, device) for key in self._kernel_keys())

    def _kernel_keys(self) -> list[KernelKey]:
        if self._plan is not None and self._plan.kernels:
            return [kernel.key for kernel in self._plan.kernels]
        built = [e for e in self._entries.values() if e.built_for is not None]
        uses = [self._use(entry) for entry in built or [self._example()]]
        return list(dict.fromkeys(member.key(grad) for member, grad in uses))

    def _use(self, entry: Entry) -> tuple[Member, torch.dtype]:
        """How a variable is updated, and the dtype of its gradient."""
        transforms = self._folded_transforms([])
        columns = transforms.columns if transforms is not None else ()
        var = local_tensor(entry.variable)
        member = self._member(self._bound_rule(columns), entry, var)
        in_use = {k.key for k in self._plan.kernels} if self._plan else set()
        found = (d for d in (var.dtype, *_OTHERS) if member.key(d) in in_use)
        return member, next(found, var.dtype)

    def _example(self) -> Entry:
        """A float32 matrix with its slots, without memory; of slots dtypes count."""
        var = torch.empty((2, 2), dtype=torch.float32, device="meta")
        dtype_of = self._settings.slot_dtype
        slots = {
            name: torch.empty_like(var, dtype=dtype_of(name, slot.dtype, var.dtype))
            for name, slot in self.active_slots().items()
        }
        return Entry(var, slots)
