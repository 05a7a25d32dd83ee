"""What a GPU would run: machine text made without one, and read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from tests.codegen.test_goldens import KEYS, adam, rowwise_adagrad
from tests.codegen.test_operations import ELEMENTWISE, OPS, rule_for
from tests.codegen.test_rounding import key_of, momentum
from thalweg.compiler import KernelKey, Rule
from thalweg.compiler.triton_kernel import TritonKernel

triton = pytest.importorskip("triton", "3.5", reason="needs Triton 3.5 or newer")

INEXACT = re.compile(r"\bfma\b|\bfma\.|\bmad\.\S*f(32|64)|\.approx|\.ftz|div\.full")
TABLES = {
    "items": "*i64",
    "pointers": "*i64",
    "scalars": "*fp64",
    "starts": "*i64",
    "sources": "*i64",
    "partials": "*fp64",
    "folds": "*i64",
}


@pytest.fixture(scope="module", autouse=True)
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled here stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@cache
def kernel_of(key: KernelKey) -> TritonKernel:
    return TritonKernel(key)


@cache
def ptx(key: KernelKey, suffix: str = "", block: int = 1024, warps: int = 4) -> str:
    """The PTX of one kernel of a key, for a device of compute capability 9.0."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel_of(key).names[f"rule_{key.rule.name}{suffix}"]
    is_block = "BLOCK" in function.arg_names
    names = [name for name in function.arg_names if name != "BLOCK"]
    source = ASTSource(
        function,
        {name: TABLES[name] for name in names},
        {"BLOCK": block} if is_block else {},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"enable_fp_fusion": False, "num_warps": warps},
    )
    return compiled.asm["ptx"]


ADAM = KEYS["adam_float32_dense"]


def adam_in(*dtypes: torch.dtype, mode: Any = "dense") -> KernelKey:
    return KernelKey(Rule.of(adam), (), dtypes, mode)


@pytest.mark.parametrize(
    "key",
    [
        ADAM,
        adam_in(*[torch.float64] * 4),
        adam_in(*[torch.bfloat16] * 4),
        adam_in(torch.float32, torch.bfloat16, torch.float16, torch.bfloat16),
        adam_in(*[torch.float32] * 4, mode="sum"),
        adam_in(*[torch.float32] * 4, mode="sequence"),
    ],
)
def test_arithmetic_is_ieee(key: KernelKey) -> None:
    text = ptx(key)
    assert not INEXACT.search(text)
    kind = "f64" if torch.float64 in key.dtypes else "f32"
    for instruction in ("div.rn", "sqrt.rn"):
        assert f"{instruction}.{kind}" in text
    assert not INEXACT.search(ptx(key, "_derive"))


def test_exact_operations_are_exact_in_one_kernel() -> None:
    exact = [name for name in ELEMENTWISE if OPS[name].is_exact]
    rules = [rule_for(name) for name in exact]

    def everything(var: Any, grad: Any) -> Any:
        total = var
        for rule in rules:
            total = torch.minimum(total, rule.function(var, grad) * var)
        return total

    for dtype in (torch.float32, torch.float64):
        text = ptx(KernelKey(Rule.of(everything), (), (dtype,) * 2))
        assert not INEXACT.search(text)


def test_a_float64_kernel_knows_no_float32() -> None:
    key = adam_in(*[torch.float64] * 4)
    for suffix in ("", "_derive"):
        assert ".f32" not in ptx(key, suffix)
    assert ".f32" not in ptx(ADAM, "_derive")


def test_aligned_pieces_move_sixteen_bytes() -> None:
    text = ptx(ADAM)
    assert len(re.findall(r"ld\.global\.v4\.b32", text)) >= 4
    assert len(re.findall(r"st\.global\.v4\.b32", text)) >= 3
    double = ptx(adam_in(*[torch.float64] * 4))
    assert len(re.findall(r"ld\.global\.v2\.b64", double)) >= 4
    assert len(re.findall(r"st\.global\.v2\.b64", double)) >= 3
    halves = ptx(adam_in(*[torch.bfloat16] * 4))
    assert len(re.findall(r"ld\.global\.v4\.b32", halves)) >= 4


def test_aligned_rows_move_sixteen_bytes_under_a_mask() -> None:
    text = ptx(adam_in(*[torch.float32] * 4, mode="sum"), "", 128, 1)
    assert len(re.findall(r"@\S+ ld\.global\.v4\.b32", text)) >= 4
    assert len(re.findall(r"@\S+ st\.global\.v4\.b32", text)) >= 3


def test_halves_are_rounded_to_the_nearest_even_by_the_device() -> None:
    text = ptx(adam_in(torch.bfloat16, torch.float32, torch.float32, torch.float16))
    assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", text)
    narrow = ptx(adam_in(torch.float16, *[torch.float32] * 3))
    assert re.search(r"cvt\.rn\.f16(x2)?\.f32", narrow)


def test_transcendental_functions_are_those_of_libdevice() -> None:
    names = [name for name in ELEMENTWISE if not OPS[name].is_exact]

    def everything(var: Any, grad: Any) -> Any:
        for name in names:
            var = var + rule_for(name).function(var, grad)
        return var

    key = KernelKey(Rule.of(everything), (), (torch.float32,) * 2)
    assert ".extern .func" not in ptx(key)
    assert "tl.exp" not in kernel_of(key).source
    assert "libdevice.exp(" in kernel_of(key).source


def test_a_negation_turns_the_sign_bit() -> None:
    def flipped(var: Any, grad: Any) -> Any:
        return torch.where(grad > 0, -var, -0.0)

    for dtype, size in ((torch.float32, 32), (torch.float64, 64)):
        text = ptx(KernelKey(Rule.of(flipped), (), (dtype,) * 2))
        sign = -(2 ** (size - 1))
        assert re.search(rf"neg\.f{size}|xor\.b{size} .*{sign}", text)
        assert not re.search(rf"(add|sub|mul)\.(rn\.)?f{size}", text)
        assert re.search(rf"selp\.[bf]{size} .*({sign}|0[fd]80*),", text)


def test_warps_wait_for_each_other_before_a_row_slot_is_stored() -> None:
    def worn(var: Any, heat: Any, grad: Any, *, lr: Any) -> Any:
        heat_new = heat * 0.5 + 1.0
        return var - lr * heat_new * grad, heat_new

    for function in (worn, rowwise_adagrad):
        key = KernelKey(Rule.of(function), (), (torch.float32,) * 3, layouts=("row",))
        assert "bar.sync" in ptx(key, "", 256)


def trust(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    direction = m + grad / torch.linalg.vector_norm(grad)
    ratio = torch.linalg.vector_norm(var) / direction.amax()
    return var - lr * ratio * direction, direction


def test_reductions_add_in_float64_in_their_order() -> None:
    key = KernelKey(Rule.of(trust), (), (torch.float32,) * 3)
    for suffix in ("_pass0", "_fold0", "_pass1", "_fold1", ""):
        assert not INEXACT.search(ptx(key, suffix))
    assert "add.rn.f64" in ptx(key, "_pass0", 0, 2)
    assert "v4.b32" in ptx(key, "_pass0", 0, 2)
    assert "atom" not in ptx(key, "_pass0", 0, 2)
    dtypes = (torch.float32, torch.float32, torch.bfloat16)
    rows = KernelKey(Rule.of(rowwise_adagrad), (), dtypes, "sum", ("row",))
    assert not INEXACT.search(ptx(rows, "", 256, 1))
    assert "atom" not in ptx(rows, "", 256, 1)


class NoDevice:
    """Stands for a device that compiles and runs nothing."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Kernels that a launch would start, compiled as it asks for them."""
    made: list[tuple[str, Any]] = []

    def start(
        self: TritonKernel, suffix: str, grid: Any, arguments: Any, num_warps: int = 1
    ) -> None:
        function = self.names[f"rule_{self.key.rule.name}{suffix}"]
        kernel = function.warmup(
            *arguments, grid=grid, num_warps=num_warps, enable_fp_fusion=False
        )
        made.append((suffix, kernel))

    monkeypatch.setattr(TritonKernel, "start", start)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice())
    return made


def tables_of(
    kernel: TritonKernel, lengths: list[int], shift: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tables of some variables, from a multiple of 16 bytes or beside one."""
    rows = [[number, 0, 0, n, number] for number, n in enumerate(lengths)]
    shape = (len(rows), len(kernel.key.dtypes))
    pointers = torch.zeros(shape[0] * shape[1] + shift, dtype=torch.int64)
    table = torch.zeros(shape[0], len(kernel.columns), dtype=torch.float64)
    return torch.tensor(rows), pointers[shift:].view(shape), table


def test_other_sizes_and_addresses_compile_nothing(
    started: list[tuple[str, Any]],
) -> None:
    kernel = TritonKernel(ADAM)
    kernel.launch(*tables_of(kernel, [5000]))
    kernel.launch(*tables_of(kernel, [7, 100_000_000, 2**33], shift=1))
    assert [suffix for suffix, _ in started] == ["_derive", ""] * 2
    assert len({id(made) for _, made in started}) == 2
    assert all(not made.metadata.enable_fp_fusion for _, made in started)


def test_a_launch_starts_passes_in_order(started: list[tuple[str, Any]]) -> None:
    kernel = TritonKernel(KernelKey(Rule.of(trust), (), (torch.float32,) * 3))
    kernel.launch(*tables_of(kernel, [5000, 40_000]))
    suffixes = [suffix for suffix, _ in started]
    passes = ["_derive", "_pass0", "_fold0", "_derive", "_pass1", "_fold1"]
    assert suffixes == [*passes, "_derive", ""]


def test_row_kernels_and_cells_take_their_tables(
    started: list[tuple[str, Any]],
) -> None:
    def cooled(var: Any, heat: Any, grad: Any, *, rate: Any) -> Any:
        heat_new = heat * rate
        return var - heat_new * grad, heat_new

    rule = Rule.of(cooled)
    key = KernelKey(rule, (), (torch.float32,) * 3, "sequence", ("scalar",))
    kernel = TritonKernel(key)
    starts, sources = torch.arange(3), torch.arange(2)
    kernel.launch(*tables_of(kernel, [64, 64]), starts=starts, sources=sources)
    suffixes = [suffix for suffix, _ in started]
    assert suffixes == ["_load_cells", "_derive", "", "_store_cells"]


@pytest.mark.parametrize("mode", ["dense", "sum", "sequence"])
def test_stochastic_rounding_is_integer_arithmetic_and_compiles(mode: Any) -> None:
    key = key_of(momentum, [torch.bfloat16] * 3, mode)
    text = ptx(key, "", *((1024, 4) if mode == "dense" else (128, 1)))
    assert not INEXACT.search(text)
    # Both outputs take the bits of one hash: two products for each element.
    assert len(re.findall(r"2146121005", text)) >= 1
    assert "cvt.rn.bf16" not in text
