"""Running rules on variables: the only place that writes variables and slots."""

from thalweg.step.batch import Batch, inside_step
from thalweg.step.compose import (
    CLIPVALUE,
    EMA,
    EMA_MOMENTUM,
    GRADIENT_SCALE,
    LOW_PRECISION_COPY,
    STEP,
    WEIGHT_DECAY,
    bind_rule,
)
from thalweg.step.group import Member, Rounding
from thalweg.step.launch import launch_dense, launch_rows
from thalweg.step.plan import Plan
from thalweg.step.recognition import Recognition
from thalweg.step.row_updates import RowMode, RowUpdate
from thalweg.step.rows import launch_row_updates
from thalweg.step.transforms import NonFinite, Transforms, refuse_nonfinite

__all__ = [
    "CLIPVALUE",
    "EMA",
    "EMA_MOMENTUM",
    "GRADIENT_SCALE",
    "LOW_PRECISION_COPY",
    "STEP",
    "WEIGHT_DECAY",
    "Batch",
    "Member",
    "NonFinite",
    "Plan",
    "Recognition",
    "Rounding",
    "RowMode",
    "RowUpdate",
    "Transforms",
    "bind_rule",
    "inside_step",
    "launch_dense",
    "launch_row_updates",
    "launch_rows",
    "refuse_nonfinite",
]
