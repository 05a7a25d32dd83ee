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


PAGES = (
    "accumulation.md",
    "book.md",
    "checkpoints.md",
    "fit.md",
    "optim.md",
    "raw-ops.md",
    "rule-operations.md",
    "settings.md",
    "your-own-optimizer.md",
)


def code_of(text: str) -> str:
    """A page's Python alone, on the lines where it stands."""
    kept = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        lines = block[1].splitlines()
        kept[first : first + len(lines)] = lines
    # Where a page leaves something out it writes an ellipsis, as people do.
    return "\n".join(kept).replace("…", "...")


@pytest.mark.parametrize("page", PAGES)
def test_code_of_page(page: str) -> None:
    torch.compiler.reset()
    code = code_of((DOCS / page).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"tw": tw, "torch": torch}
    test = doctest.DocTestParser().get_doctest(code, names, page, str(DOCS / page), 0)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, clear_globs=False)  # torch.compile still writes to them
    assert runner.tries > 0
    assert runner.failures == 0
