"""In a step, rules alone compute what variables and slots become."""

from __future__ import annotations

import ast

import torch

from tests.architecture.source_tree import functions, modules

ROOMS = {"optimizers", "optim", "step"}
COPIES = {"copy_", "fill_", "zero_", "index_copy_", "requires_grad_", "share_memory_"}
"""What changes memory, or a tensor, without computing anything."""
ARITHMETIC = {
    name
    for name in dir(torch.Tensor)
    if name.endswith("_") and not name.startswith("_") and name not in COPIES
}
ALLOWED = {
    "thalweg.optimizers.accumulation.add": "a copy of a caller's rows, unscaled",
    "thalweg.optimizers.loss_scale_optimizer._apply": "the count of steps",
    "thalweg.optimizers.rank_sums._added": "sums of other ranks, as they are restored",
    "thalweg.optimizers.rank_sums.share_of": "the same",
    "thalweg.optimizers.step_count._count_step": "the count of steps",
    "thalweg.optimizers.whole_rows.__init__": "a mask of rows",
    "thalweg.step.device_checks.note": "whether a device found something wrong",
    "thalweg.step.device_clock.advance": "the count of steps",
}
"""Functions that compute something else in place, and what."""


def arithmetic_in_place() -> dict[str, list[str]]:
    """Functions of the rooms that compute in place, and the methods they call."""
    found: dict[str, list[str]] = {}
    for module in modules():
        for function in functions(module) if module.room in ROOMS else ():
            calls = [
                node.func.attr
                for node in ast.walk(function)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ARITHMETIC
            ]
            if calls:
                found[f"{module.name}.{function.name}"] = calls
    return found


def test_nothing_but_rules_computes_what_a_step_writes() -> None:
    assert {"add_", "mul_", "lerp_", "addcmul_", "index_add_"} <= ARITHMETIC
    assert set(arithmetic_in_place()) == set(ALLOWED)
