"""How the value of a variable is read and set: the assignments of Keras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from thalweg.state.conversion import operand


class Assignable:
    """The half of `Variable` that reads its value and sets it.

    Whatever is written goes to `handle`, so that a view writes its original.
    """

    handle: torch.Tensor

    if TYPE_CHECKING:

        @property
        def name(self) -> str:
            """The name for messages."""
            ...

    def value(self) -> torch.Tensor:
        """Return the present value, a copy that later assignments do not change.

        Gradients flow through it to the variable.
        """
        return self.handle.clone()

    def read_value(self) -> torch.Tensor:
        """Return the present value; the same as `value`."""
        return self.value()

    def assign(
        self,
        value: Any,
        use_locking: bool | None = None,
        name: str | None = None,
        read_value: bool = True,
    ) -> Self:
        """Set the variable to a value of the same shape.

        Args:
            value: Tensor, array, number or nested list; converted to the dtype.
            use_locking: Accepted for old code; writes are ordered anyway.
            name: Accepted for old code.
            read_value: Accepted for old code.

        Returns:
            The variable.

        Raises:
            TypeError: If converting would lose the kind of number (complex to real,
                fractions to integers).
            ValueError: If the shapes differ. Nothing has been written then.
        """
        del use_locking, name, read_value
        value = self._operand("assign", value)
        with torch.no_grad():
            self.handle.copy_(value)
        return self

    def assign_add(
        self,
        delta: Any,
        use_locking: bool | None = None,
        name: str | None = None,
        read_value: bool = True,
    ) -> Self:
        """Add a value of the same shape; arguments and errors as for `assign`."""
        del use_locking, name, read_value
        delta = self._operand("assign_add", delta)
        with torch.no_grad():
            self.handle.add_(delta)
        return self

    def assign_sub(
        self,
        delta: Any,
        use_locking: bool | None = None,
        name: str | None = None,
        read_value: bool = True,
    ) -> Self:
        """Subtract a value of the same shape; arguments and errors as for `assign`."""
        del use_locking, name, read_value
        delta = self._operand("assign_sub", delta)
        with torch.no_grad():
            self.handle.sub_(delta)
        return self

    def _operand(self, method: str, value: Any) -> torch.Tensor:
        given = value.handle if isinstance(value, Assignable) else value
        return operand(f"{method} of {self.name!r}", given, self.handle)
