"""GPU kernels on a GPU: bits, streams, graphs, and that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.codegen import bits
from tests.codegen.bits import filled, same_bits, ulps
from tests.codegen.test_operations import BOUNDS, DTYPES, ELEMENTWISE, OPS, rule_for
from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    KernelKey,
    Rule,
    compile_rule,
    interpret,
)
from thalweg.compiler.triton_kernel import TritonKernel, compile_triton, has_triton
from thalweg.compiler.triton_rows import DeviceRowTables
from thalweg.compiler.triton_tables import Upload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_triton(), reason="needs Triton"),
]

DEVICE = "cuda"
HYPER = {"lr": 0.1, "beta": 0.9}


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function after which waiting for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def momentum(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8), m_new


def descent(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad


def rowwise_adagrad(var: Any, accumulator: Any, grad: Any, *, lr: Any) -> Any:
    accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
    return var - lr * grad * torch.rsqrt(accumulator_new), accumulator_new


def trust(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    direction = m + grad / torch.linalg.vector_norm(grad)
    ratio = torch.linalg.vector_norm(var) / (direction.abs().mean() + direction.amax())
    return var - lr * ratio * direction, direction


@cache
def kernel_of(key: KernelKey) -> TritonKernel:
    return compile_triton(key)


def table_of(
    kernel: TritonKernel, scalars: Mapping[str, float], elements: int, width: int = 1
) -> Tensor:
    known = {APPLY: 1.0, ROW_LENGTH: width, NUM_ELEMENTS: elements, **scalars}
    values = [known.get(name, 0.0) for name in kernel.columns.names]
    return torch.tensor([values], dtype=torch.float64).to(DEVICE)


def pointers_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([[tensor.data_ptr() for tensor in tensors]]).to(DEVICE)


def run_dense(
    key: KernelKey, tensors: Sequence[Tensor], scalars: Mapping[str, float], width: int
) -> list[Tensor]:
    kernel = kernel_of(key)
    copies = [tensor.clone().to(DEVICE) for tensor in tensors]
    count = tensors[0].numel()
    items = torch.tensor([[0, 0, 0, count, 0]])
    table = table_of(kernel, scalars, count, width)
    kernel.launch(items, pointers_of(copies), table)
    return [copy.cpu() for copy in copies]


def agree(new: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for got, wanted in zip(new, expected, strict=False):
        assert same_bits(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_operations_agree_with_the_reference(name: str, dtype: torch.dtype) -> None:
    key = KernelKey(rule_for(name), (), (dtype,) * 2)
    tensors = [filled(5000, dtype, i) for i in range(2)]
    new = run_dense(key, tensors, {}, 1)[0]
    expected = interpret(key.rule, {}, tensors, {})[0]
    if OPS[name].is_exact:
        assert same_bits(new, expected)
        return
    tiny = torch.finfo(dtype).tiny
    is_normal = torch.ones_like(new, dtype=torch.bool)
    for values in (new, expected, *tensors):
        is_normal &= values.isfinite() & (values.abs() >= tiny)
    assert is_normal.sum() > 100
    assert ulps(new, expected)[is_normal].max() <= BOUNDS.get(name, 2)


@pytest.mark.parametrize("variable", DTYPES)
@pytest.mark.parametrize("slot", DTYPES)
@pytest.mark.parametrize("count", [1, 1000, 1024, 200_003])
def test_storage_types_mix(variable: Any, slot: Any, count: int) -> None:
    key = KernelKey(Rule.of(momentum), (), (variable, slot, variable))
    tensors = [filled(200_003, d, i)[:count] for i, d in enumerate(key.dtypes)]
    agree(run_dense(key, tensors, HYPER, 1), interpret(key.rule, {}, tensors, HYPER))


@pytest.mark.parametrize("shape", [(700, 64), (3, 40_001), (1, 1), (50, 257)])
def test_reductions_have_one_order(shape: tuple[int, int]) -> None:
    dtypes = (torch.float32,) * 3
    tensors = [torch.randn(shape), torch.rand(shape[0], 1), torch.randn(shape)]
    rows = KernelKey(Rule.of(rowwise_adagrad), (), dtypes, layouts=("row",))
    new = run_dense(rows, tensors, {"lr": 0.1}, shape[1])
    agree(new, interpret(rows.rule, {}, tensors, {"lr": 0.1}, ("row",)))
    tensors[1] = torch.randn(shape)
    whole = KernelKey(Rule.of(trust), (), dtypes)
    new = run_dense(whole, tensors, {"lr": 0.1}, 1)
    agree(new, interpret(whole.rule, {}, tensors, {"lr": 0.1}))


@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("gradient", DTYPES)
@pytest.mark.parametrize("width", [7, 64, 1000])
def test_rows_have_the_bits_of_the_cpu(mode: Any, gradient: Any, width: int) -> None:
    dtypes = (torch.float32, torch.bfloat16, gradient)
    key = KernelKey(Rule.of(momentum), (), dtypes, mode)
    indices = torch.randint(0, 300, (2000,))
    tensors = [torch.randn(500, width), torch.randn(500, width).to(torch.bfloat16)]
    tensors.append(torch.randn(2000, width).to(gradient))
    expected = bits.run_rows(compile_rule(key), tensors, indices, HYPER, compiled=False)
    kernel, copies = kernel_of(key), [tensor.clone().to(DEVICE) for tensor in tensors]
    rows = DeviceRowTables(DEVICE)
    rows.append(indices.to(DEVICE), num_rows=500, width=width, variable=0)
    kernel.bind(
        rows.items,
        pointers_of(copies),
        table_of(kernel, HYPER, 500 * width, width),
        rows.starts,
        rows.sources,
        width=rows.width,
    )()
    agree([copy.cpu() for copy in copies], expected)


def test_a_sparse_step_waits_for_nothing(no_waiting: Callable[[], None]) -> None:
    key = KernelKey(Rule.of(momentum), (), (torch.float32,) * 3, "sum")
    kernel, rows = kernel_of(key), DeviceRowTables(DEVICE)
    tensors = [torch.randn(500, 64, device=DEVICE) for _ in range(3)]
    pointers, table = pointers_of(tensors), table_of(kernel, HYPER, 32_000, 64)
    indices = torch.randint(0, 500, (500,), device=DEVICE)
    upload, values = Upload(table), torch.zeros(table.shape, dtype=torch.float64)
    for step in range(5):
        if step == 1:
            no_waiting()
        rows.clear()
        rows.append(indices, num_rows=500, width=64, variable=0)
        upload(values)
        kernel.bind(
            rows.items, pointers, table, rows.starts, rows.sources, width=rows.width
        )()


def test_a_dense_step_allocates_nothing() -> None:
    key = KernelKey(Rule.of(trust), (), (torch.float32,) * 3)
    kernel = kernel_of(key)
    tensors = [torch.randn(100_000, device=DEVICE) for _ in range(3)]
    items = torch.tensor([[0, 0, 0, 100_000, 0]])
    table = table_of(kernel, {"lr": 0.1}, 100_000)
    upload, values = Upload(table), table.cpu()
    launch = kernel.bind(items, pointers_of(tensors), table)

    def step() -> int:
        upload(values)
        launch()
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    step()
    assert step() == step()


def test_a_captured_step_sees_a_changed_rate() -> None:
    key = KernelKey(Rule.of(descent), (), (torch.float32,) * 2)
    kernel = kernel_of(key)
    var, grad = torch.zeros(5000, device=DEVICE), torch.ones(5000, device=DEVICE)
    table = table_of(kernel, {"lr": 0.0}, 5000)
    upload = Upload(table)
    items = torch.tensor([[0, 0, 0, 5000, 0]])
    launch = kernel.bind(items, pointers_of([var, grad]), table)
    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    values = table.cpu()
    for rate in (1.0, 2.0, 4.0):
        values[0, kernel.columns.index["lr"]] = rate
        upload(values)
        graph.replay()
    assert var.unique().tolist() == [-7.0]


def test_a_launch_is_on_the_current_stream() -> None:
    key = KernelKey(Rule.of(descent), (), (torch.float32,) * 2)
    kernel, stream = kernel_of(key), torch.cuda.Stream()
    var, grad = (torch.zeros(1 << 20, device=DEVICE) for _ in range(2))
    table = table_of(kernel, {"lr": 1.0}, var.numel())
    items = torch.tensor([[0, 0, 0, var.numel(), 0]])
    launch = kernel.bind(items, pointers_of([var, grad]), table)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        grad.fill_(1.0)
        launch()
    stream.synchronize()
    assert var.unique().tolist() == [-1.0]


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count() -> None:
    count = 2**31 + 5000
    free, _ = torch.cuda.mem_get_info()
    if free < 12 * 2**30:
        pytest.skip("needs 12 GiB of device memory")
    key = KernelKey(Rule.of(descent), (), (torch.bfloat16,) * 2)
    kernel = kernel_of(key)
    var = torch.zeros(count, dtype=torch.bfloat16, device=DEVICE)
    grad = torch.ones_like(var)
    items = torch.tensor([[0, 0, 0, count, 0]])
    table = table_of(kernel, {"lr": 0.5}, count)
    kernel.launch(items, pointers_of([var, grad]), table)
    for part in var.split(2**28):
        assert bool((part == -0.5).all())
