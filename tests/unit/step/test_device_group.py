"""Groups whose tables are on a device, on the CPU under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.bits import same_bits
from tests.codegen.triton_runs import interpreting
from thalweg.compiler import Rule, compile_rule
from thalweg.step import GRADIENT_SCALE, STEP, bind_rule
from thalweg.step.device_group import DeviceGroup, device_groups
from thalweg.step.device_kernel import DeviceKernel
from thalweg.step.group import Group, Member

SHAPES = ((3, 5), (1030,), (), (0, 4), (2, 3, 4))
RATES = {"lr": 0.1, "beta": 0.9}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with interpreting(), np.errstate(all="ignore"):
        yield


def momentum(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8), m_new


def trust(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * torch.linalg.vector_norm(var) * grad


def row_adagrad(var: Any, accumulator: Any, grad: Any, *, lr: Any) -> Any:
    accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
    return var - lr * grad * torch.rsqrt(accumulator_new), accumulator_new


def counted(var: Any, count: Any, grad: Any, *, lr: Any) -> Any:
    count_new = count + 1.0
    return var - lr * grad / count_new, count_new


class Scaled:
    """What `bind_rule` needs of an optimizer: learning rate and steps."""

    @staticmethod
    def update(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad

    def scalars(self, step: Any) -> Mapping[str, Any]:
        return {"lr": self.rate * 0.5**step}


def scaled_rule() -> Rule:
    rule = Rule.of(Scaled.update)
    return bind_rule(rule, Scaled, ("rate", GRADIENT_SCALE), (), ())


def members_of(
    function: Any, tensors: Sequence[Sequence[Tensor]], layouts: Any = ()
) -> list[Member]:
    rule = function if isinstance(function, Rule) else Rule.of(function)
    return [
        Member(rule, tuple(given), layouts, number % 2)
        for number, given in enumerate(tensors)
    ]


def copied(members: Sequence[Member]) -> list[Member]:
    return [
        Member(m.rule, tuple(t.clone() for t in m.tensors), m.layouts, m.setting)
        for m in members
    ]


def both_groups(
    members: Sequence[Member], dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Group, DeviceGroup, list[Member]]:
    first = members[0]
    key = first.key(dtype)
    positions, twins = list(range(len(members))), copied(members)
    kernel = compile_rule(key)
    group = Group(kernel, members, positions, **options)
    return group, DeviceGroup(key, twins, positions, **options), twins


def step(group: Group, gradients: Sequence[Tensor], values: Mapping[str, Any]) -> None:
    group.gather_gradients(gradients)
    group.write_scalars({n: np.asarray(v, dtype=float) for n, v in values.items()})
    group.run(1)


def agree(members: Sequence[Member], twins: Sequence[Member]) -> None:
    for member, twin in zip(members, twins, strict=True):
        for a, b in zip(member.tensors, twin.tensors, strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_have_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    members = members_of(
        momentum, [[torch.randn(s).to(dtype), torch.randn(s)] for s in SHAPES]
    )
    here, there, twins = both_groups(members, dtype)
    assert there.is_plain
    for rate in (0.1, 0.1, 0.03):
        gradients = [torch.randn(s).to(dtype) for s in SHAPES]
        values = {"lr": [rate, rate / 2], "beta": [0.9, 0.8]}
        for group in (here, there):
            step(group, gradients, values)
        agree(members, twins)


def test_other_layouts_of_memory_are_served() -> None:
    strided = torch.randn(4, 6).t()
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    gap = torch.randn(8, 8)[:, ::2]
    members = members_of(momentum, [[v, torch.zeros_like(v)] for v in (strided, last)])
    members += members_of(momentum, [[gap, torch.zeros(8, 4)]])
    here, there, twins = both_groups(members)
    assert not there.is_plain
    gradients = [torch.randn(m.var.shape) for m in members]
    for group in (here, there):
        step(group, gradients, {"lr": [0.1, 0.2], "beta": [0.9, 0.9]})
    agree(members, twins)


@pytest.mark.parametrize(
    ("function", "layouts", "slot"),
    [(row_adagrad, ("row",), (7, 1)), (counted, ("scalar",), ()), (trust, (), None)],
)
def test_reductions_and_layouts(function: Any, layouts: Any, slot: Any) -> None:
    tensors = [
        [torch.randn(7, 9), *([] if slot is None else [torch.rand(slot)])]
        for _ in range(3)
    ]
    members = members_of(function, tensors, layouts)
    here, there, twins = both_groups(members)
    for _ in range(2):
        gradients = [torch.randn(7, 9) for _ in range(3)]
        for group in (here, there):
            step(group, gradients, {"lr": [0.1, 0.2]})
    agree(members, twins)


def test_scales_come_from_the_host_or_the_device() -> None:
    members = members_of(scaled_rule(), [[torch.randn(50)] for _ in range(3)])
    here, there, twins = both_groups(members, owns_rows=True)
    scales = np.array([0.5, 0.25, 1.0])
    for given in (torch.from_numpy(scales), scales):
        gradients = [torch.randn(50) for _ in range(3)]
        values = {"rate": [0.1, 0.2], STEP: [3.0, 3.0]}
        here.write_scales(scales)
        there.write_scales(given)
        for group in (here, there):
            step(group, gradients, values)
        agree(members, twins)


def test_the_device_decides_whether_a_step_is_taken() -> None:
    members = members_of(momentum, [[torch.randn(9), torch.randn(9)]])
    here, there, twins = both_groups(members)
    gradient, values = [torch.randn(9)], {n: [v] for n, v in RATES.items()}
    there.write_apply(torch.tensor(False))
    step(there, gradient, values)
    agree(members, twins)
    for group in (here, there):
        step(group, gradient, values)
    agree(members, twins)
    assert not torch.equal(members[0].var, gradient[0])


def test_numbers_of_the_device_hold_for_one_step() -> None:
    members = members_of(scaled_rule(), [[torch.randn(9)] for _ in range(2)])
    here, there, twins = both_groups(members)
    gradients = [torch.randn(9) for _ in range(2)]
    host = {"rate": [0.1, 0.2], STEP: [1.0, 1.0]}
    device = {"rate": torch.tensor([0.5, 0.25]).double(), "unknown": torch.ones(2)}
    for group in (here, there):
        group.write_scales(np.ones(2))
    there.write_device_scalars(device)
    step(here, gradients, {**host, "rate": [0.5, 0.25]})
    step(there, gradients, host)
    agree(members, twins)
    for group in (here, there):
        step(group, gradients, dict(host))
    agree(members, twins)


def test_only_what_changed_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.compiler.triton_tables import Upload

    copies: list[tuple[int, ...]] = []
    upload = Upload.__call__

    def counting(self: Upload, values: Tensor) -> None:
        copies.append(tuple(values.shape))
        upload(self, values)

    monkeypatch.setattr(Upload, "__call__", counting)
    _, there, _ = both_groups(members_of(momentum, [[torch.randn(9), torch.randn(9)]]))
    gradients = [torch.randn(9)]
    seen: list[list[tuple[int, ...]]] = []
    for rate in (0.1, 0.1, 0.2):
        step(there, gradients, {"lr": [rate], "beta": [0.9]})
        seen.append(list(copies))
        copies.clear()
    columns = len(there.kernel.columns)
    assert seen == [[(1, 3), (1, columns)], [], [(1, columns)]]
    step(there, [torch.randn(9)], {"lr": [0.2], "beta": [0.9]})
    assert copies == [(1, 3)]


def test_a_step_starts_one_kernel_and_one_prologue() -> None:
    members = members_of(momentum, [[torch.randn(s), torch.randn(s)] for s in SHAPES])
    _, there, _ = both_groups(members)
    started: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "thalweg.compiler.triton_kernel.TritonKernel.start",
            lambda self, suffix, *_, **__: started.append(suffix),
        )
        step(
            there, [torch.randn(s) for s in SHAPES], {"lr": [0.1] * 2, "beta": [0] * 2}
        )
    assert started == ["_derive", ""]


def test_a_plan_gets_one_group_for_each_kernel_and_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = members_of(momentum, [[torch.randn(9), torch.randn(9)] for _ in range(3)])
    wide = members_of(momentum, [[torch.randn(9).double()] * 2])
    gradients = [torch.randn(9)] * 4
    assert device_groups([*members, *wide], gradients) == []
    module = "thalweg.step.device_group.has_device_kernels"
    monkeypatch.setattr(module, lambda device: True)
    groups = device_groups([*members[:2], *wide, members[2]], gradients)
    assert [group.positions for group in groups] == [[0, 1, 3], [2]]


def test_a_device_kernel_says_what_it_is() -> None:
    key = members_of(momentum, [[torch.ones(2)] * 2])[0].key(torch.float32)
    kernel = DeviceKernel(key, torch.device("cpu"))
    assert kernel.backend == "triton"
    assert kernel.num_passes == 1
    assert "@triton.jit" in kernel.source
    assert kernel.columns.names[:2] == ("lr", "beta")
