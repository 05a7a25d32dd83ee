"""A `torch.optim.Optimizer` over an optimizer with Keras's interface.

The optimizer behind it keeps slots, hyperparameters and the count; the face shows them
where torch's trainers look: in ``param_groups`` and ``state``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch._compile import _disable_dynamo
from typing_extensions import override

from thalweg import optimizers
from thalweg.errors import describe, message
from thalweg.interop.group_numbers import (
    GroupNumber,
    entries_of,
    numbers_shown,
)
from thalweg.interop.numbered_groups import NumberedGroups
from thalweg.interop.slot_owner import (
    STEP,
    check_slots,
    forget,
    override_numbers,
    restore_slot,
)
from thalweg.interop.state_matching import check_shapes, match_parameters
from thalweg.optimizers.torch_formula import TORCH_FORMULA, has_torch_formula
from thalweg.optimizers.variables import check_variable
from thalweg.state import (
    Variable,
    handle_of,
    name_of,
    register_name,
    register_names,
)

__all__ = ["TorchFace", "as_torch"]


def as_torch(optimizer: Any, model: Any) -> TorchFace:
    """Give an optimizer the face of `torch.optim`: ``step``, groups, state dicts.

    Schedulers, closures, `GradScaler`, DDP, FSDP2, and trainers that want a
    `torch.optim.Optimizer` work with it. It reads ``.grad``, and reduces nothing.

    Args:
        optimizer: An optimizer of `thalweg.optimizers`, or its name.
        model: A module, whose parameters and names are taken; or what a constructor
            of `torch.optim` takes: parameters, (name, parameter) pairs, groups.

    Returns:
        The optimizer; ``wrapped`` is the one it was made of.

    Raises:
        TypeError: If the optimizer is one of torch already, or wrapped.
        ValueError: If a parameter is not floating, or the name is unknown.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = as_torch(tw.optimizers.SGD(0.5), model)
        >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 1)).sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> model.weight.item()
        0.25
    """
    return TorchFace(optimizer, model)


class TorchFace(NumberedGroups, torch.optim.Optimizer):
    """What `as_torch` makes.

    A group has the hyperparameters under torch's names: ``lr``, ``betas``, ``eps``,
    others under their own. What is written there is in force from the next step on. A
    hyperparameter that is a schedule or callable is shown, and must not be written.
    ``state[parameter]`` has the slots by name, and ``step``: the one count of applied
    steps, shared by all parameters.

    Args:
        optimizer: See `as_torch`.
        model: See `as_torch`.
    """

    def __init__(self, optimizer: Any, model: Any) -> None:
        if isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                message(
                    "as_torch",
                    "an optimizer of thalweg.optimizers, or its name",
                    describe(optimizer),
                    "It is one of torch already; use it as it is.",
                )
            )
        self._wrapped = optimizers.get(optimizer)
        if not isinstance(self._wrapped, optimizers.Optimizer):
            raise TypeError(
                message(
                    "as_torch",
                    "an optimizer that is not wrapped",
                    describe(self._wrapped),
                    "Show its inner_optimizer, and scale with torch.amp.GradScaler.",
                )
            )
        self._shown = numbers_shown(self._wrapped)
        self._overrides: list[dict[str, GroupNumber]] = []
        self._built: list[torch.Tensor] = []
        self._published: list[torch.Tensor] = []
        super().__init__(_parameters_of(model), entries_of(self._shown))

    @property
    def wrapped(self) -> optimizers.Optimizer:
        """The optimizer with Keras's interface."""
        return self._wrapped

    @property
    def iterations(self) -> Variable:
        """Number of applied steps."""
        return self._wrapped.iterations

    @property
    def last_step_applied(self) -> bool:
        """Whether the last step was taken, or left out because of an inf or NaN."""
        return self._wrapped.last_step_applied

    # -- groups ---------------------------------------------------------------

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyperparameters of their own if the group has some.

        Args:
            param_group: ``"params"`` and entries under torch's names.

        Raises:
            TypeError: If an entry is no number.
            ValueError: If a parameter is not floating or in another group, a number is
                out of range, or a schedule decides it.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                check_variable("as_torch", parameter)
            numbers = self._checked_numbers(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        own = {n: GroupNumber(v) for n, v in numbers.items() if not self._follows(n)}
        self._overrides.append(own if len(self.param_groups) > 1 else {})

    # -- steps ----------------------------------------------------------------

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
            TypeError: If an entry of a group is no number.
            ValueError: If one is out of range, or a gradient does not fit.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._apply()
        return loss

    @_disable_dynamo
    def _apply(self) -> None:
        pairs = [(p.grad, p) for p in self._parameters() if p.grad is not None]
        if not pairs:
            return
        if self._is_probe(pairs):
            self._build()
            return
        self._take_numbers()
        self._take_state()
        self._build()
        self._wrapped.apply_gradients(pairs, experimental_aggregate_gradients=False)
        self._show_numbers()

    def _parameters(self) -> Iterator[torch.Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _trained(self) -> list[torch.Tensor]:
        return [p for p in self._parameters() if p.requires_grad]

    def _is_probe(self, pairs: list[tuple[Any, torch.Tensor]]) -> bool:
        """Whether somebody only wants the state to exist.

        `torch.distributed.checkpoint` takes a step with zero gradients at rate 0.
        """
        return (
            not self.state
            and all(float(group.get("lr", 1.0)) == 0 for group in self.param_groups)
            and not any(bool(gradient.any()) for gradient, _ in pairs)
        )

    def _build(self) -> None:
        """Make slots for all parameters that are trained, and show them."""
        trained = self._trained()
        is_known = len(trained) == len(self._built)
        if is_known and all(map(is_, trained, self._built)):
            return
        for group in self.param_groups:
            if "param_names" in group:
                names = zip(group["param_names"], group["params"], strict=True)
                for name, parameter in names:
                    register_name(handle_of(parameter), name)
        self._wrapped.build(trained)
        for group, table in zip(self.param_groups, self._overrides, strict=True):
            override_numbers(self._wrapped, group["params"], table)
        self._built = trained
        self._publish()

    # -- state ----------------------------------------------------------------

    def _publish(self) -> None:
        """Put slots and counts where torch keeps state."""
        owner = self._wrapped
        shared = {STEP: owner.iterations, **owner.state_variables()}
        found: dict[Any, dict[str, Any]] = {p: dict(shared) for p in self._built}
        for variable, name, slot in owner.slot_variables():
            if variable in found and name not in owner.pending_slots:
                found[variable][name] = slot
        self.state.clear()
        self.state.update(found)
        self._published = self._flat_state()

    def _flat_state(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self.state.values())))

    def _take_state(self) -> None:
        """Take over state that somebody has put in place of what was shown."""
        flat, known = self._flat_state(), self._published
        if len(flat) == len(known) and all(map(is_, flat, known)):
            return
        state = {parameter: dict(own) for parameter, own in self.state.items()}
        self._replace_state(state)

    def _replace_state(self, state: dict[Any, dict[str, Any]]) -> None:
        owner = self._wrapped
        gone = [p for p in self._built if not state.get(p)]
        forget(owner, gone, resets=not any(state.values()))
        shared = {STEP: owner.iterations, **owner.state_variables()}
        with torch.no_grad():
            for parameter, own in state.items():
                for name, value in own.items():
                    if name not in shared:
                        restore_slot(owner, name, parameter, value)
            for name, target in shared.items():
                saved = [float(own[name]) for own in state.values() if name in own]
                if saved:
                    target.fill_(max(saved) if name == STEP else saved[0])
        self._built, self._published = [], []
        if state:
            self._build()
        else:
            self.state.clear()

    @override
    def state_dict(self) -> dict[str, Any]:
        """The state by parameter index, in torch's form, of plain values only.

        Returns:
            ``{"state": {index: {key: tensor}}, "param_groups": [...]}``; groups made
            of named parameters have ``"param_names"``, and those of a class with two
            formulas ``"torch_formula"``, which says in what units the state is.

        Raises:
            RuntimeError: In the midst of a cycle of ``gradient_accumulation_steps``,
                whose sums torch's form has no place for.
        """
        if self._wrapped.is_in_cycle:
            raise RuntimeError(
                message(
                    "as_torch(...).state_dict",
                    "no gradient that waits for others of its cycle",
                    "sums of gradient_accumulation_steps that were not applied",
                    "Save after a whole cycle, or with tw.Checkpoint.",
                )
            )
        saved = super().state_dict()
        saved["state"] = {
            number: {name: _plain(value) for name, value in own.items()}
            for number, own in saved["state"].items()
        }
        if has_torch_formula(self._wrapped):
            for group in saved["param_groups"]:
                group[TORCH_FORMULA] = getattr(self._wrapped, TORCH_FORMULA)
        return saved

    @override
    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; no tensor is cast.

        Where both sides have names and none occurs twice, parameters are found by
        name, otherwise by position. A hyperparameter that is a schedule or callable
        stays so.

        Args:
            state_dict: The saved state; it is copied.

        Raises:
            TypeError: If an entry of a group is no number.
            ValueError: If names, groups, slots or shapes do not fit, or a number is out
                of range; nothing is changed then.
        """
        saved = state_dict.copy()
        for hook in list(self._optimizer_load_state_dict_pre_hooks.values()):
            changed = hook(self, saved)
            saved = saved if changed is None else changed
        where = type(self._wrapped).__name__
        groups = copy.deepcopy(saved["param_groups"])
        match = match_parameters(where, self.param_groups, groups)
        check_shapes(where, saved["state"], match)
        check_slots(self._wrapped, saved["state"], match.parameters)
        state = {match.parameters[k]: dict(own) for k, own in saved["state"].items()}
        formulas = [group.pop(TORCH_FORMULA, None) for group in match.groups]
        self._load_groups(match.groups)
        if formulas[0] is not None and has_torch_formula(self._wrapped):
            setattr(self._wrapped, TORCH_FORMULA, bool(formulas[0]))
        if state or self.state:
            self._replace_state(state)
        self._show_numbers()
        for hook in list(self._optimizer_load_state_dict_post_hooks.values()):
            hook(self)

    # -- checkpoints: the face and the optimizer behind it are one -------------

    def checkpoint_owner(self) -> optimizers.Optimizer:
        """The optimizer behind it, once what groups and state say is in force."""
        self._take_numbers()
        self._show_numbers()
        self._take_state()
        return self._wrapped

    def show_restored(self) -> None:
        """Show numbers and slots that have been put into the optimizer."""
        self._show_numbers()
        names = set(self._wrapped.active_slots())
        slots: dict[int, set[str]] = {}
        for variable, name, _ in self._wrapped.slot_variables():
            slots.setdefault(id(variable), set()).add(name)
        # A slot that is missing may still come with a value, and a dtype, of its own.
        is_whole = all(names <= slots.get(id(p), set()) for p in self._trained())
        if is_whole and (names or int(self.iterations)):
            self._built = []
            self._build()

    # -- copies ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: self.__dict__[name] for name in ("_wrapped", "_shown")}
        return {**super().__getstate__(), **kept, "_overrides": self._overrides}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._built, self._published = [], []


def _parameters_of(model: Any) -> Any:
    """What torch's constructor takes; a module becomes its named parameters."""
    if not isinstance(model, torch.nn.Module):
        return model
    register_names(model)
    return [(name_of(p, name), p) for name, p in model.named_parameters()]


def _plain(value: Any) -> Any:
    """A tensor of torch's own class that shares the memory."""
    return value.detach() if isinstance(value, Variable) else value
