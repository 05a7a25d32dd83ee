"""The code of a guide page, run as it stands there.

A page is one script, cut into blocks. The tests run it, and drive the functions that it
defines: what a reader copies is what is tested.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs" / "trainers"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    """Marks for tests of other packages: skipped without, and their warnings pass."""
    absent = [name for name in packages if find_spec(name) is None]
    reason = f"not installed: {', '.join(absent)}"
    return [
        pytest.mark.skipif(bool(absent), reason=reason),
        pytest.mark.filterwarnings("ignore", "error:::thalweg"),
    ]


def code_of(page: str) -> str:
    """The Python blocks of a page, one after the other."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return "\n".join(_BLOCK.findall(text))


def run_page(
    page: str, folder: Path, changes: tuple[tuple[str, str], ...] = ()
) -> dict[str, Any]:
    """Run a page in a folder.

    Args:
        page: Name of the page.
        folder: Where it may write.
        changes: Texts and what to put in their place; each must be there.

    Returns:
        The names that the page defines.
    """
    code = code_of(page)
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    names: dict[str, Any] = {"__name__": page}
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(code, f"{page}.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


def bits_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters of a model, whole ones where they are sharded."""
    return {name: whole(value) for name, value in model.named_parameters()}


def whole(value: Any) -> torch.Tensor:
    """A copy of a tensor, gathered from all ranks if it is sharded."""
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def assert_same_bits(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    """Two sets of tensors are the same, to the bit."""
    assert one.keys() == other.keys()
    different = [n for n, value in one.items() if not torch.equal(value, other[n])]
    assert different == []
