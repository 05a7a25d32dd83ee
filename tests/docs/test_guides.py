"""The code of the guide pages runs and gives what it says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["accumulation.md", "checkpoints.md", "raw-ops.md"])
def test_code_of_page(page: str) -> None:
    torch.compiler.reset()
    text = (DOCS / page).read_text(encoding="utf-8")
    names: dict[str, Any] = {"tw": tw, "torch": torch}
    runner = doctest.DocTestRunner(verbose=False)
    parser = doctest.DocTestParser()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        test = parser.get_doctest(block[1], names, page, str(DOCS / page), line)
        runner.run(test, clear_globs=False)
        # Each example has its own names; the next block goes on with them.
        names = test.globs
    assert runner.tries > 0
    assert runner.failures == 0
