"""Compiling keys: memory, one translation unit, and the fallback."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch

from thalweg.compiler import (
    Kernel,
    KernelKey,
    Rule,
    TraceError,
    compilation,
    compile_rule,
    compile_rules,
    kernel_source,
    reads_shape,
    shape_read,
)
from thalweg.compiler.build import can_compile

F = torch.float32


def descent(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad


def ascent(var: Any, grad: Any, *, lr: Any) -> Any:
    return var + lr * grad


@pytest.fixture(autouse=True)
def forget() -> None:
    compilation.clear()


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The translation units that are built; nothing is compiled."""
    built: list[str] = []

    def remember(text: str) -> None:
        built.append(text)

    monkeypatch.setattr(compilation, "build", remember)
    monkeypatch.setattr(compilation, "can_compile", lambda: False)
    return built


def key(function: Any, dtype: torch.dtype = F) -> KernelKey:
    return KernelKey(Rule.of(function), (), (dtype, dtype))


def test_a_key_is_compiled_once(units: list[str]) -> None:
    assert compile_rule(key(descent)) is compile_rule(key(descent))
    assert len(units) == 1


def test_several_keys_share_a_translation_unit(units: list[str]) -> None:
    keys = [key(descent), key(ascent), key(descent, torch.float64), key(descent)]
    kernels = compile_rules(keys)
    assert len(units) == 1
    assert [k.key for k in kernels] == keys
    assert kernels[0] is kernels[3]
    assert "void rule_descent__2(" in units[0]
    compile_rules([*keys, key(ascent, torch.float64)])
    assert len(units) == 2


@pytest.mark.skipif(not can_compile(), reason="needs a C compiler")
def test_a_unit_that_fails_is_built_kernel_by_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emit = compilation._emit

    def emit_nonsense(made: KernelKey, *rest: Any) -> str:
        broken = "int broken(void) { return nonsense; }\n"
        return emit(made, *rest) + broken * (made.rule.name == "ascent")

    monkeypatch.setattr(compilation, "_emit", emit_nonsense)
    monkeypatch.setattr(logging.getLogger("thalweg.compiler"), "propagate", True)
    kernels = compile_rules([key(descent), key(ascent), key(descent, torch.float64)])
    assert [kernel.backend for kernel in kernels] == ["c", "interpreter", "c"]
    assert len(caplog.messages) == 1
    assert "nonsense" in caplog.messages[0]


def test_without_a_library_the_kernel_interprets(units: list[str]) -> None:
    kernel = compile_rule(key(descent))
    assert kernel.backend == "interpreter"
    assert "var - lr * grad" in kernel.source


def test_a_rule_that_cannot_be_compiled_builds_nothing(units: list[str]) -> None:
    def bad(var: Any, grad: Any) -> Any:
        return torch.cumsum(var, 0)

    with pytest.raises(TraceError):
        compile_rules([key(descent), key(bad)])
    assert units == []


def test_the_source_is_text_without_a_build(units: list[str]) -> None:
    text = kernel_source(key(descent))
    assert text.startswith("/* descent, dense\n * tensors: var float32, grad float32")
    assert units == []


def test_threads_get_one_kernel(units: list[str]) -> None:
    found: list[Kernel] = []
    threads = [
        threading.Thread(target=lambda: found.append(compile_rule(key(descent))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_whether_a_rule_reads_the_shape() -> None:
    def reading(var: Any, grad: Any) -> Any:
        return var - grad * var.ndim

    assert reads_shape(Rule.of(reading), ())
    assert not reads_shape(Rule.of(descent), ())


def of_axes(var: Any, grad: Any) -> Any:
    return var - grad * var.ndim


def of_sizes(var: Any, grad: Any) -> Any:
    return var - grad / var.shape[0] if var.dim() == 2 else var


def by_first_axes(var: Any, grad: Any) -> Any:
    return var - torch.mean(grad, (1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("rule", "shape", "expected"),
    [
        (descent, (3, 5), None),
        (of_axes, (3, 5), (None, None)),
        (of_axes, (), ()),
        (of_sizes, (3, 5), (3, 5)),
        (of_sizes, (3,), (None,)),
        (by_first_axes, (2, 3, 4), (None,) * 3),
    ],
)
def test_a_key_holds_what_the_rule_read_of_the_shape(
    rule: Any, shape: tuple[int, ...], expected: Any
) -> None:
    assert shape_read(Rule.of(rule), (), (), shape) == expected
