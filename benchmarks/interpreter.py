"""Time of a dense step without a compiler, beside torch's for-loop.

The interpreter must not be much slower than what people have: the same optimizer of
`torch.optim` with ``foreach=False, fused=False``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import thalweg as tw
from benchmarks.cases import OURS, Bound, Case, arguments, run
from benchmarks.contenders import Problem, Setup, Step, thalweg_step, torch_step

LOOP, KERAS = "torch for-loop", "thalweg, Keras's names"
SLOWER = 1.5
_HAS_FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
_ALIKE: dict[str, tuple[type[tw.Optimizer], dict[str, Any]]] = {
    "SGD": (tw.optimizers.SGD, {}),
    "SGD momentum": (tw.optimizers.SGD, {"momentum": 0.9}),
    "Adam": (tw.optimizers.Adam, {}),
    "Adam amsgrad": (tw.optimizers.Adam, {"amsgrad": True}),
    "AdamW": (tw.optimizers.AdamW, {}),
    "Adagrad": (tw.optimizers.Adagrad, {}),
    "Adadelta": (tw.optimizers.Adadelta, {}),
    "RMSprop": (tw.optimizers.RMSprop, {}),
    "Adamax": (tw.optimizers.Adamax, {}),
    "NAdam": (tw.optimizers.Nadam, {}),
}
_RULES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-3},
    "SGD momentum": {"lr": 1e-3, "momentum": 0.9},
    "Adam": {},
    "Adam amsgrad": {"amsgrad": True},
    "AdamW": {},
    "Adagrad": {},
    "Adadelta": {},
    "RMSprop": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Rprop": {},
    "ASGD": {},
}


def drop_in_step(name: str, **given: Any) -> Setup:
    """`step` of a class of `thalweg.optim`."""

    def setup(problem: Problem) -> Step:
        held = problem.parameters()
        for parameter, grad in zip(held, problem.grads, strict=True):
            parameter.grad = grad
        return getattr(tw.optim, name)(held, **given).step

    return setup


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every rule that torch has too, on small, medium and large tensors."""
    scale = 100 if options.quick else 1
    problems = {
        "300 × 1,024": (Problem([1024] * (300 // scale)), 3),
        "MLP, 4 tensors, 100k": (Problem([256 * 256, 256, 256 * 128, 128]), 9),
        "2 × 4M": (Problem([4_000_000 // scale] * 2), 1),
    }
    for size, (problem, repeats) in problems.items():
        for rule, given in _RULES.items():
            name = rule.split()[0]
            loop = {"foreach": False, **given}
            if name in _HAS_FUSED:
                loop["fused"] = False
            contenders = {OURS: drop_in_step(name, **given)}
            if rule in _ALIKE:
                kind, keywords = _ALIKE[rule]
                contenders[KERAS] = thalweg_step(kind, **keywords)
            contenders[LOOP] = torch_step(name, **loop)
            bounds = [Bound(ours, LOOP, 1 / SLOWER) for ours in list(contenders)[:-1]]
            case = f"{size} {rule}"
            yield Case(case, problem, contenders, bounds, repeats=repeats)


def main(words: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args(words)
    os.environ["THALWEG_COMPILER"] = "0"
    run("interpreter", cases(options), options)


if __name__ == "__main__":
    main()
