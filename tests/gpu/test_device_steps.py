"""Whole steps on a GPU: bits of the CPU, no waiting, graphs that follow a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.bits import run_dense, same_bits
from tests.codegen.test_triton_rules import LAYOUTS, SHAPE, cases, key_of
from tests.unit.step.test_device_group import (
    agree,
    members_of,
    momentum,
    scaled_rule,
    step,
)
from tests.unit.step.test_device_rows import RATES, slices_of
from tests.unit.step.test_device_rows import key_of as row_key_of
from thalweg import schedules
from thalweg.compiler import Rule, compile_rule
from thalweg.compiler.graph import operation_of
from thalweg.compiler.triton_kernel import TritonKernel, compile_triton, has_triton
from thalweg.state import IndexedSlices
from thalweg.step import STEP
from thalweg.step.device_checks import LateErrors
from thalweg.step.device_clock import DeviceClock
from thalweg.step.device_group import DeviceGroup
from thalweg.step.device_norms import DeviceClip, DeviceNorms
from thalweg.step.device_rows import DeviceRows
from thalweg.step.group import Group, Member
from thalweg.step.norms import HostClip, SquaredNorms
from thalweg.step.row_updates import RowUpdate
from thalweg.step.rows import launch_row_updates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_triton(), reason="needs Triton"),
]

DEVICE = torch.device("cuda", 0)
SHAPES = ((3, 5), (1030,), (), (0, 4), (300, 512), (1_000_000,))


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function after which waiting for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def there(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(DEVICE) for tensor in tensors)


def moved(members: Sequence[Member]) -> list[Member]:
    return [Member(m.rule, there(m.tensors), m.layouts, m.setting) for m in members]


def back(members: Sequence[Member]) -> list[Member]:
    return [
        Member(m.rule, tuple(t.cpu() for t in m.tensors), m.layouts, m.setting)
        for m in members
    ]


def groups_of(
    members: Sequence[Member], dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Group, DeviceGroup, list[Member]]:
    key = members[0].key(dtype)
    twins, positions = moved(members), list(range(len(members)))
    here = Group(compile_rule(key), members, positions, **options)
    return here, DeviceGroup(key, twins, positions, **options), twins


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rule", "flags"), cases())
def test_each_rule_has_the_bits_of_the_cpu(
    rule: Rule, flags: Any, dtype: torch.dtype
) -> None:
    key = key_of(rule, flags, dtype)
    tensors = [torch.randn(SHAPE).to(dtype) for _ in rule.tensors]
    tensors[1:-1] = [tensor.abs() for tensor in tensors[1:-1]]
    if rule.name in LAYOUTS:
        tensors[1] = tensors[1][:, :1].contiguous()
    scalars = dict.fromkeys(rule.scalars, 0.75)
    expected = run_dense(
        compile_rule(key), tensors, scalars, compiled=False, width=SHAPE[1]
    )
    layouts = key.layouts
    member = Member(rule, there(tensors[:-1]), layouts, 0, tuple(flags))
    group = DeviceGroup(key, [member], [0])
    values = {name: [number] for name, number in scalars.items()}
    step(group, there(tensors[-1:]), values)
    nodes = compile_triton(key).program.trace.graph.nodes
    operations = [op for op in map(operation_of, nodes) if op is not None]
    for got, wanted in zip(member.tensors, expected, strict=False):
        if all(op.is_exact for op in operations):
            assert same_bits(got.cpu(), wanted)
        else:
            tolerance = 64 * torch.finfo(dtype).eps
            new, old = got.cpu().double(), wanted.double()
            assert torch.allclose(new, old, tolerance, tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_have_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    members = members_of(
        momentum, [[torch.randn(s).to(dtype), torch.randn(s)] for s in SHAPES]
    )
    here, group, twins = groups_of(members, dtype)
    for rate in (0.1, 0.1, 0.03):
        gradients = [torch.randn(s).to(dtype) for s in SHAPES]
        values = {"lr": [rate, rate / 2], "beta": [0.9, 0.8]}
        step(here, gradients, values)
        step(group, there(gradients), values)
    agree(members, back(twins))


def test_a_key_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    members = members_of(momentum, [[torch.randn(1024)] * 2 for _ in range(300)])
    _, group, _ = groups_of(members)
    gradients = there([torch.randn(1024) for _ in range(300)])
    started: list[str] = []
    start = TritonKernel.start

    def counting(self: TritonKernel, suffix: str, *rest: Any) -> None:
        started.append(suffix)
        start(self, suffix, *rest)

    monkeypatch.setattr(TritonKernel, "start", counting)
    step(group, gradients, {"lr": [0.1, 0.2], "beta": [0.9, 0.9]})
    torch.cuda.synchronize()
    assert started == ["_derive", ""]


def clipped_step(
    group: DeviceGroup,
    norms: DeviceNorms,
    clip: DeviceClip,
    gradients: Sequence[Tensor],
    values: Mapping[str, Any],
) -> None:
    """A step with a common clip norm, left out where a gradient is not finite."""
    group.gather_gradients(gradients)
    group.write_scalars({n: np.asarray(v, dtype=float) for n, v in values.items()})
    addresses = np.zeros(len(gradients), dtype=np.int64)
    group.read_gradients(addresses)
    squared = norms(addresses, None)
    group.write_apply(torch.isfinite(squared).all())
    group.write_scales(clip())
    group.run(1)


def test_a_clipped_step_has_the_bits_of_the_cpu_and_waits_for_nothing(
    no_waiting: Callable[[], None],
) -> None:
    members = members_of(scaled_rule(), [[torch.randn(s)] for s in SHAPES])
    here, group, twins = groups_of(members)
    gradients = [torch.randn(s) for s in SHAPES]
    gradients_there = there(gradients)
    norms = DeviceNorms(gradients_there, is_clipped=False)
    clip = DeviceClip(norms.totals, None, 0.5)
    values = {"rate": [0.1, 0.2], STEP: [1.0, 1.0]}
    for count in range(5):
        if count == 1:
            no_waiting()
        values["rate"] = [0.1 / (count + 1), 0.2]
        clipped_step(group, norms, clip, gradients_there, values)
    torch.cuda.set_sync_debug_mode("default")
    addresses = np.array([g.data_ptr() for g in gradients])
    squared = SquaredNorms(gradients, is_clipped=False)(addresses, None, 1)
    assert same_bits(norms.totals.cpu(), torch.as_tensor(squared))
    scales = HostClip(len(squared), None, 0.5).of(squared)
    assert np.allclose(clip().cpu().numpy(), scales, rtol=1e-15)
    for count in range(5):
        values["rate"] = [0.1 / (count + 1), 0.2]
        here.write_scales(clip().cpu().numpy())
        step(here, gradients, values)
    agree(members, back(twins))


def test_the_device_leaves_a_step_out() -> None:
    members = members_of(scaled_rule(), [[torch.randn(9)]])
    _, group, twins = groups_of(members)
    gradient = torch.randn(9, device=DEVICE)
    norms = DeviceNorms([gradient], is_clipped=False)
    clip = DeviceClip(norms.totals, 1.0, None)
    values = {"rate": [0.1], STEP: [1.0]}
    for bad in (torch.inf, torch.nan):
        gradient[3] = bad
        clipped_step(group, norms, clip, [gradient], values)
        agree(members, back(twins))
    gradient[3] = 1.0
    clipped_step(group, norms, clip, [gradient], values)
    assert not torch.equal(members[0].var, twins[0].var.cpu())


def test_a_captured_step_goes_on_with_the_schedule() -> None:
    rate = schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
    members = members_of(scaled_rule(), [[torch.randn(5000)], [torch.randn(7)]])
    here, group, twins = groups_of(members)
    gradients = [torch.randn(5000), torch.randn(7)]
    gradients_there = there(gradients)

    def numbers(count: int) -> list[float]:
        return [rate(count), rate(count) / 2]

    clock = DeviceClock(DEVICE, 0, 2, {"rate": numbers}, horizon=1000)

    def take_step(count: int) -> None:
        group.write_device_scalars(clock.begin(count))
        group.write_scales(torch.ones(2, dtype=torch.float64, device=DEVICE))
        rates = {"rate": numbers(count), STEP: [count + 1.0] * 2}
        step(group, gradients_there, rates)
        clock.finish()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for count in range(2):
            take_step(count)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take_step(2)
    for _ in range(6):
        graph.replay()
    assert clock.read() == 8
    here.write_scales(np.ones(2))
    for count in range(8):
        step(here, gradients, {"rate": numbers(count), STEP: [count + 1.0] * 2})
    for member, twin in zip(members, back(twins), strict=True):
        # The device's own pow makes 0.5 ** step, which is exact.
        assert same_bits(member.var, twin.var)


def test_a_replay_keeps_its_gradients_while_eager_steps_have_others() -> None:
    members = members_of(momentum, [[torch.zeros(100), torch.zeros(100)]])
    _, group, twins = groups_of(members)
    values = {"lr": [1.0], "beta": [0.0]}
    mine, others = (torch.full((100,), v, device=DEVICE) for v in (1.0, -1.0))
    step(group, [mine], values)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(group, [mine], values)
    slot = twins[0].tensors[1]
    for _ in range(3):
        step(group, [others], values)
        assert slot.unique().tolist() == [-1.0]
        graph.replay()
        assert slot.unique().tolist() == [1.0]


@pytest.mark.parametrize("mode", ["sum", "sequence"])
def test_rows_have_the_bits_of_the_cpu_and_nothing_waits(
    mode: Any, no_waiting: Callable[[], None]
) -> None:
    rule = Rule.of(momentum)
    shapes = ((500, 64), (300, 7), (2000, 128))
    members = [Member(rule, (torch.randn(s), torch.randn(s)), (), 0) for s in shapes]
    twins = moved(members)
    rows = DeviceRows(row_key_of(members[0], mode), len(shapes), DEVICE)
    errors = LateErrors()
    steps = [[slices_of(m.var, 900, torch.int64) for m in members] for _ in range(4)]
    moved_steps = [[s.to(DEVICE) for s in slices] for slices in steps]
    for number, slices in enumerate(moved_steps):
        if number == 1:
            no_waiting()
        valid = rows.load(twins, slices, RATES)
        rows.run(valid)
        rows.note(errors)
    torch.cuda.set_sync_debug_mode("default")
    errors.refuse()
    for slices in steps:
        pairs = zip(members, slices, strict=True)
        launch_row_updates([RowUpdate(m, s, mode) for m, s in pairs], RATES)
    agree(members, back(twins))


def test_a_wrong_index_changes_nothing() -> None:
    member = Member(Rule.of(momentum), (torch.randn(9, 5), torch.randn(9, 5)), (), 0)
    twin = moved([member])[0]
    rows = DeviceRows(row_key_of(member, "sum"), 1, DEVICE)
    slices = IndexedSlices(torch.ones(2, 5), torch.tensor([3, 9])).to(DEVICE)
    errors = LateErrors()
    rows.run(rows.load([twin], [slices], RATES))
    rows.note(errors)
    with pytest.raises(IndexError, match="indices from 0"):
        errors.refuse()
    agree([member], back([twin]))


@pytest.mark.slow
def test_rows_beyond_32_bits() -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    count = 2**31 // 64 + 10
    tensors = [torch.zeros(count, 64, device=DEVICE) for _ in range(2)]
    member = Member(Rule.of(momentum), tuple(tensors), (), 0)
    rows = DeviceRows(row_key_of(member, "sum"), 1, DEVICE)
    indices = torch.tensor([count - 1, 5, count - 1], device=DEVICE)
    slices = IndexedSlices(torch.ones(3, 64, device=DEVICE), indices)
    rows.run(rows.load([member], [slices], {"lr": np.ones(1), "beta": np.zeros(1)}))
    assert tensors[1][count - 1].unique().tolist() == [2.0]
    assert tensors[1][5].unique().tolist() == [1.0]
    assert tensors[1].count_nonzero().item() == 128


@pytest.mark.slow
def test_a_step_over_more_elements_than_32_bits_can_count() -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip("needs 20 GiB of device memory")
    count = 2**31 + 5000
    var, m = (torch.zeros(count, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    member = Member(Rule.of(momentum), (var, m), (), 0)
    key = member.key(torch.bfloat16)
    group = DeviceGroup(key, [member], [0])
    step(group, [torch.ones_like(var)], {"lr": [0.5], "beta": [0.0]})
    for part in (*var.split(2**28), *m.neg().div_(2).split(2**28)):
        assert bool((part == -0.5).all())
