"""Steps with sparse gradients: repeated ones do what single ones do, to the bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.optimizers.sparse_replay import SparseReplay

ROWS, WIDTH = 50, 8


def slices(seed: int, count: int = 20) -> tw.IndexedSlices:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(ROWS, (count,), generator=generator)
    values = torch.randn(count, WIDTH, generator=generator)
    return tw.IndexedSlices(values, indices, (ROWS, WIDTH))


def dense(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def table() -> tw.Variable:
    generator = torch.Generator().manual_seed(99)
    return tw.Variable(torch.randn(ROWS, WIDTH, generator=generator))


Make = Callable[[], Any]
OPTIMIZERS: list[Make] = [
    tw.optimizers.Adam,
    lambda: tw.optimizers.Adagrad(0.1, clipvalue=0.5),
    lambda: tw.optimizers.RowWiseAdagrad(0.1),
    lambda: tw.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
]


def is_repeated(optimizer: Any) -> bool:
    return isinstance(optimizer._replay, SparseReplay)


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("has_dense", [False, True])
def test_repeated_steps_have_the_bits_of_single_ones(
    make: Make, *, has_dense: bool
) -> None:
    repeated, single = make(), make()
    pair = table(), tw.Variable(torch.ones(3, 4))
    other = table(), tw.Variable(torch.ones(3, 4))
    for seed in range(6):
        for optimizer, (rows, rest) in ((repeated, pair), (single, other)):
            optimizer._replay = optimizer._replay if optimizer is repeated else None
            optimizer._earlier = optimizer._earlier if optimizer is repeated else None
            given: list[Any] = [(slices(seed, 20 + seed), rows)]
            given += [(dense(seed), rest)] * has_dense
            optimizer.apply_gradients(given)
    assert is_repeated(repeated)
    assert not is_repeated(single)
    assert int(repeated.iterations) == 6
    for one, two in zip(pair, other, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(repeated.weights, single.weights, strict=True):
        assert torch.equal(one, two)


def test_torch_gradients_are_repeated_too() -> None:
    optimizer, other = tw.optimizers.Adam(), tw.optimizers.Adam()
    first, second = table(), table()
    for seed in range(5):
        optimizer.apply_gradients([(slices(seed).to_sparse(), first)])
        other.apply_gradients([(slices(seed), second)])
    assert is_repeated(optimizer)
    assert torch.equal(first, second)


@pytest.mark.parametrize("clipvalue", [None, 0.01])
def test_torch_gradients_are_recognized_at_once(
    clipvalue: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = tw.optimizers.SGD(1.0, clipvalue=clipvalue)
    other = tw.optimizers.SGD(1.0, clipvalue=clipvalue)
    first, second = table(), table()
    for seed in range(3):
        optimizer.apply_gradients([(slices(seed).to_sparse(), first)])
        other.apply_gradients([(slices(seed), second)])
    monkeypatch.setattr(optimizer, "_checked", None)  # a closer look would call it
    gradient = slices(4).to_sparse()
    given = [(gradient, first)]
    optimizer.apply_gradients(given)
    assert given[0][0] is gradient
    other.apply_gradients([(slices(4), second)])
    assert torch.equal(first, second)


@pytest.mark.parametrize("wrong", [-1, ROWS])
def test_a_wrong_index_changes_nothing(wrong: int) -> None:
    optimizer = tw.optimizers.Adam()
    rows, rest = table(), tw.Variable(torch.ones(3, 4))
    for seed in range(3):
        optimizer.apply_gradients([(slices(seed), rows), (dense(seed), rest)])
    assert is_repeated(optimizer)
    before = [t.detach().clone() for t in (rows, rest, *optimizer.weights)]
    bad = slices(7)
    bad.indices[4] = wrong
    with pytest.raises(ValueError, match=r"indices\[4\]"):
        optimizer.apply_gradients([(bad, rows), (dense(7), rest)])
    after = (rows, rest, *optimizer.weights)
    assert all(map(torch.equal, before, after))
    optimizer.apply_gradients([(slices(8), rows), (dense(8), rest)])
    assert int(optimizer.iterations) == 4


@pytest.mark.parametrize(
    ("gradient", "error"),
    [
        (tw.IndexedSlices(torch.ones(2, 3), torch.tensor([0, 1])), "shape"),
        (tw.IndexedSlices(torch.ones(2, WIDTH).long(), torch.tensor([0, 1])), "float"),
        (
            tw.IndexedSlices(torch.ones(2, WIDTH), torch.tensor([0, 1]), (9, WIDTH)),
            "shape",
        ),
    ],
)
def test_what_does_not_fit_is_refused(gradient: Any, error: str) -> None:
    optimizer, rows = tw.optimizers.SGD(0.1), table()
    for seed in range(3):
        optimizer.apply_gradients([(slices(seed), rows)])
    with pytest.raises(ValueError, match=error):
        optimizer.apply_gradients([(gradient, rows)])


def test_a_constraint_set_later_is_respected() -> None:
    optimizer, rows = tw.optimizers.SGD(0.1), table()
    for seed in range(3):
        optimizer.apply_gradients([(slices(seed), rows)])
    rows.constraint = torch.relu
    with pytest.raises(RuntimeError, match="constraint"):
        optimizer.apply_gradients([(slices(4), rows)])


def test_other_numbers_memory_and_kinds_are_seen() -> None:
    optimizer, other = tw.optimizers.Adam(), tw.optimizers.Adam()
    first, second = table(), table()

    def step(seed: int) -> None:
        optimizer.apply_gradients([(slices(seed), first)])
        other._earlier, other._replay = None, None
        other.apply_gradients([(slices(seed), second)])

    for seed in range(3):
        step(seed)
    for changed in (optimizer, other):
        changed.learning_rate = 0.5
    step(3)
    first.data = first.data.clone()
    step(4)
    slot = optimizer.get_slot(first, "m")
    slot.data = slot.data.clone()
    step(5)
    strided = slices(6)
    strided.values = strided.values.T.contiguous().T
    optimizer.apply_gradients([(strided, first)])
    other.apply_gradients([(slices(6), second)])
    whole = slices(7).to_dense()
    optimizer.apply_gradients([(whole, first)])
    other.apply_gradients([(whole, second)])
    step(8)
    assert torch.equal(first, second)


def test_copies_find_everything_out_anew() -> None:
    optimizer, rows = tw.optimizers.Adam(), table()
    for seed in range(3):
        optimizer.apply_gradients([(slices(seed), rows)])
    assert is_repeated(optimizer)
    pair = copy.deepcopy((optimizer, rows))
    stored = pickle.loads(pickle.dumps((optimizer, rows)))
    optimizer.apply_gradients([(slices(3), rows)])
    for copied, variable in (pair, stored):
        assert copied._replay is None
        copied.apply_gradients([(slices(3), variable)])
        assert torch.equal(variable, rows)


def test_versions_count_up() -> None:
    optimizer, rows = tw.optimizers.Adam(), table()
    for seed in range(5):
        version, slot_version = rows._version, 0
        if seed:
            slot_version = optimizer.get_slot(rows, "v")._version
        optimizer.apply_gradients([(slices(seed), rows)])
        assert rows._version > version
        assert optimizer.get_slot(rows, "v")._version > slot_version


def test_a_constraint_elsewhere_leaves_the_replay_and_an_own_one_ends_it() -> None:
    optimizer, rows, other = tw.optimizers.Adam(), table(), tw.Variable([1.0])
    other.constraint = torch.relu
    for seed in range(3):
        optimizer.apply_gradients([(slices(seed), rows)])
    assert is_repeated(optimizer)
    rows.constraint = torch.relu
    before = rows.detach().clone()
    with pytest.raises(RuntimeError, match="constraint"):
        optimizer.apply_gradients([(slices(3), rows)])
    assert torch.equal(rows, before)
    assert int(optimizer.iterations) == 3


Pairs = list[tuple[Any, Any]]


def three_steps(own: list[tw.Variable], seed: int, kind: str) -> Pairs:
    """Pairs of a step that is one of some that take turns."""
    first, second, rest = own
    # A gradient in a table that some of the steps write.
    lent = first.detach().view(-1)[:12].view(3, 4)
    return {
        "first": [(slices(seed), first), (dense(seed), rest)],
        "second": [(slices(seed), second), (lent, rest)],
        "lent": [(slices(seed), first), (lent, rest)],
        "both": [(slices(seed), first), (slices(seed + 1).to_sparse(), second)],
        "dense": [(slices(seed).to_dense(), first), (dense(seed), rest)],
        "rest": [(dense(seed), rest)],
    }[kind]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize(
    "kinds",
    [
        ("first", "second"),
        ("lent", "lent", "second"),
        ("first", "dense"),
        ("first", "rest", "both"),
        ("both", "first", "second", "dense", "rest"),
    ],
)
def test_steps_that_take_turns_are_repeated_with_the_same_bits(
    make: Make, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = before = 0
    build = SparseReplay.__init__

    def count(self: SparseReplay, *arguments: Any) -> None:
        nonlocal made
        made += 1
        build(self, *arguments)

    monkeypatch.setattr(SparseReplay, "__init__", count)
    repeated, single = make(), make()
    own, other = ([table(), table(), tw.Variable(torch.ones(3, 4))] for _ in range(2))
    for seed in range(6 * len(kinds)):
        kind = kinds[seed % len(kinds)]
        repeated.apply_gradients(three_steps(own, seed, kind))
        if seed == 3 * len(kinds):
            before = made
        single._earlier, single._replay, single._plan = None, None, None
        single.apply_gradients(three_steps(other, seed, kind))
    assert made == before > 0
    assert int(repeated.iterations) == 6 * len(kinds)
    for one, two in zip(own, other, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(repeated.weights, single.weights, strict=True):
        assert torch.equal(one, two)


def test_a_replay_of_earlier_steps_sees_what_has_moved() -> None:
    optimizer, other = tw.optimizers.Adam(), tw.optimizers.Adam()
    own, alone = ([table(), table()] for _ in range(2))
    for seed in range(12):
        if seed == 7:
            own[0].data = own[0].data.clone()
        if seed == 9:
            slot = optimizer.get_slot(own[1], "v")
            slot.data = slot.data.clone()
        number = seed % 2
        optimizer.apply_gradients([(slices(seed), own[number])])
        other._earlier, other._replay = None, None
        other.apply_gradients([(slices(seed), alone[number])])
    assert all(map(torch.equal, own, alone))
    wrong = tw.IndexedSlices(torch.ones(1, WIDTH), torch.tensor([ROWS]))
    with pytest.raises(ValueError, match="indices in"):
        optimizer.apply_gradients([(wrong, own[0])])
    assert int(optimizer.iterations) == 12
