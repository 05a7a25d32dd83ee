"""From objects to keys."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.checkpoint.slot_keeper import SlotKeeper
from thalweg.checkpoint.graph import build_graph
from thalweg.checkpoint.keys import parse_slot_key
from thalweg.errors import CheckpointError
from thalweg.optimizers import Adam, Nadam
from thalweg.state import Trackable, Variable, as_variable


class Generator:
    def state_dict(self):
        return {"state": torch.arange(3, dtype=torch.uint8)}

    def load_state_dict(self, state_dict):
        self.loaded = state_dict


def test_modules_trackables_tensors_and_values_have_keys():
    owner = Trackable()
    owner.parts = {"a": [Variable([1.0])]}
    graph = build_graph(
        {
            "model": nn.Sequential(nn.Linear(2, 1)),
            "owner": owner,
            "single": Variable(2),
            "epoch": 4,
            "generator": Generator(),
            "list": [nn.Linear(1, 1, bias=False), "word"],
        }
    )
    assert list(graph.tensors) == [
        "model/0.weight",
        "model/0.bias",
        "owner/parts.a.0",
        "single",
        "list/0.weight",
    ]
    assert list(graph.values) == ["epoch", "generator", "list/1"]
    assert graph.values["epoch"].get() == 4
    assert graph.step is None


def test_slots_stand_under_their_variables_and_nowhere_else():
    model, keeper = nn.Linear(2, 1), SlotKeeper()
    keeper.build([model.bias])
    keeper.exposed = [keeper.slot(model.bias, "m")]
    keeper.extra = Variable([1.0])
    for objects in (
        {"model": model, "optimizer": keeper},
        {"optimizer": keeper, "model": model},
    ):
        graph = build_graph(objects)
        assert set(graph.tensors) == {
            "model/weight",
            "model/bias",
            "optimizer/iterations",
            "optimizer/extra",
        }
        assert set(graph.slots) == {
            "model/bias/.slot/optimizer/m",
            "model/bias/.slot/optimizer/v",
        }
        assert graph.step == 0


def test_tied_variables_have_one_key_and_aliases():
    tied = nn.Linear(2, 2, bias=False)
    model = nn.ModuleDict({"encoder": tied, "decoder": tied})
    graph = build_graph({"model": model, "head": model["decoder"]})
    assert list(graph.tensors) == ["model/encoder.weight"]
    assert graph.aliases == {
        "model/decoder.weight": "model/encoder.weight",
        "head/weight": "model/encoder.weight",
    }
    assert graph.variable("head/weight") is tied.weight
    assert graph.variable("nobody") is None


def test_an_optimizer_inside_an_object_is_found_there():
    gan: Any = Trackable()
    gan.generator = nn.Linear(1, 1, bias=False)
    gan.optimizer = SlotKeeper()
    gan.optimizer.build([gan.generator.weight])
    graph = build_graph({"gan": gan})
    assert "gan/optimizer.iterations" in graph.tensors
    assert "gan/generator.weight/.slot/gan/optimizer/m" in graph.slots
    graph = build_graph({"gan": gan, "optimizer": gan.optimizer})
    assert list(graph.tensors) == ["gan/generator.weight", "optimizer/iterations"]
    assert "gan/generator.weight/.slot/optimizer/m" in graph.slots
    assert list(graph.owners) == ["optimizer"]


def test_an_optimizer_is_known_by_its_public_names():
    model, optimizer = nn.Linear(2, 1), Nadam()
    optimizer.build(model)
    holder: Any = Trackable()
    holder.optimizer = Adam()
    graph = build_graph({"model": model, "optimizer": optimizer, "holder": holder})
    own = [key for key in graph.tensors if key.startswith("optimizer")]
    assert "optimizer/iterations" in own
    assert not any("/_" in key or "._" in key for key in own)
    assert "holder/optimizer.iterations" in graph.tensors
    assert graph.aliases == {}
    shared: Any = Trackable()
    shared.step = optimizer.iterations
    graph = build_graph({"shared": shared, "model": model, "optimizer": optimizer})
    assert "optimizer/iterations" not in graph.tensors
    assert graph.aliases == {"optimizer/iterations": "shared/step"}


def test_names_that_look_like_other_parts_of_a_key_are_escaped():
    model = nn.Module()
    model.register_parameter("a/b", nn.Parameter(torch.ones(1)))
    odd: Any = Trackable()
    odd.table = {".slot": Variable([1.0]), "x/.slot/o/m": Variable([2.0])}
    graph = build_graph({"m/n": model, ".slot": odd})
    assert list(graph.tensors) == [
        "m%2Fn/a%2Fb",
        "%2Eslot/table.%252Eslot",
        "%2Eslot/table.x%2F%252Eslot%2Fo%2Fm",
    ]
    assert all(parse_slot_key(key) is None for key in graph.tensors)


def test_variables_of_no_saved_object_are_unnamed():
    keeper = SlotKeeper(known=("m",))
    keeper.build([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))])
    graph = build_graph({"optimizer": keeper})
    assert list(graph.unnamed) == ["unnamed_0", "unnamed_1"]
    assert list(graph.slots) == [
        "unnamed_0/.slot/optimizer/m",
        "unnamed_1/.slot/optimizer/m",
    ]


def test_a_view_is_the_tensor_it_shows():
    model = nn.Linear(1, 1, bias=False)
    graph = build_graph({"model": model, "view": as_variable(model.weight)})
    assert graph.aliases == {"view": "model/weight"}


def test_wrapper_segments_and_non_persistent_buffers_are_left_out():
    inner = nn.BatchNorm1d(2)
    inner.register_buffer("scratch", torch.zeros(1), persistent=False)
    plain = build_graph({"model": nn.Sequential(inner)})
    wrapped = torch.compile(nn.Sequential(inner), backend="eager")
    compiled = build_graph({"model": wrapped})
    assert list(plain.tensors) == list(compiled.tensors)
    assert "model/0.scratch" not in plain.tensors
    assert "model/0.running_mean" in plain.tensors


def test_extra_state_of_modules_is_a_value():
    class Counting(nn.Linear):
        count = 3

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    model = nn.Sequential(Counting(1, 1))
    graph = build_graph({"model": model})
    assert graph.values["model/0._extra_state"].get() == {"count": 3}
    graph.values["model/0._extra_state"].put({"count": 7})
    assert model[0].count == 7


def test_plain_values_are_put_back_in_place():
    objects = {"epoch": 1, "history": {"loss": [1.0]}, "mixed": [nn.Linear(1, 1), 5]}
    history, loss, mixed = (
        objects["history"],
        objects["history"]["loss"],
        objects["mixed"],
    )
    graph = build_graph(objects)
    graph.values["epoch"].put(2)
    graph.values["history"].put({"loss": [1.0, 0.5]})
    graph.values["mixed/1"].put(6)
    assert objects["epoch"] == 2
    assert objects["history"] is history
    assert history == {"loss": [1.0, 0.5]}
    assert loss == [1.0]
    assert objects["mixed"] is mixed
    assert mixed[1] == 6


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, lambda: None, [nn.Linear(1, 1), object()]]
)
def test_an_object_without_state_is_refused(value):
    with pytest.raises(CheckpointError, match=r"expected a module.*state_dict"):
        build_graph({"thing": value})


def test_two_things_by_one_name_are_refused():
    clash = {"a.b": nn.Linear(1, 1), "a": {"b": nn.Linear(1, 1)}}
    with pytest.raises(CheckpointError, match=r"two by the name 'parts/a\.b\.weight'"):
        build_graph({"parts": clash})
    with pytest.raises(CheckpointError, match="two by the name 'parts/0'"):
        build_graph({"parts": {0: 1, "0": 2, "x": nn.Linear(1, 1)}})
    holder = Trackable()
    holder.table = {0: Variable(1.0), "0": Variable(2.0)}
    with pytest.raises(CheckpointError, match="'holder'"):
        build_graph({"holder": holder})
