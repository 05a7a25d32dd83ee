"""The compiler: from an update rule to one pass over memory.

trace ─► passes ─► program ─┬─► C text ─► build ─► cache ─► kernel
                            ├─► Triton text ─► kernel on a GPU
                            └─► interpreter (oracle and fallback)
"""

from __future__ import annotations

from thalweg.compiler.compilation import (
    compile_rule,
    compile_rules,
    kernel_source,
    reads_shape,
    shape_read,
)
from thalweg.compiler.interpret import interpret
from thalweg.compiler.kernel import Kernel, Launch
from thalweg.compiler.key import KernelKey
from thalweg.compiler.passes import NUM_ELEMENTS
from thalweg.compiler.program import APPLY, ROW_LENGTH, Columns
from thalweg.compiler.rows import RowTables, RowWalk
from thalweg.compiler.rule import Rule
from thalweg.errors import TraceError

__all__ = [
    "APPLY",
    "NUM_ELEMENTS",
    "ROW_LENGTH",
    "Columns",
    "Kernel",
    "KernelKey",
    "Launch",
    "RowTables",
    "RowWalk",
    "Rule",
    "TraceError",
    "compile_rule",
    "compile_rules",
    "interpret",
    "kernel_source",
    "reads_shape",
    "shape_read",
]
