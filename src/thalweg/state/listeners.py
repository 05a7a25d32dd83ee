"""Who is told of steps and of new attributes: a restore that waits for objects.

Optimizers and Trackables know nothing of checkpoints. They tell these lists, which
are empty except while saved values wait for objects that do not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable

steps: list[Callable[[object], None]] = []
"""Called with an optimizer before it applies gradients."""

attributes: list[Callable[[object, object], None]] = []
"""Called with a Trackable and the value after an attribute of it was set."""
