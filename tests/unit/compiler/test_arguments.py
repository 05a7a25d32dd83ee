"""Calls of torch's fit spellings; what does not is said in torch's own names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.compiler.arguments import NoMeaningError, call


def total(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return x, dim, keepdim


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ([1], {}, (1, None, False)),
        ([1, -1, True], {}, (1, -1, True)),
        ([1], {"axis": -1, "keepdims": True}, (1, -1, True)),
        ([], {"input": 1}, (1, None, False)),
        ([], {"self": 1, "dim": 0}, (1, 0, False)),
        ([], {"A": 1, "out": None, "dtype": None}, (1, None, False)),
        ([1], {"inplace": False, "device": None}, (1, None, False)),
        ([1], {"memory_format": torch.preserve_format}, (1, None, False)),
    ],
)
def test_defaults_and_other_names_are_taken(
    args: list[Any], kwargs: dict[str, Any], expected: Any
) -> None:
    assert call("sum", total, args, kwargs) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "parts"),
    [
        ([], {}, ("sum(input, dim=None, keepdim=False)", "0 arguments")),
        ([1, 2, 3, 4], {}, ("sum(input, dim=None, keepdim=False)", "4 arguments")),
        ([1], {"dims": 0}, ("sum(input, dim=None", "the keyword 'dims'", "Leave it")),
        ([1], {"dtype": torch.half}, ("sum(", "the keyword 'dtype'", "in float64")),
        ([1], {"out": 5}, ("a pure function", "out=, a change", "a new name")),
        ([1], {"inplace": True}, ("a pure function", "inplace=, a change")),
        ([1], {"input": 1}, ("sum(input", "2 arguments")),
    ],
)
def test_what_does_not_fit_is_said_without_internals(
    args: list[Any], kwargs: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(NoMeaningError) as caught:
        call("sum", total, args, kwargs)
    for part, text in zip(parts, caught.value.parts, strict=False):
        assert part in text
    assert "total" not in str(caught.value)


def test_a_keyword_that_a_spelling_takes_is_never_dropped() -> None:
    def conversion(x: Any, dtype: Any = 1) -> Any:
        return x, dtype

    assert call("to", conversion, [1], {"dtype": None}) == (1, None)
