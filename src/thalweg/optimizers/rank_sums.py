"""Sums of a cycle that each rank has for itself: what a rank takes of saved ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch

from thalweg.distribute import ReduceOp, rank, world_size
from thalweg.errors import message
from thalweg.optimizers.accumulation import INDICES
from thalweg.optimizers.declarations import ACCUMULATOR

__all__ = ["AlikeSum", "Part", "Replicas", "SavedSum", "replicas_of"]

OTHER = "other"


class Part(Protocol):
    """What one rank has saved of a slot."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    def read(self) -> torch.Tensor:
        """A new tensor, placed as the variable is."""
        ...

    def read_whole(self) -> torch.Tensor:
        """A new plain tensor, on the variable's device."""
        ...


class SavedSum(Protocol):
    """A slot of gradients that waited when a checkpoint was saved."""

    @property
    def slot(self) -> str:
        """Its name."""
        ...

    @property
    def variable(self) -> torch.Tensor:
        """The variable that they are of."""
        ...

    @property
    def parts(self) -> Mapping[int, Part]:
        """What the ranks have saved, by number; one part if they were all alike."""
        ...

    @property
    def ranks(self) -> int:
        """How many ranks have saved what each had for itself; 1 if all were alike."""
        ...

    @property
    def reduction(self) -> str:
        """What these ranks would have made of their means: sum, mean or other."""
        ...


class _Whole:
    """A tensor that is there, as a `Part`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        self.read = self.read_whole = tensor.clone


class AlikeSum(NamedTuple):
    """A slot that was restored alike on all ranks, as a `SavedSum`."""

    slot: str
    variable: torch.Tensor
    parts: Mapping[int, Part]
    ranks: int = 1
    reduction: str = "sum"

    @classmethod
    def of(cls, variable: torch.Tensor, name: str, slot: torch.Tensor) -> AlikeSum:
        """What an optimizer has now."""
        return cls(name, variable, {0: _Whole(slot.detach())})


class Replicas(NamedTuple):
    """Who adds to sums, as far as an optimizer knows.

    Attributes:
        number: Replicas whose means are reduced at the end of a cycle.
        reduction: What the means become: ``"sum"``, ``"mean"``, or ``"other"`` where
            a function of the user's decides.
    """

    number: int
    reduction: str

    def keep_their_ranks(self, saved: SavedSum, *, is_alike: bool) -> bool:
        """Whether every rank goes on with what it had itself."""
        if is_alike or saved.ranks == 1 or saved.ranks != world_size():
            return False
        # Outside of the strategy's scope nobody knows what it will do.
        return self.number == 1 or self.reduction == saved.reduction

    def may_refuse(self, saved: SavedSum) -> bool:
        """Whether nobody knows what some ranks, then or now, make of their sums."""
        return OTHER in (self.reduction, saved.reduction)

    def refuse(self, where: str, saved: SavedSum, *, is_alike: bool) -> None:
        """Refuse sums of other ranks, if nobody knows what they make together.

        Args:
            where: Name of the optimizer, for messages.
            saved: The slot.
            is_alike: Whether a wrapper of the model reduces this variable's gradient.

        Raises:
            ValueError: If they were not to be summed or averaged, or will not be.
        """
        if self.keep_their_ranks(saved, is_alike=is_alike):
            return
        has_own = self.number > 1 and not is_alike
        kinds = {saved.reduction} if saved.ranks > 1 else set()
        kinds |= {self.reduction} if has_own else set()
        if OTHER in kinds:
            raise ValueError(
                message(
                    f"{where}: {saved.slot!r}",
                    f"{saved.ranks} rank(s), reduced as in the run that was saved",
                    f"{world_size()}, and a gradient_aggregator, of which nobody knows "
                    "what it makes of sums that moved to another rank",
                    "Resume with as many ranks, or from the end of a cycle.",
                )
            )

    def share_of(self, saved: SavedSum, *, is_alike: bool) -> torch.Tensor | None:
        """What this rank takes of a saved slot.

        With as many ranks as before each takes its own. Otherwise the parts of all
        are added in rank order, rows laid end to end, and the first rank takes that,
        where ranks have sums of their own; the others take zeros, or no rows. Rows
        are plain, and alike on all ranks that hold a part of a sharded variable.

        Args:
            saved: The slot.
            is_alike: As for `refuse`.

        Returns:
            A new tensor; None if this rank had nothing, and goes on so.
        """
        is_dense = saved.slot == ACCUMULATOR
        readers = {
            n: p.read if is_dense else p.read_whole for n, p in saved.parts.items()
        }
        if self.keep_their_ranks(saved, is_alike=is_alike):
            return readers[rank()]() if rank() in readers else None
        has_own = self.number > 1 and not is_alike
        if has_own and rank() != 0:
            nothing = next(iter(readers.values()))()
            return nothing.zero_() if is_dense else nothing[:0]
        parts = (readers[number]() for number in sorted(readers))
        whole = _added(parts) if is_dense else torch.cat(list(parts))
        share = saved.ranks if saved.reduction == "mean" else 1
        needed = self.number if has_own and self.reduction == "mean" else 1
        is_right = needed == share or saved.slot == INDICES
        return whole if is_right else whole.mul_(needed / share)

    def reduction_after(self, saved: SavedSum, *, is_alike: bool) -> str:
        """What is made of the ranks' sums once they are restored; "" if all are alike.

        Args:
            saved: The slot.
            is_alike: As for `refuse`.
        """
        if self.keep_their_ranks(saved, is_alike=is_alike):
            return saved.reduction
        return self.reduction if self.number > 1 and not is_alike else ""


@torch.no_grad()
def _added(parts: Iterator[torch.Tensor]) -> torch.Tensor:
    total = next(parts)
    for part in parts:
        total.add_(part)
    return total


def replicas_of(extended: Any, aggregator: object) -> Replicas:
    """Who adds to sums under a strategy.

    Args:
        extended: The strategy's lower half.
        aggregator: The user's function in place of its reduction, or None.

    Example:
        >>> replicas_of(tw.distribute.get_strategy().extended, None).number
        1
    """
    if world_size() == 1 or extended.num_replicas == 1:
        return _ALONE
    if aggregator is not None:
        return Replicas(extended.num_replicas, OTHER)
    reduction = ReduceOp.of(extended.gradient_reduction)
    return Replicas(extended.num_replicas, reduction.value.lower())


_ALONE = Replicas(1, "sum")
