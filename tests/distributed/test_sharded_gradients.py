"""Gradients of sharded variables, however they are placed: two ranks, gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

import thalweg as tw
from tests.distributed.harness import run_ranks
from thalweg.distribute.components import are_placed_like, placed_like
from thalweg.distribute.finite import are_nonfinite
from thalweg.state import IndexedSlices

pytestmark = pytest.mark.distributed

PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "whole": Replicate()}
CLIPS: list[dict[str, Any]] = [
    {},
    {"clipvalue": 4.0},
    {"clipnorm": 1.0},
    {"global_clipnorm": 1.0},
    {"nonfinite": "skip"},
    {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0},
]


def _values() -> torch.Tensor:
    return torch.arange(1.0, 21.0).reshape(5, 4)  # of rows three and two on the ranks


def _mesh() -> Any:
    return init_device_mesh("cpu", (2,))


def _cut(tensor: torch.Tensor, name: str) -> Any:
    return distribute_tensor(tensor, _mesh(), [PLACEMENTS[name]])


def _gradient(name: str) -> Any:
    if name == "terms":  # two of which make the gradient, as in sequence parallelism
        return DTensor.from_local(_values() / 2, _mesh(), [Partial()], run_check=False)
    return _values() if name == "plain" else _cut(_values(), name)


def _whole(tensor: Any) -> torch.Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


# ------------------------------------------------------------- drop-in optimizers


def _stepped(parameter: Any, gradient: Any, **options: Any) -> torch.Tensor:
    parameter = torch.nn.Parameter(parameter)
    parameter.grad = gradient
    tw.optim.SGD([parameter], lr=1.0, **options).step()
    return _whole(parameter)


def _drop_ins() -> dict[str, float]:
    """How far each placement of parameter and gradient is from the whole ones."""
    away = {}
    for options in ({}, {"max_grad_norm": 1.0}, {"nonfinite": "error"}):
        expected = _stepped(torch.zeros(5, 4), _values(), **options)
        for own in (*PLACEMENTS, "plain"):
            for other in (*PLACEMENTS, "terms", "plain"):
                start = torch.zeros(5, 4)
                parameter = start if own == "plain" else _cut(start, own)
                found = _stepped(parameter, _gradient(other), **options)
                name = f"{own} {other} {options}"
                away[name] = float((found - expected).abs().max())
    return away


def _sparse() -> list[float]:
    """A sparse gradient, whole on every rank, clipped by the norm of the whole."""
    indices, values = torch.tensor([[0, 4, 4]]), torch.arange(1.0, 13.0).reshape(3, 4)
    gradient = torch.sparse_coo_tensor(indices, values, (5, 4))
    away = []
    for options in ({}, {"max_grad_norm": 1.0}):
        expected = _stepped(torch.zeros(5, 4), gradient, **options)
        for name in PLACEMENTS:
            found = _stepped(_cut(torch.zeros(5, 4), name), gradient, **options)
            away.append(float((found - expected).abs().max()))
    return away


def _other_mesh() -> tuple[str, list[float]]:
    pair = init_device_mesh("cpu", (2, 1), mesh_dim_names=("first", "second"))
    parameter = torch.nn.Parameter(_cut(torch.zeros(4), "rows"))
    parameter.grad = distribute_tensor(torch.ones(4), pair["second"], [Shard(0)])
    try:
        tw.optim.SGD([parameter], lr=1.0).step()
    except ValueError as problem:
        return str(problem), _whole(parameter).tolist()
    return "taken", []


# --------------------------------------------------------- whole, plain gradients


def _plain() -> list[float]:
    """How far shards are from a whole variable, both with plain gradients."""
    away = []
    for options in CLIPS:
        whole = tw.Variable(torch.ones(5, 4))
        shard = torch.nn.Parameter(_cut(torch.ones(5, 4), "rows"))
        here, there = (tw.optimizers.SGD(0.5, **options) for _ in range(2))
        for step in range(4):
            gradient = _values()
            if step == 1 and "nonfinite" in options:
                gradient[0, 0] = torch.inf  # in the first rank's rows
            here.apply_gradients([(gradient, whole)])
            there.apply_gradients([(gradient, shard)])
        away.append(float((_whole(shard) - whole).abs().max()))
    return away


def _halves() -> list[float]:
    """How far clipped halves move a shard, and unscaled ones, from a whole variable."""
    away = []
    for dtype, options in (
        (torch.bfloat16, {"clipvalue": 0.3}),
        (torch.bfloat16, {"clipnorm": 0.3}),
        (torch.bfloat16, {"global_clipnorm": 0.3}),
        (torch.float16, {}),
    ):
        moved = []
        for name in ("plain", "rows"):
            start = (
                torch.zeros(5, 4)
                if name == "plain"
                else _cut(torch.zeros(5, 4), "rows")
            )
            weight = torch.nn.Parameter(start)
            inner = tw.optimizers.SGD(1.0, **options)
            # 2**-22 times the smallest of these is nothing in float16.
            scaled = tw.LossScaleOptimizer(inner, dynamic=False, initial_scale=2.0**22)
            optimizer = inner if options else scaled
            gradient = _gradient(name).to(dtype)
            optimizer.apply_gradients([(gradient, weight)])
            moved.append(_whole(weight))
        away.append(float(((moved[0] - moved[1]) / moved[0]).abs().max()))
    return away


def _loss_scale() -> list[Any]:
    """An overflow in the rows of one rank leaves the step out on both."""
    shard = torch.nn.Parameter(_cut(torch.ones(5, 4), "rows"))
    optimizer = tw.LossScaleOptimizer(tw.optimizers.SGD(0.5), initial_scale=8.0)
    gradient = _values()
    gradient[4, 0] = torch.inf
    optimizer.apply_gradients([(gradient, shard)])
    return [float(optimizer.loss_scale), _whole(shard).tolist()]


def _rows_beside() -> float:
    """Rows and plain gradients of shards are clipped by one norm."""
    held, away = {}, []
    rows = IndexedSlices(torch.ones(2, 4), torch.tensor([0, 4]), (5, 4))
    for name in ("whole", "rows"):
        made = [torch.nn.Parameter(_cut(torch.ones(5, 4), name)) for _ in range(2)]
        optimizer = tw.optimizers.SGD(0.5, global_clipnorm=1.0)
        optimizer.apply_gradients([(rows, made[0]), (_values(), made[1])])
        held[name] = list(map(_whole, made))
    for one, two in zip(held["whole"], held["rows"], strict=True):
        away.append(float((one - two).abs().max()))
    return max(away)


# ----------------------------------------------------- checks on parts of the world


def _stages() -> dict[str, Any]:
    """Two stages of a pipeline, one rank each, with one and two parameters."""
    rank = dist.get_rank()
    own = init_device_mesh("cpu", (2, 1), mesh_dim_names=("stage", "data"))["data"]

    def parameters(count: int) -> list[Any]:
        ones = (distribute_tensor(torch.ones(2), own, [Shard(0)]) for _ in range(count))
        return [torch.nn.Parameter(one) for one in ones]

    def step(held: list[Any], value: float, keras: bool) -> list[Any]:
        gradients = [torch.full_like(p, value) for p in held]
        if keras:
            pairs = zip(gradients, held, strict=True)
            tw.optimizers.SGD(1.0, nonfinite="skip").apply_gradients(pairs)
        else:
            for p, gradient in zip(held, gradients, strict=True):
                p.grad = gradient
            tw.optim.SGD(held, lr=1.0, nonfinite="skip").step()
        return [_whole(p).tolist() for p in held]

    nan = float("nan") if rank else 1.0
    return {
        f"{kind} {keras}": step(parameters(1 + rank * uneven), value, keras)
        for kind, uneven, value in (("uneven", 1, 1.0), ("NaN", 0, nan))
        for keras in (False, True)
    }


def _shared() -> list[Any]:
    """What each rank is told of tensors of the whole mesh, and of its own alone."""
    rank, nan = dist.get_rank(), float("nan")
    pair = init_device_mesh("cpu", (2, 1), mesh_dim_names=("first", "second"))
    shared = _cut(torch.ones(4), "rows")
    value = nan if rank else 1.0
    torn = DTensor.from_local(torch.full((2,), value), _mesh(), [Shard(0)])
    alone = distribute_tensor(torch.full((2,), value), pair["second"], [Shard(0)])
    return [
        are_nonfinite([shared, torn]),
        are_nonfinite([alone]),
        # The other rank must not step on what both share, and so is told of that.
        are_nonfinite([shared, alone]),
        are_nonfinite([alone, shared]),
        are_nonfinite([torch.ones(2), torch.tensor(nan)]),
    ]


def _kept() -> list[bool]:
    """What is placed already is not communicated, nor made anew."""
    rows, again = _cut(_values(), "rows"), _cut(_values(), "rows")
    plain = _values()
    return [
        placed_like(rows, rows) is rows,
        placed_like(again, rows) is again,
        placed_like(plain, plain) is plain,
        are_placed_like([rows, again], [rows, again]),
        not are_placed_like([rows], [again]),  # which needs a closer look
        not are_placed_like([rows], [plain]),
    ]


def _run_all() -> dict[str, Any]:
    own = (_drop_ins, _sparse, _other_mesh, _plain, _halves, _loss_scale, _rows_beside)
    return {one.__name__: one() for one in (*own, _stages, _shared, _kept)}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    return run_ranks(_run_all, 2)


def test_drop_ins_place_a_gradient_as_its_parameter(ranks: list[dict[str, Any]]):
    for rank in ranks:
        assert {n: x for n, x in rank["_drop_ins"].items() if not x <= 1e-6} == {}


def test_drop_ins_cut_sparse_gradients(ranks: list[dict[str, Any]]):
    assert all(max(rank["_sparse"]) <= 1e-6 for rank in ranks)


def test_a_gradient_of_another_mesh_is_refused(ranks: list[dict[str, Any]]):
    for text, parameter in (rank["_other_mesh"] for rank in ranks):
        assert "arguments on the variable's mesh" in text
        assert parameter == [0.0] * 4


def test_plain_gradients_are_clipped_and_checked_as_a_whole(
    ranks: list[dict[str, Any]],
):
    for rank in ranks:
        assert dict(enumerate(rank["_plain"])) == pytest.approx(
            dict.fromkeys(range(len(CLIPS)), 0.0), abs=1e-6
        )
        assert rank["_rows_beside"] <= 1e-6


def test_halves_of_shards_are_rounded_by_the_update_alone(
    ranks: list[dict[str, Any]],
):
    # The norm itself is summed in another order: half a bfloat16 step is 2e-3.
    assert all(max(rank["_halves"]) <= 1e-6 for rank in ranks)


def test_an_overflow_of_one_shard_is_one_of_all(ranks: list[dict[str, Any]]):
    assert all(rank["_loss_scale"] == [4.0, [[1.0] * 4] * 5] for rank in ranks)


def test_stages_of_a_pipeline_check_their_own_gradients(ranks: list[dict[str, Any]]):
    first, second = (rank["_stages"] for rank in ranks)
    for keras in (False, True):
        assert first[f"uneven {keras}"] == [[0.0, 0.0]]
        assert second[f"uneven {keras}"] == [[0.0, 0.0]] * 2
        assert first[f"NaN {keras}"] == [[0.0, 0.0]]
        assert second[f"NaN {keras}"] == [[1.0, 1.0]]


def test_ranks_are_told_of_what_they_share(ranks: list[dict[str, Any]]):
    first, second = (rank["_shared"] for rank in ranks)
    assert first[:2] == [[False, True], [False]]
    assert second[:2] == [[False, True], [True]]
    assert first[2:4] == [[True, True], [True, True]]
    assert second[2:4] == [[False, True], [True, False]]
    assert first[4] == second[4] == [False, True]


def test_what_is_in_place_is_kept(ranks: list[dict[str, Any]]):
    assert all(all(rank["_kept"]) for rank in ranks)
