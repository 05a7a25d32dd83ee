"""Stochastic rounding: exact where it can be, fair where it cannot."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from thalweg.compiler.rounding import (
    FIRST_INDEX,
    ROUNDING_KEY,
    STEP,
    TURN,
    Draw,
    random_bits,
    round_stochastically,
    rounding_key,
)

LARGEST = torch.finfo(torch.bfloat16).max
COUNT = 60_000


def draw(variable: int = 7, step: int = 1, first: int = 0) -> Draw:
    numbers = {ROUNDING_KEY: variable, STEP: step, FIRST_INDEX: first}
    return Draw(numbers, (0, 1, 2))


def rounded(value: float, count: int = COUNT, output: int = 0) -> torch.Tensor:
    values = np.array(value, dtype=np.float32)
    return draw().rounded(output, values, np.arange(count)).double()


def uniform(variable: int = 7, step: int = 1, output: int = 0) -> np.ndarray:
    """The chances of elements 0, 1, …, by what they make of a number."""
    fractions = np.arange(2**14, 2**16, 2**14, dtype=np.uint32)
    values = (np.uint32(0x3F800000) + fractions).view(np.float32)
    found = [
        draw(variable, step).rounded(output, v, np.arange(COUNT // 3)).double() > 1.0
        for v in values
    ]
    return torch.stack(found).sum(0).numpy()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.140625, LARGEST, 1e-40, 2**-133])
def test_what_is_a_bfloat16_stays(value: float) -> None:
    exact = torch.tensor(value, dtype=torch.bfloat16)
    found = draw().rounded(0, exact.float().numpy(), np.arange(1000))
    assert (found.view(torch.int16) == exact.view(torch.int16)).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinity_stays(value: float) -> None:
    assert (rounded(value, 1000) == value).all()


def test_nan_stays_whatever_its_bits() -> None:
    bits = np.array([0x7F800001, 0xFF80FFFF, 0x7FFFFFFF], dtype=np.uint32)
    for value in bits.view(np.float32):
        assert draw().rounded(0, value, np.arange(1000)).isnan().all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_beyond_the_largest_number_the_nearest_is_taken(sign: float) -> None:
    beyond = np.arange(0x7F7F0001, 0x7F800000, 5, dtype=np.uint32).view(np.float32)
    values = np.float32(sign) * beyond
    found = draw().rounded(0, values, np.arange(len(values)))
    assert torch.equal(found, torch.from_numpy(values).to(torch.bfloat16))
    below = np.array(0x7F7EFFFF, dtype=np.uint32).view(np.float32)
    assert draw().rounded(0, below, np.arange(COUNT)).isfinite().all()


@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("value", [1.0001, -1.003, 3.14159, 1e-39, 1e30, 0.1])
def test_the_mean_is_the_value_within_five_sigma(value: float, output: int) -> None:
    exact = float(np.float32(value))
    found = rounded(value, output=output)
    low, high = found.min().item(), found.max().item()
    assert low < exact < high
    assert set(found.tolist()) == {low, high}
    assert torch.tensor(low, dtype=torch.bfloat16).double() == low
    up = (exact - low) / (high - low)
    sigma = (high - low) * math.sqrt(up * (1 - up) / COUNT)
    assert abs(found.mean().item() - exact) <= 5 * sigma


def test_every_chance_comes_as_often_as_any_other() -> None:
    bits = random_bits(12345, np.arange(2**20))
    for half in (bits & 0xFFFF, bits >> 16):
        counts = np.bincount(half >> 8, minlength=256)
        expected = len(bits) / 256
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        # 255 degrees of freedom: standard deviation 22.6.
        assert abs(chi_squared - 255) < 5 * math.sqrt(2 * 255)


def test_variables_steps_outputs_and_neighbours_are_not_correlated() -> None:
    sources = {
        "": uniform(),
        "variable": uniform(variable=8),
        "step": uniform(step=2),
        "half": uniform(output=1),
        "pair": uniform(output=2),
        "neighbour": np.roll(uniform(), 1),
        "far": np.roll(uniform(), 1024),
    }
    for (one, a), (two, b) in itertools.combinations(sources.items(), 2):
        correlation = np.corrcoef(a, b)[0, 1]
        assert abs(correlation) < 5 / math.sqrt(len(a)), (one, two)


def test_the_upper_bits_of_an_index_count() -> None:
    low = np.arange(1000)
    for high in (2**32, 2**40, 2**52):
        assert (random_bits(1, low) != random_bits(1, low + high)).mean() > 0.99
    across = np.arange(2**32 - 3, 2**32 + 3)
    parts = [random_bits(1, across[i : i + 1]) for i in range(6)]
    assert np.array_equal(random_bits(1, across), np.concatenate(parts))


def test_a_shard_has_the_bits_of_the_whole() -> None:
    values = np.linspace(-3, 3, 1000, dtype=np.float32)
    whole = draw().rounded(1, values, np.arange(1000))
    part = draw(first=300).rounded(1, values[300:], np.arange(700))
    assert torch.equal(part, whole[300:])


def test_gradients_of_one_row_are_rounded_by_other_bits() -> None:
    value, places = np.array(1.003, dtype=np.float32), np.arange(1000)
    first, second = (draw().rounded(0, value, places, turn) for turn in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, draw().rounded(0, value, places))
    assert TURN % 2 == 1


def test_keys_follow_from_seed_and_name() -> None:
    assert rounding_key(0, "a") == rounding_key(0, "a")
    keys = {rounding_key(seed, name) for seed in range(20) for name in "abcdefgh"}
    assert len(keys) == 160
    assert all(0 <= key < 2**32 for key in keys)


def test_the_bits_stay_the_same_in_every_version() -> None:
    # A resumed run is to go on as it would have, also after an update of the package.
    assert rounding_key(3, "dense/kernel 0") == 1017741109
    found = random_bits(0xDEADBEEF, np.array([0, 1, 2, 2**33 + 5]))
    assert found.tolist() == [3861431939, 6452393, 1299689176, 406323810]


def test_rounding_takes_the_lower_half() -> None:
    values = np.full(4, 1.00390625, dtype=np.float32)
    bits = np.array([0, 0x7FFF, 0x8000, 0xFFFF0000], dtype=np.uint32)
    found = round_stochastically(values, bits)
    assert len(set(found.tolist())) == 2
    assert found[0] == found[1] == found[3] < found[2]
