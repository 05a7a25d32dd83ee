"""`explain` and `kernel_source`: before and after a step, for every optimizer."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.step.bandwidth import Bandwidth, keep_bandwidth

OPTIMIZERS = [
    cls
    for name in tw.optimizers.__all__
    if inspect.isclass(cls := getattr(tw.optimizers, name))
    and issubclass(cls, tw.Optimizer)
    and cls is not tw.Optimizer
]


class ByHand(tw.Optimizer):
    """Updates without a rule."""

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        var.assign_sub(grad)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))


def tensors_of(text: str) -> list[str]:
    """The lines that name the tensors of each kernel."""
    return [
        line.split(":")[1].strip() for line in text.splitlines() if "tensors:" in line
    ]


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_new_optimizer_shows_its_kernel(cls: type[tw.Optimizer]) -> None:
    optimizer = cls()
    (tensors,) = tensors_of(optimizer.kernel_source())
    assert tensors.startswith("var float32")
    triton = optimizer.kernel_source("cuda")
    assert tensors_of(triton) == [tensors]
    ast.parse(triton)
    assert optimizer.weights == []


def test_options_are_part_of_the_text() -> None:
    optimizer = tw.optimizers.SGD(
        momentum=0.9,
        clipvalue=1.0,
        weight_decay=0.1,
        use_ema=True,
        slot_dtypes={"momentum": "bfloat16"},
    )
    text = optimizer.kernel_source()
    for word in ("clipvalue", "weight_decay", "ema_momentum"):
        assert word in text
    (tensors,) = tensors_of(text)
    assert "bfloat16" in tensors
    assert "average float32" in tensors


def test_after_building_there_is_a_kernel_for_each_kind_of_variable() -> None:
    optimizer = tw.optimizers.SGD()
    whole = [tw.Variable(torch.zeros(3)), tw.Variable(torch.zeros(4, 5))]
    optimizer.build([*whole, tw.Variable(torch.zeros(3, dtype=torch.float64))])
    assert [t.split(", ")[0] for t in tensors_of(optimizer.kernel_source())] == [
        "var float32",
        "var float64",
    ]


def test_after_a_step_the_kernels_in_use_are_shown() -> None:
    optimizer = tw.optimizers.SGD(global_clipnorm=1.0)
    weight = tw.Variable(torch.ones(8), name="weight")
    grad = torch.ones(8, dtype=torch.bfloat16)
    optimizer.apply_gradients([(grad, weight)])
    assert tensors_of(optimizer.kernel_source()) == ["var float32, delta bfloat16"]
    text = optimizer.explain()
    assert "float32: var, bfloat16: delta" in text
    assert "96 B" in text  # 32 read, 32 written, the gradient's 16 read twice


def test_explain_names_variables_rules_and_times() -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    optimizer = tw.optimizers.Adam()
    assert "nothing is built yet" in optimizer.explain()
    optimizer.build(torch.nn.Linear(100, 10))
    text = optimizer.explain()
    head, source, _, _, weight, bias, *_ = text.splitlines()
    assert head == "Adam: variables: 2, launches: 1, 28.3 kB, 28.28 µs"
    assert source.startswith("Expected at 1.0 GB/s, measured on 2026-01-31, 2 threads")
    assert weight.split()[:5] == ["weight", "10×100", "adam", "adam", "#1"]
    assert weight.split()[5:] == ["28.0", "kB", "28.00", "µs"]
    assert bias.split()[:2] == ["bias", "10"]


def test_nameless_variables_are_numbered() -> None:
    optimizer = tw.optimizers.SGD()
    optimizer.build([torch.nn.Parameter(torch.zeros(2))])
    assert "variable 0" in optimizer.explain()


def test_a_class_that_updates_by_hand_has_no_kernel() -> None:
    assert "updates by hand" in ByHand("mine").explain()
    with pytest.raises(TypeError, match="static method `update`"):
        ByHand("mine").kernel_source()


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        tw.optimizers.SGD().kernel_source("tpu")


def rows_of(count: int, width: int, dtype: torch.dtype = torch.float32) -> Any:
    indices = torch.arange(count) % 2
    return tw.IndexedSlices(torch.ones(count, width, dtype=dtype), indices)


def heads_of(text: str) -> list[str]:
    """Rule and mode of each kernel."""
    return [line[3:] for line in text.splitlines() if line.startswith("/* ")]


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_new_optimizer_shows_its_kernel_of_rows(cls: type[tw.Optimizer]) -> None:
    optimizer = cls()
    (head,) = heads_of(optimizer.kernel_source(sparse=True))
    assert head.endswith(", dense" if cls is tw.optimizers.Lamb else ", sum")
    assert heads_of(optimizer.kernel_source()) == heads_of(
        optimizer.kernel_source(sparse=False)
    )
    ast.parse(optimizer.kernel_source("cuda", sparse=True))


@pytest.mark.parametrize(
    ("policy", "mode"), [("rows", "sum"), ("exact", "dense"), ("keras", "sequence")]
)
def test_the_kernel_of_rows_is_that_of_the_policy(policy: str, mode: str) -> None:
    optimizer = tw.optimizers.SGD(sparse_update=policy)
    head = f"gradient_descent, {mode}"
    assert heads_of(optimizer.kernel_source(sparse=True)) == [head]
    weight = tw.Variable(torch.ones(4, 2))
    optimizer.apply_gradients([(rows_of(3, 2), weight)])
    assert heads_of(optimizer.kernel_source()) == [head]
    assert ("touched rows" in optimizer.explain()) is (mode != "dense")


def test_after_sparse_gradients_the_kernel_of_rows_is_shown() -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    optimizer = tw.optimizers.Adam()
    table = tw.Variable(torch.ones(100, 8), name="table")
    bias = tw.Variable(torch.ones(10), name="bias")
    for _ in range(3):  # the third one is repeated
        optimizer.apply_gradients([(rows_of(3, 8, torch.bfloat16), table)])
        head, _, _, _, line, _, _, kernel = optimizer.explain().splitlines()
        assert head == "Adam: variables: 1, launches: 1, and touched rows"
        # Of three tensors a row is read and written, and of the gradient 16 bytes.
        assert line.split(maxsplit=5)[5] == "208 B a row  0.21 µs a row"
        assert "C, touched rows  float32: var m v, bfloat16: grad  1" in kernel
        text = optimizer.kernel_source()
        assert heads_of(text) == ["adam, sum"]
        assert tensors_of(text) == ["var float32, m float32, v float32, grad bfloat16"]
    optimizer.apply_gradients([(rows_of(3, 8), table), (torch.ones(10), bias)])
    head, *_, whole = optimizer.explain().splitlines()
    assert head.startswith("Adam: variables: 2, launches: 2, 280 B, 0.28 µs, and tou")
    assert whole.split()[:3] == ["adam", "#2", "C"]
    assert heads_of(optimizer.kernel_source()) == ["adam, dense", "adam, sum"]
    assert heads_of(optimizer.kernel_source(sparse=False)) == ["adam, dense"]


def test_a_variable_with_gradients_of_both_kinds_has_two_lines() -> None:
    optimizer = tw.optimizers.SGD()
    table = tw.Variable(torch.ones(4, 2), name="table")
    for gradient in (rows_of(3, 2), torch.ones(4, 2)):
        optimizer.apply_gradients([(gradient, table)])
    lines = optimizer.explain().splitlines()
    assert lines[0].startswith("SGD: variables: 1, launches: 2, ")
    assert [line.split()[:2] for line in lines[4:6]] == [["table", "4×2"]] * 2
    assert ["a row" in line for line in lines[4:6]] == [False, True]


@pytest.mark.parametrize(
    "options",
    [
        {"global_clipnorm": 1.0},
        {"clipvalue": 0.5},
        {"clipnorm": 0.5, "nonfinite": "skip", "use_ema": True},
        {"clipvalue": 0.5, "sparse_update": "exact"},
    ],
    ids=lambda options: ",".join(options),
)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_rows_the_kernel_that_runs_is_shown(
    options: dict[str, Any], steps: int, dtype: torch.dtype
) -> None:
    optimizer = tw.optimizers.SGD(0.1, **options)
    weight = tw.Variable(torch.ones(12, dtype=torch.float64), name="weight")
    table = tw.Variable(torch.ones(4, 2, dtype=torch.float64), name="table")
    for _ in range(steps):
        dense = torch.ones(12, dtype=dtype)
        optimizer.apply_gradients([(dense, weight), (rows_of(3, 2, dtype), table)])
    assert optimizer._plan is not None
    planned = {kernel.key for kernel in optimizer._plan.kernels}
    parts = list(optimizer._parts(optimizer._built()))
    assert {part.key for part in parts if part.rows is None} == planned


def test_after_a_flag_was_set_the_next_kernel_is_shown() -> None:
    optimizer = tw.optimizers.SGD(0.1, momentum=0.5, clipvalue=0.5)
    weight = tw.Variable(torch.ones(8))
    optimizer.apply_gradients([(torch.ones(8), weight)])
    before = [part.key for part in optimizer._parts(optimizer._built())]
    optimizer.nesterov = True
    after = [part.key for part in optimizer._parts(optimizer._built())]
    assert before != after
    optimizer.apply_gradients([(torch.ones(8), weight)])
    assert optimizer._plan is not None
    assert after == [kernel.key for kernel in optimizer._plan.kernels]


def test_kernels_of_rows_of_several_widths_tell_the_range() -> None:
    optimizer = tw.optimizers.SGD()
    pairs = [(rows_of(3, w), tw.Variable(torch.ones(4, w))) for w in (2, 8)]
    optimizer.apply_gradients(pairs)
    assert "24 B–96 B a row" in optimizer.explain().splitlines()[-1]


def test_a_variable_without_rows_has_no_kernel_of_rows() -> None:
    optimizer = tw.optimizers.SGD()
    optimizer.build([tw.Variable(1.0)])
    assert heads_of(optimizer.kernel_source()) == ["gradient_descent, dense"]
    with pytest.raises(TypeError, match="a kernel of touched rows; got SGD"):
        optimizer.kernel_source(sparse=True)
