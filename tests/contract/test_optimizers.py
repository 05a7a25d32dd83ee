"""What every optimizer of the package does, found by its public name."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from typing import Any

import pytest
import torch

import thalweg as tw

OPTIMIZERS = {
    name: cls
    for name in tw.optimizers.__all__
    if inspect.isclass(cls := getattr(tw.optimizers, name))
    and issubclass(cls, tw.Optimizer)
    and cls is not tw.Optimizer
}
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
SHAPES = [(7,), (3, 5), ()]
# Rules that reduce over the whole variable: an update of some rows moves all of them.
NEEDS_ALL_ROWS = {"Lamb"}
# Keras refuses a schedule here.
REFUSES_SCHEDULES = {"Nadam"}


def make_variables(dtype: torch.dtype = torch.float32) -> list[tw.Variable]:
    torch.manual_seed(1)
    return [
        tw.Variable(torch.randn(shape, dtype=dtype), name=f"v{i}")
        for i, shape in enumerate(SHAPES)
    ]


def gradients(step: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def train(optimizer: tw.Optimizer, variables: list[Any], steps: range) -> None:
    for step in steps:
        grads = gradients(step, variables[0].dtype)
        optimizer.apply_gradients(zip(grads, variables, strict=True))


def flags_of(cls: type[tw.Optimizer]) -> list[dict[str, bool]]:
    return [{}] + [
        {name: not flag.default} for name, flag in cls._flags_declared.items()
    ]


@every_optimizer
def test_there_is_a_step_that_lowers_a_parabola(cls: type[tw.Optimizer]) -> None:
    for flags in flags_of(cls):
        weight = tw.Variable([3.0, -2.0])
        optimizer = cls(learning_rate=0.1, **flags)
        start = (weight * weight).sum().item()
        for _ in range(60):
            optimizer.minimize(lambda w=weight: (w * w).sum(), [weight])
        assert (weight * weight).sum().item() < start
        assert int(optimizer.iterations) == 60


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(cls: type[tw.Optimizer], dtype: torch.dtype) -> None:
    variables = make_variables(dtype)
    optimizer = cls()
    train(optimizer, variables, range(2))
    assert all(v.dtype == dtype for v in variables)
    half = dtype in (torch.bfloat16, torch.float16)
    slots = [slot for _, _, slot in optimizer.slot_variables()]
    assert all(s.dtype == (torch.float32 if half else dtype) for s in slots)


@every_optimizer
def test_slot_dtypes_variable_is_keras(cls: type[tw.Optimizer]) -> None:
    variables = make_variables(torch.bfloat16)
    optimizer = cls(slot_dtypes="variable")
    optimizer.build(variables)
    assert all(s.dtype == torch.bfloat16 for _, _, s in optimizer.slot_variables())


@every_optimizer
def test_same_bits_twice(cls: type[tw.Optimizer]) -> None:
    runs = []
    for _ in range(2):
        variables = make_variables()
        train(cls(), variables, range(5))
        runs.append([v.detach().clone() for v in variables])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@every_optimizer
def test_config_round_trip(cls: type[tw.Optimizer]) -> None:
    for flags in flags_of(cls):
        optimizer = cls(learning_rate=0.25, clipnorm=2.0, weight_decay=0.5, **flags)
        config = json.loads(json.dumps(optimizer.get_config()))
        assert config["learning_rate"] == 0.25
        again = tw.optimizers.deserialize(
            {"class_name": cls.__name__, "config": config}
        )
        assert type(again) is cls
        assert again.get_config() == optimizer.get_config()
        assert tw.optimizers.serialize(again) == tw.optimizers.serialize(optimizer)


@every_optimizer
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "weights"])
def test_copies_go_on_with_the_same_bits(cls: type[tw.Optimizer], how: str) -> None:
    for flags in flags_of(cls):
        variables = make_variables()
        optimizer = cls(**flags)
        train(optimizer, variables, range(3))
        if how == "deepcopy":
            other_variables, other = copy.deepcopy((variables, optimizer))
        elif how == "pickle":
            other_variables, other = pickle.loads(pickle.dumps((variables, optimizer)))
        else:
            other_variables = copy.deepcopy(variables)
            other = cls.from_config(optimizer.get_config())
            other.build(other_variables)
            other.set_weights(optimizer.get_weights())
        train(optimizer, variables, range(3, 6))
        train(other, other_variables, range(3, 6))
        pairs = zip(variables, other_variables, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert int(other.iterations) == 6
        assert [w.name for w in other.weights] == [w.name for w in optimizer.weights]


@every_optimizer
def test_slots_exist_for_variables_without_a_gradient(cls: type[tw.Optimizer]) -> None:
    variables = make_variables()
    optimizer = cls()
    grads = gradients(0)
    with pytest.warns(UserWarning, match="v1"):
        optimizer.apply_gradients([(grads[0], variables[0]), (None, variables[1])])
    shapes = {"like": (3, 5), "row": (3, 1), "scalar": ()}
    for name in optimizer.get_slot_names():
        layout = cls._slots_declared[name].shape
        assert optimizer.get_slot(variables[1], name).shape == shapes[layout]
    with pytest.raises(KeyError, match="get_slot"):
        optimizer.get_slot(variables[2], "m")


@every_optimizer
def test_rows_leave_other_rows_alone(cls: type[tw.Optimizer]) -> None:
    table = tw.Variable(torch.randn(6, 2))
    before = table.detach().clone()
    optimizer = cls(learning_rate=0.1)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    slices = tw.IndexedSlices(values, torch.tensor([4, 1, 4]), (6, 2))
    optimizer.apply_gradients([(slices, table)])
    touched = (table != before).any(1)
    assert touched.tolist() == [False, True, False, False, True, False]


@every_optimizer
def test_rows_equal_the_dense_update_of_these_rows(cls: type[tw.Optimizer]) -> None:
    table = tw.Variable(torch.randn(6, 2))
    rows = tw.Variable(table.detach()[[4, 1]])
    by_rows, by_whole = cls(learning_rate=0.1), cls(learning_rate=0.1)
    for step in range(3):
        values = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
        slices = tw.IndexedSlices(values, torch.tensor([4, 1, 4]), (6, 2))
        by_rows.apply_gradients([(slices, table)])
        dense = torch.stack([values[0] + values[2], values[1]])
        by_whole.apply_gradients([(dense, rows)])
    same = torch.equal(table.detach()[[4, 1]], rows.detach())
    assert same == (cls.__name__ not in NEEDS_ALL_ROWS)


@every_optimizer
@pytest.mark.parametrize("policy", ["exact", "rows", "keras"])
def test_exact_equals_dense(cls: type[tw.Optimizer], policy: str) -> None:
    if policy != "exact" and cls.__name__ not in NEEDS_ALL_ROWS:
        return
    start = torch.randn(6, 2)
    sparse, dense = tw.Variable(start), tw.Variable(start)
    by_rows, by_whole = cls(sparse_update=policy), cls()
    for step in range(3):
        values = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
        slices = tw.IndexedSlices(values, torch.tensor([4, 1, 4]), (6, 2))
        by_rows.apply_gradients([(slices, sparse)])
        by_whole.apply_gradients([(slices.to_dense(), dense)])
    assert torch.equal(sparse, dense)


def steps_with_shared_memory(
    cls: type[tw.Optimizer], where: str, order: tuple[int, ...], *, is_shared: bool
) -> list[torch.Tensor]:
    """Variables after steps in which one gradient is, or equals, a part of another."""
    generator = torch.Generator().manual_seed(3)
    shapes = (6, 2), (6, 2), (2, 2), (2, 2)
    tables = [torch.randn(shape, generator=generator) for shape in shapes]
    first, second, matrix, other = tables
    lends = {"dense in table": first[:2], "rows in dense": matrix}
    lends |= {"rows in table": second[2:4], "rows in own": first[2:4]}
    optimizer = cls(learning_rate=0.1)
    for step in range(4):
        lent = lends[where] if is_shared else lends[where].clone()
        rows, dense = torch.full((2, 2), 0.1 * step), torch.full((2, 2), 0.2)
        rows, dense = (rows, lent) if where == "dense in table" else (lent, dense)
        given = [
            (tw.IndexedSlices(rows, torch.tensor([0, 3]), (6, 2)), first),
            (tw.IndexedSlices(dense.clone(), torch.tensor([1, 2]), (6, 2)), second),
            (dense, matrix),
            (torch.full((2, 2), 0.5), other),
        ]
        optimizer.apply_gradients([given[place] for place in order])
    return tables


@every_optimizer
@pytest.mark.parametrize(
    "where", ["dense in table", "rows in dense", "rows in table", "rows in own"]
)
def test_gradients_are_read_before_what_they_lie_in_is_written(
    cls: type[tw.Optimizer], where: str
) -> None:
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        shared, apart = (
            steps_with_shared_memory(cls, where, order, is_shared=is_shared)
            for is_shared in (True, False)
        )
        assert all(map(torch.equal, shared, apart)), order


@every_optimizer
def test_torch_sparse_gradients_are_taken(cls: type[tw.Optimizer]) -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    before = embedding.weight.detach().clone()
    loss = embedding(torch.tensor([1, 1, 3])).square().sum()
    loss.backward()
    cls(learning_rate=0.1).apply_gradients([(embedding.weight.grad, embedding.weight)])
    changed = (embedding.weight != before).any(1).tolist()
    assert changed == [False, True, False, True, False]


@every_optimizer
def test_memory_format_is_kept(cls: type[tw.Optimizer]) -> None:
    image = torch.randn(2, 3, 4, 4)
    last = tw.Variable(image)
    last.data = image.contiguous(memory_format=torch.channels_last)
    first = tw.Variable(image)
    one, other = cls(), cls()
    for step in range(2):
        grad = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        one.apply_gradients([(grad, last)])
        other.apply_gradients([(grad, first)])
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, first)


@every_optimizer
def test_weight_decay_is_decoupled(cls: type[tw.Optimizer]) -> None:
    plain, decayed = make_variables(), make_variables()
    with torch.no_grad():
        for variable in plain:
            variable.sub_(variable * (0.1 * 0.5))
    train(cls(learning_rate=0.1, weight_decay=0.0), plain, range(1))
    train(cls(learning_rate=0.1, weight_decay=0.5), decayed, range(1))
    for a, b in zip(plain, decayed, strict=True):
        torch.testing.assert_close(b, a)


@every_optimizer
def test_per_variable_settings(cls: type[tw.Optimizer]) -> None:
    variables, slower, faster = make_variables(), make_variables(), make_variables()
    rates = {"v1": {"learning_rate": tw.scale(0.5)}, "v2": {"learning_rate": 0.3}}
    train(cls(learning_rate=0.1, per_variable=rates), variables, range(2))
    train(cls(learning_rate=0.05), slower, range(2))
    train(cls(learning_rate=0.3), faster, range(2))
    assert torch.equal(variables[1], slower[1])
    assert torch.equal(variables[2], faster[2])
    assert not torch.equal(variables[0], slower[0])


@every_optimizer
def test_a_refused_step_changes_nothing(cls: type[tw.Optimizer]) -> None:
    variables = make_variables()
    optimizer = cls()
    train(optimizer, variables, range(1))
    before = [w.copy() for w in optimizer.get_weights()]
    values = [v.detach().clone() for v in variables]
    grads = gradients(0)
    wrong: list[Any] = [torch.zeros(2), grads[1].to(torch.complex64), grads[1].int()]
    for bad in wrong:
        with pytest.raises(ValueError, match="apply_gradients"):
            optimizer.apply_gradients([(grads[0], variables[0]), (bad, variables[1])])
    with pytest.raises(ValueError, match="twice"):
        optimizer.apply_gradients([(grads[0], variables[0])] * 2)
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply_gradients([(None, v) for v in variables])
    slices = tw.IndexedSlices(torch.ones(1, 5), torch.tensor([3]), (3, 5))
    with pytest.raises(ValueError, match="indices in"):
        optimizer.apply_gradients([(grads[0], variables[0]), (slices, variables[1])])
    assert all(torch.equal(a, b) for a, b in zip(values, variables, strict=True))
    after = optimizer.get_weights()
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@every_optimizer
def test_learning_rate_can_be_a_schedule_or_a_callable(cls: type[tw.Optimizer]) -> None:
    schedule = tw.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    by_schedule, by_callable = make_variables(), make_variables()
    if cls.__name__ in REFUSES_SCHEDULES:
        with pytest.raises(ValueError, match="schedule"):
            cls(learning_rate=schedule)
        return
    train(cls(learning_rate=schedule), by_schedule, range(4))
    train(cls(learning_rate=lambda t: 0.1 * 0.5 ** int(t)), by_callable, range(4))
    pairs = zip(by_schedule, by_callable, strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@every_optimizer
def test_hyperparameters_are_in_bounds(cls: type[tw.Optimizer]) -> None:
    optimizer = cls()
    for name, hyper in cls._hypers_declared.items():
        with pytest.raises(ValueError, match=name):
            setattr(optimizer, name, float("nan"))
        if hyper.low is not None:
            with pytest.raises(ValueError, match=name):
                cls(**{name: hyper.low - 1})
    with pytest.raises(TypeError, match="learning_rate"):
        cls(lerning_rate=0.1)


@every_optimizer
def test_variables_as_attributes_are_tracked(cls: type[tw.Optimizer]) -> None:
    optimizer = cls()
    optimizer.extra = tw.Variable(1.0, name="extra")
    assert optimizer.extra in optimizer.variables
    assert isinstance(optimizer, tw.Trackable)


@every_optimizer
def test_torch_modules_are_updated_in_place(cls: type[tw.Optimizer]) -> None:
    model = torch.nn.Linear(3, 2)
    version = model.weight._version
    loss = model(torch.ones(1, 3)).sum()
    cls().minimize(loss, list(model.parameters()))
    assert model.weight._version > version
    assert type(model.weight) is torch.nn.Parameter
