"""TensorFlow's raw ops that update variables: its names, arguments and order.

All arguments are keywords. Variables are tensors, `Variable`s or their ``handle``;
scalars are numbers or 0-d tensors. Ops that update write in place and return nothing;
`ReadVariableOp` and `ResourceGather` return tensors.
"""

from __future__ import annotations

import builtins

from thalweg.raw_ops.adadelta import (
    ResourceApplyAdadelta,
    ResourceSparseApplyAdadelta,
)
from thalweg.raw_ops.adagrad import (
    ResourceApplyAdagrad,
    ResourceApplyAdagradV2,
    ResourceSparseApplyAdagrad,
    ResourceSparseApplyAdagradV2,
)
from thalweg.raw_ops.adam import (
    ResourceApplyAdam,
    ResourceApplyAdaMax,
    ResourceApplyAdamWithAmsgrad,
)
from thalweg.raw_ops.ftrl import (
    ResourceApplyFtrl,
    ResourceApplyFtrlV2,
    ResourceSparseApplyFtrl,
    ResourceSparseApplyFtrlV2,
)
from thalweg.raw_ops.gradient_descent import (
    ResourceApplyGradientDescent,
    ResourceApplyProximalGradientDescent,
    ResourceSparseApplyProximalGradientDescent,
)
from thalweg.raw_ops.indices import check_deferred
from thalweg.raw_ops.momentum import (
    ResourceApplyKerasMomentum,
    ResourceApplyMomentum,
    ResourceSparseApplyKerasMomentum,
    ResourceSparseApplyMomentum,
)
from thalweg.raw_ops.own import RawOp, own_ops, raw_op
from thalweg.raw_ops.regularized_adagrad import (
    ResourceApplyAdagradDA,
    ResourceApplyProximalAdagrad,
    ResourceSparseApplyAdagradDA,
    ResourceSparseApplyProximalAdagrad,
)
from thalweg.raw_ops.rms_prop import (
    ResourceApplyCenteredRMSProp,
    ResourceApplyRMSProp,
    ResourceSparseApplyCenteredRMSProp,
    ResourceSparseApplyRMSProp,
)
from thalweg.raw_ops.scatter import (
    ResourceScatterAdd,
    ResourceScatterDiv,
    ResourceScatterMax,
    ResourceScatterMin,
    ResourceScatterMul,
    ResourceScatterSub,
    ResourceScatterUpdate,
)
from thalweg.raw_ops.sign import (
    ResourceApplyAddSign,
    ResourceApplyPowerSign,
)
from thalweg.raw_ops.variables import (
    AssignAddVariableOp,
    AssignSubVariableOp,
    AssignVariableOp,
    ReadVariableOp,
    ResourceGather,
)

__all__ = [
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "AssignVariableOp",
    "RawOp",
    "ReadVariableOp",
    "ResourceApplyAdaMax",
    "ResourceApplyAdadelta",
    "ResourceApplyAdagrad",
    "ResourceApplyAdagradDA",
    "ResourceApplyAdagradV2",
    "ResourceApplyAdam",
    "ResourceApplyAdamWithAmsgrad",
    "ResourceApplyAddSign",
    "ResourceApplyCenteredRMSProp",
    "ResourceApplyFtrl",
    "ResourceApplyFtrlV2",
    "ResourceApplyGradientDescent",
    "ResourceApplyKerasMomentum",
    "ResourceApplyMomentum",
    "ResourceApplyPowerSign",
    "ResourceApplyProximalAdagrad",
    "ResourceApplyProximalGradientDescent",
    "ResourceApplyRMSProp",
    "ResourceGather",
    "ResourceScatterAdd",
    "ResourceScatterDiv",
    "ResourceScatterMax",
    "ResourceScatterMin",
    "ResourceScatterMul",
    "ResourceScatterSub",
    "ResourceScatterUpdate",
    "ResourceSparseApplyAdadelta",
    "ResourceSparseApplyAdagrad",
    "ResourceSparseApplyAdagradDA",
    "ResourceSparseApplyAdagradV2",
    "ResourceSparseApplyCenteredRMSProp",
    "ResourceSparseApplyFtrl",
    "ResourceSparseApplyFtrlV2",
    "ResourceSparseApplyKerasMomentum",
    "ResourceSparseApplyMomentum",
    "ResourceSparseApplyProximalAdagrad",
    "ResourceSparseApplyProximalGradientDescent",
    "ResourceSparseApplyRMSProp",
    "check_deferred",
    "list",
    "raw_op",
]

_OTHER_NAMES = frozenset(("RawOp", "check_deferred", "list", "raw_op"))


def list() -> builtins.list[str]:  # noqa: A001 - read as tw.raw_ops.list()
    """Names of all raw ops, your own among them.

    Returns:
        The names, sorted.

    Example:
        >>> "ResourceApplyAdam" in tw.raw_ops.list()
        True
    """
    return sorted({*__all__, *own_ops()} - _OTHER_NAMES)


def __getattr__(name: str) -> RawOp:
    try:
        return own_ops()[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
