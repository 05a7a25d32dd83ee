"""The page of settings has every environment variable that is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from thalweg import settings
from thalweg.compiler.build import find_compiler

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


class Recording(dict[str, str]):
    """An environment that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return super().__getitem__(key)


def test_every_setting_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = Recording()
    settings.read(environ)
    monkeypatch.setattr("os.environ", environ)
    find_compiler()
    told = re.findall(r"^\| `([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert environ.asked - {"PATH", "HOME"} == set(told)
    assert len(told) >= 4
