"""MirroredStrategy on real ranks: gloo on loopback, two or three processes."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import thalweg as tw
import thalweg.distribute as distribute
from tests.distributed.harness import run_ranks
from thalweg.distribute import MirroredStrategy, ReduceOp, StrategyExtended, collectives
from thalweg.state import IndexedSlices, Variable

pytestmark = pytest.mark.distributed


Found = dict[str, list[Any]]

TOGETHER = [
    "_collectives",
    "_broadcast",
    "_none_patterns",
    "_sparse_patterns",
    "_other_variables",
    "_gradients_are_kept",
    "_refusals",
    "_optimizers_refuse",
    "_halves_and_wide_ones",
    "_histories",
    "_wrapped_in_ddp",
    "_sharded",
    "_reductions",
    "_warnings",
]


def _optimizers_refuse() -> list[Any]:
    """Rank 1 passes a gradient that does not fit, and goes on when it has caught it."""
    rank, strategy, said = dist.get_rank(), MirroredStrategy("cpu", "mean"), []
    weight, table = tw.Variable([0.0, 0.0]), tw.Variable(torch.zeros(4, 1))
    with strategy.scope():
        optimizer = tw.optimizers.SGD(1.0)
    for length, row in ((2, 1), (3, 1), (2, 9), (2, 1)):
        gradient = torch.ones(length if rank else 2)
        places = torch.tensor([row if rank else 1])
        rows = IndexedSlices(torch.ones(1, 1), places, (4, 1))
        pairs = [(gradient, weight), (rows, table)]
        try:
            strategy.run(optimizer.apply_gradients, (pairs,))
        except (ValueError, RuntimeError) as error:
            said.append(type(error).__name__)
    return [said, int(optimizer.iterations), weight.tolist(), table.flatten().tolist()]


def _run_all(names: list[str]) -> dict[str, Any]:
    """Call these functions one after the other on this rank."""
    return {name: globals()[name]() for name in names}


@pytest.fixture(scope="module")
def found() -> Found:
    """What each function of `TOGETHER` returned on rank 0 and on rank 1.

    Starting a rank takes seconds, so one start serves all of them.
    """
    ranks = run_ranks(_run_all, 2, TOGETHER)
    return {name: [rank[name] for rank in ranks] for name in TOGETHER}


def _values(pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Gradients in a form that can be compared and pickled."""
    found: list[Any] = []
    for gradient, _ in pairs:
        if isinstance(gradient, IndexedSlices):
            found.append((gradient.indices.tolist(), gradient.values.tolist()))
        else:
            found.append(None if gradient is None else gradient.tolist())
    return found


def _quiet(extended: StrategyExtended, pairs: list[Any]) -> list[tuple[Any, Tensor]]:
    with extended.loss_divided_globally():
        return extended.aggregate_gradients(pairs)


# ------------------------------------------------------------------ collectives


def _collectives() -> dict[str, Any]:
    rank = dist.get_rank()
    own = torch.arange(3.0) + rank
    mixed = [own, own.half(), torch.tensor(rank + 1), own.double().reshape(3, 1)]
    rows = IndexedSlices(
        torch.full((rank + 1, 2), float(rank)),
        torch.arange(rank + 1, dtype=torch.int32),
        (4, 2),
    )
    joined = distribute.all_gather_rows(rows)
    return {
        "sum": distribute.all_reduce(own).tolist(),
        "mean": distribute.all_reduce(own, "mean").tolist(),
        "untouched": own.tolist(),
        "mixed": [t.tolist() for t in distribute.all_reduce_bucketed(mixed)],
        "shapes": [tuple(t.shape) for t in distribute.all_reduce_bucketed(mixed)],
        "dtypes": [t.dtype for t in distribute.all_reduce_bucketed(mixed)],
        "tiny buckets": [
            t.tolist() for t in collectives.all_reduce_bucketed(mixed, bucket_bytes=1)
        ],
        "rows": (joined.indices.tolist(), joined.values.tolist(), joined.dense_shape),
        "uneven": distribute.all_gather(torch.full((2, rank), rank), 1).tolist(),
        "nothing": tuple(distribute.all_gather(torch.ones(0, 2)).shape),
    }


def test_collectives(found: Found) -> None:
    first, second = found["_collectives"]
    assert first.pop("untouched") == [0.0, 1.0, 2.0]
    assert second.pop("untouched") == [1.0, 2.0, 3.0]
    assert first == second
    assert first["sum"] == [1.0, 3.0, 5.0]
    assert first["mean"] == [0.5, 1.5, 2.5]
    assert first["mixed"] == [[1, 3, 5], [1, 3, 5], 3, [[1], [3], [5]]]
    assert first["tiny buckets"] == first["mixed"]
    assert first["shapes"] == [(3,), (3,), (), (3, 1)]
    assert first["dtypes"][1:] == [torch.float16, torch.int64, torch.float64]
    assert first["rows"] == ([0, 0, 1], [[0, 0], [1, 1], [1, 1]], (4, 2))
    assert first["uneven"] == [[1], [1]]
    assert first["nothing"] == (0, 2)


def _broadcast() -> list[Any]:
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    tensors = [
        torch.randn(3, 2, generator=generator).t(),
        torch.randn(5, generator=generator).bfloat16(),
        torch.tensor([rank == 0, True]),
        torch.tensor(rank, dtype=torch.int64),
        torch.ones(2, device="meta"),
        torch.full((0, 4), 1.0),
        nn.Parameter(torch.full((2,), float("nan") if rank == 0 else 1.0)),
    ]
    versions = [t._version for t in tensors]
    distribute.broadcast(tensors)
    bumped = [t._version > v for t, v in zip(tensors, versions, strict=True)]
    kept = [t.float().nan_to_num(7.0).tolist() for t in tensors if not t.is_meta]
    return [kept, bumped]


def test_broadcast_is_bit_for_bit_for_any_dtype(found: Found) -> None:
    (first, _), (second, bumped) = found["_broadcast"]
    assert first == second
    assert first[2:] == [[1.0, 1.0], 0.0, [], [7.0, 7.0]]
    # What was written is visible to autograd; what has no data was not written.
    assert bumped == [True, True, True, True, False, False, True]


# -------------------------------------------------------- reducing gradients


def _none_patterns() -> dict[str, Any]:
    """Each rank lacks other gradients; nobody waits, everybody agrees."""
    rank = dist.get_rank()
    extended = MirroredStrategy("cpu").extended
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    one = torch.ones(2)

    def step(*gradients: Tensor | None) -> list[Any]:
        return _values(_quiet(extended, list(zip(gradients, (a, b, c), strict=True))))

    return {
        "none at all": step(None, None, None),
        "split": step(one, None, None) if rank == 0 else step(None, one, None),
        "all on one rank": step(one, one, None) if rank else step(None, None, None),
        "late": step(None, None, one) if rank else step(None, None, None),
        "full": step(one, one, one),
        "none again": step(None, None, None),
    }


def test_ranks_agree_on_missing_gradients(found: Found) -> None:
    first, second = found["_none_patterns"]
    assert first == second
    one, two = [1.0, 1.0], [2.0, 2.0]
    assert first == {
        "none at all": [None, None, None],
        "split": [one, one, None],
        "all on one rank": [one, one, None],
        "late": [None, None, one],
        "full": [two, two, two],
        "none again": [None, None, None],
    }


def _sparse_patterns() -> dict[str, Any]:
    rank = dist.get_rank()
    extended = MirroredStrategy("cpu").extended
    table = nn.Parameter(torch.zeros(4, 1))
    bias = nn.Parameter(torch.zeros(1))

    def rows(*indices: int) -> IndexedSlices:
        values = torch.full((len(indices), 1), float(rank + 1))
        return IndexedSlices(values, torch.tensor(indices, dtype=torch.int32), (4, 1))

    def step(gradient: Any) -> Any:
        pairs = [(gradient, table), (torch.ones(1), bias)]
        return _values(_quiet(extended, pairs))[0]

    coo = torch.sparse_coo_tensor(torch.tensor([[2, 2]]), torch.ones(2, 1), (4, 1))
    mean = MirroredStrategy("cpu", "mean").extended
    found = {
        "rows": step(rows(3, 0) if rank == 0 else rows(0)),
        "one rank has none": step(rows(1) if rank else None),
        "no rank has any": step(None),
        "empty rows are rows": step(rows()),
        "dense on one rank": step(torch.ones(4, 1) if rank else rows(1)),
        "dense no more": step(rows(1) if rank else None),
        "coalesced nowhere": step(coo),
        "mean": _values(mean.aggregate_gradients([(rows(rank), table)]))[0],
    }
    other = nn.Parameter(torch.zeros(4, 1))
    mixed = torch.ones(4, 1) if rank else rows(1, 1)
    found["dense wins a new plan"] = _values(_quiet(extended, [(mixed, other)]))[0]
    return found


def test_sparse_gradients_are_joined_in_rank_order(found: Found) -> None:
    first, second = found["_sparse_patterns"]
    assert first == second
    assert first == {
        "rows": ([3, 0, 0], [[1], [1], [2]]),
        "one rank has none": ([1], [[2]]),
        "no rank has any": None,
        "empty rows are rows": ([], []),
        "dense on one rank": [[1], [2], [1], [1]],
        "dense no more": ([1], [[2]]),
        "coalesced nowhere": ([2, 2, 2, 2], [[1], [1], [1], [1]]),
        "mean": ([0, 1], [[0.5], [1.0]]),
        "dense wins a new plan": [[1], [3], [1], [1]],
    }


def _other_variables() -> str:
    extended = MirroredStrategy("cpu").extended
    count = 1 + dist.get_rank()
    pairs = [(torch.ones(2), nn.Parameter(torch.zeros(2))) for _ in range(count)]
    try:
        _quiet(extended, pairs)
    except RuntimeError as error:
        return str(error)
    return "nothing was said"


def test_different_variables_are_refused_on_every_rank(found: Found) -> None:
    first, second = found["_other_variables"]
    assert first == second
    assert "the same variables in the same order" in first
    assert "rank 1: 2" in first


def _gradients_are_kept() -> tuple[bool, bool, list[float], list[float]]:
    rank = dist.get_rank()
    extended = MirroredStrategy("cpu", gradient_reduction="mean").extended
    weight = Variable(torch.zeros(2, 2), name="weight")
    gradient = torch.full((2, 2), float(rank + 1)).t()
    before = (gradient._version, gradient.clone())
    [(reduced, variable)] = extended.aggregate_gradients([(gradient, weight)])
    untouched = gradient._version == before[0] and bool((gradient == before[1]).all())
    halves = torch.tensor([1.0, 3.0]).bfloat16()
    low = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    [(reduced_low, _)] = extended.aggregate_gradients([(halves, low)])
    kept_dtype = reduced_low.dtype == torch.bfloat16 and variable is weight
    return untouched, kept_dtype, reduced.flatten().tolist(), reduced_low.tolist()


def test_gradients_are_not_written_and_mean_divides(found: Found) -> None:
    expected = (True, True, [1.5] * 4, [1.0, 3.0])
    assert found["_gradients_are_kept"] == [expected, expected]


def _refusals() -> list[Any]:
    """Rank 1 refuses, in different states of a plan; then both go on."""
    rank, said = dist.get_rank(), []
    extended = MirroredStrategy("cpu").extended
    one, rows = torch.ones(2, 1), IndexedSlices(torch.ones(1, 1), torch.tensor([1]))
    for good in (one, rows, None):
        weight = nn.Parameter(torch.zeros(2, 1))
        for is_bad in (True, False, True, False):
            bad = torch.ones(3) if rank and is_bad else good
            try:
                said.append(_values(_quiet(extended, [(bad, weight)]))[0])
            except (ValueError, RuntimeError) as error:
                said.append((type(error).__name__, str(error)))
    return said


def test_ranks_refuse_together(found: Found) -> None:
    for rank, said in enumerate(found["_refusals"]):
        kind = "ValueError" if rank else "RefusedElsewhereError"
        words = "a gradient of shape" if rank else "on every rank"
        assert all(name == kind and words in text for name, text in said[::2])
        assert said[1::2] == [[[2], [2]]] * 2 + [([1, 1], [[1], [1]])] * 2 + [None] * 2


def _halves_and_wide_ones() -> list[Any]:
    """A sum beyond the largest half; then what a plan for float32 has no room for."""
    extended = MirroredStrategy("cpu", gradient_reduction="mean").extended
    halves = torch.tensor([40000.0], dtype=torch.float16)
    [(mean, _)] = extended.aggregate_gradients([(halves, nn.Parameter(halves))])
    found = [mean.item(), mean.dtype, halves.item()]
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    fine = torch.tensor([1 + 2**-40], dtype=torch.float64)
    for gradient in (fine.float(), fine if dist.get_rank() else fine.float()):
        [(reduced, _)] = extended.aggregate_gradients([(gradient, weight)])
        found.append(reduced.item())
    return found


def test_means_have_room(found: Found) -> None:
    expected = [40000.0, torch.float16, 40000.0, 1.0, 1 + 2**-41]
    assert found["_halves_and_wide_ones"] == [expected, expected]


def _histories() -> list[list[Any]]:
    """Adam on orders of dense gradients and rows: alone, and on both ranks."""
    rows = IndexedSlices(torch.ones(1, 2), torch.tensor([0]), (4, 2))
    dense, found = torch.ones(4, 2), []
    strategy = MirroredStrategy("cpu", "mean")
    for order in ((dense, rows, rows), (rows, dense, rows), (rows, rows, dense)):
        alone, shared = (tw.Variable(torch.zeros(4, 2)) for _ in range(2))
        here = tw.optimizers.Adam(0.1)
        with strategy.scope():
            there = tw.optimizers.Adam(0.1)
        for gradient in order:
            here.apply_gradients([(gradient, alone)])
            strategy.run(there.apply_gradients, ([(gradient, shared)],))
        found.append([alone.tolist(), shared.tolist()])
    return found


def test_a_sparse_gradient_is_one_after_dense_ones(found: Found) -> None:
    for rank in found["_histories"]:
        for alone, shared in rank:
            torch.testing.assert_close(torch.tensor(shared), torch.tensor(alone))


# ----------------------------------------------------------------- wrapped models


def _wrapped_in_ddp() -> dict[str, list[float]]:
    rank = dist.get_rank()
    extended = MirroredStrategy("cpu").extended
    torch.manual_seed(0)
    inside, outside = nn.Linear(2, 1, bias=False), nn.Parameter(torch.ones(2))
    wrapper = DistributedDataParallel(inside)
    x = torch.full((1, 2), float(rank + 1))
    wrapper(x).sum().backward()
    assert inside.weight.grad is not None
    pairs = [(inside.weight.grad, inside.weight), (torch.ones(2), outside)]
    reduced = _quiet(extended, pairs)
    return {
        "ddp": inside.weight.grad.flatten().tolist(),
        "inside": reduced[0][0].flatten().tolist(),
        "outside": reduced[1][0].tolist(),
    }


def test_gradients_that_ddp_reduced_are_left_alone(found: Found) -> None:
    first, second = found["_wrapped_in_ddp"]
    assert first == second
    assert first == {"ddp": [1.5, 1.5], "inside": [1.5, 1.5], "outside": [2.0, 2.0]}


def _sharded() -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    strategy = MirroredStrategy("cpu")
    extended = strategy.extended
    torch.manual_seed(0)
    model = nn.Linear(2, 3, bias=False)
    whole = model.weight.detach().clone()
    fully_shard(model)
    model(torch.ones(1, 2)).sum().backward()
    weight: Any = model.weight
    [(reduced, _)] = _quiet(extended, [(weight.grad, weight)])
    local = distribute.local_tensor(weight)
    seen: dict[str, Any] = {}

    def subtract(component: Variable, delta: Any, also: Any, scale: float) -> None:
        seen["shapes"] = (tuple(component.shape), tuple(delta.shape), also.indices)
        seen["container"] = extended.value_container(component) is weight
        component.assign_sub(scale * delta)

    rows = IndexedSlices(torch.ones(2, 2), torch.tensor([0, 2]), (3, 2))
    version = local._version
    for delta in (
        torch.ones(3, 2),
        distribute_tensor(torch.ones(3, 2), weight.device_mesh),
    ):
        extended.update(weight, subtract, (delta, rows), {"scale": 0.5})
    with extended.colocate_vars_with(weight):
        slot: Any = Variable(torch.zeros(3, 2))
    extended.broadcast_initial([weight])
    return {
        "left alone": reduced is weight.grad,
        "written": torch.equal(weight.full_tensor(), whole - 1.0),
        "bumped": local._version - version,
        "shapes": seen["shapes"][:2],
        "rows": seen["shapes"][2].tolist(),
        "container": seen["container"],
        "slot placed": slot.placements == weight.placements,
        "belongs": extended.variable_created_in_scope(weight),
    }


def test_updates_reach_the_local_shards(found: Found) -> None:
    first, second = found["_sharded"]
    for rank in (first, second):
        assert rank["left alone"]
        assert rank["written"]
        assert rank["bumped"] == 2
        assert rank["container"]
        assert rank["slot placed"]
        assert rank["belongs"]
    assert first["shapes"] == ((2, 2), (2, 2))
    assert second["shapes"] == ((1, 2), (1, 2))
    assert (first["rows"], second["rows"]) == ([0], [0])


# ------------------------------------------------------------ strategy and replica


def _join_under_torchrun() -> dict[str, Any]:
    strategy = MirroredStrategy()
    with strategy.scope():
        torch.manual_seed(int(os.environ["RANK"]))
        layer = nn.Linear(2, 2)
        layer.register_buffer("noise", torch.rand(2))
        scalar = Variable(float(os.environ["RANK"]))
    strategy.extended.broadcast_initial([scalar])
    with torch.no_grad():
        scalar.add_(strategy.extended.replica_id)
    # What was sent once is the rank's own from then on.
    strategy.extended.broadcast_initial([scalar, layer.weight])
    return {
        "backend": dist.get_backend(),
        "device": str(strategy.extended.device),
        "replicas": strategy.num_replicas_in_sync,
        "weights": layer.weight.tolist(),
        "noise": layer.get_buffer("noise").tolist(),
        "scalar": scalar.item(),
    }


def test_it_joins_the_processes_and_sends_initial_values() -> None:
    first, second = run_ranks(_join_under_torchrun, 2, initialise=False)
    assert first["backend"] == "gloo"
    assert first["replicas"] == second["replicas"] == 2
    assert first["device"] == "cpu"
    assert first["weights"] == second["weights"]
    assert first["noise"] == second["noise"]
    assert (first["scalar"], second["scalar"]) == (0.0, 1.0)


def _reductions() -> dict[str, Any]:
    strategy = MirroredStrategy("cpu")
    rank = strategy.extended.replica_id

    def step(x: Tensor) -> dict[str, Any]:
        context = distribute.get_replica_context()
        assert context is not None
        nest = {"loss": x.sum(), "parts": (x, [2])}
        reduced = context.all_reduce("sum", nest)

        def merged(inner: Any, value: float) -> tuple[bool, float]:
            entered = distribute.in_cross_replica_context()
            return entered, inner.reduce("mean", value).item()

        return {
            "id": context.replica_id_in_sync_group,
            "loss": reduced["loss"].item(),
            "parts": reduced["parts"][0].tolist(),
            "number": reduced["parts"][1][0].item(),
            "mean": context.all_reduce(ReduceOp.MEAN, x).tolist(),
            "gathered": context.all_gather(x).tolist(),
            "merged": context.merge_call(merged, args=(float(rank),)),
        }

    found = strategy.run(step, args=(torch.tensor([1.0, 2.0]) + rank,))
    uneven = torch.arange(1.0, rank + 2)
    return found | {
        "reduce": strategy.reduce("SUM", torch.tensor(rank)).item(),
        "axis mean": strategy.reduce("mean", uneven, axis=0).item(),
        "axis sum": strategy.reduce("sum", uneven, axis=0).item(),
        "gather": strategy.gather(uneven).tolist(),
        "count": strategy.extended.global_count(rank + 1),
        "weights": strategy.extended.global_count(0.5),
        "tensor count": strategy.extended.global_count(torch.tensor(2)).item(),
    }


def test_reductions_of_strategy_and_replica_context(found: Found) -> None:
    first, second = found["_reductions"]
    assert (first.pop("id"), second.pop("id")) == (0, 1)
    assert first == second
    assert first == {
        "loss": 8.0,
        "parts": [3.0, 5.0],
        "number": 4,
        "mean": [1.5, 2.5],
        "gathered": [1.0, 2.0, 2.0, 3.0],
        "merged": (True, 0.5),
        "reduce": 1,
        "axis mean": pytest.approx(4 / 3),
        "axis sum": 4.0,
        "gather": [1.0, 1.0, 2.0],
        "count": 3,
        "weights": 1.0,
        "tensor count": 4,
    }


def _warnings() -> dict[str, int]:
    weight = nn.Parameter(torch.zeros(1))
    pairs = [(torch.ones(1), weight)]
    counts: dict[str, int] = {}

    def said(name: str, extended: StrategyExtended, vouched: bool) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                if vouched:
                    _quiet(extended, pairs)
                else:
                    extended.aggregate_gradients(pairs)
        messages = [str(w.message) for w in caught]
        counts[name] = sum("summed" in text for text in messages)

    said("sum", MirroredStrategy("cpu").extended, vouched=False)
    said("vouched", MirroredStrategy("cpu").extended, vouched=True)
    said("mean", MirroredStrategy("cpu", "mean").extended, vouched=False)
    return counts


def test_one_line_says_that_gradients_are_summed(found: Found) -> None:
    first, second = found["_warnings"]
    assert first == {"sum": 1, "vouched": 0, "mean": 0}
    assert second == {"sum": 0, "vouched": 0, "mean": 0}


def _train() -> list[Any]:
    """Plain gradient descent on uneven shards of one batch."""
    strategy = MirroredStrategy("cpu")
    x = torch.linspace(-1, 1, 7 * 3).reshape(7, 3)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    rank, ranks = strategy.extended.replica_id, strategy.num_replicas_in_sync
    mine, theirs = x[rank::ranks], y[rank::ranks]
    with strategy.scope():
        model = nn.Linear(3, 1)
    weights = list(model.parameters())

    def step() -> None:
        total = strategy.extended.global_count(len(mine))
        loss = ((model(mine) - theirs) ** 2).sum() / total
        gradients = torch.autograd.grad(loss, weights)
        pairs = _quiet(strategy.extended, list(zip(gradients, weights, strict=True)))
        for gradient, weight in pairs:
            strategy.extended.update(
                weight, lambda v, g: v.assign_sub(0.1 * g), args=(gradient,)
            )

    for _ in range(20):
        strategy.run(step)
    return [weight.tolist() for weight in weights]


def test_ranks_stay_equal_bit_for_bit() -> None:
    results = run_ranks(_train, 3)
    assert results[0] == results[1] == results[2]


def test_optimizers_refuse_together(found: Found) -> None:
    for rank, (said, *state) in enumerate(found["_optimizers_refuse"]):
        told = ["RefusedElsewhereError"] * 2
        assert said == (["ValueError", "RowIndexError"] if rank else told)
        assert state == [2, [-2.0, -2.0], [0.0, -2.0, 0.0, 0.0]]
