"""The plan of a step: which kernels update which variables, frozen for replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch

from thalweg.compiler import Kernel, KernelKey, compile_rules
from thalweg.step.bulk import Addresses, Apart, Places, Writes
from thalweg.step.captures import keep_captured
from thalweg.step.compose import STEP
from thalweg.step.device_clock import StepClock
from thalweg.step.device_fold import DeviceFold
from thalweg.step.device_group import DeviceGroup, device_groups
from thalweg.step.device_kernel import has_device_kernels
from thalweg.step.group import Group, Member
from thalweg.step.interpreted import check_whole, run_interpreted
from thalweg.step.norms import HostClip, SquaredNorms
from thalweg.step.overlaps import extent
from thalweg.step.plan_checks import check_step
from thalweg.step.recognition import Recognition
from thalweg.step.tensors import check_readable

__all__ = ["Plan"]

Loaded = tuple[Sequence[torch.Tensor], Mapping[str, np.ndarray]]

# Attributes read in C, so that a replay runs no Python frame for each tensor.
_Tensor: Any = torch.Tensor
_shape_of: Callable[[object], Any] = _Tensor.shape.__get__
_dtype_of: Callable[[object], Any] = _Tensor.dtype.__get__
_layout_of: Callable[[object], Any] = _Tensor.layout.__get__
_device_of: Callable[[object], Any] = _Tensor.device.__get__
_is_cpu: Callable[[object], bool] = _Tensor.is_cpu.__get__
_PLAIN_TYPES = {torch.Tensor, torch.nn.Parameter}
_STRIDED = {torch.strided}
# Whether torch is built for them: who asks the driver spoils it for forked processes.
_FOR_DEVICES = torch.accelerator.current_accelerator() is not None


class Plan:
    """One step over a list of variables with dense gradients.

    Attributes:
        variables: The variables, in the order of the gradients.
        recognition: Tells quickly whether a step is like the one before.
        clock: Counts steps on the device that all variables are on, if it is given.
        owns_rows: Whether gradients are scaled one by one, not all alike.

    Making it checks every tensor, compiles what is missing and fills the tables;
    nothing is written. A later step over the same variables only writes pointers
    and scalars.

    Args:
        where: Name of the optimizer, for messages.
        members: The variables, in the order of the gradients.
        gradients: Gradients of the first step, of the variables' shapes.
        owns_rows: Whether gradients are scaled one by one, not all alike.
        later: Kernels of the CPU that later steps may need; compiled with its own.

    Raises:
        TraceError: If a rule cannot be compiled.
        ValueError: If a tensor cannot be written through a pointer, or a gradient has
            another shape than its variable.
        RuntimeError: If a CUDA graph is captured on a device of a variable.
    """

    def __init__(
        self,
        where: str,
        members: Sequence[Member],
        gradients: Sequence[torch.Tensor],
        *,
        owns_rows: bool = False,
        later: Sequence[KernelKey] = (),
    ) -> None:
        check_step(where, members, gradients)
        self.variables = [m.var for m in members]
        self.clock: StepClock | None = None
        self._own_clock: StepClock | None = None
        self._where = where
        self.owns_rows = owns_rows
        self._own = [tensor for m in members for tensor in m.tensors]
        self._places = Places(self._own)
        self._stored = (
            list(map(_dtype_of, self._own)),
            list(map(torch.Tensor.stride, self._own)),
        )
        self._addresses = Addresses(len(self.variables))
        self._sizes = [g.nbytes for g in gradients]
        self._beside: list[tuple[int, int]] = []
        self._is_written = False
        self._apart = Apart(self._addresses, self._sizes, map(extent, self._own))
        self._shapes = [v.shape for v in self.variables]
        self._dtypes = [g.dtype for g in gradients]
        self._devices = [v.device for v in self.variables]
        on_cpu = [d.type == "cpu" for d in self._devices]
        has_kernel = [d.type == "cpu" or has_device_kernels(d) for d in self._devices]
        self._groups = [
            *_groups(members, gradients, on_cpu, later, owns_rows=owns_rows),
            *device_groups(members, gradients, owns_rows=owns_rows),
        ]
        self._on_devices = [g for g in self._groups if isinstance(g, DeviceGroup)]
        self._folds: dict[object, DeviceFold] = {}
        self._is_plain = all(group.is_plain for group in self._groups)
        self.recognition = Recognition(self.variables, gradients)
        self._lie_plain = self._are_plain(gradients)
        self._loaded: Loaded = (), {}
        self._norms: dict[bool, SquaredNorms] = {}
        self._clips: dict[object, HostClip] = {}
        self._interpreted = [(i, m) for i, m in enumerate(members) if not has_kernel[i]]
        for _, member in self._interpreted:
            check_whole(where, member)
        self._written = Writes(
            t for i, m in enumerate(members) if has_kernel[i] for t in m.tensors
        )

    @staticmethod
    def are_dense(gradients: Sequence[object]) -> bool:
        """Whether all gradients are plain strided tensors."""
        if not set(map(type, gradients)) <= _PLAIN_TYPES:
            return False
        return set(map(_layout_of, gradients)) <= _STRIDED

    @staticmethod
    def can_fold(gradients: Sequence[object]) -> bool:
        """Whether `squared_norms` and `write_scales` can serve these gradients."""
        if not Plan.are_dense(gradients):
            return False
        devices = set(map(_device_of, gradients))
        return all(map(_is_cpu, gradients)) or (
            len(devices) <= 1 and all(map(has_device_kernels, devices))
        )

    def is_in_place(self) -> bool:
        """Whether all variables and slots lie where they did."""
        return self._places.are_kept()

    def write_beside(self, others: Iterable[torch.Tensor]) -> None:
        """Learn what else the steps write, before the plan's own kernels run.

        Args:
            others: Strided tensors; gradients that lie in one are read before.
        """
        beside = list(map(extent, others))
        if beside != self._beside:
            spans = [*map(extent, self._own), *beside]
            self._apart = Apart(self._addresses, self._sizes, spans)
            self._beside, self._is_written = beside, False

    def fits(
        self, variables: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> bool:
        """Whether a step over these tensors can replay the plan.

        Args:
            variables: The same objects, at the same addresses, in the same order.
            gradients: Dense ones, of the same shapes, dtypes and devices.

        Returns:
            False if a new plan must be made; no Python frame per variable is run.
        """
        known = self.variables
        fits = (
            len(known) == len(variables)
            and all(map(is_, known, variables))
            and list(map(_shape_of, gradients)) == self._shapes
            and list(map(_dtype_of, gradients)) == self._dtypes
            and not any(map(torch.Tensor.is_neg, gradients))
            and (not _FOR_DEVICES or list(map(_device_of, gradients)) == self._devices)
            and list(map(_dtype_of, self._own)) == self._stored[0]
            and list(map(torch.Tensor.stride, self._own)) == self._stored[1]
            and self.is_in_place()
        )
        if fits:
            self.recognition.refresh(gradients)
            self.recognition.gradients = gradients
            self._lie_plain = self._are_plain(gradients)
        return fits

    def _are_plain(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Whether all tensors are contiguous, so that only addresses change."""
        return self._is_plain and all(map(torch.Tensor.is_contiguous, gradients))

    def gradient_dtype(self, variable: torch.Tensor) -> torch.dtype | None:
        """The dtype of a variable's gradients; None if it is none of the plan's."""
        found = zip(self.variables, self._dtypes, strict=True)
        return next((dtype for known, dtype in found if known is variable), None)

    def load(
        self, gradients: Sequence[torch.Tensor], values: Mapping[str, np.ndarray]
    ) -> None:
        """Fill the tables for a step; the tensors must fit.

        Args:
            gradients: One for each variable; they must live until `run` is done.
            values: For each hyperparameter one number per setting.

        Raises:
            ValueError: If a gradient has elements but no memory; nothing is written.
        """
        is_known = gradients is self.recognition.gradients
        is_plain = self._lie_plain if is_known else self._are_plain(gradients)
        addresses = self._addresses.read(gradients)
        if not (is_plain and self._is_written) or self._addresses.are_other:
            gradients = self._write_gradients(gradients, addresses, is_plain=is_plain)
        self._loaded = gradients, values
        for group in self._groups:
            group.write_scalars(values)
        if self.clock is not None:
            self._begin(self.clock, values)

    def _write_gradients(
        self,
        gradients: Sequence[torch.Tensor],
        addresses: np.ndarray,
        *,
        is_plain: bool,
    ) -> Sequence[torch.Tensor]:
        """Write where gradients lie; those are returned, or copies in their place."""
        self._is_written = is_plain and bool(self._apart)
        if not self._apart:
            gradients = self._copied_apart(gradients)
            addresses = self._addresses.read(gradients)
        for group in self._groups:
            if is_plain:
                group.write_gradients(addresses)
            else:
                group.gather_gradients(gradients)
        return gradients

    def _copied_apart(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients, with copies of those that lie in what is written."""
        found = list(gradients)
        for place in self._apart.touched():
            name = f"the gradient of variable {place}"
            check_readable(self._where, name, found[place])
            found[place] = found[place].detach().clone()
        return found

    def _begin(self, clock: StepClock, values: Mapping[str, np.ndarray]) -> None:
        """Let numbers of the device take the place of the host's."""
        clock.has_rows_left = False
        scalars = clock.begin(int(values[STEP][0]) - 1)
        if scalars:
            self.write_device_scalars(scalars)

    def write_device_scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        """Let numbers of the device take the place of the host's in the next launch.

        Args:
            values: For each name shape (settings,), float64, on the device.
        """
        for group in self._on_devices:
            group.write_device_scalars(values)

    def squared_norms(self, clipvalue: float | None) -> np.ndarray:
        """The squared norms of the gradients that were loaded; reads memory once.

        Args:
            clipvalue: Bound of every element before the norm is taken, or None.

        Returns:
            A float64 array with one number for each gradient.
        """
        gradients, _ = self._loaded
        is_clipped = clipvalue is not None
        if is_clipped not in self._norms:
            self._norms[is_clipped] = SquaredNorms(gradients, is_clipped=is_clipped)
        addresses = np.zeros(len(gradients), dtype=np.int64)
        for group in self._groups:
            group.read_gradients(addresses)
        norms = self._norms[is_clipped]
        return norms(addresses, clipvalue, torch.get_num_threads())

    def clip_scales(
        self,
        squared: np.ndarray,
        unscale: float,
        clipnorm: float | None,
        common: float | None,
    ) -> np.ndarray:
        """What each gradient is multiplied by, given the squared norms of all."""
        key = clipnorm is not None, common is not None
        if key not in self._clips:
            self._clips[key] = HostClip(len(squared), clipnorm, common)
        self._clips[key].limit(clipnorm, common)
        return self._clips[key].of(squared, unscale)

    @property
    def is_on_device(self) -> bool:
        """Whether all variables are updated by kernels of one device."""
        return len(set(self._devices)) == 1 and bool(self._on_devices)

    @property
    def decider(self) -> StepClock | None:
        """What knows on a device whether a step may change anything there.

        It is the clock; without one, something that knows of refusals only. None where
        no device has kernels for any variable.
        """
        if self.clock is None and self._on_devices and self._own_clock is None:
            self._own_clock = StepClock(self._on_devices[0].variables[0].device)
        return self.clock or self._own_clock

    def gradient_addresses(self) -> np.ndarray:
        """Where the gradients that were loaded begin."""
        addresses = np.zeros(len(self.variables), dtype=np.int64)
        for group in self._groups:
            group.read_gradients(addresses)
        return addresses

    def device_fold(
        self, clipvalue: float | None, clipnorm: float | None, common: float | None
    ) -> DeviceFold:
        """Norms and factors of the gradients on the device; made once."""
        key = clipvalue is not None, clipnorm is not None, common is not None
        if key not in self._folds:
            self._folds[key] = DeviceFold(
                self._loaded[0],
                clips_values=key[0],
                clipnorm=clipnorm,
                global_clipnorm=common,
            )
        self._folds[key].limit(clipnorm, common)
        return self._folds[key]

    def write_apply(self, applies: torch.Tensor) -> None:
        """Let the device decide whether the next launches change anything.

        Args:
            applies: Shape (), bool, on the device.
        """
        for group in self._on_devices:
            group.write_apply(applies)

    def write_scales(self, scales: np.ndarray | torch.Tensor) -> None:
        """Set what each gradient is multiplied by, for rules that take it."""
        for group in self._groups:
            group.write_scales(scales)  # pyright: ignore[reportArgumentType] - tensors are for device groups

    def run(self) -> None:
        """Update all variables and slots with what was loaded."""
        gradients, values = self._loaded
        num_threads = torch.get_num_threads()
        clock = self.clock or self._own_clock
        verdict = None if clock is None else clock.verdict
        if verdict is not None:
            self.write_apply(verdict)
        for group in self._groups:
            group.run(num_threads)
        self._written.count()
        for position, member in self._interpreted:
            run_interpreted(member, gradients[position], values)
        if clock is not None:
            clock.finish()
        for group in self._on_devices:
            keep_captured(self, group.device)
        self.unload()

    def unload(self) -> None:
        """Forget the gradients, after a step or instead of it."""
        self._loaded, self.recognition.gradients = ((), {}), None
        clock = self.clock or self._own_clock
        if clock is not None:
            clock.cancel()

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels, one for each group."""
        return [group.kernel for group in self._groups]


def _groups(
    members: Sequence[Member],
    gradients: Sequence[torch.Tensor],
    on_cpu: Sequence[bool],
    later: Sequence[KernelKey],
    *,
    owns_rows: bool,
) -> list[Group]:
    positions: dict[KernelKey, list[int]] = {}
    for i, member in enumerate(members):
        if on_cpu[i]:
            positions.setdefault(member.key(gradients[i].dtype), []).append(i)
    kernels = compile_rules([*positions, *later])[: len(positions)]
    return [
        Group(kernel, [members[i] for i in chosen], chosen, owns_rows=owns_rows)
        for kernel, chosen in zip(kernels, positions.values(), strict=True)
    ]
