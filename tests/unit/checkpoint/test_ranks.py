"""With several ranks the first one writes, and all of them learn how it went."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.harness import run_ranks
from thalweg.checkpoint import Checkpoint
from thalweg.errors import CheckpointError
from thalweg.state import Variable

pytestmark = pytest.mark.distributed


def save_twice_and_restore(folder: str) -> tuple[str, list[str], str, list[float]]:
    value = Variable([1.0 + dist.get_rank(), 2.0])
    checkpoint = Checkpoint(x=value)
    path = checkpoint.save(Path(folder) / "save")
    refusal = ""
    try:
        checkpoint.save(path)
    except CheckpointError as problem:
        refusal = str(problem)
    value.assign(torch.zeros(2))
    checkpoint.restore(path)
    return path, os.listdir(folder), refusal, value.tolist()


def test_rank_0_writes_and_all_ranks_hear_of_errors(tmp_path):
    first, second = run_ranks(save_twice_and_restore, 2, str(tmp_path))
    assert first[0] == second[0]
    assert first[1] == second[1] == ["save"]
    assert "overwrite=True" in first[2]
    assert "rank 0 failed" in second[2]
    assert first[3] == second[3] == [1.0, 2.0]
