"""Finding, naming and listing the variables of an object."""

from __future__ import annotations

import collections
import copy
import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import nn

from thalweg.state import (
    NoDependency,
    Trackable,
    Variable,
    VariableList,
    aliases,
    named_variables,
    walk,
)


class Box(Trackable):
    """Holds whatever it is given."""

    def __init__(self, **attributes: object) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Layer(Trackable, nn.Module):
    """Both at once, as the layers of the training room are."""


class LayerTheOtherWay(nn.Module, Trackable):
    """The same with its bases exchanged."""


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def test_variables_in_attributes_and_nested_containers() -> None:
    class Pair(NamedTuple):
        left: object
        right: object

    box = Box(
        kernel=Variable([1.0]),
        blocks=[{"a": (parameter(), 3)}, "text", None],
        pair=Pair(parameter(), Box(bias=Variable([0.0], trainable=False))),
        ordered=collections.OrderedDict(z=parameter()),
        table={1: parameter()},
    )
    names = ["kernel", "blocks.0.a.0", "pair.0", "pair.1.bias", "ordered.z", "table.1"]
    assert list(named_variables(box)) == names
    assert box.variables == list(named_variables(box).values())
    assert len(box.trainable_variables) == 5
    assert box.non_trainable_variables == [box.pair.right.bias]


def test_containers_stay_the_users_own() -> None:
    layers = [parameter()]
    box = Box(layers=layers)
    assert box.layers is layers
    layers.append(parameter())
    assert len(box.variables) == 2
    layers.clear()
    assert box.variables == []


def test_plain_tensors_are_not_variables() -> None:
    assert Box(cache=torch.ones(2), more=[torch.ones(2)]).variables == []


def test_buffer_attributes_are_not_trainable_variables() -> None:
    box = Box(mean=nn.Buffer(torch.zeros(2)))
    assert box.non_trainable_variables == [box.mean]


def test_tied_variables_are_listed_once_under_the_first_name() -> None:
    shared = parameter()
    box = Box(first=shared, second=[shared])
    assert named_variables(box) == {"first": shared}
    assert aliases(box) == {"second.0": "first"}


def test_tied_modules_have_aliases_for_all_their_names() -> None:
    tied = nn.Linear(2, 2)
    box = Box(encoder=[tied], decoder={"head": tied, "again": tied.weight})
    assert list(named_variables(box)) == ["encoder.0.weight", "encoder.0.bias"]
    assert aliases(box) == {
        "decoder.head.weight": "encoder.0.weight",
        "decoder.head.bias": "encoder.0.bias",
        "decoder.again": "encoder.0.weight",
    }


def test_aliases_inside_shared_parts() -> None:
    weight = parameter()
    part = Box(inner=weight)
    root = Box(a=weight, b=part, c=part)
    assert named_variables(root) == {"a": weight}
    assert aliases(root) == {"b.inner": "a", "c.inner": "a"}


def test_cycles_end() -> None:
    parent, child = Box(), Box(kernel=parameter())
    parent.child, child.parent = child, parent
    child.itself = [child]
    assert list(named_variables(parent)) == ["child.kernel"]
    assert list(named_variables(child)) == ["kernel"]
    assert aliases(parent) == {}


def test_a_list_that_contains_itself() -> None:
    items: list[object] = [parameter()]
    items.append(items)
    assert list(named_variables(items)) == ["0"]


def test_deep_nesting_needs_no_recursion() -> None:
    nested: object = parameter()
    for _ in range(5000):
        nested = [nested]
    assert len(named_variables(Box(nested=nested))) == 1


def test_modules_inside_trackables_and_the_reverse() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.helper = Box(scale=parameter())

    box = Box(net=Net())
    names = ["net.linear.weight", "net.linear.bias", "net.helper.scale"]
    assert list(named_variables(box)) == names
    assert list(named_variables(box.net)) == [name[4:] for name in names]


def test_plain_modules_hold_what_torch_says_they_hold() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net.forgotten = [nn.Linear(2, 2)]  # pyright: ignore[reportArgumentType]
    names = named_variables(net)
    assert set(names) == set(net.state_dict())
    parameters = [name for name, one in names.items() if one.requires_grad]
    assert parameters == [name for name, _ in net.named_parameters()]
    assert Box(net=net).non_trainable_variables == list(net.buffers())


def test_non_persistent_buffers_are_left_out() -> None:
    net = nn.Module()
    net.register_buffer("mask", torch.ones(2), persistent=False)
    net.register_buffer("mean", torch.ones(2))
    net.register_buffer("nothing", None)
    assert list(named_variables(net)) == ["mean"]


@pytest.mark.parametrize("kind", [Layer, LayerTheOtherWay])
def test_layers_are_both(kind: type[Layer]) -> None:
    layer = kind()
    layer.kernel = parameter()
    layer.inner = nn.Linear(1, 1, bias=False)
    layer.many = [nn.Linear(1, 1, bias=False)]
    names = ["kernel", "inner.weight", "many.0.weight"]
    assert list(named_variables(layer)) == names
    assert "kernel" in dict(layer.named_parameters())


@pytest.mark.parametrize("kind", [Box, Layer])
def test_opting_out_and_in_again(kind: type[Trackable]) -> None:
    owner: Any = kind()
    owner.teacher = NoDependency(nn.Linear(2, 2))
    assert isinstance(owner.teacher, nn.Linear)
    assert owner.variables == []
    teacher = owner.teacher
    owner.teacher = teacher
    del owner.teacher
    owner.teacher = teacher
    assert len(owner.variables) == 2
    owner.teacher = NoDependency(teacher)
    assert owner.variables == []
    if isinstance(owner, nn.Module):
        assert list(owner.parameters()) == []


def test_opting_out_survives_copies_and_pickle() -> None:
    box = Box(teacher=NoDependency(parameter()), kernel=parameter())
    for copied in (copy.deepcopy(box), pickle.loads(pickle.dumps(box))):
        assert list(named_variables(copied)) == ["kernel"]


def test_opting_out_before_the_module_is_ready() -> None:
    class Early(Layer):
        def __init__(self) -> None:
            self.settings = NoDependency({"a": 1})
            super().__init__()

    assert Early().settings == {"a": 1}


def test_subclasses_may_offer_more_children() -> None:
    class Lazy(Trackable):
        def _trackable_children(self) -> Iterable[tuple[str, object]]:
            yield from super()._trackable_children()
            yield "made", torch.ones(3)
            yield "label", "ignored"

    assert list(named_variables(Lazy())) == ["made"]


def test_walk_yields_every_node_once() -> None:
    box = Box(parts=[nn.Linear(1, 1, bias=False)], own=parameter())
    found = list(walk(box))
    assert [path for path, _ in found] == ["", "parts.0", "parts.0.weight", "own"]
    assert found[0][1] is box
    assert next(path for path, _ in walk({"a": box})) == "a"


def test_a_trackable_that_is_a_list() -> None:
    class Stack(list[object], Trackable):
        pass

    stack = Stack([parameter()])
    stack.extra = parameter()
    assert list(named_variables({"stack": stack})) == ["stack.0", "stack.extra"]
    assert stack in [found for _, found in walk(stack)]


def test_keys_with_dots_and_odd_keys() -> None:
    box = Box(table={"a.b": parameter(), "a%": parameter(), (1, 2): parameter()})
    assert list(named_variables(box)) == ["table.a%2Eb", "table.a%25", "table.2"]


def test_two_variables_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one variable for each name.*'table.0'"):
        named_variables(Box(table={0: parameter(), "0": parameter()}))


def test_lists_of_variables_compare_by_identity() -> None:
    one, two = parameter(), parameter()
    variables = VariableList([one, two, one])
    assert variables() is variables
    assert one in variables
    assert parameter() not in variables
    assert (variables.index(two), variables.index(one, 1)) == (1, 2)
    assert variables.count(one) == 2
    assert variables == [one, two, one]
    assert variables != [one, two]
    assert variables != [one, one, two]
    assert variables != (one, two, one)
    assert isinstance(variables + variables, VariableList)
    variables.remove(two)
    assert variables == [one, one]


def test_what_is_left_out_shows_its_value() -> None:
    assert repr(NoDependency([1, 2])) == "NoDependency([1, 2])"


def test_lists_of_variables_say_what_they_lack() -> None:
    with pytest.raises(ValueError, match="got float32 tensor of shape"):
        VariableList().index(parameter())


def test_properties_can_be_called() -> None:
    box = Box(kernel=parameter())
    assert box.variables() == box.variables
    assert box.trainable_variables() == [box.kernel]
    assert box.non_trainable_variables() == []


def test_freezing_moves_a_variable_to_the_other_list() -> None:
    box = Box(kernel=Variable([1.0]))
    box.kernel.trainable = False
    assert (box.trainable_variables, box.non_trainable_variables) == ([], [box.kernel])
