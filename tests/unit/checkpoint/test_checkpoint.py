"""Checkpoint: what goes in comes out, by name, or everything that does not is said."""

import logging
import os
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.unit.checkpoint.slot_keeper import SlotKeeper, same_bits
from thalweg.checkpoint import (
    Checkpoint,
    UnmatchedError,
    read_manifest,
    read_metadata,
    verify,
)
from thalweg.checkpoint.tensor_file import CODES
from thalweg.errors import CheckpointError
from thalweg.state import Trackable, Variable


class Holder(Trackable):
    def __init__(self, **variables):
        for name, variable in variables.items():
            setattr(self, name, variable)


def copies(*objects):
    return [
        t.detach().clone()
        for one in objects
        for t in (one.variables if isinstance(one, Trackable) else one.parameters())
    ]


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4)], ids=str)
def test_every_dtype_and_shape_round_trips(tmp_path, dtype, shape):
    count = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(0, high, (count,), dtype=torch.uint8)
    saved = data.view(dtype).reshape(shape) if count else torch.empty(0, 3, dtype=dtype)
    path = Checkpoint(x=Variable(saved)).save(tmp_path / "save")
    target = Variable(torch.zeros(shape).to(dtype))
    Checkpoint(x=target).restore(path).assert_consumed()
    assert same_bits(target, saved)


def test_non_contiguous_variables_round_trip_in_place(tmp_path):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    path = Checkpoint(w=weight, t=torch.arange(6.0).view(2, 3).t()).save(tmp_path / "a")
    target = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    turned = torch.zeros(2, 3).t()
    Checkpoint(w=target, t=turned).restore(path)
    assert torch.equal(target, weight)
    assert target.is_contiguous(memory_format=torch.channels_last)
    assert turned.tolist() == torch.arange(6.0).view(2, 3).t().tolist()


def test_restoring_writes_in_place_and_autograd_sees_it(tmp_path):
    model = nn.Linear(2, 1)
    path = Checkpoint(model=model).save(tmp_path / "save")
    expected = model.weight.detach().clone()
    place, version = model.weight.data_ptr(), model.weight._version
    with torch.no_grad():
        model.weight.zero_()
    output = (model.weight**2).sum()
    Checkpoint(model=model).restore(path)
    assert model.weight.data_ptr() == place
    assert model.weight._version > version + 1
    assert torch.equal(model.weight, expected)
    assert model.weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_save_returns_the_absolute_path_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 1)
    before = copies(model)
    path = Checkpoint(model=model).save("runs/one")
    assert os.path.isabs(path)
    assert os.path.samefile(path, tmp_path / "runs" / "one")
    assert sorted(os.listdir(path)) == ["manifest.json", "tensors.safetensors"]
    assert all(map(torch.equal, copies(model), before))
    assert model.weight._version == nn.Linear(2, 1).weight._version


def test_slots_follow_their_variable_when_the_order_changes(tmp_path):
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    keeper = SlotKeeper()
    keeper.build(model.parameters())
    path = Checkpoint(model=model, optimizer=keeper).save(tmp_path / "save")
    other: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    reordered = SlotKeeper()
    reordered.build(reversed(list(other.parameters())))
    status = Checkpoint(optimizer=reordered, model=other).restore(path)
    status.assert_consumed()
    for old, new in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(old, new)
        for name in ("m", "v"):
            assert same_bits(keeper.slot(old, name), reordered.slot(new, name))


def test_slots_not_made_yet_are_made_with_the_saved_dtype_and_shape(tmp_path):
    model, keeper = nn.Linear(2, 1), SlotKeeper(learning_rate=0.25)
    keeper.add(model.weight, "m", torch.full((7,), 1.5, dtype=torch.bfloat16))
    keeper.iterations.assign(41)
    path = Checkpoint(model=model, optimizer=keeper).save(tmp_path / "save")
    fresh_model, fresh = nn.Linear(2, 1), SlotKeeper()
    status = Checkpoint(model=fresh_model, optimizer=fresh).restore(path)
    assert "model/weight/.slot/optimizer/m" in status.assert_consumed().restored
    slot = fresh.slot(fresh_model.weight, "m")
    assert slot.dtype == torch.bfloat16
    assert slot.tolist() == [1.5] * 7
    assert fresh.learning_rate == 0.25
    assert int(fresh.iterations) == 41
    assert status.step == read_manifest(path).step == 41


def test_tied_weights_are_saved_once_and_restored_under_any_name(tmp_path):
    tied = nn.Linear(2, 2, bias=False)
    model: Any = nn.ModuleDict({"encoder": tied, "decoder": tied})
    keeper = SlotKeeper(known=("m",))
    keeper.build([tied.weight])
    path = Checkpoint(model=model, optimizer=keeper).save(tmp_path / "save")
    manifest = read_manifest(path)
    assert manifest.aliases == {"model/decoder.weight": "model/encoder.weight"}
    assert [key for key in manifest.tensors if key.endswith("coder.weight")] == [
        "model/encoder.weight"
    ]
    untied: Any = nn.ModuleDict(
        {"encoder": nn.Linear(2, 2, bias=False), "decoder": nn.Linear(2, 2, bias=False)}
    )
    Checkpoint(model=untied).restore(path).assert_existing_objects_matched()
    assert torch.equal(untied["decoder"].weight, tied.weight)
    assert torch.equal(untied["encoder"].weight, tied.weight)
    swapped_weight = nn.Linear(2, 2, bias=False)
    swapped: Any = nn.ModuleDict({"decoder": swapped_weight, "encoder": swapped_weight})
    fresh = SlotKeeper(known=("m",))
    Checkpoint(model=swapped, optimizer=fresh).restore(path).assert_consumed()
    assert torch.equal(fresh.slot(swapped_weight.weight, "m"), torch.ones(2, 2))


def test_two_saved_values_do_not_slip_into_one_tied_variable(tmp_path):
    untied: Any = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    path = Checkpoint(model=untied).save(tmp_path / "save")
    one = nn.Linear(1, 1)
    tied: Any = nn.ModuleDict({"a": one, "b": one})
    status = Checkpoint(model=tied).restore(path)
    assert torch.equal(one.weight, untied["a"].weight)
    with pytest.raises(CheckpointError, match=r"unexpected.*\(2\):\n    model/b"):
        status.assert_consumed()


def test_values_states_and_containers_round_trip(tmp_path):
    first = Checkpoint(
        epoch=7, best=0.1, history={"loss": [1.0, 0.3]}, words=(1, "a"), none=None
    )
    path = first.save(tmp_path / "save")
    second = Checkpoint(epoch=0, best=1.0, history={"loss": []}, words=(), none=1)
    second.restore(path).assert_consumed()
    assert (second.epoch, second.best, second.none) == (7, 0.1, None)
    assert second.words == (1, "a")
    assert second.objects["history"] == {"loss": [1.0, 0.3]}


def test_metadata_comes_back_to_the_bit_without_reading_tensors(tmp_path):
    metadata = {"accuracy": 0.1 + 0.2, "words": ["a", None], "shape": (1, 2)}
    path = Checkpoint(x=torch.ones(2)).save(tmp_path / "save", metadata=metadata)
    os.remove(os.path.join(path, "tensors.safetensors"))
    assert read_metadata(path) == Checkpoint.read_metadata(path) == metadata
    assert Checkpoint(x=torch.ones(1)).save(tmp_path / "b")
    assert read_metadata(tmp_path / "b") == {}


def unlike(model, keeper):
    """Objects that differ from what was saved in every way."""
    other: Any = nn.Sequential(nn.Linear(2, 5), nn.Linear(2, 2).double(), nn.PReLU())
    strange = SlotKeeper(learning_rate=0.7)
    strange.build([other[0].weight])
    return other, strange


def test_what_does_not_fit_is_listed_completely_and_nothing_is_changed(tmp_path):
    keeper = SlotKeeper()
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2))
    keeper.build([model[0].weight, model[0].bias])
    path = Checkpoint(model=model, optimizer=keeper, epoch=3).save(tmp_path / "save")
    other, strange = unlike(model, keeper)
    checkpoint = Checkpoint(model=other, optimizer=strange, name="x")
    before = copies(other, strange), [s.clone() for _, _, s in strange.table]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(path)
    text = str(caught.value)
    for line in (
        "missing in the checkpoint (2):",
        "model/2.weight",
        "\n    name",
        "unexpected, no object takes it (1):",
        "\n    epoch",
        "of another shape or dtype (6):",
        "model/0.weight: float32 of shape (3, 2) in the checkpoint, "
        "float32 of shape (5, 2) in the object",
        "model/0.bias: float32 of shape (3,)",
        "model/1.weight: float32 of shape (2, 2) in the checkpoint, float64",
        "model/1.bias: ",
        "model/0.weight/.slot/optimizer/m: ",
        "model/0.weight/.slot/optimizer/v: ",
        "Nothing was changed.",
    ):
        assert line in text
    after = copies(other, strange), [s.clone() for _, _, s in strange.table]
    assert all(map(torch.equal, before[0] + before[1], after[0] + after[1]))
    assert strange.learning_rate == 0.7
    assert checkpoint.name == "x"


def test_what_fits_is_restored_and_the_rest_is_listed(tmp_path):
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    path = Checkpoint(model=model, epoch=1).save(tmp_path / "save")
    deeper: Any = nn.Sequential(
        nn.Linear(2, 3), nn.Linear(3, 1, bias=False), nn.PReLU()
    )
    status = Checkpoint(model=deeper).restore(path)
    assert torch.equal(deeper[0].weight, model[0].weight)
    assert torch.equal(deeper[1].weight, model[1].weight)
    assert status.missing == ("model/2.weight",)
    assert set(status.unexpected) == {"epoch", "model/1.bias"}
    assert status.mismatched == ()
    assert status.expect_partial() is status


def test_status_assertions_list_what_they_found(tmp_path):
    path = Checkpoint(a=torch.ones(1), b=torch.ones(1)).save(tmp_path / "save")
    status = Checkpoint(a=torch.zeros(1)).restore(path)
    assert status.assert_existing_objects_matched() is status
    with pytest.raises(UnmatchedError, match=r"unexpected.*\(1\):\n    b"):
        status.assert_consumed()
    status = Checkpoint(a=torch.zeros(1), c=torch.zeros(1)).restore(path)
    with pytest.raises(AssertionError, match=r"missing.*\(1\):\n    c"):
        status.assert_existing_objects_matched()


def saved_keeper(tmp_path, learning_rate):
    keeper = SlotKeeper(learning_rate=learning_rate)
    return Checkpoint(optimizer=keeper).save(tmp_path / "save")


def test_hyperparameters_come_from_the_checkpoint_and_are_logged(tmp_path, caplog):
    path = saved_keeper(tmp_path, 0.5)
    keeper = SlotKeeper(learning_rate=0.125)
    with caplog.at_level(logging.WARNING, logger="thalweg"):
        status = Checkpoint(optimizer=keeper).restore(path)
    assert keeper.learning_rate == 0.5
    line = "optimizer/.hyper/learning_rate: 0.5 in the checkpoint, 0.125 in the object"
    assert status.hyper_differences == (line,)
    assert line in caplog.text


def test_hyperparameters_are_kept_or_refused_on_demand(tmp_path):
    path = saved_keeper(tmp_path, 0.5)
    keeper = SlotKeeper(learning_rate=0.125)
    keeper.iterations.assign(3)
    checkpoint = Checkpoint(optimizer=keeper)
    with pytest.raises(CheckpointError, match=r"0\.5 in the checkpoint, 0\.125"):
        checkpoint.restore(path, hyper="error-if-different")
    assert int(keeper.iterations) == 3
    assert checkpoint.restore(path, hyper="keep").hyper_differences == ()
    assert keeper.learning_rate == 0.125
    assert int(keeper.iterations) == 0
    keeper.learning_rate = 0.5
    checkpoint.restore(path, hyper="error-if-different").assert_consumed()
    with pytest.raises(ValueError, match="Did you mean 'keep'"):
        checkpoint.restore(path, hyper=cast("Any", "keeep"))


class Other(SlotKeeper):
    def hyperparameters(self):
        return {"learning_rate": self.learning_rate, "rho": 0.9}


@pytest.mark.parametrize("hyper", ["checkpoint", "keep"])
def test_another_kind_of_optimizer_is_refused(tmp_path, hyper):
    path = saved_keeper(tmp_path, 0.5)
    other = Other()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(optimizer=other).restore(path, hyper=hyper)
    assert "optimizer/.hyper: nesterov in the checkpoint, rho in" in str(caught.value)
    assert other.learning_rate == 0.1


def test_a_hyperparameter_more_or_less_is_listed(tmp_path):
    class More(SlotKeeper):
        def hyperparameters(self):
            return {**super().hyperparameters(), "rho": 0.9}

    more, keeper = More(), SlotKeeper()
    status = Checkpoint(optimizer=more).restore(saved_keeper(tmp_path, 0.5))
    assert status.missing == ("optimizer/.hyper/rho",)
    assert more.learning_rate == 0.5
    path = Checkpoint(optimizer=more).save(tmp_path / "more")
    status = Checkpoint(optimizer=keeper).restore(path)
    assert status.unexpected == ("optimizer/.hyper/rho",)
    assert keeper.learning_rate == 0.5


def test_an_object_that_refuses_its_state_undoes_the_others(tmp_path):
    class Refusing:
        def state_dict(self):
            return {"x": 1}

        def load_state_dict(self, state_dict):
            raise RuntimeError("not today")

    model, keeper, table = nn.Linear(1, 1), SlotKeeper(learning_rate=0.5), {"a": 1}
    make = {"optimizer": keeper, "model": model, "table": table}
    path = Checkpoint(**make, refusing=Refusing()).save(tmp_path / "save")
    keeper.learning_rate, table["a"] = 0.25, 2
    with torch.no_grad():
        model.weight.fill_(9.0)
    checkpoint = Checkpoint(**make, refusing=Refusing())
    with pytest.raises(CheckpointError, match=r"'refusing' was refused \(not today\)"):
        checkpoint.restore(path)
    assert keeper.learning_rate == 0.25
    assert table == {"a": 2}
    assert model.weight.item() == 9.0


def test_a_slot_that_the_optimizer_refuses_leaves_the_variables(tmp_path):
    model, keeper = nn.Linear(1, 1), SlotKeeper()
    keeper.build(model.parameters())
    path = Checkpoint(model=model, optimizer=keeper).save(tmp_path / "save")
    with torch.no_grad():
        model.weight.fill_(9.0)
    other = SlotKeeper(learning_rate=0.75, known=())
    with pytest.raises(
        CheckpointError, match=r"optimizer/m' was refused \(no slot m\)"
    ):
        Checkpoint(model=model, optimizer=other).restore(path)
    assert model.weight.item() == 9.0
    assert other.learning_rate == 0.75


def test_a_slot_is_never_made_of_another_dtype(tmp_path):
    class Converting(SlotKeeper):
        def restore_slot_variable(self, slot_name, variable, value):
            super().restore_slot_variable(slot_name, variable, value.bfloat16())

    model, keeper = nn.Linear(1, 1), SlotKeeper()
    keeper.build(model.parameters())
    path = Checkpoint(model=model, optimizer=keeper).save(tmp_path / "save")
    fresh = nn.Linear(1, 1)
    before = copies(fresh)
    checkpoint = Checkpoint(model=fresh, optimizer=Converting())
    with pytest.raises(CheckpointError, match=r"bfloat16 where .* torch\.float32"):
        checkpoint.restore(path)
    assert all(map(torch.equal, copies(fresh), before))


def test_variables_of_no_object_are_said_once_and_restored_by_order(tmp_path):
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    keeper = SlotKeeper(known=("m",))
    keeper.build([one, two])
    checkpoint = Checkpoint(optimizer=keeper)
    with pytest.warns(UserWarning, match="no saved object holds 2 variables"):
        path = checkpoint.save(tmp_path / "a")
    checkpoint.save(tmp_path / "b")
    keeper.slot(one, "m").assign([0.0, 0.0])
    checkpoint.restore(path).assert_consumed()
    assert keeper.slot(one, "m").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex128),
        torch.eye(2).to_sparse(),
    ],
    ids=["meta", "complex128", "sparse"],
)
def test_what_cannot_be_stored_is_refused_before_a_file_is_made(tmp_path, tensor):
    with pytest.raises(CheckpointError, match=r"x: .*tensor of shape"):
        Checkpoint(x=tensor, y=torch.ones(1)).save(tmp_path / "save")
    assert list(tmp_path.iterdir()) == []


def test_a_target_without_storage_is_refused(tmp_path):
    path = Checkpoint(x=torch.ones(2)).save(tmp_path / "save")
    with pytest.raises(CheckpointError, match="meta device"):
        Checkpoint(x=torch.ones(2, device="meta")).restore(path)


def test_tensors_of_a_state_do_not_go_into_a_plain_value(tmp_path):
    path = Checkpoint(x=torch.Generator()).save(tmp_path / "save")
    with pytest.raises(CheckpointError, match="a state with tensors"):
        Checkpoint(x={"a": 1}).restore(path)


def test_construction_and_update_refuse_bad_names():
    with pytest.raises(ValueError, match="got none"):
        Checkpoint()
    with pytest.raises(ValueError, match="the name of a method, 'restore'"):
        Checkpoint(restore=torch.ones(1))
    checkpoint = Checkpoint(epoch=1)
    with pytest.raises(ValueError, match="Did you mean 'epoch'"):
        checkpoint.update(epoch=2, epohc=3)
    assert checkpoint.epoch == 1
    with pytest.raises(AttributeError, match="no object 'model'"):
        _ = checkpoint.model


def test_a_missing_checkpoint_is_named(tmp_path):
    checkpoint = Checkpoint(x=torch.ones(1))
    with pytest.raises(CheckpointError, match="got nothing"):
        checkpoint.restore(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="got a file"):
        checkpoint.restore(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"a folder without manifest\.json"):
        checkpoint.restore(tmp_path / "empty")


@pytest.mark.parametrize("path", [None, 3, b"c"])
def test_what_is_no_path_is_refused_in_words(path):
    checkpoint = Checkpoint(x=Variable(torch.zeros(1)))
    for call in (
        *(checkpoint.restore, checkpoint.save, checkpoint.save_async),
        *(read_metadata, read_manifest, verify),
    ):
        with pytest.raises(TypeError, match="Checkpoint: expected a path; got") as told:
            call(path)
        assert ("restore_or_initialize()" in str(told.value)) == (path is None)


def test_existing_path_is_refused_and_overwrite_replaces(tmp_path):
    value = Variable([1.0])
    checkpoint = Checkpoint(x=value)
    path = checkpoint.save(tmp_path / "save")
    value.assign([2.0])
    with pytest.raises(CheckpointError, match="overwrite=True"):
        checkpoint.save(path)
    checkpoint.restore(path)
    assert value.item() == 1.0
    value.assign([2.0])
    assert checkpoint.save(path, overwrite=True) == path
    value.assign([3.0])
    checkpoint.restore(path)
    assert value.item() == 2.0
    assert os.listdir(tmp_path) == ["save"]


def test_an_interrupted_overwrite_is_read_from_where_the_old_one_was_put(tmp_path):
    value = Variable([1.0])
    checkpoint = Checkpoint(x=value)
    path = checkpoint.save(tmp_path / "save", metadata={"a": 1})
    os.rename(path, f"{path}.old-{7:032x}")
    value.assign([2.0])
    with pytest.warns(UserWarning, match="was interrupted"):
        checkpoint.restore(path)
    assert value.item() == 1.0
    assert read_metadata(path) == {"a": 1}
