"""Find the numbers a rule takes from outside its arguments.

Such a number would be frozen into the kernel: changing it later would change nothing,
silently. So it is refused by name.
"""

from __future__ import annotations

import dis
import enum
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch

__all__ = ["free_numbers"]

_NUMERIC = (int, float, complex, np.generic, np.ndarray, torch.Tensor)
_FOREIGN = ("torch", "math", "numpy", "builtins", "typing")


def free_numbers(function: Callable[..., Any]) -> Iterator[tuple[str, int, str]]:
    """Yield every numeric global or closure variable a function reads.

    Numbers in attributes and items of such variables count too, as in
    ``settings.limit`` and ``LIMITS["a"]``; constants of a module do not. Functions it
    calls by a plain name are searched too; those of torch, math and NumPy are not.

    Args:
        function: The update function.

    Yields:
        (name, line number, file) of each read.
    """
    seen: set[object] = set()
    waiting: list[Any] = [function]
    while waiting:
        current = inspect.unwrap(waiting.pop())
        code = getattr(current, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        for name, value, line in _free_values(current):
            if _is_number(value):
                yield name, line, code.co_filename
            elif isinstance(value, types.FunctionType) and not _is_foreign(value):
                waiting.append(value)


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMERIC) and not isinstance(value, (bool, enum.Enum))


def _is_foreign(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] in _FOREIGN


def _free_values(function: types.FunctionType) -> Iterator[tuple[str, Any, int]]:
    closed = inspect.getclosurevars(function).nonlocals
    known = function.__globals__
    for code in _code_objects(function.__code__):
        line = code.co_firstlineno
        instructions = list(dis.get_instructions(code))
        for number, instruction in enumerate(instructions):
            if instruction.positions and instruction.positions.lineno:
                line = instruction.positions.lineno
            name = instruction.argval
            if instruction.opname == "LOAD_GLOBAL" and name in known:
                found = known[name]
            elif instruction.opname == "LOAD_DEREF" and name in closed:
                found = closed[name]
            else:
                continue
            yield name, found, line
            if not _is_number(found):
                rest = instructions[number + 1 :]
                yield from ((*part, line) for part in _parts(name, found, rest))


def _parts(
    name: str, value: Any, instructions: list[dis.Instruction]
) -> Iterator[tuple[str, Any]]:
    """The number that a chain such as ``.limit`` or ``["a"].limit`` ends in, if any."""
    if isinstance(value, types.ModuleType) and _is_known_module(value.__name__):
        return
    position = 0
    while not _is_number(value):
        taken = _one_part(value, instructions[position : position + 2])
        if taken is None:
            return
        text, part, length = taken
        if isinstance(value, types.ModuleType) and _is_number(part):
            return  # a constant
        name, value, position = f"{name}{text}", part, position + length
    yield name, value


def _one_part(
    value: Any, following: list[dis.Instruction]
) -> tuple[str, Any, int] | None:
    """How the next part is written, what it is, and how many instructions it took.

    No code of the user's runs: properties and own mappings are passed by.
    """
    names = [instruction.opname for instruction in following]
    if names and names[0] in ("LOAD_ATTR", "LOAD_METHOD"):
        attribute = following[0].argval
        found = inspect.getattr_static(value, attribute, None)
        return f".{attribute}", found, 1
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


def _is_known_module(name: str) -> bool:
    root = name.split(".")[0]
    return root in _FOREIGN or root in sys.stdlib_module_names


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)
