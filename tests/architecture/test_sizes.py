"""Sizes that keep the sources readable: modules, functions, parameters, names."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.source_tree import Module, functions, modules

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
USUAL_FUNCTION_LINES = 15
# Signatures of Keras and torch, with more parameters than we would choose.
CONTRACTS = {
    "thalweg.training.fitting.fit",
    "thalweg.optim.asgd.__init__",
    "thalweg.optim.rmsprop.__init__",
}
VAGUE_NAMES = {"utils", "common", "misc", "helpers", "util", "helper"}

MODULES = pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


@MODULES
def test_a_module_has_at_most_400_lines(module: Module) -> None:
    assert len(module.text.splitlines()) <= MAX_MODULE_LINES


@MODULES
def test_a_function_has_at_most_60_lines(module: Module) -> None:
    long = {f.name: code_lines(f) for f in functions(module)}
    assert {n: k for n, k in long.items() if k > MAX_FUNCTION_LINES} == {}


def test_most_functions_have_at_most_15_lines() -> None:
    sizes = [code_lines(function) for m in modules() for function in functions(m)]
    small = sum(size <= USUAL_FUNCTION_LINES for size in sizes)
    assert small / len(sizes) >= 0.85


# A door on a raw op has TensorFlow's arguments, a command one parameter an option.
@pytest.mark.parametrize(
    "module",
    [m for m in modules() if m.room not in {"raw_ops", "cli"}],
    ids=lambda module: module.name,
)
def test_a_function_has_at_most_8_positional_parameters(module: Module) -> None:
    def count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        arguments = [*function.args.posonlyargs, *function.args.args]
        return sum(argument.arg not in {"self", "cls"} for argument in arguments)

    wide = {f"{module.name}.{f.name}": count(f) for f in functions(module)}
    too_wide = {name for name, number in wide.items() if number > MAX_PARAMETERS}
    assert too_wide - CONTRACTS == set()


@MODULES
def test_a_module_is_named_after_what_it_holds(module: Module) -> None:
    assert VAGUE_NAMES.isdisjoint(module.name.split("."))


@MODULES
def test_a_module_begins_with_a_docstring(module: Module) -> None:
    assert ast.get_docstring(module.tree)
