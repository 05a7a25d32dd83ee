"""The public names: a snapshot, and the lazy table against its static half."""

from __future__ import annotations

import ast
import subprocess
import sys
from types import ModuleType

import pytest

import thalweg
from tests.architecture.source_tree import PACKAGE

# Adding a name here is a promise to keep it.
PUBLIC_NAMES = {
    "Checkpoint",
    "CheckpointManager",
    "Flag",
    "GradientTape",
    "Hyper",
    "IndexedSlices",
    "Layer",
    "LossScaleOptimizer",
    "Model",
    "NoDependency",
    "Optimizer",
    "OptimizerV2",
    "RandomState",
    "Slot",
    "State",
    "Trackable",
    "UnconnectedGradients",
    "Variable",
    "__version__",
    "as_torch",
    "convert_to_tensor",
    "custom_gradient",
    "scale",
    "raw_op",
    "stop_gradient",
}
PUBLIC_MODULES = {
    "callbacks",
    "checkpoint",
    "data_adapter",
    "distribute",
    "errors",
    "gradients",
    "losses",
    "metrics",
    "mixed_precision",
    "interop",
    "optim",
    "optimizers",
    "raw_ops",
    "state",
    "tasks",
    "testing",
    "training",
}


def test_the_public_names_are_these() -> None:
    assert set(thalweg.__all__) == PUBLIC_NAMES | PUBLIC_MODULES
    assert dir(thalweg) == sorted(thalweg.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES | PUBLIC_MODULES))
def test_each_name_can_be_reached(name: str) -> None:
    value = getattr(thalweg, name)
    assert isinstance(value, ModuleType) == (name in PUBLIC_MODULES)


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="'thalweg' has no attribute 'Optimiser'"):
        thalweg.__getattr__("Optimiser")
    with pytest.raises(AttributeError, match="Did you mean 'Optimizer'"):
        thalweg.__getattr__("Optimiser")
    assert not hasattr(thalweg, "__wrapped__")


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("CheckpointError", "errors"),
        ("TraceError", "errors"),
        ("UnmatchedError", "checkpoint"),
    ],
)
def test_kinds_of_errors_stand_in_their_rooms(name: str, room: str) -> None:
    assert isinstance(getattr(getattr(thalweg, room), name), type)
    with pytest.raises(AttributeError, match=f"mean 'thalweg.{room}.{name}'"):
        thalweg.__getattr__(name)
    assert thalweg.errors.CheckpointError is thalweg.checkpoint.CheckpointError


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    static = next(node for node in tree.body if isinstance(node, ast.If))
    names = {
        alias.asname or alias.name
        for node in static.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert names | {"__version__"} == set(thalweg.__all__)


def test_a_name_and_its_room_give_the_same_object() -> None:
    assert thalweg.Variable is thalweg.state.Variable
    assert thalweg.Optimizer is thalweg.optimizers.Optimizer
    assert thalweg.losses is thalweg.training.losses


def test_import_loads_neither_torch_nor_any_room() -> None:
    program = (
        "import sys, thalweg\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'numpy', 'rich', 'typer'}, loaded\n"
        "assert [n for n in sys.modules if n.startswith('thalweg.')] == []"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
