"""Optimizers with Keras's names, arguments and defaults.

There is one module for each family; the others are parts of the base class, which
ARCHITECTURE.md lists from bottom to top.
"""

from thalweg import schedules
from thalweg.optimizers.adadelta import Adadelta
from thalweg.optimizers.adagrad import Adagrad, RowWiseAdagrad
from thalweg.optimizers.adam import Adam, AdamW
from thalweg.optimizers.adamax import Adamax
from thalweg.optimizers.declarations import Flag, Hyper, Slot, State, scale
from thalweg.optimizers.ftrl import Ftrl
from thalweg.optimizers.lamb import Lamb
from thalweg.optimizers.lion import Lion
from thalweg.optimizers.loss_scale_optimizer import LossScaleOptimizer
from thalweg.optimizers.nadam import Nadam
from thalweg.optimizers.optimizer import Optimizer, OptimizerV2
from thalweg.optimizers.registry import deserialize, get, names, serialize
from thalweg.optimizers.rmsprop import RMSprop
from thalweg.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Flag",
    "Ftrl",
    "Hyper",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "Nadam",
    "Optimizer",
    "OptimizerV2",
    "RMSprop",
    "RowWiseAdagrad",
    "Slot",
    "State",
    "deserialize",
    "get",
    "names",
    "scale",
    "schedules",
    "serialize",
]
