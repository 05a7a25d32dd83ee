"""Raw ops of your own: a rule function becomes an op like those that are shipped."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, overload

import torch
from torch.compiler import is_compiling

from thalweg.compiler import KernelKey, Rule, kernel_source, reads_shape
from thalweg.compiler.interpret import program_of
from thalweg.compiler.rule import RuleFunction
from thalweg.errors import describe, message
from thalweg.raw_ops.calls import refuse_call
from thalweg.raw_ops.checks import number_of
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.registration import Operator
from thalweg.raw_ops.row_door import RowDoor

__all__ = ["RawOp", "own_ops", "raw_op"]


_RESERVED = frozenset(("check_indices", "indices", "name", "self"))
_EMPTY = inspect.Parameter.empty
_logger = logging.getLogger("thalweg")
_own: dict[str, RawOp] = {}


class RawOp:
    """An op that runs a rule; made by `raw_op`.

    Attributes:
        name: Its name in `raw_ops.list()`.
        rule: The rule.
        is_sparse: Whether it updates the rows that ``indices`` name.
    """

    def __init__(self, function: RuleFunction, name: str, *, is_sparse: bool) -> None:
        functools.update_wrapper(self, function)
        self.name = self.__name__ = name
        self._door = (RowDoor if is_sparse else Door)(name, function)
        self.rule = self._door.rule
        self.is_sparse = is_sparse
        _check_names(name, self.rule)
        self._arguments = _arguments_of(function, self.rule, is_sparse=is_sparse)
        _check_defaults(name, self.rule, self._arguments)
        self.__signature__ = _signature_of(self._arguments)
        self._defaults = {n: d for n, d in self._arguments.items() if d is not _EMPTY}
        self._given_of = _getter(self._door.given_names)
        self._settings_of = _getter((*self.rule.scalars, *self.rule.flags))
        # A rule that cannot be compiled is refused here, not in the first step.
        reads_shape(self.rule, [(n, False) for n in self.rule.flags])
        switches = dict.fromkeys(self.rule.flags, "bool")
        if is_sparse:
            _check_reductions(name, self.rule)
            switches["check_indices"] = "bool?"
        self._operator = Operator(
            self._run,
            _free_name(name),
            self._arguments,
            switches,
            frozenset(self.rule.outputs),
            frozenset((self.rule.gradient,)),
        )
        self._operator.define()
        self._door.operator = self._operator

    def __call__(self, /, *positional: Any, **arguments: Any) -> None:
        """Run the rule on a variable and its slots, in place.

        Args:
            *positional: None: arguments go by name.
            **arguments: The rule's arguments by name: variable and slots are
                tensors, `Variable`s or handles; scalars are numbers or 0-d tensors.
                A sparse op takes ``indices`` and ``check_indices`` too, and one row
                of the gradient for each index. ``name`` is accepted.

        Raises:
            TypeError: If an argument is missing, unknown or without a name, a resource
                is no tensor, a scalar is no number, or a flag no bool.
            ValueError: If shapes, dtypes or devices do not fit, or an index is out
                of range; nothing is written then.
        """
        if positional:
            refuse_call(self.name, self._arguments, positional)
        if is_compiling():
            self._trace(arguments)
        else:
            self._run(**arguments)

    def _trace(self, arguments: Mapping[str, Any]) -> None:
        """Hand a call on to torch, by what it can trace."""
        given = {**self._defaults, **arguments}
        given.pop("name", None)
        if set(given) != set(self._arguments):
            refuse_call(self.name, self._arguments, (), given)
        handed = tuple([given[name] for name in self._door.given_names])
        names = (*self.rule.scalars, *self.rule.flags)
        settings = tuple([given[name] for name in names])
        self._door.trace(self._operator, handed, settings)

    def _run(self, /, **arguments: Any) -> None:
        given = {**self._defaults, **arguments}
        given.pop("name", None)
        try:
            handed, settings = self._given_of(given), self._settings_of(given)
        except KeyError:
            refuse_call(self.name, self._arguments, (), given)
        if len(given) > len(self._arguments):
            refuse_call(self.name, self._arguments, (), given)
        self._door.run(handed, settings)

    def kernel_source(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, **flags: bool
    ) -> str:
        """The text of its kernel, to read; no device is needed.

        Args:
            device: "cpu" for C, "cuda" for Triton.
            dtype: The dtype of all its tensors.
            **flags: The rule's flags, where not as by default.

        Returns:
            C text, or a Python module.

        Raises:
            ValueError: If the device is another one, or a flag is unknown.
            TraceError: If the rule reads the variable's shape: then there is a
                kernel for each shape, and none to show.
        """
        defaults = {n: self._defaults.get(n, False) for n in self.rule.flags}
        mode = "sequence" if self.is_sparse else "dense"
        pairs = tuple({**defaults, **flags}.items())
        key = KernelKey(self.rule, pairs, (dtype,) * len(self.rule.tensors), mode)
        return kernel_source(key, device)

    def __repr__(self) -> str:
        return f"<raw op {self.name}{self.__signature__}>"


@overload
def raw_op(function: RuleFunction, /) -> RawOp: ...
@overload
def raw_op(
    *, name: str | None = None, sparse: bool = False
) -> Callable[[RuleFunction], RawOp]: ...
def raw_op(
    function: RuleFunction | None = None,
    /,
    *,
    name: str | None = None,
    sparse: bool = False,
) -> RawOp | Callable[[RuleFunction], RawOp]:
    """Make an op of a rule: the same checks, kernels and operators of torch.

    Args:
        function: The rule ``(var, *slots, grad, *, scalars, flags)``: positional
            arguments are tensors, keyword-only ones numbers, or flags if they are
            annotated ``bool``. It returns the new variable and the new slots.
        name: The op's name; the function's by default. An own op of that name is
            replaced if its rule is the same function, run again in a notebook or a
            module that was loaded anew.
        sparse: Whether it updates the rows that ``indices`` name, where duplicates
            act one after the other.

    Returns:
        The op, which takes all arguments by keyword; without a function, a
        decorator.

    Raises:
        TypeError: If the signature is not that of a rule, a number's default is no
            number, or a flag's is neither True nor False.
        TraceError: If the rule uses what the compiler cannot express.
        ValueError: If the name is that of another rule's op, or it or an argument's
            name is taken or not ASCII; or if a rule for rows reduces over all of them.

    Example:
        >>> @tw.raw_ops.raw_op
        ... def ApplyClippedDescent(var, grad, *, lr, limit=1.0):
        ...     return var - lr * torch.clamp(grad, -limit, limit)
        >>> weight = tw.Variable([1.0, 1.0])
        >>> ApplyClippedDescent(var=weight, grad=torch.tensor([0.5, 8.0]), lr=0.5)
        >>> weight.tolist()
        [0.75, 0.5]
        >>> "ApplyClippedDescent" in tw.raw_ops.list()
        True
    """
    if function is None:
        return lambda rule: _make(rule, name, sparse=sparse)
    return _make(function, name, sparse=sparse)


def own_ops() -> Mapping[str, RawOp]:
    """The ops made by `raw_op`, by name."""
    return _own


def _make(function: RuleFunction, name: str | None, *, sparse: bool) -> RawOp:
    if not callable(function):
        raise TypeError(
            message("raw_op", "a rule function", describe(function), "Pass one.")
        )
    name = name or function.__name__
    known = _own.get(name)
    if known is not None and not _is_same(known.rule.function, function):
        known_rule, new_rule = map(_origin, (known.rule.function, function))
        raise ValueError(
            message(
                f"raw_op {name}",
                f"a name of its own, or {known_rule} again",
                f"the name of that op for {new_rule}",
                "Pass name='ApplyMine', say.",
            )
        )
    op = RawOp(function, name, is_sparse=sparse)
    if known is not None:
        _logger.info("The raw op %s is replaced: its rule was defined again.", name)
    _own[name] = op
    return op


def _is_same(known: RuleFunction, function: RuleFunction) -> bool:
    """Whether a rule is one that was defined before, maybe with another text.

    What has no name of its own is the same if its text is.
    """
    if known is function:
        return True
    if _origin(known) != _origin(function) and _file(known) != _file(function):
        return False
    names = _qualified(known), _qualified(function)
    codes = [getattr(rule, "__code__", None) for rule in (known, function)]
    has_name = "<lambda>" not in names[0]
    return names[0] == names[1] and (has_name or codes[0] == codes[1])


def _origin(function: RuleFunction) -> str:
    return f"{getattr(function, '__module__', '')}.{_qualified(function)}"


def _qualified(function: RuleFunction) -> str:
    return getattr(function, "__qualname__", repr(function))


def _file(function: RuleFunction) -> str | None:
    return getattr(getattr(function, "__code__", None), "co_filename", None)


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """What takes the values of names; `itemgetter` makes a tuple of two or more."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda given: tuple(given[name] for name in names)


def _free_name(name: str) -> str:
    """A name for torch: what it knows is there to stay, also if a cell is run again."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    candidates = itertools.chain([name], numbered)
    return next(n for n in candidates if not hasattr(torch.ops.thalweg, n))


def _check_names(name: str, rule: Rule) -> None:
    expected = ""
    if not (name.isidentifier() and name.isascii()):
        expected = "a name that is an identifier of ASCII letters, digits and _"
    elif name in vars(sys.modules["thalweg.raw_ops"]):
        expected = "a name that tw.raw_ops has not taken"
    if expected:
        got = "a lambda" if name == "<lambda>" else repr(name)
        action = "Pass name='ApplyMine', say."
        raise ValueError(message("raw_op", expected, got, action))
    names = (*rule.tensors, *rule.scalars, *rule.flags)
    taken = _RESERVED.intersection(names)
    foreign = [one for one in names if not one.isascii()]
    if taken or foreign:
        expected = "argument names of ASCII letters that no op takes by itself"
        got = repr(min([*taken, *foreign]))
        raise ValueError(message(f"raw_op {name}", expected, got, "Rename it."))


def _check_defaults(name: str, rule: Rule, arguments: Mapping[str, Any]) -> None:
    """Refuse a number's default that is none, and what torch's schema cannot say."""
    for argument in (*rule.scalars, *rule.flags):
        default, own = arguments[argument], f"default of {argument}"
        if default is _EMPTY:
            continue
        if argument in rule.scalars:
            number_of(f"raw_op {name}", own, default)
        elif not isinstance(default, bool):
            where, expected = f"raw_op {name}: {own}", "True or False"
            action = "Give it one of these, or none."
            raise TypeError(message(where, expected, describe(default), action))


def _check_reductions(name: str, rule: Rule) -> None:
    """Refuse a rule for rows that reads all of them.

    One that does so by its flags, or for some shapes, is refused when it is called.
    """
    flags = tuple(sorted((flag, False) for flag in rule.flags))
    if not reads_shape(rule, flags) and program_of(rule, flags).num_passes > 1:
        raise ValueError(
            message(
                f"raw_op {name}",
                "a rule that needs no row but its own, for sparse=True",
                "one that reduces over the whole variable",
                "Reduce over a row, with dim=-1, or leave sparse=True out.",
            )
        )


def _arguments_of(
    function: RuleFunction, rule: Rule, *, is_sparse: bool
) -> dict[str, Any]:
    """Arguments of an op in the order of its rule, and their defaults."""
    parameters = inspect.signature(function).parameters
    tensors = [*rule.tensors, *(["indices"] if is_sparse else [])]
    arguments: dict[str, Any] = dict.fromkeys(tensors, _EMPTY)
    for name in (*rule.scalars, *rule.flags):
        arguments[name] = parameters[name].default
    if is_sparse:
        arguments["check_indices"] = None
    return arguments


def _signature_of(arguments: Mapping[str, Any]) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, default=default)
        for name, default in {**arguments, "name": None}.items()
    ]
    return inspect.Signature(parameters)
