"""Numbers from outside are found, through helpers and closures too."""

from __future__ import annotations

import enum
import math
import sys
import types
from typing import Any

import numpy as np
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
    return [name for name, _, _ in free_numbers(function)]


def test_a_global_number_is_found_with_its_line() -> None:
    def function(x: Any) -> Any:
        return x * CONSTANT

    line = function.__code__.co_firstlineno + 1
    assert list(free_numbers(function)) == [("CONSTANT", line, __file__)]


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


def test_bools_modules_containers_and_functions_are_no_numbers() -> None:
    pair = (1.0, 2.0)

    def function(x: Any) -> Any:
        return math.sqrt(x) if SWITCH and pair else torch.sqrt(x)

    assert names(function) == []


def test_numbers_in_attributes_and_items_are_found() -> None:
    settings = types.SimpleNamespace(limit=1.0)
    bounds = Bounds()

    def function(x: Any) -> Any:
        x = x * settings.limit + LIMITS["a"] - Bounds.low
        return x * bounds.high * LIMITS["deep"]["b"][1] * Bounds.bounds.high

    first = function.__code__.co_firstlineno
    assert [(name, line - first) for name, line, _ in free_numbers(function)] == [
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
