"""What the update of some variables is measured against, each set up in a few lines.

A setup takes a `Problem` and returns a function that does one step. One that needs
what is not installed raises `MissingError`, and the table says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import thalweg as tw
from benchmarks import devices

Step = Callable[[], object]


class MissingError(Exception):
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Variables to update: their sizes, device, and gradients that all share.

    Attributes:
        sizes: Number of elements of each variable.
        device: Where they are.
        grads: The gradients, made once.
    """

    sizes: Sequence[int]
    device: str = "cpu"
    grads: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        made = (torch.randn(n, generator=generator).mul_(1e-3) for n in self.sizes)
        object.__setattr__(self, "grads", [g.to(self.device) for g in made])

    @property
    def num_elements(self) -> int:
        """Elements of all variables."""
        return sum(self.sizes)

    def parameters(self) -> list[torch.nn.Parameter]:
        """New variables."""
        values = [torch.full((n,), 0.5, device=self.device) for n in self.sizes]
        return [torch.nn.Parameter(value) for value in values]


Setup = Callable[[Problem], Step]


def thalweg_step(make: Callable[..., tw.Optimizer], **options: Any) -> Setup:
    """`apply_gradients` of an optimizer of this package."""

    def setup(problem: Problem) -> Step:
        optimizer = make(**options)
        named = [(f"v{i}", p) for i, p in enumerate(problem.parameters())]
        optimizer.build(named)
        pairs = list(zip(problem.grads, (p for _, p in named), strict=True))
        return lambda: optimizer.apply_gradients(pairs)

    return setup


def torch_step(name: str, **options: Any) -> Setup:
    """`step` of a class of `torch.optim`."""

    def setup(problem: Problem) -> Step:
        return _torch_optimizer(problem, name, options).step

    return setup


def torch_compiled_step(name: str, **options: Any) -> Setup:
    """The same, compiled by torch; the first call takes half a minute."""

    def setup(problem: Problem) -> Step:
        optimizer = _torch_optimizer(problem, name, options)
        return torch.compile(lambda: optimizer.step())

    return setup


def torch_full_step(problem: Problem) -> Step:
    """Clip by global norm, fused AdamW, moving average: torch's best of each."""
    optimizer = _torch_optimizer(problem, "AdamW", {"fused": True})
    held = list(optimizer.param_groups[0]["params"])
    averages = [p.detach().clone() for p in held]
    lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(held, 1.0, foreach=True)
        optimizer.step()
        lerp(averages, [p.detach() for p in held], 0.01)

    return step


def _torch_optimizer(problem: Problem, name: str, options: Mapping[str, Any]) -> Any:
    held = problem.parameters()
    for parameter, grad in zip(held, problem.grads, strict=True):
        parameter.grad = grad
    return getattr(torch.optim, name)(held, **options)


def optax_step(name: str, **options: Any) -> Setup:
    """An optax transformation under `jax.jit`, with donated buffers."""

    def setup(problem: Problem) -> Step:
        _, optax = optax_modules(problem.device)
        return _optax(problem, getattr(optax, name)(1e-3, **options))

    return setup


def optax_full_step(problem: Problem) -> Step:
    """Clip by global norm, AdamW and moving average in one `jax.jit`."""
    _, optax = optax_modules(problem.device)
    clip = optax.clip_by_global_norm(1.0)
    return _optax(problem, optax.chain(clip, optax.adamw(1e-3)), averages=True)


def on_cpu(name: str, device: str) -> None:
    """Raise `MissingError` on a device that a contender is not measured on."""
    if devices.kind(device) != "cpu":
        raise MissingError(f"{name} is measured on the CPU only")


def optax_modules(device: str) -> tuple[Any, Any]:
    """Jax and optax; MissingError if they are not installed, or on a GPU."""
    on_cpu("optax", device)
    try:
        import jax  # pyright: ignore[reportMissingImports]
        import optax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingError("optax is not installed") from error
    return jax, optax


def _optax(problem: Problem, rule: Any, *, averages: bool = False) -> Step:
    jax, optax = optax_modules(problem.device)
    params = [jax.numpy.asarray(p.detach().numpy()) for p in problem.parameters()]
    grads = [jax.numpy.asarray(g.numpy()) for g in problem.grads]

    def update(params: Any, state: Any, means: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        means = [0.99 * a + 0.01 * p for a, p in zip(means, params, strict=False)]
        return params, state, means

    compiled = jax.jit(update, donate_argnums=(0, 1, 2))
    means = [p + 0.0 for p in params] if averages else []
    held = [params, rule.init(params), means]

    def step() -> None:
        held[:] = compiled(*held, grads)
        jax.block_until_ready(held)

    return step


_TENSORFLOW: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "ResourceApplyAdam": (
        ("m", "v"),
        {"beta1_power": 0.9, "beta2_power": 0.999, "lr": 1e-3, "beta1": 0.9}
        | {"beta2": 0.999, "epsilon": 1e-7},
    ),
    "ResourceApplyKerasMomentum": (("accum",), {"lr": 1e-3, "momentum": 0.9}),
    "ResourceApplyAdagradV2": (("accum",), {"lr": 1e-3, "epsilon": 1e-7}),
    "ResourceApplyAdaMax": (
        ("m", "v"),
        {"beta1_power": 0.9, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999}
        | {"epsilon": 1e-7},
    ),
    "ResourceApplyAdadelta": (
        ("accum", "accum_update"),
        {"lr": 1e-3, "rho": 0.95, "epsilon": 1e-7},
    ),
    "ResourceApplyRMSProp": (
        ("ms", "mom"),
        {"lr": 1e-3, "rho": 0.9, "momentum": 0.0, "epsilon": 1e-7},
    ),
}


def tensorflow_module(device: str) -> Any:
    """TensorFlow; MissingError if it is not installed, or on a GPU."""
    on_cpu("TensorFlow", device)
    try:
        import tensorflow  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError as error:
        raise MissingError("TensorFlow is not installed") from error
    return tensorflow


def tensorflow_step(name: str) -> Setup:
    """A raw op of TensorFlow for each variable, in one `tf.function`."""

    def setup(problem: Problem) -> Step:
        tf = tensorflow_module(problem.device)
        slots, numbers = _TENSORFLOW[name]
        op = getattr(tf.raw_ops, name)
        grads = [tf.constant(g.numpy()) for g in problem.grads]
        held = [
            {slot: tf.Variable(tf.fill([n], 0.5)) for slot in ("var", *slots)}
            for n in problem.sizes
        ]

        @tf.function
        def step() -> None:
            for tensors, grad in zip(held, grads, strict=True):
                handles = {slot: t.handle for slot, t in tensors.items()}
                op(**handles, **numbers, grad=grad)

        return step

    return setup


def memory_copy(problem: Problem) -> Step:
    """A copy of as much memory as one slot takes: 8 bytes an element."""
    source = torch.ones(problem.num_elements, device=problem.device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def memory_in_place(problem: Problem) -> Step:
    """An update in place of as much memory as one slot takes: 8 bytes an element."""
    tensor = torch.ones(problem.num_elements, device=problem.device)
    return lambda: tensor.mul_(1.0)


def timed(step: Step, repeats: int, device: str = "cpu") -> Callable[[], float]:
    """Seconds of one step, over some in a row.

    Args:
        step: The step.
        repeats: How many are taken at a time.
        device: Where they run; a GPU is waited for, before and after.

    Returns:
        A function for `harness.interleaved`.
    """

    def run() -> float:
        devices.wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        devices.wait(device)
        return (time.perf_counter() - start) / repeats

    return run
