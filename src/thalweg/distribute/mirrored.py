"""MirroredStrategy: equal copies of the variables, one process a device.

The engine is `torch.distributed` with `torchrun`: each process is a replica, holds all
variables, and adds up the gradients with the others before it applies them. Without
torchrun there is one process, and nothing is communicated.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thalweg import errors
from thalweg.distribute import collectives
from thalweg.distribute.aggregation import Aggregator
from thalweg.distribute.collectives import ReduceOp
from thalweg.distribute.components import numbered_device
from thalweg.distribute.extended import Pair, StrategyExtended, Value
from thalweg.distribute.initial_values import InitialValues
from thalweg.distribute.strategy import Strategy
from thalweg.state import IndexedSlices, as_gradient, handle_of

Devices = str | torch.device | Sequence[str | torch.device] | None


class MirroredExtended(StrategyExtended):
    """Placement and communication of `MirroredStrategy`; documented for subclassing.

    Args:
        device: this process's device.
        gradient_reduction: ``"sum"`` or ``"mean"``.
    """

    def __init__(
        self, device: torch.device, gradient_reduction: ReduceOp | str = "sum"
    ) -> None:
        self.device = device
        self.gradient_reduction = ReduceOp.of(gradient_reduction)
        self._aggregator = Aggregator(self.gradient_reduction)
        self._initial_values = InitialValues()
        self._has_spoken = False

    @property
    def num_replicas(self) -> int:
        """The number of processes."""
        return collectives.world_size()

    @property
    def replica_id(self) -> int:
        """The rank of this process."""
        return collectives.rank()

    def variable_scope(self) -> AbstractContextManager[object]:
        """New variables go to `device`; what modules register is sent from rank 0."""
        return self._mirrored_scope()

    @contextlib.contextmanager
    def _mirrored_scope(self) -> Iterator[None]:
        with self._initial_values.collecting(), super().variable_scope():
            yield

    def all_reduce(self, op: ReduceOp, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Reduce tensors over the ranks in a few large messages."""
        return collectives.all_reduce_bucketed(tensors, op)

    def all_gather(self, value: Value, axis: int = 0) -> Value:
        """Lay the values of all ranks end to end; rows by ``axis`` 0 only."""
        if isinstance(value, IndexedSlices):
            return collectives.all_gather_rows(value)
        return collectives.all_gather(value, axis)

    def aggregate_gradients(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Reduce the gradients of all ranks, those DDP or FSDP2 reduced excepted.

        Args:
            pairs: (gradient or None, variable); the same variables in the same
                order on every rank, None where a rank has no gradient.

        Returns:
            list: the pairs with the reduced gradients, alike on every rank; None only
            where no rank had one.

        Raises:
            ValueError: a gradient has another shape than its variable.
            RuntimeError: the ranks do not pass the same variables, or another rank
                has refused its gradients.
        """
        pairs = list(pairs)
        if collectives.world_size() == 1 or not pairs:
            return pairs
        self._say_what_is_summed()
        with torch.no_grad():
            reduced = self._aggregator.reduce(
                [as_gradient(gradient) for gradient, _ in pairs],
                [handle_of(variable) for _, variable in pairs],
            )
        return [(g, variable) for g, (_, variable) in zip(reduced, pairs, strict=True)]

    def refuse_gradients(self, variables: Iterable[Tensor]) -> None:
        """Let the other ranks know; on a GPU those with dense gradients alone wait."""
        handles = list(map(handle_of, variables))
        if handles and collectives.world_size() > 1:
            with torch.no_grad():
                self._aggregator.refuse(handles)

    def broadcast_initial(self, variables: Iterable[Tensor]) -> None:
        """Give all ranks the values of rank 0, once for each variable.

        Args:
            variables: parameters, buffers or `Variable`s; the same in the same order
                on every rank.

        Raises:
            RuntimeError: the ranks do not pass the same variables.
        """
        self._initial_values.send(variables)

    def _sum_number(self, number: float) -> float:
        dtype = torch.int64 if isinstance(number, int) else torch.float64
        device = collectives.communication_device()
        tensor = torch.tensor(number, dtype=dtype, device=device)
        return collectives.all_reduce(tensor).item()

    def _say_what_is_summed(self) -> None:
        """Say once, on rank 0, what a loss must divide by."""
        if self._has_spoken or self.gradient_reduction is not ReduceOp.SUM:
            return
        if self.loss_is_global:
            return
        self._has_spoken = True
        if self.replica_id == 0:
            warnings.warn(
                f"The gradients of {self.num_replicas} ranks are summed: a mean loss "
                "must divide by the number of items on all ranks "
                "(strategy.extended.global_count), or pass gradient_reduction='mean' "
                "to MirroredStrategy.",
                stacklevel=3,
            )


class MirroredStrategy(Strategy):
    """Equal copies of all variables, one process a device, gradients reduced.

    Started by ``torchrun --nproc-per-node N``, it joins the processes (nccl on CUDA
    devices, gloo otherwise; a process group that exists is used). Variables made in its
    scope begin as rank 0's.

    Args:
        devices: this process's device, or the devices of all processes of this
            machine; by default CUDA device ``LOCAL_RANK``, or the CPU.
        gradient_reduction: ``"sum"`` as Keras, right for a loss divided by the global
            number of items, or ``"mean"`` as DDP.

    Raises:
        ValueError: several devices for one process, a list that does not fit the
            processes, more processes than CUDA devices, or an unknown reduction.

    Example:
        >>> strategy = MirroredStrategy("cpu")
        >>> strategy.num_replicas_in_sync
        1
    """

    def __init__(
        self, devices: Devices = None, gradient_reduction: ReduceOp | str = "sum"
    ) -> None:
        reduction = ReduceOp.of(gradient_reduction)
        device = process_device(devices)
        join_process_group(device)
        super().__init__(MirroredExtended(device, reduction))
        self._arguments = (devices, gradient_reduction)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def process_device(devices: Devices) -> torch.device:
    """Choose the device of this process.

    Args:
        devices: as for `MirroredStrategy`.

    Returns:
        torch.device: with its number, if it is a CUDA device.

    Raises:
        ValueError: as for `MirroredStrategy`.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if devices is None:
        device = torch.device("cuda" if _cuda_is_meant() else "cpu")
    elif isinstance(devices, (str, torch.device)):
        device = torch.device(devices)
    else:
        device = torch.device(_own_device(list(devices), local_rank))
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        _check_cuda(device)
    return numbered_device(device)


def _cuda_is_meant() -> bool:
    """Whether CUDA is there, and an existing process group can use it."""
    if not torch.cuda.is_available():
        return False
    return not dist.is_initialized() or "cuda:nccl" in dist.get_backend_config()


def _own_device(devices: list[Any], local_rank: int) -> Any:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if len(devices) != processes:
        raise ValueError(
            errors.message(
                "MirroredStrategy",
                f"one device for each of the {processes} process(es) here",
                f"{len(devices)} devices",
                f"Start the program with `torchrun --nproc-per-node {len(devices)}`.",
            )
        )
    return devices[local_rank]


def _check_cuda(device: torch.device) -> None:
    available = torch.cuda.device_count()
    if (device.index or 0) >= available:
        raise ValueError(
            errors.message(
                "MirroredStrategy",
                f"a CUDA device below {available}",
                str(device),
                "Start at most one process a device, or pass devices='cpu'.",
            )
        )


def join_process_group(device: torch.device) -> None:
    """Join the processes that torchrun started, unless that has happened.

    Args:
        device: this process's device; decides the backend.
    """
    if not dist.is_available() or dist.is_initialized():
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Host tensors (counts, integer buffers) travel too.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    atexit.register(leave_process_group)


def leave_process_group() -> None:
    """Leave the group this module has joined; nothing if it is gone already."""
    if dist.is_initialized():
        dist.destroy_process_group()
