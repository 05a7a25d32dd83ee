"""Sums that each rank has for itself, saved in the midst of a cycle: gloo, loopback.

Two ranks save; two, one and three go on. One process saves; two go on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from typer.testing import CliRunner

import thalweg as tw
from tests.distributed.harness import run_ranks
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint.comparison import compare
from thalweg.cli import app as entry

pytestmark = pytest.mark.distributed

CYCLE = 3
STOP = 5  # in the midst of the second cycle
END = 9
REDUCTIONS = ("sum", "mean")
ACCUMULATOR = "gradient_accumulator"
Gradients = list[Any]


class Held(tw.Trackable):
    """Three variables, made at once or later."""

    def __init__(self, is_made: bool = True) -> None:
        if is_made:
            self.make()

    def make(self) -> None:
        self.weight = tw.Variable(torch.ones(4))
        self.bias = tw.Variable(torch.ones(2, dtype=torch.bfloat16))
        self.table = tw.Variable(torch.ones(5, 3))

    def all(self) -> list[Any]:
        return [self.weight, self.bias, self.table]


def gradients(rank: int, number: int) -> Gradients:
    """Of the weight, of the bias where there is one, of rows of the table."""
    generator = torch.Generator().manual_seed(10 * number + rank)
    weight = torch.randn(4, generator=generator)
    bias = torch.randn(2, generator=generator).bfloat16()
    rows = torch.randn(1 + rank, 3, generator=generator)
    places = torch.randint(0, 5, (1 + rank,), generator=generator)
    lacks = rank == 1 and CYCLE <= number < END - 1  # in all that is saved
    return [weight, None if lacks else bias, tw.IndexedSlices(rows, places, (5, 3))]


class Run:
    """One replica of a run, with what is saved of it."""

    def __init__(self, reduction: str, is_made: bool = True) -> None:
        self.held = Held(is_made)
        self.strategy = tw.distribute.MirroredStrategy("cpu", reduction)
        with self.strategy.scope():
            self.optimizer: Any = tw.optimizers.Adam(
                0.1, gradient_accumulation_steps=CYCLE
            )
        self.checkpoint = tw.Checkpoint(held=self.held, optimizer=self.optimizer)

    def go(self, first: int, last: int) -> Run:
        rank = dist.get_rank() if dist.is_initialized() else 0

        def step(number: int) -> None:
            with self.strategy.extended.loss_divided_globally():
                pairs = zip(gradients(rank, number), self.held.all(), strict=True)
                self.optimizer.apply_gradients(pairs)

        for number in range(first, last):
            self.strategy.run(step, (number,))
        return self

    def resumed(self, path: Path | str) -> Run:
        self.checkpoint.restore(path).assert_consumed()
        return self.go(STOP, END)

    def state(self) -> dict[str, torch.Tensor]:
        names = {id(v): n for n, v in vars(self.held).items()}
        slots = self.optimizer.slot_variables()
        found = {f"{names[id(v)]}/{n}": slot for v, n, slot in slots}
        found |= {names[id(v)]: v for v in self.held.all()}
        found["iterations"] = self.optimizer.iterations
        return {k: torch.as_tensor(t).detach().clone() for k, t in found.items()}


# ------------------------------------------------------------------ on each rank


def two_ranks(folder: str) -> dict[str, Any]:
    found = {reduction: _save_and_resume(folder, reduction) for reduction in REDUCTIONS}
    place = Path(folder) / "sum"
    found["sum"] |= {
        "deferred": _deferred(place / "two").state(),
        "managed": _managed(place / "managed").state(),
        "outside": _outside(place / "two").state(),
        "outside, from one": _outside(place / "one").state(),
    }
    found["wrapped"] = _wrapped(Path(folder) / "wrapped")
    return found


def _save_and_resume(folder: str, reduction: str) -> dict[str, Any]:
    place = Path(folder) / reduction
    run = Run(reduction).go(0, CYCLE)
    run.checkpoint.save(place / "end")
    run.go(CYCLE, STOP).checkpoint.save(place / "two")
    run.checkpoint.save_async(place / "async")
    run.go(STOP, STOP + 1).checkpoint.wait()
    found: dict[str, Any] = {"unstopped": run.go(STOP + 1, END).state()}
    found["rolled back"] = run.resumed(place / "async").state()
    again = Run(reduction)
    again.checkpoint.restore(place / "two").assert_consumed()
    again.checkpoint.save(place / "again")
    found["resumed"] = again.go(STOP, END).state()
    found["from one"] = Run(reduction).resumed(place / "one").state()
    return found


def _deferred(path: Path) -> Run:
    """The variables are made after the restore."""
    run = Run("sum", is_made=False)
    status = run.checkpoint.restore(path)
    assert any(ACCUMULATOR in key for key in status.unexpected)
    run.held.make()
    status.assert_consumed()
    return run.go(STOP, END)


def _managed(folder: Path) -> Run:
    manager = tw.CheckpointManager(Run("sum").go(0, STOP).checkpoint, folder)
    manager.save_async(STOP)
    manager.wait()
    run = Run("sum")
    status = tw.CheckpointManager(run.checkpoint, folder).restore_or_initialize()
    assert status is not None
    status.assert_consumed()
    return run.go(STOP, END)


def _outside(path: Path) -> Run:
    """The optimizer does not know its strategy before it steps."""
    run = Run("sum")
    run.optimizer = tw.optimizers.Adam(gradient_accumulation_steps=CYCLE)
    run.checkpoint = tw.Checkpoint(held=run.held, optimizer=run.optimizer)
    return run.resumed(path)


def _wrapped(folder: Path) -> list[Any]:
    """DDP has reduced the gradients already: the sums of all ranks are alike."""

    def made() -> tuple[nn.Module, Any, tw.Checkpoint]:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
        with strategy.scope():
            optimizer = tw.optimizers.Adam(0.1, gradient_accumulation_steps=CYCLE)
        return model, optimizer, tw.Checkpoint(model=model, optimizer=optimizer)

    def go(model: nn.Module, optimizer: Any, first: int, last: int) -> list[Any]:
        for number in range(first, last):
            model.zero_grad()
            model(torch.full((2, 3), number + dist.get_rank() + 1.0)).sum().backward()
            pairs = [(p.grad, p) for p in model.parameters()]
            strategy.run(optimizer.apply_gradients, (pairs,))
        return [p.tolist() for p in model.parameters()]

    strategy = tw.distribute.MirroredStrategy("cpu")
    model, optimizer, checkpoint = made()
    go(model, optimizer, 0, STOP)
    checkpoint.save(folder)
    unstopped = go(model, optimizer, STOP, END)
    model, optimizer, checkpoint = made()
    checkpoint.restore(folder).assert_consumed()
    return [unstopped, go(model, optimizer, STOP, END)]


def three_ranks(folder: str) -> dict[str, Any]:
    return {
        reduction: Run(reduction).resumed(f"{folder}/{reduction}/two").state()
        for reduction in REDUCTIONS
    }


# --------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        for reduction in REDUCTIONS:
            place = Path(name) / reduction
            Run(reduction).go(0, STOP).checkpoint.save(place / "one")
        yield name


@pytest.fixture(scope="module")
def two(folder: str) -> list[dict[str, Any]]:
    """What two ranks found; starting them takes seconds, so once for all tests."""
    return run_ranks(two_ranks, 2, folder)


def expected(reduction: str, before: int, after: int) -> dict[str, torch.Tensor]:
    """One process, on the sums of all gradients of `before` ranks, then of `after`."""
    run = Run("sum")
    plain = tw.optimizers.Adam(0.1)
    for first in range(0, END, CYCLE):
        dense: list[Any] = [torch.zeros(4), torch.zeros(2)]
        rows, places = [], []
        for number in range(first, first + CYCLE):
            ranks = before if number < STOP else after
            share = 1 / CYCLE / (ranks if reduction == "mean" else 1)
            for rank in range(ranks):
                weight, bias, slices = gradients(rank, number)
                dense[0] += share * weight
                dense[1] += 0 if bias is None else share * bias.float()
                rows.append(share * slices.values)
                places.append(slices.indices)
        whole = tw.IndexedSlices(torch.cat(rows), torch.cat(places), (5, 3))
        plain.apply_gradients(zip([*dense, whole], run.held.all(), strict=True))
    run.optimizer = plain
    return run.state()


def other_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [key for key in one if not same_bits(one[key], two[key])]


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]):
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        # Sums of bfloat16 gradients, in another order: two units in the last place.
        torch.testing.assert_close(tensor, wanted[key], rtol=2e-2, atol=2e-4)
        if tensor.dtype == torch.float32 and not key.startswith("bias"):
            torch.testing.assert_close(tensor, wanted[key])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", ["resumed", "rolled back"])
def test_as_many_ranks_go_on_with_the_same_bits(two, reduction, how):
    wanted = expected(reduction, 2, 2)
    for rank in two:
        found = rank[reduction]
        assert other_bits(found[how], found["unstopped"]) == []
        assert_close(found[how], wanted)


@pytest.mark.parametrize("how", ["deferred", "managed", "outside"])
def test_so_they_do_whenever_and_however_it_is_restored(two, how):
    for rank in two:
        assert other_bits(rank["sum"][how], rank["sum"]["unstopped"]) == []


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_process_goes_on_with_what_two_have_gathered(folder, two, reduction):
    found = Run(reduction).resumed(f"{folder}/{reduction}/two").state()
    assert_close(found, expected(reduction, 2, 1))


def test_one_process_need_not_know_how_the_ranks_reduced(folder, two):
    for reduction in REDUCTIONS:
        run = Run("sum")
        run.optimizer = tw.optimizers.Adam(0.1, gradient_accumulation_steps=CYCLE)
        run.checkpoint = tw.Checkpoint(held=run.held, optimizer=run.optimizer)
        found = run.resumed(f"{folder}/{reduction}/two").state()
        assert_close(found, expected(reduction, 2, 1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_ranks_go_on_with_what_one_has_gathered(two, reduction):
    wanted = expected(reduction, 1, 2)
    for rank in two:
        assert_close(rank[reduction]["from one"], wanted)
    if reduction == "sum":
        for rank in two:
            found = rank["sum"]
            assert other_bits(found["outside, from one"], found["from one"]) == []


def test_three_ranks_go_on_with_what_two_have_gathered(folder, two):
    three = run_ranks(three_ranks, 3, folder)
    for reduction in REDUCTIONS:
        wanted = expected(reduction, 2, 3)
        for rank in three:
            assert_close(rank[reduction], wanted)
            assert other_bits(rank[reduction], three[0][reduction]) == []


def test_each_rank_writes_its_own_sums(folder, two):
    manifest = tw.checkpoint.read_manifest(f"{folder}/sum/two")
    start = "held/{}/.slot/optimizer/" + ACCUMULATOR
    own = {
        f"{start.format(name)}/.rank/{rank}": rank
        for name, rank in [("weight", 0), ("weight", 1), ("bias", 0)]
    } | {
        f"{start.format('table')}_{part}/.rank/{rank}": rank
        for part in ("values", "indices")
        for rank in range(2)
    }
    found = {key: one for key, one in manifest.tensors.items() if ACCUMULATOR in key}
    files = {key: entry.boxes[0].file for key, entry in found.items()}
    names = sorted(manifest.files)
    assert files == {key: names[rank] for key, rank in own.items()}
    assert manifest.values == {"optimizer/.parts": {"ranks": 2, "reduction": "sum"}}


def test_copies_of_a_checkpoint_do_not_differ(folder, two):
    for reduction in REDUCTIONS:
        place = Path(folder) / reduction
        tw.checkpoint.verify(place / "two")
        for other in ("async", "again"):
            assert list(compare(place / "two", place / other)) == []
    managed = f"{folder}/sum/managed/step-{STOP:08d}"
    assert list(compare(f"{folder}/sum/two", managed)) == []
    one = f"{folder}/sum/two"
    keys = [key for key, _ in compare(one, f"{folder}/mean/two")]
    assert keys[0] == "optimizer/.parts"
    assert sum(ACCUMULATOR in key for key in keys) == 0


def test_at_the_end_of_a_cycle_nothing_is_stored_by_rank(folder, two):
    manifest = tw.checkpoint.read_manifest(f"{folder}/sum/end")
    parts = (".rank", ACCUMULATOR)
    assert not [key for key in manifest.tensors if any(one in key for one in parts)]
    assert manifest.values == {}


def test_sums_of_gradients_that_ddp_has_reduced_are_stored_once(folder, two):
    for rank in two:
        unstopped, resumed = rank["wrapped"]
        assert resumed == unstopped
    manifest = tw.checkpoint.read_manifest(f"{folder}/wrapped")
    start = "model/{}/.slot/optimizer/" + ACCUMULATOR
    keys = [key for key in manifest.tensors if ACCUMULATOR in key]
    assert sorted(keys) == [start.format("bias"), start.format("weight")]
    assert manifest.values == {}


def test_the_commands_show_what_each_rank_has(folder, two):
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(entry.app, list(arguments))
        return result.exit_code, result.output

    first, second = f"{folder}/sum/two", f"{folder}/mean/two"
    status, text = run("inspect", first)
    assert (status, text.count(f"{ACCUMULATOR}_values/.rank/")) == (0, 2)
    assert run("verify", first)[0] == 0
    status, text = run("diff", first, second)
    assert status == 1
    assert "optimizer/.parts" in text
    assert run("diff", first, f"{folder}/sum/again")[0] == 0
