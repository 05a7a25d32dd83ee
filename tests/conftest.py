"""Fixtures of every test: seeds, threads, devices, a clean default strategy."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from thalweg.compiler import compilation

SEED = 2026


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Every test starts from the same random numbers and leaves the defaults."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """A test that hides the compiler leaves no interpreted kernels to the next."""
    yield
    if any(k.backend == "interpreter" for k in compilation._KERNELS.values()):
        compilation.clear()


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """One thread for each test process: the processes share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)],
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The devices of this machine, one test each."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)
