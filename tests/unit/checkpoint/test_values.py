"""States, generators and schedules as values."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from thalweg import optimizers, schedules
from thalweg.checkpoint import Checkpoint, CheckpointError, RandomState, read_manifest
from thalweg.checkpoint.randomness import generator_access
from thalweg.checkpoint.values import value_of

GENERATORS: dict[str, Any] = {
    "torch": lambda seed: torch.Generator().manual_seed(seed),
    "python": random.Random,
    "numpy": np.random.default_rng,
    "mt19937": lambda seed: np.random.Generator(np.random.MT19937(seed)),
    "philox": lambda seed: np.random.Generator(np.random.Philox(seed)),
    "sfc64": lambda seed: np.random.Generator(np.random.SFC64(seed)),
    "numpy legacy": np.random.RandomState,
    "bits": np.random.PCG64,
}


def draw(generator: Any) -> list[float]:
    """Numbers of two kinds: normal ones are drawn in pairs, of which one is kept."""
    if isinstance(generator, torch.Generator):
        return torch.randn(3, generator=generator).tolist()
    if isinstance(generator, random.Random):
        return [generator.gauss(0, 1), generator.random()]
    if isinstance(generator, np.random.BitGenerator):
        return generator.random_raw(3).tolist()
    return [
        *generator.standard_normal(3).tolist(),
        float(generator.integers(9, size=()))
        if hasattr(generator, "integers")
        else generator.rand(),
    ]


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_go_on_where_they_were(tmp_path, kind):
    generator = GENERATORS[kind](5)
    draw(generator)
    path = Checkpoint(generator=generator).save(tmp_path / "save")
    expected = draw(generator)
    other = GENERATORS[kind](6)
    Checkpoint(generator=other).restore(path).assert_consumed()
    assert draw(other) == expected
    assert draw(generator) == draw(other)


def test_the_words_of_a_generator_are_a_tensor_not_text(tmp_path):
    state = {"random_state": RandomState(), "own": random.Random(1)}
    manifest = read_manifest(Checkpoint(**state).save(tmp_path / "save"))
    assert {"own/words", "random_state/python.words", "random_state/torch"} <= set(
        manifest.tensors
    )
    assert len(str(manifest.values)) < 2000


def test_the_global_generators_are_one_object(tmp_path):
    state = RandomState()
    before = state.state_dict()

    def numbers() -> list[float]:
        drawn = [random.random(), random.gauss(0, 1), np.random.rand()]
        return [*drawn, np.random.randn(), *torch.rand(2).tolist()]

    try:
        path = Checkpoint(random_state=state).save(tmp_path / "save")
        expected = numbers()
        Checkpoint(random_state=RandomState()).restore(path).assert_consumed()
        assert numbers() == expected
    finally:
        state.load_state_dict(before)


def test_devices_that_are_not_there_are_said(caplog):
    state = RandomState()
    content = state.state_dict()
    extra = torch.cuda.device_count() + 1
    content["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * extra
    content["cuda"] = content["cuda"] if not torch.cuda.is_available() else []
    state.load_state_dict(content)
    assert torch.cuda.is_available() or "CUDA devices were saved" in caplog.text


def test_what_is_no_generator_has_no_access():
    assert generator_access(random) is None
    assert generator_access(3) is None


def test_a_generator_refuses_the_state_of_another_kind_and_nothing_changes(tmp_path):
    path = Checkpoint(a=random.Random(1), b=np.random.default_rng(1)).save(
        tmp_path / "save"
    )
    generator = torch.Generator().manual_seed(3)
    first = random.Random(2)
    before = first.getstate()
    with pytest.raises(CheckpointError, match="'b' was refused"):
        Checkpoint(a=first, b=generator).restore(path)
    assert first.getstate() == before


def test_schedules_are_replaced_by_the_saved_one_if_they_differ(tmp_path):
    class Mine(schedules.LearningRateSchedule):
        def __init__(self, rate: float) -> None:
            self.rate = rate

        def __call__(self, step: Any) -> float:
            return self.rate

        def get_config(self) -> dict[str, Any]:
            return {"rate": self.rate}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Mine:
            return cls(**config)

    saved = schedules.ExponentialDecay(0.1, 5, 0.9)
    path = Checkpoint(schedule=saved, mine=Mine(0.5)).save(tmp_path / "save")
    same = schedules.ExponentialDecay(0.1, 5, 0.9)
    checkpoint = Checkpoint(schedule=same, mine=Mine(0.25))
    checkpoint.restore(path).assert_consumed()
    assert checkpoint.schedule is same
    assert checkpoint.mine(0) == 0.5
    checkpoint = Checkpoint(schedule=schedules.CosineDecay(1.0, 3), mine=Mine(0.5))
    checkpoint.restore(path)
    assert checkpoint.schedule(5) == saved(5)


def test_a_schedule_in_an_optimizer_is_restored_with_it(tmp_path):
    adam = optimizers.Adam(schedules.ExponentialDecay(0.1, 5, 0.9))
    path = Checkpoint(optimizer=adam).save(tmp_path / "save")
    other = optimizers.Adam(0.3)
    Checkpoint(optimizer=other).restore(path).assert_consumed()
    other.iterations.assign(5)
    adam.iterations.assign(5)
    assert other.learning_rate == adam.learning_rate == pytest.approx(0.09)


def test_ordered_dictionaries_keep_their_kind(tmp_path):
    class Keeper:
        def __init__(self, state: Any) -> None:
            self.state = state

        def state_dict(self) -> Any:
            return self.state

        def load_state_dict(self, state_dict: Any) -> None:
            self.state = state_dict

    state = {"a": OrderedDict(b=torch.ones(2)), "list": [OrderedDict(c=1), 2]}
    path = Checkpoint(keeper=Keeper(state)).save(tmp_path / "save")
    fresh = Keeper({"a": OrderedDict(), "list": [OrderedDict(), 0]})
    Checkpoint(keeper=fresh).restore(path).assert_consumed()
    assert type(fresh.state["a"]) is OrderedDict
    assert type(fresh.state["list"][0]) is OrderedDict
    assert fresh.state["a"]["b"].tolist() == [1.0, 1.0]


def test_what_has_no_state_is_refused_with_what_would_do():
    with pytest.raises(
        CheckpointError, match=r"'thing': expected a module.*state_dict"
    ):
        value_of("thing", object(), lambda new: None)
