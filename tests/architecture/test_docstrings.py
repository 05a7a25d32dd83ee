"""What docstrings say of arguments is what signatures take."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from tests.architecture.source_tree import Module, modules
from thalweg.optimizers import Optimizer, optimizer

# Its shared options are documented once, here; constructors take them as **options.
_SHARED_OPTIONS = {"thalweg.optimizers.optimizer.Optimizer"}


def described(module: Module) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """Names and docstrings with an Args section, and the functions that are meant."""
    for node in ast.walk(module.tree):
        function: ast.stmt | None = None
        if isinstance(node, ast.FunctionDef):
            function = node
        elif isinstance(node, ast.ClassDef):
            own = [f for f in node.body if isinstance(f, ast.FunctionDef)]
            function = next((f for f in own if f.name == "__init__"), None)
        if isinstance(function, ast.FunctionDef):
            text = ast.get_docstring(node) or ""  # pyright: ignore[reportArgumentType] - a function or class
            if "\nArgs:\n" in text:
                yield f"{module.name}.{node.name}", text, function  # pyright: ignore[reportAttributeAccessIssue]


def names_told(text: str) -> list[str]:
    section = re.split(r"\n(?=\S)", text.partition("\nArgs:\n")[2])[0]
    return re.findall(r"^    \*{0,2}(\w+):", section, re.MULTILINE)


def names_taken(function: ast.FunctionDef) -> list[str]:
    given = function.args
    taken = [*given.posonlyargs, *given.args]
    taken += [given.vararg] if given.vararg else []
    taken += [*given.kwonlyargs, *([given.kwarg] if given.kwarg else [])]
    return [one.arg for one in taken if one.arg not in ("self", "cls")]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_arguments_are_those_of_the_signature(module: Module) -> None:
    for name, text, function in described(module):
        if name not in _SHARED_OPTIONS:
            assert sorted(names_told(text)) == sorted(names_taken(function)), name


def test_shared_options_are_all_described() -> None:
    assert sorted(names_told(inspect.getdoc(Optimizer) or "")) == sorted(
        ("name", *optimizer._OPTIONS)
    )


def test_some_are_looked_at() -> None:
    assert sum(len(list(described(module))) for module in modules()) > 500
