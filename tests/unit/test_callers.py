"""A warning shows the line that called the package."""

import warnings
from typing import Any

import pytest

from thalweg.errors import level_of_caller


def test_from_outside_it_is_the_frame_that_asks():
    assert level_of_caller() == 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.warn("text", stacklevel=level_of_caller())
    assert said[0].filename == __file__


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_of_the_package_are_passed_by(frames):
    space: dict[str, Any] = {"level_of_caller": level_of_caller}
    text = "def ask(n): return ask(n - 1) if n > 1 else level_of_caller()"
    exec(compile(text, level_of_caller.__code__.co_filename, "exec"), space)
    assert space["ask"](frames) == frames + 1
