"""The base of torch's optimizers over the rules of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import wraps
from typing import Any

import torch
from torch.autograd import profiler
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)
from typing_extensions import override

from thalweg.errors import message
from thalweg.optim.described import Described, Status
from thalweg.optim.groups import check_group, note_names
from thalweg.optim.loading import load_state, plain_groups
from thalweg.optim.options import Extras, Options
from thalweg.optim.rounding import check_counts, check_group_roundable
from thalweg.optim.stepping import Stepper
from thalweg.step import EMA
from thalweg.step.device_checks import LateErrors, listening

__all__ = ["DropIn", "parameters_of"]


def _take_step(optimizer: DropIn) -> None:
    """Take a step, in which devices tell this optimizer what they find wrong."""
    held = optimizer.__dict__
    if "_stepper" not in held:
        held.update(_stepper=Stepper(), _errors=LateErrors())
    stepper, errors = held["_stepper"], held["_errors"]
    errors.refuse_known()
    before, listening.errors = listening.errors, errors
    try:
        verdict: Any = stepper.run(optimizer)
    finally:
        listening.errors = before
    optimizer._status.is_applied = verdict


# torch.compile leaves these to Python: its graph breaks before and goes on behind them.
# As in torch.optim; `torch.compiler.disable` would load the compiler at import.
_leave_to_python: Any = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
_run: Callable[[DropIn], None] = _leave_to_python(_take_step)
_load: Callable[..., None] = _leave_to_python(load_state)


def parameters_of(parameters: Any) -> Any:
    """What torch's constructor takes: a module becomes its named parameters."""
    if isinstance(parameters, torch.nn.Module):
        return list(parameters.named_parameters())
    return parameters


class DropIn(Described):
    """A `torch.optim.Optimizer` whose step is one pass of compiled rules.

    A subclass says what `Described` asks for; constructor and defaults are torch's.
    State is kept in ``state[parameter]`` under torch's keys, one step count for each
    parameter.
    """

    # -- construction ---------------------------------------------------------

    def _take(self, extras: Extras) -> None:
        """Check the keywords beside torch's; a constructor does so first."""
        self._options = Options.checked(type(self), extras)
        self._status = Status()
        if self._options.stochastic_rounding:
            check_counts(self)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # A GradScaler would hand over scale and verdict, and call `step` for skipped
        # steps, too: trainers then count them. It unscales and skips by itself.
        return False

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        del value  # torch's constructors set it where `fused` is given

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: ``"params"``, a tensor, an iterable of tensors or (name,
                tensor) pairs, or a module; and options that differ from the defaults.

        Raises:
            TypeError: If a parameter is no tensor, or not floating.
            ValueError: If a parameter is in another group, no leaf, or complex; if an
                option is a keyword of the whole optimizer, as ``max_grad_norm``; if
                ``slot_dtypes`` names state that the class has not, or if something
                cannot be rounded by chance that shall be.
            NotImplementedError: If the group asks for ``differentiable``.
        """
        if not hasattr(self, "_options"):
            self._take({})
        if isinstance(param_group, dict) and "params" in param_group:
            param_group["params"] = parameters_of(param_group["params"])
        super().add_param_group(param_group)
        try:
            check_group(type(self).__name__, self.param_groups[-1])
            self._check_state(self.param_groups[-1])
        except (TypeError, ValueError, NotImplementedError):
            self.param_groups.pop()
            raise
        note_names(self.param_groups[-1])

    def _check_state(self, group: dict[str, Any]) -> None:
        """Refuse dtypes of state that a group cannot have."""
        options = self._options
        if isinstance(options.slot_dtypes, dict):
            options.check_slot_names(type(self).__name__, self.possible_keys(group))
        if options.stochastic_rounding:
            check_group_roundable(self, group)

    @override
    def __repr__(self) -> str:
        own = [f for f in fields(self._options) if f.name in Extras.__annotations__]
        given = [(f.name, getattr(self._options, f.name), f.default) for f in own]
        lines = [f"{n}: {value}\n" for n, value, known in given if value != known]
        return super().__repr__().removesuffix(")") + "".join(lines) + ")"

    # -- steps ----------------------------------------------------------------

    @staticmethod
    @override
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Let a step call hooks and show in profiles; torch wraps `step` in it.

        Where there is neither hook nor profiler, nothing is asked for: an entry for a
        profile costs as much as a fifth of a small model's step.
        """
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: DropIn, *args: Any, **kwargs: Any) -> Any:
            is_watched = (
                profiler._is_profiler_enabled
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
            )
            return (hooked if is_watched else func)(self, *args, **kwargs)

        return step

    @override
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], Any] | None = None
    ) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes loss and gradients anew; called once, with gradients
                enabled, before they are read.

        Returns:
            What the closure returned, or None.

        Raises:
            FloatingPointError: If ``nonfinite="error"`` and a gradient has an inf or
                NaN; nothing is changed then. Where a GPU decides, it is one of an
                earlier step, and this one is not begun.
            RowIndexError: If a GPU has told of a wrong index in an earlier step, which
                has changed nothing; this one is not begun.
            RuntimeError: Inside `ema_scope`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_in_scope("a step")
        run = _run if torch.compiler.is_compiling() else _take_step
        run(self)
        return loss

    @property
    def last_step_applied(self) -> bool:
        """Whether the last step was taken: ``nonfinite="skip"`` leaves some out.

        Reading it waits for the device where that decides, which it does for
        parameters on a GPU if all groups are ``capturable``.

        Raises:
            FloatingPointError: If ``nonfinite="error"``, the device decides, and it has
                found an inf or NaN in a step since the last error.
            RowIndexError: If it has found a wrong index in a sparse gradient.
        """
        if isinstance(self._status.is_applied, torch.Tensor):
            self._refuse_late()
        return bool(self._status.is_applied)

    def _refuse_late(self) -> None:
        """Wait for the devices, and raise what they found in earlier steps."""
        errors = self.__dict__.get("_errors")
        if errors is not None:
            errors.refuse()

    # -- averages -------------------------------------------------------------

    @contextmanager
    def ema_scope(self) -> Iterator[None]:
        """Put the averages into the parameters, for evaluation.

        Inside, every parameter that has been updated holds its average; afterwards,
        also after an exception, the trained values are back, to the bit. Steps and
        `state_dict` are refused inside.

        Raises:
            RuntimeError: If the optimizer was made without ``ema_decay``, or is in
                this scope already.

        Example:
            >>> from thalweg.optim import SGD
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = SGD([weight], lr=1.0, ema_decay=0.5)
            >>> for _ in range(2):
            ...     weight.grad = torch.ones(1)
            ...     optimizer.step()
            >>> with optimizer.ema_scope():
            ...     print(weight.item())
            -0.25
            >>> weight.item()
            -1.0
        """
        if self._options.ema_decay is None:
            raise RuntimeError(
                message(
                    f"{type(self).__name__}.ema_scope",
                    "an optimizer that keeps averages",
                    "one without",
                    "Make it with ema_decay=0.999.",
                )
            )
        self._refuse_in_scope("another ema_scope()")
        held = [(p, s[EMA]) for p, s in self.state.items() if EMA in s]
        trained = [p.detach().clone() for p, _ in held]
        self._status.is_averaged = True
        try:
            with torch.no_grad():
                for parameter, average in held:
                    parameter.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(held, trained, strict=True):
                    parameter.copy_(value)
            self._status.is_averaged = False

    def _refuse_in_scope(self, what: str) -> None:
        if self._status.is_averaged:
            raise RuntimeError(
                message(
                    type(self).__name__,
                    f"{what} outside ema_scope()",
                    "it inside, where parameters hold their averages",
                    "Leave the scope first.",
                )
            )

    # -- saving and loading ---------------------------------------------------

    def check_trained(self) -> None:
        """Refuse where parameters hold their averages; a checkpoint asks.

        Raises:
            RuntimeError: Inside `ema_scope`.
        """
        self._refuse_in_scope("saving or restoring")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The state by parameter index, in torch's form, of plain values only.

        Returns:
            ``{"state": {index: {key: value}}, "param_groups": [...]}``; groups made of
            named parameters have ``"param_names"``.
        """
        self._refuse_in_scope("saving")
        self._refuse_late()
        saved = super().state_dict()
        if "param_groups" in saved:  # a hook may give something else
            plain_groups(saved)
        return saved

    @override
    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load what `state_dict` of this or torch's optimizer gave.

        Where both sides have ``param_names`` and none occurs twice, parameters are
        found by name, in any order and grouping; otherwise by position, as torch does.
        No tensor is cast.

        Args:
            state_dict: The saved state; it is copied.
            strict: Whether every parameter must be in it and the other way round;
                matters only where they are found by name.

        Raises:
            ValueError: If groups, names or shapes do not fit; nothing is changed then.
        """
        self._refuse_in_scope("loading")
        _load(self, state_dict, strict=strict)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_in_scope("copying")
        # Counters are cells of one table; each would be pickled with all of it.
        state = {
            p: {k: _apart(v) for k, v in own.items()} if isinstance(own, dict) else own
            for p, own in self.state.items()
        }
        held = type(self.state)(dict, state)
        status = replace(self._status, is_applied=self.last_step_applied)
        kept = {"_options": self._options, "_status": status}
        return {**super().__getstate__(), "state": held, **kept}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for attribute in ("_stepper", "_errors"):
            self.__dict__.pop(attribute, None)

    def share_memory(self) -> None:
        """Move the state of all parameters into shared memory."""
        for own in self.state.values():
            for value in own.values():
                if isinstance(value, torch.Tensor):
                    value.share_memory_()


def _apart(value: Any) -> Any:
    """A number with storage of its own; other state as it is."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.clone()
    return value
