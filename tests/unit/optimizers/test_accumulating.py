"""Gradients of several micro-steps are gathered, and their mean is applied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import thalweg as tw
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.distribute import StrategyExtended

STEPS = 3
ACCUMULATOR = "gradient_accumulator"
STEPS_OPTION = "gradient_accumulation_steps"
every_optimizer = pytest.mark.parametrize("name", tw.optimizers.names())
REFUSES_SCHEDULES = {"nadam"}


class ByHand(tw.Optimizer):
    """Updates in Python, as classes of Keras 2 do."""

    learning_rate: tw.Hyper = tw.Hyper(default=1.0)

    def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None):
        var.assign_sub(self.learning_rate * grad)

    def _resource_apply_sparse(
        self, grad: Any, var: Any, indices: Any, apply_state: Any = None
    ):
        self._resource_scatter_add(var, indices, -self.learning_rate * grad)


def gradients(number: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (3,)]
    return [
        [torch.randn(s, generator=generator).to(dtype) for s in shapes]
        for _ in range(number)
    ]


def variables(dtype: torch.dtype = torch.float32) -> list[tw.Variable]:
    generator = torch.Generator().manual_seed(7)
    kernel = torch.randn(4, 3, generator=generator).to(dtype)
    named = {"kernel": kernel, "bias": torch.zeros(3, dtype=dtype)}
    return [tw.Variable(value, name=name) for name, value in named.items()]


def mean(parts: list[torch.Tensor]) -> torch.Tensor:
    """Summed in their order in the accumulator's dtype, divided once."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total / len(parts)


def state(optimizer: Any, held: list[tw.Variable]) -> dict[str, torch.Tensor]:
    kept = {f"{v.name}/{n}": s for v, n, s in optimizer.slot_variables()}
    kept |= {v.name: v for v in held}
    kept |= {"iterations": optimizer.iterations}
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not same_bits(one[name], two[name])] == []


# ------------------------------------------------------------- the mean, applied


def test_the_mean_is_applied_in_every_third_call():
    weight = tw.Variable([8.0])
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=3)
    values, counts, applied = [], [], []
    for gradient in (1.0, 2.0, 6.0, 3.0, 3.0, 0.0):
        counted = optimizer.apply_gradients([(torch.tensor([gradient]), weight)])
        values.append(weight.item())
        counts.append(int(counted))
        applied.append(optimizer.last_step_applied)
    assert values == [8.0, 8.0, 5.0, 5.0, 5.0, 3.0]
    assert counts == [0, 0, 1, 1, 1, 2]
    assert applied == [False, False, True] * 2


VARIANTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "plain": lambda name: {},
    "everything": lambda name: {
        "learning_rate": 0.01
        if name in REFUSES_SCHEDULES
        else tw.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5),
        "weight_decay": 0.1,
        "clipvalue": 0.4,
        "global_clipnorm": 0.7,
        "nonfinite": "skip",
        "per_variable": {"bias": {"weight_decay": 0.0}},
    },
    "functions": lambda name: {
        "gradient_transformers": [lambda pairs: [(2.0 * g, v) for g, v in pairs]]
    },
}


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cycle_equals_one_step_on_the_mean(name, dtype, variant):
    cls, options = type(tw.optimizers.get(name)), VARIANTS[variant](name)
    ours, theirs = variables(dtype), variables(dtype)
    optimizer = cls(**options, gradient_accumulation_steps=STEPS)
    reference = cls(**options)
    for one, held in ((optimizer, ours), (reference, theirs)):
        one.build((v.name, v) for v in held)
    for cycle in range(2):
        parts = gradients(STEPS, cycle, dtype)
        for number, part in enumerate(parts):
            before = state(reference, theirs)
            assert_same({**before, **state_without_sums(optimizer, ours)}, before)
            optimizer.apply_gradients(zip(part, ours, strict=True))
            assert optimizer.last_step_applied == (number == STEPS - 1)
        means = [mean(list(column)) for column in zip(*parts, strict=True)]
        reference.apply_gradients(zip(means, theirs, strict=True))
        assert_same(state(optimizer, ours), state(reference, theirs))


def state_without_sums(optimizer: Any, held: list[tw.Variable]):
    kept = state(optimizer, held)
    return {n: t for n, t in kept.items() if not n.endswith(ACCUMULATOR)}


def test_a_gradient_may_be_written_over_after_the_call():
    weight, gradient = tw.Variable([0.0]), torch.zeros(1)
    table, rows = tw.Variable(torch.zeros(3, 1)), torch.zeros(1, 1)
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    for value in (1.0, 3.0):
        gradient.fill_(value)
        rows.fill_(value)
        slices = tw.IndexedSlices(rows, torch.tensor([1]))
        optimizer.apply_gradients([(gradient, weight), (slices, table)])
    assert weight.item() == -2.0
    assert table.flatten().tolist() == [0.0, -2.0, 0.0]
    assert gradient.item() == 3.0


def test_gradients_in_another_order_of_strides_are_added():
    held = [tw.Variable(torch.zeros(2, 3))]
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    across = torch.arange(6.0).reshape(3, 2).T
    optimizer.apply_gradients([(across, held[0])])
    optimizer.apply_gradients([(torch.ones(2, 3), held[0])])
    assert torch.equal(held[0].detach(), -(across + 1) / 2)


# ------------------------------------------------------------------- sparse ones


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "ftrl"])
@pytest.mark.parametrize("policy", ["rows", "exact", "keras"])
def test_slices_stay_slices_in_order_of_appearance(name, policy):
    cls = type(tw.optimizers.get(name))
    tables = [tw.Variable(torch.ones(5, 2), name="table") for _ in range(2)]
    optimizer = cls(sparse_update=policy, gradient_accumulation_steps=STEPS)
    reference = cls(sparse_update=policy)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        values = torch.randn(STEPS, 3, 2, generator=generator)
        indices = torch.randint(0, 4, (STEPS, 3), generator=generator)
        for rows, places in zip(values, indices, strict=True):
            slices = tw.IndexedSlices(rows, places, (5, 2))
            optimizer.apply_gradients([(slices, tables[0])])
        whole = tw.IndexedSlices(values.reshape(-1, 2) / STEPS, indices.reshape(-1))
        reference.apply_gradients([(whole, tables[1])])
        assert_same(state(optimizer, tables[:1]), state(reference, tables[1:]))


def test_pending_slices_are_slots_until_they_are_applied():
    table = tw.Variable(torch.zeros(4, 1, dtype=torch.bfloat16), name="table")
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=3)
    for places in ([1, 1], [3]):
        rows = torch.ones(len(places), 1, dtype=torch.bfloat16)
        slices = tw.IndexedSlices(rows, torch.tensor(places))
        optimizer.apply_gradients([(slices, table)])
    kept = {name: slot for _, name, slot in optimizer.slot_variables()}
    assert list(kept) == [f"{ACCUMULATOR}_values", f"{ACCUMULATOR}_indices"]
    assert kept[f"{ACCUMULATOR}_values"].dtype == torch.float32
    assert kept[f"{ACCUMULATOR}_indices"].tolist() == [1, 1, 3]
    optimizer.apply_gradients([(slices, table)])
    assert list(optimizer.slot_variables()) == []
    expected = -torch.tensor([0.0, 2.0, 0.0, 2.0]) / 3
    assert torch.equal(table.detach().flatten(), expected.bfloat16())


@pytest.mark.parametrize("kinds", ["ds", "sd", "dsd", "sds", "dds"])
def test_both_kinds_in_one_cycle_make_a_dense_gradient(kinds):
    table = tw.Variable(torch.zeros(3, 1))
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=len(kinds))
    for kind in kinds:
        slices = tw.IndexedSlices(torch.ones(1, 1), torch.tensor([1]))
        optimizer.apply_gradients(
            [(torch.full((3, 1), 2.0) if kind == "d" else slices, table)]
        )
    dense, sparse = 2.0 * kinds.count("d"), 1.0 * kinds.count("s")
    total = torch.tensor([dense, dense + sparse, dense]) / len(kinds)
    assert torch.allclose(table.detach().flatten(), -total)


# ----------------------------------------------------------- gradients that lack


def test_a_gradient_may_lack_in_some_micro_steps():
    one, two, three = held = [tw.Variable([0.0], name=n) for n in "abc"]
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=3)
    optimizer.build((v.name, v) for v in held)
    unit = torch.ones(1)
    optimizer.apply_gradients([(unit, one), (None, two), (None, three)])
    optimizer.apply_gradients([(None, one), (unit, two), (None, three)])
    with pytest.warns(UserWarning, match=r"\['c'\]"):
        optimizer.apply_gradients([(unit, one), (None, two), (None, three)])
    assert one.item() == pytest.approx(-2 / 3)
    assert two.item() == pytest.approx(-1 / 3)
    assert three.item() == 0.0


def test_a_variable_without_a_gradient_in_the_cycle_is_left_out():
    held = [tw.Variable([1.0], name=n) for n in "ab"]
    optimizer = tw.optimizers.Adam(0.1, weight_decay=0.5, gradient_accumulation_steps=2)
    values = []
    for cycle in range(3):
        for _ in range(2):
            pairs = [(torch.ones(1), held[0]), (torch.ones(1), held[1])]
            optimizer.apply_gradients(pairs if cycle != 1 else pairs[:1])
        values.append(held[1].item())
    moment = optimizer.get_slot(held[1], "m").item()
    assert values[0] == values[1] > values[2]
    assert moment == pytest.approx(1 - 0.9**2)  # two steps, not three


def test_variables_of_earlier_micro_steps_are_applied_too():
    one, two = (tw.Variable([0.0], name=n) for n in "ab")
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(1), one)])
        optimizer.apply_gradients([(torch.ones(1), two)])
    assert (one.item(), two.item()) == (-1.0, -1.0)


def test_a_call_without_any_gradient_is_refused():
    weight = tw.Variable([0.0], name="weight")
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply_gradients([(None, weight)])
    optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == -1.0
    optimizer.apply_gradients([])
    assert int(optimizer.iterations) == 1


# ----------------------------------------------------------------- what refuses


@pytest.mark.parametrize("number", [1, -2, 2.0, True, "2"])
def test_other_numbers_of_steps_are_refused(number):
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        tw.optimizers.SGD(gradient_accumulation_steps=number)


@pytest.mark.parametrize(
    "gradient",
    [torch.ones(2), torch.ones(1, dtype=torch.int64), "text"],
    ids=["shape", "dtype", "kind"],
)
def test_a_refused_call_has_added_nothing(gradient):
    one, two = (tw.Variable([0.0], name=n) for n in "ab")
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply_gradients([(torch.ones(1), one), (torch.ones(1), two)])
    with pytest.raises((ValueError, TypeError)):
        optimizer.apply_gradients([(torch.ones(1), one), (gradient, two)])
    optimizer.apply_gradients([(torch.ones(1), one), (torch.ones(1), two)])
    assert (one.item(), two.item()) == (-1.0, -1.0)


def test_indices_are_checked_before_they_wait():
    table = tw.Variable(torch.zeros(3, 1))
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    slices = tw.IndexedSlices(torch.ones(1, 1), torch.tensor([3]))
    with pytest.raises(ValueError, match="index"):
        optimizer.apply_gradients([(slices, table)])
    assert list(optimizer.slot_variables()) == []


def test_a_constraint_refuses_slices_at_once():
    table = tw.Variable(torch.zeros(3, 1), constraint=torch.relu)
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    slices = tw.IndexedSlices(torch.ones(1, 1), torch.tensor([1]))
    with pytest.raises(RuntimeError, match="constraint"):
        optimizer.apply_gradients([(slices, table)])


@pytest.mark.parametrize("first", [True, False])
def test_inf_in_one_micro_step_skips_the_cycle(first):
    weight = tw.Variable([1.0])
    optimizer = tw.optimizers.SGD(1, gradient_accumulation_steps=2, nonfinite="skip")
    bad = torch.tensor([float("inf")])
    for gradient in (bad, torch.ones(1)) if first else (torch.ones(1), bad):
        optimizer.apply_gradients([(gradient, weight)])
    assert not optimizer.last_step_applied
    assert (weight.item(), int(optimizer.iterations)) == (1.0, 0)
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert (weight.item(), int(optimizer.iterations)) == (0.0, 1)


def test_an_error_in_the_step_ends_the_cycle():
    weight = tw.Variable([1.0], name="weight")
    optimizer = tw.optimizers.SGD(1, gradient_accumulation_steps=2, nonfinite="error")
    optimizer.apply_gradients([(torch.tensor([float("nan")]), weight)])
    with pytest.raises(FloatingPointError, match="weight"):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert list(optimizer.slot_variables()) == []
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 0.0


def test_averages_in_use_refuse_a_micro_step():
    weight = tw.Variable([1.0])
    optimizer = tw.optimizers.SGD(1.0, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build([weight])
    with optimizer.ema_scope(), pytest.raises(RuntimeError, match="a step"):
        optimizer.apply_gradients([(torch.ones(1), weight)])


@pytest.mark.parametrize("what", ["gradient accumulation", "a dynamic loss scale"])
def test_a_capture_is_refused_where_the_host_counts(monkeypatch, what):
    weight = tw.Variable([1.0])
    optimizer: Any = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    if "scale" in what:
        optimizer = tw.LossScaleOptimizer(tw.optimizers.SGD(1.0))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=what):
        optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 1.0


# -------------------------------------------------------- classes, strategies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_class_that_updates_by_hand_sees_the_mean(dtype):
    weight = tw.Variable(torch.zeros(2, dtype=dtype))
    table = tw.Variable(torch.zeros(3, 1))
    optimizer = ByHand(1.0, gradient_accumulation_steps=2, clipvalue=2.5)
    for value in (1.0, 7.0, 1.0, 2.0):
        slices = tw.IndexedSlices(torch.full((2, 1), value), torch.tensor([0, 0]))
        gradient = torch.full((2,), value, dtype=dtype)
        optimizer.apply_gradients([(gradient, weight), (slices, table)])
    assert weight.tolist() == [-4.0, -4.0]
    # Slices are clipped one by one: 0.5, 0.5, 2.5, 2.5, then 0.5, 0.5, 1, 1.
    assert table.flatten().tolist() == [-9.0, 0.0, 0.0]
    assert int(optimizer.iterations) == 2


class Counting(StrategyExtended):
    def __init__(self) -> None:
        super().__init__()
        self.updates, self.reduced = 0, []

    def update(self, var, fn, args=(), kwargs=None, group=True):
        self.updates += 1
        return super().update(var, fn, args, kwargs, group)

    def aggregate_gradients(self, pairs):
        self.reduced.append([g.clone() for g, _ in pairs])
        return super().aggregate_gradients(pairs)


def test_a_strategy_reduces_and_updates_once_a_cycle():
    weight = tw.Variable([0.0])
    strategy = tw.distribute.Strategy(Counting())
    with strategy.scope():
        optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    for value in (1.0, 3.0, 5.0, 5.0):
        strategy.run(
            lambda v=value: optimizer.apply_gradients([(torch.tensor([v]), weight)])
        )
    extended = strategy.extended
    assert [float(g) for (g,) in extended.reduced] == [2.0, 5.0]
    assert extended.updates == 2
    assert weight.item() == -7.0


def test_constraints_hold_after_a_cycle():
    weight = tw.Variable([1.0], constraint=torch.relu)
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply_gradients([(torch.full((1,), 9.0), weight)])
    assert weight.item() == 1.0
    optimizer.apply_gradients([(torch.full((1,), 9.0), weight)])
    assert weight.item() == 0.0


def test_minimize_accumulates():
    weight = tw.Variable([2.0])
    optimizer = tw.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    for factor in (1.0, 3.0):
        optimizer.minimize(lambda f=factor: (f * weight).sum(), [weight])
    assert weight.item() == 1.0


# --------------------------------------------------------------- what is kept


def test_build_makes_the_accumulators():
    held = variables(torch.bfloat16)
    optimizer = tw.optimizers.Adam(gradient_accumulation_steps=4)
    optimizer.build(held)
    slot = optimizer.get_slot(held[0], ACCUMULATOR)
    assert (slot.dtype, tuple(slot.shape)) == (torch.float32, (4, 3))
    assert slot.abs().max() == 0
    assert ACCUMULATOR in optimizer.get_slot_names()
    assert list(tw.optimizers.Adam().get_slot_names()) == []


def test_the_dtype_of_accumulators_follows_slot_dtypes():
    held = variables(torch.float32)
    dtypes = {ACCUMULATOR: "float64"}
    optimizer = tw.optimizers.SGD(slot_dtypes=dtypes, gradient_accumulation_steps=4)
    optimizer.build(held)
    assert optimizer.get_slot(held[1], ACCUMULATOR).dtype == torch.float64


def test_lists_of_weights_are_those_of_applied_steps():
    held = variables()
    optimizer = tw.optimizers.Adam(gradient_accumulation_steps=4)
    plain = tw.optimizers.Adam()
    for one in (optimizer, plain):
        one.build(held)
    shapes = [w.shape for w in optimizer.get_weights()]
    assert shapes == [w.shape for w in plain.get_weights()]


def test_the_option_is_part_of_the_configuration():
    optimizer = tw.optimizers.Adam(gradient_accumulation_steps=4)
    assert optimizer.gradient_accumulation_steps == 4
    config = optimizer.get_config()
    assert config["gradient_accumulation_steps"] == 4
    again = tw.optimizers.get(tw.optimizers.serialize(optimizer))
    assert again.gradient_accumulation_steps == 4
    assert "gradient_accumulation_steps" not in tw.optimizers.Adam().get_config()
    assert tw.optimizers.Adam().gradient_accumulation_steps is None


def test_steady_micro_steps_make_no_tables():
    held = variables()
    optimizer = tw.optimizers.Adam(gradient_accumulation_steps=2)
    for part in gradients(4):
        optimizer.apply_gradients(zip(part, held, strict=True))
    sums: Any = optimizer._sums
    plan, plans = optimizer._plan, sums._plans
    for part in gradients(4):
        optimizer.apply_gradients(zip(part, held, strict=True))
        assert optimizer._plan is plan
        assert sums._plans is plans


class Recorded(TorchDispatchMode):
    """Names of the operations that torch was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_steady_micro_step_makes_no_tensor():
    held = variables()
    optimizer = tw.optimizers.Adam(gradient_accumulation_steps=3)
    parts = gradients(7)
    for part in parts[:4]:
        optimizer.apply_gradients(zip(part, held, strict=True))
    for part in parts[4:6]:
        with Recorded() as recorded:
            optimizer.apply_gradients(zip(part, held, strict=True))
        # To read the position, and to write it.
        assert recorded.names <= {"_local_scalar_dense", "fill_", "add_"}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_in_the_midst_of_a_cycle(how):
    held = [*variables(), tw.Variable(torch.zeros(3, 1), name="table")]
    optimizer = tw.optimizers.Adam(0.1, gradient_accumulation_steps=3)

    def step(one: Any, own: Any, number: int) -> None:
        slices = tw.IndexedSlices(torch.full((1, 1), number + 1.0), torch.tensor([2]))
        pairs = zip([*gradients(1, number)[0], slices], own, strict=True)
        one.apply_gradients(pairs)

    for number in range(5):
        step(optimizer, held, number)
    both = (optimizer, held)
    copied, own = (
        copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    )
    for number in range(5, 10):
        step(optimizer, held, number)
        step(copied, own, number)
    assert_same(state(optimizer, held), state(copied, own))


@pytest.mark.parametrize("begun", [0, 4], ids=["new", "in a cycle"])
def test_a_shallow_copy_has_sums_of_its_own(begun):
    held = [*variables(), tw.Variable(torch.zeros(3, 1), name="table")]
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=3)

    def step(one: Any, own: Any, value: float) -> None:
        slices = tw.IndexedSlices(torch.full((1, 1), value), torch.tensor([2]))
        given = [torch.full((4, 3), value), torch.full((3,), value), slices]
        one.apply_gradients(zip(given, own, strict=True))

    for _ in range(begun):
        step(optimizer, held, 1.0)
    copied: Any = copy.copy(optimizer)
    assert copied.is_in_cycle == optimizer.is_in_cycle == (begun > 0)
    if begun:
        assert copied.iterations is optimizer.iterations  # as all else of it
    own = held if begun else [tw.Variable(torch.zeros_like(v)) for v in held]
    before = [v.detach().clone() for v in held]
    for value in (8.0, 8.0)[: 2 if begun else 1]:
        step(copied, own, value)
    changed = [v.detach().clone() for v in held]
    for number in range(2 if begun else 3):
        assert optimizer._sums.count() == number + (begun > 0)  # pyright: ignore[reportOptionalMemberAccess]
        step(optimizer, held, 1.0)
    for old, middle, new in zip(before, changed, held, strict=True):
        assert (old - middle).max().item() == pytest.approx(17 / 3 if begun else 0.0)
        assert (middle - new).max().item() == pytest.approx(1.0)
    copied_too = copy.copy(tw.optimizers.SGD(1.0))
    copied_too.apply_gradients([(torch.ones(1), tw.Variable([0.0]))])


def test_optimizers_with_torchs_names_refuse_the_option():
    parameters, options = [torch.nn.Parameter(torch.ones(1))], {STEPS_OPTION: 2}
    with pytest.raises(TypeError, match=STEPS_OPTION):
        tw.optim.AdamW(parameters, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("by_hand", [False, True])
def test_averages_move_in_every_call(by_hand: bool) -> None:
    class ByHand(tw.optimizers.SGD):
        def _resource_apply_dense(
            self, grad: torch.Tensor, var: Any, apply_state: Any = None
        ) -> Any:
            return var.assign_sub(grad)

    weight = tw.Variable([0.0])
    cls = ByHand if by_hand else tw.optimizers.SGD
    optimizer = cls(1.0, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2)
    averages = []
    for _ in range(6):
        optimizer.apply_gradients([(torch.full((1,), -4.0), weight)])
        averages.append(optimizer.get_slot(weight, "average").item())
    # The variable is 0, 4, 4, 8, 8, 12; the first step leaves nothing of the start.
    assert averages == [0.0, 4.0, 4.0, 6.0, 7.0, 9.5]


def test_a_variable_becomes_its_average_in_micro_steps_too() -> None:
    weight = tw.Variable([0.0])
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 1}
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2, **options)
    seen = []
    for _ in range(4):
        optimizer.apply_gradients([(torch.full((1,), -4.0), weight)])
        seen.append(weight.item())
    assert seen == [0.0, 4.0, 4.0, 6.0]


def test_a_variable_becomes_its_average_where_a_cycle_ends() -> None:
    weight = tw.Variable([0.0])
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2, **options)
    seen = []
    for _ in range(8):
        optimizer.apply_gradients([(torch.full((1,), -4.0), weight)])
        seen.append(weight.item())
    assert seen == [0.0, 4.0, 4.0, 6.0, 6.0, 10.0, 10.0, 11.5]
