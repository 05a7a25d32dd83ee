"""Reductions give the same bits from an AVX2 build and from an AVX-512 build.

The order of a sum is part of the text, so the compiler's choice of registers must not
show. Rules without reductions are held to the interpreter elsewhere.
"""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch

from tests.codegen.bits import run_dense, run_rows, same_bits
from thalweg import rules
from thalweg.compiler import Kernel, KernelKey, Rule, build, compilation, compile_rules
from thalweg.compiler.reductions import CHUNK

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BUILDS = {
    "AVX2": ("-march=haswell",),
    "AVX-512": ("-march=skylake-avx512", "-mprefer-vector-width=512"),
}


def missing() -> str:
    """Why both builds cannot run here; empty if they can."""
    if platform.machine() != "x86_64":
        return f"{platform.machine()} has neither AVX2 nor AVX-512"
    features = set(build.cpu_features().split())
    wanted = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    lacking = ", ".join(sorted(wanted - features))
    if lacking:
        return f"this processor lacks {lacking}"
    return "" if build.find_compiler() else "needs a C compiler"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def whole(var: Any, slot: Any, grad: Any, *, rate: float) -> Any:
    total = torch.sum(grad * var) + torch.amax(torch.abs(grad))
    size = torch.linalg.vector_norm(slot - grad)
    return var - rate * grad * total / (size + 1.0), slot + torch.mean(grad)


def rows(var: Any, slot: Any, grad: Any, *, rate: float) -> Any:
    mean = torch.mean(grad * grad, dim=-1, keepdim=True)
    largest = torch.amax(torch.abs(var), dim=-1, keepdim=True)
    total = torch.sum(slot * grad, dim=-1, keepdim=True)
    size = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
    return var - rate * total / (largest + size), slot + torch.sqrt(mean)


SCALARS = {"rate": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-6}
SCALARS |= {"lr": 0.01, "beta1_power": 0.7, "beta2_power": 0.9}


def keys() -> list[KernelKey]:
    """The kernels, all for one translation unit."""
    found = [
        KernelKey(Rule.of(function), (), (dtype,) * 3)
        for dtype in DTYPES
        for function in (whole, rows)
    ]
    found.append(KernelKey(Rule.of(rows), (), (torch.float32,) * 3, "sum"))
    found.append(KernelKey(Rule.of(rules.lamb), (), (torch.float32,) * 4))
    return found


KEYS = keys()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Kernel]]:
    """The kernels of both builds."""
    made: dict[str, list[Kernel]] = {}
    contents: set[bytes] = set()
    for name, flags in BUILDS.items():
        with pytest.MonkeyPatch.context() as patch:
            folder = tmp_path_factory.mktemp("cache") / "kernels"
            patch.setenv("THALWEG_CACHE_DIR", str(folder))
            patch.setattr(compilation, "_KERNELS", {})
            patch.setattr(build, "NATIVE", flags[0])
            patch.setattr(build, "_WIDE", flags[1:])
            made[name] = compile_rules(KEYS)
            assert [kernel.backend for kernel in made[name]] == ["c"] * len(KEYS)
            (library,) = folder.glob("*.so")
            contents.add(library.read_bytes())
    assert len(contents) == len(BUILDS)
    return made


@pytest.mark.parametrize("number", range(len(KEYS)))
@pytest.mark.parametrize("num_threads", [1, 2])
def test_two_builds_give_the_same_bits(
    kernels: dict[str, list[Kernel]], number: int, num_threads: int
) -> None:
    key = KEYS[number]
    shape = (9, 1237) if key.rule.name == "rows" else (2 * CHUNK + 13,)
    tensors = [torch.randn(shape).to(dtype) for dtype in key.dtypes]
    narrow, wide = (
        _run(made[number], tensors, num_threads) for made in kernels.values()
    )
    assert all(map(same_bits, narrow, wide))
    assert not same_bits(narrow[0], tensors[0])


def _run(
    kernel: Kernel, tensors: list[torch.Tensor], num_threads: int
) -> list[torch.Tensor]:
    options: dict[str, Any] = {"compiled": True, "num_threads": num_threads}
    if kernel.key.mode == "dense":
        width = tensors[0].shape[-1]
        return run_dense(kernel, tensors, SCALARS, width=width, **options)
    touched = torch.tensor([3, 0, 3, 7])
    held = [*tensors[:-1], tensors[-1][: len(touched)]]
    return run_rows(kernel, held, touched, SCALARS, **options)
