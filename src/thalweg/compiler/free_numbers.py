"""Find the numbers a rule takes from outside its arguments.

Such a number would be frozen into the kernel: changing it later would change nothing,
silently. So it is refused by name, and so is a bool, but for one that a function which
makes rules was called with.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

__all__ = ["Outside", "free_numbers"]

_NUMERIC = (int, float, complex, np.generic, np.ndarray, torch.Tensor)
_FOREIGN = ("torch", "math", "numpy", "builtins", "typing", "functools", "contextlib")
_CLASSMETHOD: type[Any] = classmethod
_STATIC: tuple[type[Any], ...] = (staticmethod, _CLASSMETHOD)
_ITSELF = "TYPE_CHECKING"  # of typing: False wherever a rule runs
_Partial: type[Any] = functools.partial


class Outside(NamedTuple):
    """A read of a value from outside.

    Attributes:
        name: What is read, as it is written.
        line: Where.
        file: Where.
        is_bool: Whether it is a bool, for which there are flags.
    """

    name: str
    line: int
    file: str
    is_bool: bool


class _Called(NamedTuple):
    """What may be called, and the object whose method it is; None: of none."""

    function: Any
    owner: Any = None


class _Read(NamedTuple):
    """What a chain of attributes and items ends in, and whose method that is."""

    name: str
    value: Any
    owner: Any = None


def free_numbers(function: Callable[..., Any]) -> Iterator[Outside]:
    """Yield every numeric global or closure variable a function reads.

    Numbers in attributes and items of such variables count too, as in
    ``settings.limit`` and ``LIMITS["a"]``; constants of a module do not. What it
    calls by such a name is searched too: functions, what decorators have put around
    them, methods of objects, and what `functools.partial` was made of; those of torch,
    math and NumPy are not. Defaults, and what a partial holds, are constants.

    Args:
        function: The update function.

    Yields:
        Each read, of a number or a bool.
    """
    seen: dict[tuple[int, int], _Called] = {}  # which keeps them, and so their ids
    waiting = [_Called(function)]
    while waiting:
        called = waiting.pop()
        key = id(called.function), id(called.owner)
        if key in seen:
            continue
        seen[key] = called
        waiting += _behind(called)
        if not _is_searched(called.function):
            continue
        for line, read in _reads(called):
            if _is_number(read.value):
                is_bool = isinstance(read.value, (bool, np.bool_))
                code = called.function.__code__
                # A factory makes a rule for each bool; that of a module may change.
                if not (is_bool and read.name in code.co_freevars):
                    yield Outside(read.name, line, code.co_filename, is_bool)
            elif callable(read.value) or isinstance(read.value, _CLASSMETHOD):
                waiting.append(_Called(read.value, read.owner))


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMERIC) and not isinstance(value, enum.Enum)


def _is_searched(value: object) -> bool:
    # `functools.wraps` copies a function's module to its wrapper, but not its globals.
    return (
        isinstance(value, types.FunctionType)
        and _root(value.__globals__.get("__name__")) not in _FOREIGN
    )


def _is_ours(function: types.FunctionType) -> bool:
    """Whether a function is the package's own."""
    return _root(function.__globals__.get("__name__")) == _root(__name__)


def _root(module: object) -> str:
    return str(module).split(".")[0]


def _behind(called: _Called) -> list[_Called]:
    """What a call hands on to, so far as that can be seen without running code."""
    function, owner = called
    if isinstance(function, types.MethodType):
        return [_Called(function.__func__, function.__self__)]
    if isinstance(function, _STATIC):
        return [_Called(function.__func__)]
    if isinstance(function, _Partial):
        return [_Called(function.func)]
    wrapped = inspect.getattr_static(function, "__wrapped__", None)
    if callable(wrapped):
        return [_Called(wrapped, owner)]
    kind = cast("type[Any]", type(function))
    own = inspect.getattr_static(kind, "__call__", None)
    is_object = isinstance(own, types.FunctionType) and not issubclass(kind, type)
    return [_Called(own, function)] if is_object else []


def _reads(called: _Called) -> Iterator[tuple[int, _Read]]:
    """What a function reads of globals, closures, and the object it is a method of."""
    function, own = called.function, _itself(called)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {**{n: cell.cell_contents for n, cell in cells if _is_full(cell)}, **own}
    for code in _code_objects(function.__code__):
        local = own if code is function.__code__ else {}
        line = code.co_firstlineno
        instructions = list(dis.get_instructions(code))
        for number, instruction in enumerate(instructions):
            if instruction.positions and instruction.positions.lineno:
                line = instruction.positions.lineno
            name, known = _loaded(instruction, function.__globals__, closed, local)
            if name in known and name != _ITSELF:
                read = _followed(_Read(name, known[name]), instructions, number + 1)
                if read is not None:
                    yield line, read


def _itself(called: _Called) -> dict[str, Any]:
    """The first argument of a method and its name, unless that is a class."""
    function, owner = called
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    is_object = owner is not None and not isinstance(owner, type)
    return dict.fromkeys(names[:1], owner) if is_object else {}


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _loaded(
    instruction: dis.Instruction,
    known: dict[str, Any],
    closed: dict[str, Any],
    local: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    """The name that an instruction loads, and where it stands."""
    operation, name = instruction.opname, instruction.argval
    if operation == "LOAD_GLOBAL":
        return name, known
    if operation == "LOAD_DEREF":
        return name, closed
    if local and "LOAD_FAST" in operation:  # some load two, or store one before
        return (name if isinstance(name, str) else name[-1]), local
    return "", {}


def _followed(
    read: _Read, instructions: Sequence[dis.Instruction], position: int
) -> _Read | None:
    """What a chain such as ``.limit`` or ``["a"].limit`` ends in; None: a constant."""
    while not _is_number(read.value):
        is_module = isinstance(read.value, types.ModuleType)
        if is_module and _is_known_module(read.value.__name__):
            return None
        taken = _one_part(read.value, instructions[position : position + 2])
        if taken is None:
            return read
        text, part, length = taken
        if is_module and _is_constant(part):
            return None
        owner = read.value if _is_method(read.value, text[1:], part) else None
        read, position = _Read(f"{read.name}{text}", part, owner), position + length
    return read


def _is_method(value: object, name: str, part: object) -> bool:
    """Whether a part is a function of the value's class, not of the value itself."""
    is_function = isinstance(part, types.FunctionType)
    return is_function and inspect.getattr_static(type(value), name, None) is part


def _is_constant(part: object) -> bool:
    """Whether what stands in a module is taken as it is: numbers, and what is ours."""
    if isinstance(part, types.FunctionType):
        return _is_ours(part)
    return _is_number(part)


def _one_part(
    value: Any, following: Sequence[dis.Instruction]
) -> tuple[str, Any, int] | None:
    """How the next part is written, what it is, and how many instructions it took.

    No code of the user's runs: properties and own mappings are passed by.
    """
    names = [instruction.opname for instruction in following]
    if names and names[0] in ("LOAD_ATTR", "LOAD_METHOD"):
        attribute = following[0].argval
        return f".{attribute}", _attribute(value, attribute), 1
    is_constant = names[:1] in (["LOAD_CONST"], ["LOAD_SMALL_INT"])
    if not is_constant or len(names) < 2:
        return None
    is_item = names[1] == "BINARY_SUBSCR" or following[1].argrepr == "[]"
    if not is_item or type(value) is not dict:
        return None
    key, items = following[0].argval, cast("dict[Any, Any]", value)
    try:
        return f"[{key!r}]", items[key], 2
    except (KeyError, TypeError):
        return None


def _attribute(value: Any, name: str) -> Any:
    found = inspect.getattr_static(value, name, None)
    kind = cast("type[Any]", type(value))
    if isinstance(found, types.MemberDescriptorType) and not issubclass(kind, type):
        try:
            return found.__get__(value, kind)
        except AttributeError:  # a slot that is empty
            return None
    return found


def _is_known_module(name: str) -> bool:
    return _root(name) in (*_FOREIGN, *sys.stdlib_module_names)


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)
