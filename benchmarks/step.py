"""Time of a whole dense step beside torch, optax and TensorFlow.

Each case is interleaved in one run: every round times all contenders once. Bytes are
those that a single pass over memory has to read and write. On a GPU (`--device cuda`)
the large cases have a thousand million parameters, or what there is room for.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

import thalweg as tw
from benchmarks import devices
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
# What bandwidth is measured by; a GPU's is that of a copy.
COPIES: dict[str, dict[str, Setup]] = {
    "cpu": {"memory copy": memory_copy, "memory in place": memory_in_place},
    "cuda": {"memory copy": memory_copy},
}
# Steps of less than a millisecond: more of them, so that a pause counts less. A GPU is
# given several in any case, so that the host's work for the first counts less.
REPEATS, SHORT_ROUNDS = {"cpu": 5, "cuda": 20}, 41
LONG_REPEATS = {"cpu": 1, "cuda": 5}
AHEAD = [Bound(OURS, OPTAX, 1.0), Bound(OURS, TENSORFLOW, 1.0)]
SMALL = [
    Bound(OURS, FUSED, 4.0),
    Bound(OURS, FOREACH, 12.0),
    Bound(OURS, FUSED, 1.5, device="cuda"),
]
SIZES = {"cpu": 50_000_000, "cuda": 1_000_000_000}
GPU_BOUNDS = {"AdamW": [Bound(OURS, FUSED, 1.0, device="cuda")]}
GPU_SHARES = {"AdamW": {"cuda": 0.92}}
# Tensors of the variables' size: a contender keeps the variable and two slots; with the
# gradient, an average and what `foreach` makes within a step there are no more than 8.
_KEPT, _TOUCHED, _FLOAT = 3, 8, 4


def small(options: argparse.Namespace) -> Iterator[Case]:
    """Many small tensors: what counts is the work for each of them."""
    problem = Problem([1024] * (30 if options.quick else 300), options.device)
    for name in ("Adam", "AdamW"):
        yield Case(
            f"300 × 1,024 {name}",
            problem,
            _contenders(name, getattr(tw.optimizers, name), options),
            [*SMALL, *AHEAD],
            passes=7,
            repeats=_repeats(options),
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
            OURS: thalweg_step(tw.optimizers.Adam, per_variable=settings),
            FUSED: torch_step("Adam", fused=True),
            FOREACH: torch_step("Adam", foreach=True),
            "torch fused, 50 groups": torch_groups,
        },
        SMALL,
        passes=7,
        repeats=_repeats(options),
        rounds=SHORT_ROUNDS,
    )
    yield by_hand(problem, options)


def by_hand(problem: Problem, options: argparse.Namespace) -> Case:
    """A raw op for each variable, called from Python."""
    return Case(
        "300 × 1,024, override",
        problem,
        {
            OURS: thalweg_step(ByHandTogether),
            "one by one": thalweg_step(ByHand),
            FUSED: torch_step("Adam", fused=True),
        },
        [Bound(OURS, FUSED, 1.5)],
        passes=7,
        repeats=_repeats(options),
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
        _contenders("Adam", tw.optimizers.Adam, options),
        [Bound(OURS, FUSED, 1.0), *AHEAD],
        passes=7,
        repeats=_repeats(options),
        rounds=SHORT_ROUNDS,
    )


def large(options: argparse.Namespace) -> Iterator[Case]:
    """So many parameters that what counts is memory."""
    size, problem = large_problem(options)
    fused: dict[str, tuple[dict[str, Any], int]] = {
        "Adam": ({}, 7),
        "AdamW": ({}, 7),
        "SGD": ({"momentum": 0.9}, 5),
        "Adagrad": ({}, 5),
    }
    for name, (given, passes) in fused.items():
        make = functools.partial(getattr(tw.optimizers, name), **given)
        yield _large_case(
            f"{size} {name}",
            problem,
            _contenders(name, make, options, **given),
            [Bound(OURS, FUSED, 0.97), *GPU_BOUNDS.get(name, []), *AHEAD],
            passes,
            {"cpu": 0.85, **GPU_SHARES.get(name, {})},
        )
    yield from unfused(size, problem, options)
    yield from full_steps(size, problem)


def large_problem(options: argparse.Namespace) -> tuple[str, Problem]:
    """The number of parameters in a word, and ten variables that have so many."""
    wanted = SIZES[devices.kind(options.device)]
    count = devices.fitting(wanted, _TOUCHED * _FLOAT, options.device)
    word = "1B" if count == 1_000_000_000 else f"{count // 1_000_000}M"
    each = 5_000 if options.quick else count // 10
    return word, Problem([each] * 10, options.device)


def _large_case(
    name: str,
    problem: Problem,
    contenders: Mapping[str, Setup],
    bounds: Sequence[Bound],
    passes: float | Mapping[str, float],
    share: Mapping[str, float] | None = None,
    kept: int = _KEPT,
) -> Case:
    """A case beside copies in memory, which come first: ours is never without them."""
    kind = devices.kind(problem.device)
    return Case(
        name,
        problem,
        {**COPIES[kind], **contenders},
        bounds,
        passes,
        share or {},
        LONG_REPEATS[kind],
        keeps=kept * _FLOAT * problem.num_elements,
    )


def _repeats(options: argparse.Namespace) -> int:
    return REPEATS[devices.kind(options.device)]


def unfused(size: str, problem: Problem, options: argparse.Namespace) -> Iterator[Case]:
    """Rules that torch has no fused kernel for."""
    rules: dict[str, tuple[type[tw.Optimizer], float]] = {
        "RMSprop": (tw.optimizers.RMSprop, 3.0),
        "NAdam": (tw.optimizers.Nadam, 3.0),
        "Adadelta": (tw.optimizers.Adadelta, 3.0),
        "Adamax": (tw.optimizers.Adamax, 2.2),
    }
    for name, (make, bound) in rules.items():
        contenders = _contenders(name, make, options)
        contenders.pop(FUSED)
        best = Bound(OURS, (FOREACH, LOOP), bound)
        gpu = Bound(OURS, FOREACH, 2.5, device="cuda")
        passes = 5 if name == "RMSprop" else 7
        bounds = [best, gpu, *AHEAD]
        yield _large_case(f"{size} {name}", problem, contenders, bounds, passes)


def full_steps(size: str, problem: Problem) -> Iterator[Case]:
    """Clip, decay and average in one pass; slots of half the size."""
    adamw = tw.optimizers.AdamW
    yield _large_case(
        f"{size} clip + AdamW + EMA",
        problem,
        {
            OURS: thalweg_step(adamw, global_clipnorm=1.0, use_ema=True),
            "torch chain": torch_full_step,
            OPTAX: optax_full_step,
        },
        [Bound(OURS, "torch chain", 1.25), Bound(OURS, OPTAX, 1.0)],
        passes=10,
        kept=_KEPT + 1,
    )
    slots = {"m": "bfloat16", "v": "bfloat16"}
    wide = "thalweg, float32 slots"
    yield _large_case(
        f"{size} AdamW, bfloat16 slots",
        problem,
        {
            OURS: thalweg_step(adamw, slot_dtypes=slots),
            wide: thalweg_step(adamw),
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
    name: str,
    make: Callable[[], tw.Optimizer],
    options: argparse.Namespace,
    **arguments: Any,
) -> dict[str, Setup]:
    """This package and everything that has the same rule."""
    found: dict[str, Setup] = {
        OURS: thalweg_step(make),
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
    options = arguments(__doc__, gpu=True).parse_args(words)
    run("step", cases(options), options)


if __name__ == "__main__":
    main()
