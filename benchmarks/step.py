"""Time of a whole dense step beside torch, optax and TensorFlow.

Each case is interleaved in one run: every round times all contenders once. Bytes are
those that a single pass over memory has to read and write.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

import thalweg as tw
from benchmarks.cases import OURS, Bound, Case, arguments, run
from benchmarks.contenders import (
    Problem,
    Setup,
    Step,
    memory_copy,
    memory_in_place,
    optax_full_step,
    optax_step,
    tensorflow_step,
    thalweg_step,
    torch_compiled_step,
    torch_full_step,
    torch_step,
)
from benchmarks.raw_op import ByHand, ByHandTogether

FUSED, FOREACH, LOOP = "torch fused", "torch foreach", "torch for-loop"
COMPILED, OPTAX, TENSORFLOW = "torch.compile", "optax jit", "TensorFlow raw ops"
MEMORY = {"memory copy": memory_copy, "memory in place": memory_in_place}
# Steps of less than a millisecond: more of them, so that a pause counts less.
REPEATS, SHORT_ROUNDS = 5, 41
AHEAD = [Bound(OURS, OPTAX, 1.0), Bound(OURS, TENSORFLOW, 1.0)]


def small(options: argparse.Namespace) -> Iterator[Case]:
    """Many small tensors: what counts is the work for each of them."""
    problem = Problem([1024] * (30 if options.quick else 300), options.device)
    for name in ("Adam", "AdamW"):
        yield Case(
            f"300 × 1,024 {name}",
            problem,
            _contenders(name, getattr(tw.optimizers, name)(), options),
            [Bound(OURS, FUSED, 4.0), Bound(OURS, FOREACH, 12.0), *AHEAD],
            passes=7,
            repeats=REPEATS,
            rounds=SHORT_ROUNDS,
        )
    settings = {
        f"v{i}": {"learning_rate": 1e-3 * (1 + i % 50)}
        for i in range(len(problem.sizes))
    }
    yield Case(
        "300 × 1,024, 50 settings",
        problem,
        {
            OURS: thalweg_step(tw.optimizers.Adam(per_variable=settings)),
            FUSED: torch_step("Adam", fused=True),
            FOREACH: torch_step("Adam", foreach=True),
            "torch fused, 50 groups": torch_groups,
        },
        [Bound(OURS, FUSED, 4.0), Bound(OURS, FOREACH, 12.0)],
        passes=7,
        repeats=REPEATS,
        rounds=SHORT_ROUNDS,
    )

    yield Case(
        "300 × 1,024, override",
        problem,
        {
            OURS: thalweg_step(ByHandTogether()),
            "one by one": thalweg_step(ByHand()),
            FUSED: torch_step("Adam", fused=True),
        },
        [Bound(OURS, FUSED, 1.5)],
        passes=7,
        repeats=REPEATS,
        rounds=SHORT_ROUNDS,
    )


def torch_groups(problem: Problem) -> Step:
    """Torch's fused Adam with fifty groups of parameters."""
    held = problem.parameters()
    for parameter, grad in zip(held, problem.grads, strict=True):
        parameter.grad = grad
    groups = [{"params": held[i::50], "lr": 1e-3 * (1 + i)} for i in range(50)]
    groups = [group for group in groups if group["params"]]
    return torch.optim.Adam(groups, fused=True).step


def few(options: argparse.Namespace) -> Iterator[Case]:
    """An MLP of four tensors."""
    problem = Problem([256 * 256, 256, 256 * 128, 128], options.device)
    yield Case(
        "MLP, 4 tensors, 100k",
        problem,
        _contenders("Adam", tw.optimizers.Adam(), options),
        [Bound(OURS, FUSED, 1.0), *AHEAD],
        passes=7,
        repeats=REPEATS,
        rounds=SHORT_ROUNDS,
    )


def large(options: argparse.Namespace) -> Iterator[Case]:
    """Fifty million parameters: what counts is memory."""
    problem = Problem([5_000 if options.quick else 5_000_000] * 10, options.device)
    fused: dict[str, tuple[tw.Optimizer, dict[str, Any], int]] = {
        "Adam": (tw.optimizers.Adam(), {}, 7),
        "AdamW": (tw.optimizers.AdamW(), {}, 7),
        "SGD": (tw.optimizers.SGD(momentum=0.9), {"momentum": 0.9}, 5),
        "Adagrad": (tw.optimizers.Adagrad(), {}, 5),
    }
    for name, (optimizer, given, passes) in fused.items():
        yield Case(
            f"50M {name}",
            problem,
            {**_contenders(name, optimizer, options, **given), **MEMORY},
            [Bound(OURS, FUSED, 0.97), *AHEAD],
            passes=passes,
            share=0.85,
        )
    yield from unfused(problem, options)
    yield from full_steps(problem)


def unfused(problem: Problem, options: argparse.Namespace) -> Iterator[Case]:
    """Rules that torch has no fused kernel for."""
    rules: dict[str, tuple[tw.Optimizer, float]] = {
        "RMSprop": (tw.optimizers.RMSprop(), 3.0),
        "NAdam": (tw.optimizers.Nadam(), 3.0),
        "Adadelta": (tw.optimizers.Adadelta(), 3.0),
        "Adamax": (tw.optimizers.Adamax(), 2.2),
    }
    for name, (optimizer, bound) in rules.items():
        contenders = _contenders(name, optimizer, options)
        contenders.pop(FUSED)
        passes = 5 if name == "RMSprop" else 7
        best = Bound(OURS, (FOREACH, LOOP), bound)
        yield Case(
            f"50M {name}", problem, {**contenders, **MEMORY}, [best, *AHEAD], passes
        )


def full_steps(problem: Problem) -> Iterator[Case]:
    """Clip, decay and average in one pass; slots of half the size."""
    yield Case(
        "50M clip + AdamW + EMA",
        problem,
        {
            OURS: thalweg_step(tw.optimizers.AdamW(global_clipnorm=1.0, use_ema=True)),
            "torch chain": torch_full_step,
            OPTAX: optax_full_step,
            **MEMORY,
        },
        [Bound(OURS, "torch chain", 1.25), Bound(OURS, OPTAX, 1.0)],
        passes=10,
    )
    slots = {"m": "bfloat16", "v": "bfloat16"}
    wide = "thalweg, float32 slots"
    yield Case(
        "50M AdamW, bfloat16 slots",
        problem,
        {
            OURS: thalweg_step(tw.optimizers.AdamW(slot_dtypes=slots)),
            wide: thalweg_step(tw.optimizers.AdamW()),
            **MEMORY,
        },
        [Bound(OURS, wide, 1.2)],
        passes={OURS: 5, wide: 7},
    )


_OPTAX: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}
_TENSORFLOW = {
    "Adam": "ResourceApplyAdam",
    "SGD": "ResourceApplyKerasMomentum",
    "Adagrad": "ResourceApplyAdagradV2",
    "Adamax": "ResourceApplyAdaMax",
    "Adadelta": "ResourceApplyAdadelta",
    "RMSprop": "ResourceApplyRMSProp",
}


def _contenders(
    name: str, optimizer: tw.Optimizer, options: argparse.Namespace, **arguments: Any
) -> dict[str, Setup]:
    """This package and everything that has the same rule."""
    found: dict[str, Setup] = {
        OURS: thalweg_step(optimizer),
        FUSED: torch_step(name, fused=True, **arguments)
        if name in ("Adam", "AdamW", "SGD", "Adagrad")
        else torch_step(name),
        FOREACH: torch_step(name, foreach=True, **arguments),
        LOOP: torch_step(name, foreach=False, **arguments),
        OPTAX: optax_step(name.lower(), **_OPTAX.get(name, {})),
    }
    if name in _TENSORFLOW:
        found[TENSORFLOW] = tensorflow_step(_TENSORFLOW[name])
    if options.torch_compile:
        found[COMPILED] = torch_compiled_step(name, **arguments)
    return found


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All cases, the small ones first."""
    yield from small(options)
    yield from few(options)
    yield from large(options)


def main(words: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args(words)
    run("step", cases(options), options)


if __name__ == "__main__":
    main()
