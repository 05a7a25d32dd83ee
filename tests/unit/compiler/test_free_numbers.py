"""Numbers from outside are found, through helpers and closures too."""

from __future__ import annotations

import enum
import functools
import math
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from thalweg.compiler.free_numbers import free_numbers

CONSTANT = 2.0
ARRAY = np.ones(1)
SWITCH = True
LIMITS: dict[str, Any] = {"a": 3.0, "deep": {"b": {1: 2.0}}, "name": "n"}


class Mode(enum.IntEnum):
    FAST = 1


class Bounds:
    low = 2.0
    tensor = torch.ones(1)
    bounds: Any

    def __init__(self) -> None:
        self.high = 4

    @property
    def computed(self) -> float:
        raise AssertionError("a search runs no code")


Bounds.bounds = Bounds()


def _helper(x: Any) -> Any:
    return x * CONSTANT


def names(function: Any) -> list[str]:
    return [outside.name for outside in free_numbers(function)]


def test_a_global_number_is_found_with_its_line() -> None:
    def function(x: Any) -> Any:
        return x * CONSTANT

    line = function.__code__.co_firstlineno + 1
    assert list(free_numbers(function)) == [("CONSTANT", line, __file__, False)]


def test_a_closed_over_number_is_found() -> None:
    factor = 3

    def function(x: Any) -> Any:
        return x * factor

    assert names(function) == ["factor"]


def test_a_tensor_and_an_array_are_numbers() -> None:
    tensor = torch.ones(1)

    def function(x: Any) -> Any:
        return x * tensor * ARRAY

    assert sorted(names(function)) == ["ARRAY", "tensor"]


def test_helpers_and_inner_functions_are_searched() -> None:
    def function(x: Any) -> Any:
        def inner(y: Any) -> Any:
            return y * CONSTANT

        return inner(_helper(x))

    assert names(function) == ["CONSTANT", "CONSTANT"]


def test_modules_containers_and_functions_are_no_numbers() -> None:
    pair = (1.0, 2.0)

    def function(x: Any) -> Any:
        if TYPE_CHECKING:
            return x
        return math.sqrt(x) if pair else torch.sqrt(x)

    assert names(function) == []


def test_a_bool_is_found_and_told_apart() -> None:
    switches = {"wide": np.bool_(True)}

    def function(x: Any) -> Any:
        return x * SWITCH if switches["wide"] else x * CONSTANT

    found = {outside.name: outside.is_bool for outside in free_numbers(function)}
    assert found == {"SWITCH": True, "switches['wide']": True, "CONSTANT": False}


def test_a_bool_that_a_factory_was_called_with_makes_another_function() -> None:
    def factory(is_wide: bool) -> Any:
        def function(x: Any) -> Any:
            return x if is_wide else -x

        return function

    assert names(factory(True)) == names(factory(False)) == []


def times(factor: Any) -> Any:
    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **arguments: Any) -> Any:
            return function(*args, **arguments) * factor

        return wrapper

    return decorate


def test_what_decorators_put_around_a_function_is_searched() -> None:
    @times("")
    @times(3.0)
    def function(x: Any) -> Any:
        return _helper(x)

    @functools.cache
    def cached(x: Any) -> Any:
        return function(x)

    @torch.no_grad()
    def outer(x: Any) -> Any:
        return cached(x)

    assert names(outer) == ["factor", "CONSTANT"]


@times(1.0)
def _early(x: Any) -> Any:
    return x


def test_each_use_of_a_decorator_is_searched() -> None:
    @times(None)
    def function(x: Any) -> Any:
        return _early(x)

    assert names(function) == ["factor"]


class Scaled:
    __slots__ = ("by", "empty")

    def __init__(self) -> None:
        self.by = 2.0

    def method(self, x: Any) -> Any:
        return x * self.by + self.empty

    def inner(self, x: Any) -> Any:
        return (lambda y: y * self.by)(x)

    def through(self, x: Any) -> Any:
        return self.method(x)

    def __call__(self, x: Any) -> Any:
        return self.by * x

    @staticmethod
    def unbound(x: Any) -> Any:
        return x * CONSTANT

    @classmethod
    def of_class(cls, x: Any) -> Any:
        return cls.unbound(x) * SWITCH


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("method", ["self.by"]),
        ("inner", ["self.by"]),
        ("through", ["self.by"]),
        ("__call__", ["self.by"]),
        ("unbound", ["CONSTANT"]),
        ("of_class", ["SWITCH"]),
    ],
)
def test_methods_are_searched(method: str, read: list[str]) -> None:
    holder = types.SimpleNamespace(scaled=Scaled())
    bound = getattr(holder.scaled, method)
    names_of: dict[str, Any] = {"holder": holder}
    exec(f"def by_name(x): return holder.scaled.{method}(x)", names_of)

    def function(x: Any) -> Any:
        return bound(x)

    assert names(function) == names(names_of["by_name"]) == names(bound) == read


def test_an_object_that_is_called_is_searched() -> None:
    scaled = Scaled()

    def function(x: Any) -> Any:
        return scaled(x)

    assert names(function) == names(scaled) == ["self.by"]


def test_a_function_of_a_module_is_searched_and_one_in_an_object_is_no_method() -> None:
    module = types.ModuleType("my_helpers")
    vars(module).update(helper=_helper, held=types.SimpleNamespace(rows=3))

    def rows_of(x: Any) -> Any:
        return x.rows

    module.held.rows_of = rows_of  # pyright: ignore[reportAttributeAccessIssue]

    def function(x: Any) -> Any:
        return module.helper(module.held.rows_of(x))

    assert names(function) == ["CONSTANT"]


def test_what_a_partial_was_made_of_is_searched_and_what_it_holds_is_not() -> None:
    def scaled(x: Any, by: Any = CONSTANT) -> Any:
        return x * by

    part = functools.partial(scaled, by=CONSTANT)
    other = functools.partial(_helper)

    def function(x: Any) -> Any:
        return part(scaled(x))

    assert names(function) == names(part) == []
    assert names(other) == ["CONSTANT"]


def test_numbers_in_attributes_and_items_are_found() -> None:
    settings = types.SimpleNamespace(limit=1.0)
    bounds = Bounds()

    def function(x: Any) -> Any:
        x = x * settings.limit + LIMITS["a"] - Bounds.low
        return x * bounds.high * LIMITS["deep"]["b"][1] * Bounds.bounds.high

    first = function.__code__.co_firstlineno
    assert [(name, line - first) for name, line, *_ in free_numbers(function)] == [
        ("settings.limit", 1),
        ("LIMITS['a']", 1),
        ("Bounds.low", 1),
        ("bounds.high", 2),
        ("LIMITS['deep']['b'][1]", 2),
        ("Bounds.bounds.high", 2),
    ]


def test_a_tensor_in_an_attribute_is_a_number_whatever_is_read_of_it() -> None:
    def function(x: Any) -> Any:
        return x.to(Bounds.tensor.dtype)

    assert names(function) == ["Bounds.tensor"]


def test_numbers_behind_a_module_that_is_no_library_are_found() -> None:
    module = types.ModuleType("my_settings")
    vars(module).update(LIMIT=2.0, table={"rate": 0.5})

    def function(x: Any) -> Any:
        return x * module.LIMIT * module.table["rate"]

    assert names(function) == ["module.table['rate']"]


def test_constants_texts_members_and_what_needs_code_are_passed_by() -> None:
    bounds, missing = Bounds(), LIMITS

    def function(x: Any) -> Any:
        if sys.version_info[0] == 3 and Mode.FAST and LIMITS["name"] == "n":
            x = x * math.pi + torch.inf - np.e
        return x + bounds.computed + missing["none"] + bounds.nothing + LIMITS[x]

    assert names(function) == []
