"""The mathematics, nothing else: one pure function for each update rule.

A rule takes ``(var, *slots, grad, *, scalars, flags)`` and returns the new variable
and the new slots. It knows no device, no optimizer and no strategy. Arguments carry
TensorFlow's names, in which ``lr`` is the learning rate.
"""

from thalweg.rules.ada_max import ada_max
from thalweg.rules.ada_max_with_floor import ada_max_with_floor
from thalweg.rules.adadelta import adadelta
from thalweg.rules.adagrad import adagrad, adagrad_da, adagrad_v2, row_wise_adagrad
from thalweg.rules.adam import adam, adam_with_amsgrad
from thalweg.rules.ftrl import ftrl, ftrl_v2
from thalweg.rules.gradient_descent import gradient_descent
from thalweg.rules.lamb import lamb
from thalweg.rules.lion import lion
from thalweg.rules.momentum import keras_momentum, momentum
from thalweg.rules.nadam import nadam
from thalweg.rules.proximal import proximal_adagrad, proximal_gradient_descent
from thalweg.rules.rms_prop import (
    centered_rms_prop,
    centered_rms_prop_of_rows,
    centered_rms_prop_without_momentum,
    rms_prop,
    rms_prop_of_rows,
    rms_prop_without_momentum,
)
from thalweg.rules.rms_prop_then_momentum import (
    centered_rms_prop_then_momentum,
    rms_prop_then_momentum,
)
from thalweg.rules.scatter import (
    scatter_add,
    scatter_div,
    scatter_max,
    scatter_min,
    scatter_mul,
    scatter_sub,
    scatter_update,
)
from thalweg.rules.sign import add_sign, power_sign
from thalweg.rules.weight_decay import decoupled_weight_decay

__all__ = [
    "ada_max",
    "ada_max_with_floor",
    "adadelta",
    "adagrad",
    "adagrad_da",
    "adagrad_v2",
    "adam",
    "adam_with_amsgrad",
    "add_sign",
    "centered_rms_prop",
    "centered_rms_prop_of_rows",
    "centered_rms_prop_then_momentum",
    "centered_rms_prop_without_momentum",
    "decoupled_weight_decay",
    "ftrl",
    "ftrl_v2",
    "gradient_descent",
    "keras_momentum",
    "lamb",
    "lion",
    "momentum",
    "nadam",
    "power_sign",
    "proximal_adagrad",
    "proximal_gradient_descent",
    "rms_prop",
    "rms_prop_of_rows",
    "rms_prop_then_momentum",
    "rms_prop_without_momentum",
    "row_wise_adagrad",
    "scatter_add",
    "scatter_div",
    "scatter_max",
    "scatter_min",
    "scatter_mul",
    "scatter_sub",
    "scatter_update",
]
