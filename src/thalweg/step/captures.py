"""Steps recorded as a CUDA graph: what must come before them, what they read later."""

from __future__ import annotations

import torch

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import message
from thalweg.step.device_checks import listening

__all__ = ["WARM_UP", "keep_captured", "refuse_unprepared"]

WARM_UP = (
    "Take a few steps outside the capture, inside "
    "torch.cuda.stream(torch.cuda.Stream()), as for any CUDA graph."
)


def refuse_unprepared(what: str, device: torch.device | None) -> None:
    """Refuse to prepare a step, which waits, while a CUDA graph is captured.

    What is made in a capture is filled by replays only, too: a slot that begins with
    zeros would begin anew in each of them.

    Args:
        what: What needs a preparation, for the message.
        device: Where it is; None if the host does all.

    Raises:
        RuntimeError: If work there is being captured.
    """
    if device is not None and is_capturing(device):
        raise RuntimeError(
            message(
                f"capture of {what}",
                "a step before it, over the same variables with gradients",
                "none, or one of another kind",
                WARM_UP,
            )
        )


def keep_captured(thing: object, device: torch.device) -> None:
    """Keep alive what a captured step reads, because its replays read it as well.

    The optimizer whose step is under way keeps it.

    Args:
        thing: Holds tables; nothing happens to it outside of a capture.
        device: Where they are.
    """
    if is_capturing(device):
        (listening.errors or listening.unowned).keep(thing)
