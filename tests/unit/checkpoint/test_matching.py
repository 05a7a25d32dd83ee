"""Slots that are there at times, by rank or not, and slots that nobody takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.checkpoint.graph import build_graph
from thalweg.checkpoint.manifest import Manifest, TensorEntry
from thalweg.checkpoint.matching import Match, match

STEPS = "gradient_accumulation_steps"
SLOT = "weight/.slot/optimizer/gradient_accumulator"
ENTRY = TensorEntry.whole("a.safetensors", (1,), torch.float32)
PARTS = {"ranks": 2, "reduction": "sum"}


def matched(saved: list[str], values: dict[str, Any], **options: Any) -> Match:
    """Match a weight and an optimizer with keys of slots."""
    weight = tw.Variable([0.0])
    graph = build_graph({"weight": weight, "optimizer": tw.optimizers.SGD(**options)})
    manifest = Manifest(tensors=dict.fromkeys(["weight", *saved], ENTRY), values=values)
    return match(graph, manifest, "keep")


def test_parts_of_ranks_are_one_slot():
    keys = [f"{SLOT}/.rank/1", f"{SLOT}/.rank/0"]
    found = matched(keys, {"optimizer/.parts": PARTS}, **{STEPS: 2})
    (made,) = found.creations
    assert made.keys == {1: keys[0], 0: keys[1]}
    assert made.parts == (2, "sum")
    assert (made.slot, made.owner) == ("gradient_accumulator", "optimizer")
    assert found.unexpected == []
    assert set(keys) < set(found.restored())


@pytest.mark.parametrize(
    "parts",
    [
        None,
        3,
        {"ranks": 2},
        {**PARTS, "ranks": 1},
        {**PARTS, "ranks": True},
        {**PARTS, "reduction": "max"},
        {**PARTS, "reduction": ["sum"]},
        {**PARTS, "more": 1},
    ],
    ids=str,
)
def test_parts_that_make_no_sense_are_left_aside(parts):
    key = f"{SLOT}/.rank/0"
    values = {} if parts is None else {"optimizer/.parts": parts}
    found = matched([key], values, **{STEPS: 2})
    assert found.creations == []
    assert set(found.unexpected) == {key, *values}


@pytest.mark.parametrize("number", ["2", "-1", "x", "", "²", "1/more"])
def test_a_part_of_no_rank_is_left_aside(number):
    keys = [f"{SLOT}/.rank/0", f"{SLOT}/.rank/{number}"]
    found = matched(keys, {"optimizer/.parts": PARTS}, **{STEPS: 2})
    assert [list(made.keys.values()) for made in found.creations] == [keys[:1]]
    assert found.unexpected == keys[1:]


def test_other_slots_have_no_parts():
    key = "weight/.slot/optimizer/momentum/.rank/0"
    values = {"optimizer/.parts": PARTS}
    found = matched([key], values, momentum=0.9, **{STEPS: 2})
    assert found.creations == []
    assert set(found.unexpected) == {key, *values}


def test_a_slot_that_was_taken_is_not_made_again():
    weight, optimizer = tw.Variable([0.0]), tw.optimizers.SGD(**{STEPS: 2})
    graph = build_graph({"weight": weight, "optimizer": optimizer})
    key = f"{SLOT}/.rank/0"
    manifest = Manifest(
        tensors=dict.fromkeys(["weight", key], ENTRY),
        values={"optimizer/.parts": PARTS},
    )
    found = match(graph, manifest, "keep", taken=[key])
    assert (found.creations, found.unexpected) == ([], [])
    alike = replace(manifest, tensors=dict.fromkeys(["weight", SLOT], ENTRY), values={})
    (made,) = match(graph, alike, "keep").creations
    assert made.keys == {0: SLOT}
    assert made.parts == (1, "sum")


# ------------------------------------------------------- options that are not there


def trained(**options: Any) -> tuple[tw.Variable, Any, tw.Checkpoint]:
    weight = tw.Variable([0.0], name="weight")
    optimizer = tw.optimizers.Adam(**options)
    return weight, optimizer, tw.Checkpoint(weight=weight, optimizer=optimizer)


OPTIONS = {
    "gradient_accumulator": {STEPS: 4},
    "average": {"use_ema": True},
    "low_precision_copy": {"low_precision_copy": "bfloat16"},
    "vhat": {"amsgrad": True},
}


@pytest.mark.parametrize("slot", OPTIONS)
def test_a_slot_of_an_option_that_is_not_there_is_not_made(tmp_path, slot):
    weight, optimizer, checkpoint = trained(**OPTIONS[slot])
    optimizer.apply_gradients([(torch.ones(1), weight)])
    key = f"weight/.slot/optimizer/{slot}"
    checkpoint.save(tmp_path / "with")
    weight, optimizer, checkpoint = trained()
    status = checkpoint.restore(tmp_path / "with", hyper="keep")
    assert key in status.unexpected
    option = next(iter(OPTIONS[slot]))
    sentence = f"'optimizer' was made without {option}, so it has no slot '{slot}'"
    with pytest.raises(tw.checkpoint.UnmatchedError, match=sentence):
        status.assert_consumed()
    status.assert_existing_objects_matched()
    optimizer.apply_gradients([(torch.ones(1), weight)])
    assert slot not in optimizer.get_slot_names()
    path = checkpoint.save(tmp_path / "without")
    saved = tw.checkpoint.read_manifest(path).tensors
    assert [name for name in saved if slot in name] == []


def test_the_sentence_is_in_the_warning(tmp_path):
    weight, optimizer, checkpoint = trained(**{STEPS: 2})
    optimizer.apply_gradients([(torch.ones(1), weight)])
    checkpoint.save(tmp_path / "save")
    weight, optimizer, checkpoint = trained()
    checkpoint.restore(tmp_path / "save")
    with pytest.warns(UserWarning, match=f"without {STEPS}, so it has no slot"):
        optimizer.apply_gradients([(torch.ones(1), weight)])


def test_a_slot_of_a_flag_that_is_restored_is_made(tmp_path):
    weight, optimizer, checkpoint = trained(amsgrad=True)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    checkpoint.save(tmp_path / "save")
    weight, optimizer, checkpoint = trained()
    checkpoint.restore(tmp_path / "save").assert_consumed()
    assert optimizer.amsgrad
    assert optimizer.get_slot(weight, "vhat").item() > 0


@pytest.mark.parametrize("what", ["values", "indices", "dtype"])
def test_rows_of_another_kind_are_refused(tmp_path, what):
    table, optimizer = tw.Variable(torch.zeros(3, 2)), tw.optimizers.SGD(**{STEPS: 3})
    slices = tw.IndexedSlices(torch.ones(1, 2), torch.tensor([1]))
    optimizer.apply_gradients([(slices, table)])
    (rows,) = optimizer._sums._rows.values()  # pyright: ignore[reportOptionalMemberAccess]
    if what == "values":
        rows.values = [torch.ones(1, 3)]
    elif what == "indices":
        rows.indices = [torch.tensor(1)]
    path = tw.Checkpoint(t=table, o=optimizer).save(tmp_path / "save")
    dtype = {"gradient_accumulator": "float64"} if what == "dtype" else None
    optimizer = tw.optimizers.SGD(slot_dtypes=dtype, **{STEPS: 3})
    with pytest.raises(tw.errors.CheckpointError, match="'gradient_accumulator_"):
        tw.Checkpoint(t=table, o=optimizer).restore(path)
    assert not optimizer.is_in_cycle


@pytest.mark.parametrize("hyper", ["checkpoint", "keep", "error-if-different"])
@pytest.mark.parametrize("steps", [2, 3])
def test_a_cycle_that_is_over_here_is_refused(tmp_path, hyper, steps):
    weight, optimizer, checkpoint = trained(**{STEPS: 5})
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    checkpoint.save(tmp_path / "save")
    weight, optimizer, checkpoint = trained(**{STEPS: steps})
    optimizer.apply_gradients([(torch.full((1,), 7.0), weight)])
    message = rf"{STEPS}: expected more than the 3 .*; got {steps}\..*Nothing was chan"
    with pytest.raises(tw.errors.CheckpointError, match=message):
        checkpoint.restore(tmp_path / "save", hyper=hyper)
    assert int(optimizer._sums.position) == 1
    assert optimizer.get_slot(weight, "gradient_accumulator").item() == 7.0


def test_a_shorter_cycle_goes_on_where_it_fits(tmp_path):
    held, optimizer = tw.Variable([0.0], name="weight"), tw.optimizers.SGD
    first = optimizer(1.0, gradient_accumulation_steps=5)
    for value in (1.0, 2.0):
        first.apply_gradients([(torch.tensor([value]), held)])
    tw.Checkpoint(w=held, optimizer=first).save(tmp_path / "save")
    other = optimizer(1.0, gradient_accumulation_steps=3)
    status = tw.Checkpoint(w=held, optimizer=other).restore(tmp_path / "save")
    status.assert_consumed()
    other.apply_gradients([(torch.tensor([6.0]), held)])
    assert held.item() == -3.0


# --------------------------------------------------- variables that are made later


class Holder(tw.Trackable):
    pass


@pytest.mark.parametrize("between", [0, 1, 2])
def test_a_sum_is_taken_while_its_cycle_lasts(tmp_path, between):
    def new() -> tuple[Any, Any, tw.Checkpoint]:
        held: Any = Holder()
        held.one = tw.Variable([0.0])
        optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=3)
        return held, optimizer, tw.Checkpoint(held=held, optimizer=optimizer)

    held, optimizer, checkpoint = new()
    held.two = tw.Variable([0.0])
    unit = torch.ones(1)
    optimizer.apply_gradients([(unit, held.one), (9 * unit, held.two)])
    checkpoint.save(tmp_path / "save")
    held, optimizer, checkpoint = new()
    status = checkpoint.restore(tmp_path / "save").expect_partial()
    for _ in range(between):
        optimizer.apply_gradients([(unit, held.one)])
    held.two = tw.Variable([5.0])
    status.assert_consumed()
    assert held.two.item() == 0.0
    for _ in range(2 if between == 0 else 1 if between == 1 else 3):
        optimizer.apply_gradients([(unit, held.one)])
    assert held.two.item() == (-3.0 if between < 2 else 0.0)
    assert held.one.item() == (-1.0 if between < 2 else -2.0)


@pytest.mark.parametrize("shape", [(0,), (), (2, 2), (6,)])
def test_a_slot_that_no_rule_can_use_is_refused(shape: tuple[int, ...]) -> None:
    weight = tw.Variable(torch.zeros(2, 3), name="weight")
    optimizer = tw.optimizers.Adam()
    graph = build_graph({"weight": weight, "optimizer": optimizer})
    entries = {
        "weight": TensorEntry.whole("a.safetensors", (2, 3), torch.float32),
        "weight/.slot/optimizer/m": TensorEntry.whole(
            "a.safetensors", shape, torch.float32
        ),
    }
    found = match(graph, Manifest(tensors=entries), "keep")
    assert found.creations == []
    (mismatch,) = found.mismatched
    assert mismatch.startswith("weight/.slot/optimizer/m: float32 of shape")
    with pytest.raises(ValueError, match="which the rule needs"):
        optimizer.restore_slot_variable("m", weight, torch.zeros(shape))
    with pytest.raises(ValueError, match="which the rule needs"):
        optimizer.add_slot(weight, "m", shape=shape)
