"""What a raw op called from Python costs: one on a small tensor, and 300 in a step.

The machine's own pace is shown by `add_` on the same tensor, timed in the same rounds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

import thalweg as tw
from benchmarks import devices
from benchmarks.harness import interleaved, report, summary

CALL_BOUND_US = 20.0
BATCH_BOUND = 1.5
_SCALARS: dict[str, Any] = {
    "beta1_power": 0.9,
    "beta2_power": 0.999,
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-7,
}


class ByHand(tw.OptimizerV2):
    """Adam of the Keras 2 kind: each variable is updated by a call of a raw op."""

    def __init__(self, name: str = "ByHand", **options: Any) -> None:
        super().__init__(name, **options)

    def _create_slots(self, var_list: Any) -> None:
        for var in var_list:
            self.add_slot(var, "m")
            self.add_slot(var, "v")

    def _resource_apply_dense(
        self, grad: torch.Tensor, var: Any, apply_state: Any = None
    ) -> None:
        tw.raw_ops.ResourceApplyAdam(
            var=var.handle,
            m=self.get_slot(var, "m").handle,
            v=self.get_slot(var, "v").handle,
            grad=grad,
            **_SCALARS,
        )


class ByHandTogether(ByHand):
    """The same, launched together."""

    batch_raw_ops = True


def repeated(function: Callable[[], Any], number: int) -> Callable[[], float]:
    """A contender that returns the microseconds of one call."""

    def contender() -> float:
        start = time.perf_counter()
        for _ in range(number):
            function()
        return (time.perf_counter() - start) / number * 1e6

    return contender


def forms(size: int) -> dict[str, Callable[[], Any]]:
    """Calls of `ResourceApplyAdam` with arguments of all kinds, and of an own op."""
    var, m, v, grad = (torch.zeros(size) for _ in range(4))
    plain: dict[str, Any] = {"var": var, "m": m, "v": v, "grad": grad, **_SCALARS}
    tensors = ("var", "m", "v", "grad")
    square = (size // 8, 8)
    rates = itertools.cycle([1e-3 * (1 + number) for number in range(5000)])
    turned = {name: torch.zeros(square).T for name in tensors}
    other = {name: torch.zeros(2 * size) for name in tensors}
    sizes = itertools.cycle([plain, {**plain, **other}])
    variables = {name: tw.Variable(torch.zeros(size)) for name in tensors[:3]}
    adam = tw.raw_ops.ResourceApplyAdam
    arguments = {
        "ResourceApplyAdam": plain,
        "… of Variables": {**plain, **variables},
        "… use_nesterov": {**plain, "use_nesterov": True},
        "… epsilon zero": {**plain, "epsilon": 0.0},
        "… lr a tensor": {**plain, "lr": torch.tensor(1e-3)},
        "… bfloat16 gradient": {**plain, "grad": grad.bfloat16()},
        "… float64": {**plain, **{n: plain[n].double() for n in tensors}},
        "… transposed": {**plain, **turned},
    }
    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(adam, **given) for name, given in arguments.items()
    }
    calls["… another lr each time"] = lambda: adam(**{**plain, "lr": next(rates)})
    calls["… two sizes in turn"] = lambda: adam(**next(sizes))
    calls["an own op"] = functools.partial(
        apply_heavy_ball, var=var, m=m, grad=grad, lr=0.1, momentum=0.9
    )
    return calls


@tw.raw_op
def apply_heavy_ball(var: Any, m: Any, grad: Any, *, lr: Any, momentum: Any) -> Any:
    """An op of one's own."""
    velocity = momentum * m + grad
    return var - lr * velocity, velocity


def single_calls(size: int, number: int) -> dict[str, Callable[[], float]]:
    """One call on a tensor of some elements, and what torch has beside it."""
    var, m, v, grad = (torch.zeros(size) for _ in range(4))
    step, descent = torch.ones(()), tw.raw_ops.ResourceApplyGradientDescent
    table, accum = torch.zeros(100, size), torch.ones(100, size)
    rows, indices = torch.ones(4, size), torch.tensor([1, 7, 3, 1])
    calls: dict[str, Callable[[], Any]] = {
        "add_": lambda: var.add_(grad),
        **forms(size),
        "ResourceApplyGradientDescent": lambda: descent(var=var, alpha=0.1, delta=grad),
        "ResourceSparseApplyAdagrad": lambda: tw.raw_ops.ResourceSparseApplyAdagrad(
            var=table, accum=accum, lr=0.1, grad=rows, indices=indices
        ),
        "torch._fused_adam_": lambda: torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            *([var], [grad], [m], [v], [], [step]),
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-7,
            amsgrad=False,
            maximize=False,
        ),
    }
    return {name: repeated(call, number) for name, call in calls.items()}


def ours(kind: type[tw.Optimizer], tensors: int, size: int) -> Callable[[], Any]:
    """A step of an optimizer of ours."""
    variables = [tw.Variable(torch.zeros(size)) for _ in range(tensors)]
    pairs = [(torch.randn(size), variable) for variable in variables]
    optimizer = kind()
    return lambda: optimizer.apply_gradients(pairs)


def fused(tensors: int, size: int) -> Callable[[], Any]:
    """A step of torch's fused Adam."""
    parameters = [torch.nn.Parameter(torch.zeros(size)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn(size)
    return torch.optim.Adam(parameters, fused=True).step


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    devices.add_option(parser)
    parser.add_argument("--quick", action="store_true", help="a trial run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rounds, number = (1, 3) if options.quick else (options.rounds, 1000)
    tensors = 3 if options.quick else 300
    calls = interleaved(single_calls(64, number), rounds)
    steps = {
        "torch fused": fused(tensors, 1024),
        "Adam": ours(tw.optimizers.Adam, tensors, 1024),
        "by hand": ours(ByHand, tensors, 1024),
        "by hand, batch_raw_ops": ours(ByHandTogether, tensors, 1024),
    }
    repeats = {name: repeated(step, 1) for name, step in steps.items()}
    taken = interleaved(repeats, rounds if options.quick else 4 * rounds, warm_up=3)
    medians = {n: summary(s)["median"] for n, s in {**calls, **taken}.items()}
    rows = [
        {"what": name, **{f"{key}, µs": value for key, value in summary(s).items()}}
        for name, s in {**calls, **taken}.items()
    ]
    call, slowest = medians["ResourceApplyAdam"], max(medians[n] for n in forms(64))
    ratio = medians["torch fused"] / medians["by hand, batch_raw_ops"]
    verdicts = {
        "one call on 64 floats, µs": call,
        "the slowest form of it, µs": slowest,
        f"at most {CALL_BOUND_US}": slowest <= CALL_BOUND_US,
        "one on four rows, µs": medians["ResourceSparseApplyAdagrad"],
        "one call, in add_": call / medians["add_"],
        "torch fused / by hand, batch_raw_ops": ratio,
        f"at least {BATCH_BOUND}": ratio >= BATCH_BOUND,
    }
    report("raw_op", rows, verdicts, write=not options.quick)


if __name__ == "__main__":
    main()
