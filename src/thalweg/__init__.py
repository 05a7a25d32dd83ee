"""Thalweg: faster, safer optimizers for PyTorch, and the training core of Keras 2.6.

Where to begin:

    tw.optim        torch's optimizers by their names, in the place of `torch.optim`
    tw.Model        `compile`, `fit`, `evaluate` and `predict` for a torch module
    tw.optimizers   optimizers with Keras's interface, for `fit` and `GradientTape`
    tw.Optimizer    the class to derive an optimizer of your own from
    tw.Checkpoint, tw.CheckpointManager    save everything by name, and go on
    tw.testing      `check(MyOptimizer)`: the contract test

Example:
    >>> import thalweg as tw
    >>> tw.optimizers.get("adam").learning_rate
    0.001
"""

# The public names are a lazy table: `import thalweg` loads neither torch nor any room
# of the package, and a name is imported when it is first asked for. That keeps
# `thalweg --help` quick and the optional dependencies optional. The imports under
# `TYPE_CHECKING` say the same to type checkers; a test holds the two together.

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg import (
        checkpoint,
        distribute,
        errors,
        gradients,
        interop,
        optim,
        optimizers,
        raw_ops,
        state,
        tasks,
        testing,
        training,
    )
    from thalweg.checkpoint import Checkpoint, CheckpointManager, RandomState
    from thalweg.gradients import (
        GradientTape,
        UnconnectedGradients,
        custom_gradient,
        stop_gradient,
    )
    from thalweg.interop import as_torch
    from thalweg.optimizers import (
        Flag,
        Hyper,
        LossScaleOptimizer,
        Optimizer,
        OptimizerV2,
        Slot,
        State,
        mixed_precision,
        scale,
    )
    from thalweg.raw_ops import raw_op
    from thalweg.state import (
        IndexedSlices,
        NoDependency,
        Trackable,
        Variable,
        convert_to_tensor,
    )
    from thalweg.training import (
        Layer,
        Model,
        callbacks,
        data_adapter,
        losses,
        metrics,
    )

__version__ = "0.1.0"

_NAMES = {
    "checkpoint": ("Checkpoint", "CheckpointManager", "RandomState"),
    "gradients": (
        "GradientTape",
        "UnconnectedGradients",
        "custom_gradient",
        "stop_gradient",
    ),
    "interop": ("as_torch",),
    "optimizers": (
        "Flag",
        "Hyper",
        "LossScaleOptimizer",
        "Optimizer",
        "OptimizerV2",
        "Slot",
        "State",
        "scale",
    ),
    "raw_ops": ("raw_op",),
    "state": (
        "IndexedSlices",
        "NoDependency",
        "Trackable",
        "Variable",
        "convert_to_tensor",
    ),
    "training": ("Layer", "Model"),
}
_MODULES = {
    **{
        room: f"thalweg.{room}"
        for room in (
            "checkpoint",
            "distribute",
            "errors",
            "gradients",
            "interop",
            "optim",
            "optimizers",
            "raw_ops",
            "state",
            "tasks",
            "testing",
            "training",
        )
    },
    **{
        module: f"thalweg.training.{module}"
        for module in ("callbacks", "data_adapter", "losses", "metrics")
    },
    "mixed_precision": "thalweg.optimizers.mixed_precision",
}
_HOMES = {name: f"thalweg.{room}" for room, names in _NAMES.items() for name in names}

__all__ = [
    "Optimizer",
    "OptimizerV2",
    "LossScaleOptimizer",
    "Hyper",
    "Flag",
    "Slot",
    "State",
    "scale",
    "Variable",
    "IndexedSlices",
    "Trackable",
    "NoDependency",
    "convert_to_tensor",
    "GradientTape",
    "UnconnectedGradients",
    "custom_gradient",
    "stop_gradient",
    "Layer",
    "Model",
    "Checkpoint",
    "CheckpointManager",
    "RandomState",
    "as_torch",
    "callbacks",
    "checkpoint",
    "data_adapter",
    "distribute",
    "errors",
    "gradients",
    "losses",
    "interop",
    "metrics",
    "mixed_precision",
    "optim",
    "optimizers",
    "raw_op",
    "raw_ops",
    "state",
    "tasks",
    "testing",
    "training",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = import_module(_MODULES[name])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        text = f"module 'thalweg' has no attribute {name!r}"
        if not name.startswith("_"):
            question = _question(name)
            text += f". {question}" if question.startswith("Did") else ""
        raise AttributeError(text)
    globals()[name] = value
    return value


def _question(name: str) -> str:
    """What may have been meant; kinds of errors stand in their rooms."""
    for room in ("errors", "checkpoint") if name.endswith("Error") else ():
        if hasattr(import_module(f"thalweg.{room}"), name):
            return f"Did you mean 'thalweg.{room}.{name}'?"
    return import_module("thalweg.errors").nearest(name, __all__)


def __dir__() -> list[str]:
    return sorted(__all__)
