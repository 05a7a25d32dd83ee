"""Checkpoints: named objects saved whole to a folder, and restored by name.

`Checkpoint(**objects)` is the whole interface; `CheckpointManager` keeps the newest of
many. The folder's format is described in docs/checkpoint-format.md. Nothing is ever
pickled or unpickled.
"""

from thalweg.checkpoint.checkpoint import Checkpoint
from thalweg.checkpoint.folder import read_manifest, read_metadata, verify
from thalweg.checkpoint.hyperparameters import HyperPolicy
from thalweg.checkpoint.manager import CheckpointManager
from thalweg.checkpoint.manifest import Manifest
from thalweg.checkpoint.randomness import RandomState
from thalweg.checkpoint.status import RestoreStatus, UnmatchedError
from thalweg.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "RestoreStatus",
    "RandomState",
    "HyperPolicy",
    "read_metadata",
    "read_manifest",
    "verify",
    "Manifest",
    "CheckpointError",
    "UnmatchedError",
]
