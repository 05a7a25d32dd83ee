"""GPU text can be written and read where there is neither Triton nor a device."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.codegen.test_goldens import adam, rowwise_adagrad
from tests.codegen.test_operations import DTYPES, ELEMENTWISE, rule_for
from thalweg.compiler import KernelKey, Rule
from thalweg.compiler import triton_kernel as under_test
from thalweg.compiler.emit_triton import emit_triton
from thalweg.compiler.interpret import program_of
from thalweg.compiler.runtime_triton import shared_functions
from thalweg.compiler.statements_triton import python_name


def text_of(function: Any, *dtypes: torch.dtype, mode: Any = "dense") -> str:
    return emit_triton(program_of(Rule.of(function), ()), dtypes, mode)


@pytest.mark.parametrize("mode", ["dense", "sum", "sequence"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_is_python(dtype: torch.dtype, mode: Any) -> None:
    for name in ELEMENTWISE:
        ast.parse(emit_triton(program_of(rule_for(name), ()), (dtype,) * 2, mode))


def test_division_and_root_are_never_the_fast_ones() -> None:
    text = text_of(adam, *[torch.float32] * 4)
    kernel = text.split("def rule_adam_range(")[1]
    code = "\n".join(re.sub("#.*", "", line) for line in kernel.splitlines())
    assert " / " not in code
    assert "tl.sqrt(" not in code
    assert "divide(mul_3, add_2)" in code
    assert "root(v_new)" in code


def test_apply_is_tested_before_anything_is_stored() -> None:
    for mode in ("dense", "sum", "sequence"):
        text = text_of(adam, *[torch.float32] * 4, mode=mode)
        kernel = text.split("def rule_adam(")[1]
        assert kernel.index("if (tl.load(row + 4) != 0.0)") < kernel.index("_range(")
        assert "tl.store" not in kernel


def test_a_kernel_holds_the_shared_functions_it_calls() -> None:
    text = text_of(adam, *[torch.float32] * 4)
    assert "def divide(" in text
    assert "bfloat16" not in text
    assert "libdevice" not in text
    halves = text_of(adam, torch.bfloat16, *[torch.float32] * 3)
    assert "def round_bfloat16(" in halves
    assert halves.index("INTERPRETED =") < halves.index("def round_bfloat16(")
    assert shared_functions("fold_maximum(x)").count("def ") == 3


def test_counts_and_sizes_compile_nothing() -> None:
    text = text_of(adam, *[torch.float32] * 4, mode="sum")
    names = '"items", "pointers", "scalars", "starts", "sources"'
    assert f"@triton.jit(do_not_specialize=[{names}])" in text


def test_the_words_of_the_skeleton_may_be_names_of_a_rule() -> None:
    def tl(index: Any, length: Any, item: Any, *, one: Any, BLOCK: Any) -> Any:
        inside = index - one * item
        return inside, length + BLOCK

    text = text_of(tl, *[torch.float32] * 3)
    ast.parse(text)
    assert "inside_ = index_ - mul" in text
    assert "BLOCK_ = tl.load(row + 1)" in text
    assert "def rule_tl_(" in text


def test_names_are_ascii() -> None:
    assert python_name("β₁") == "u3b2u2081"
    assert python_name("triton") == "triton_"


def test_rows_are_found_by_their_width() -> None:
    rule = Rule.of(rowwise_adagrad)
    text = emit_triton(program_of(rule, (), ("row",)), (torch.float32,) * 3)
    assert "accumulator_place + done // width * 4" in text
    assert "for chunk in range(0, width, 16384):" in text


def test_a_row_slot_is_stored_when_every_thread_has_read_it() -> None:
    def worn(var: Any, heat: Any, grad: Any, *, lr: Any) -> Any:
        heat_new = heat * 0.5 + 1.0
        return var - lr * heat_new * grad, heat_new

    for mode in ("dense", "sum", "sequence"):
        program = program_of(Rule.of(worn), (), ("row",))
        text = emit_triton(program, (torch.float32,) * 3, mode)
        assert re.search(
            r"tl\.debug_barrier\(\)\n *tl\.store\(heat_at, heat_new\)", text
        )
    # The fold of a reduction makes the threads wait for each other.
    program = program_of(Rule.of(rowwise_adagrad), (), ("row",))
    assert "debug_barrier" not in emit_triton(program, (torch.float32,) * 3)


def test_the_sign_of_zero_is_kept_by_every_triton() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        return torch.where(-grad > -lr, -var, -0.0)

    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        text = text_of(rule, dtype, dtype)
        assert "= var * -1.0" in text
        assert f"(tl.full([], 0.0, tl.{kind}) * -1.0)" in text
        assert "-0.0" not in re.sub("#.*", "", text)
        assert not re.search(r"= -[a-z]", text)


def test_literals_are_of_the_compute_type() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return torch.minimum(var * 0.1, grad * 1e300)

    single = text_of(rule, torch.float32, torch.float32)
    assert "tl.full([], 0.1, tl.float32)" in single
    assert 'tl.full([], float("inf"), tl.float32)' in single
    double = text_of(rule, torch.float64, torch.float64)
    assert "tl.full([], 1e+300, tl.float64)" in double


def test_a_kernel_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "has_triton", lambda: False)
    key = KernelKey(Rule.of(adam), (), (torch.float32,) * 4)
    with pytest.raises(ImportError, match="pip install"):
        under_test.TritonKernel(key)


def test_the_compiler_imports_no_triton() -> None:
    program = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import thalweg.compiler.triton_kernel as k\n"
        "print('triton.language' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
