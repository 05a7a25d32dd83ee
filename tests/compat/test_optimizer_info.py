"""PyTorch's own description of its optimizers, with the classes of `thalweg.optim`.

`torch.testing._internal.common_optimizers` lists for each optimizer its constructor
inputs, the inputs that must fail, schedulers and what it supports. Every entry that has
a twin here is driven with the twin in torch's place.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from thalweg import optim

pytest.importorskip("expecttest")
common: Any = pytest.importorskip("torch.testing._internal.common_optimizers")

NO_TWIN = {
    "Adafactor": "not among the optimizers that thalweg.optim has",
    "LBFGS": "a line search, no rule of one pass",
    "Muon": "a matrix rule, which comes by another door",
}
CANNOT_PASS = {
    "differentiable": "a step writes through pointers, where autograd cannot follow",
    "complex parameters": "refused at construction; view_as_real is the advice",
    "capturable": "listed for CUDA and XPU only; steps are counted on the host",
}
WITH_TWIN = [info for info in common.optim_db if info.name not in NO_TWIN]
INFOS = pytest.mark.parametrize("info", WITH_TWIN, ids=lambda info: info.name)
FLAGS = ("foreach", "fused")


def own(info: Any) -> Any:
    return getattr(optim, info.name)


def inputs(info: Any) -> Iterator[dict[str, Any]]:
    """Keywords of each constructor input, alone and with each way to run."""
    for given in info.optim_inputs_func(device="cpu", dtype=torch.float32):
        yield given.kwargs
        for flag in FLAGS:
            is_tensor = isinstance(given.kwargs.get("lr"), torch.Tensor)
            if flag in info.supported_impls and not (flag == "foreach" and is_tensor):
                yield {**given.kwargs, flag: True}


class Problem:
    """A layer that shall give zero, and a loss for it.

    SparseAdam gets its gradient as a sparse one, which torch's class asks for.
    """

    def __init__(self, info: Any, *, is_contiguous: bool = True) -> None:
        generator = torch.Generator().manual_seed(4)

        def made(*shape: int) -> torch.nn.Parameter:
            wide = torch.randn(*shape, 1 if is_contiguous else 2, generator=generator)
            return torch.nn.Parameter(wide[..., 0])

        self.weight, self.bias = made(6, 4), made(6)
        self.given = torch.randn(4, generator=generator)
        self.is_sparse = info.only_supports_sparse_grads

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.weight, self.bias]

    def closure(self) -> torch.Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        loss = (self.weight.mv(self.given) + self.bias).square().sum()
        loss.backward()
        for parameter in self.parameters if self.is_sparse else ():
            parameter.grad = parameter.grad.to_sparse(1)  # type: ignore[union-attr]
        return loss


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch says this of its own sparse arithmetic.
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        yield


def test_every_optimizer_of_torch_is_accounted_for() -> None:
    twins = {info.name for info in WITH_TWIN}
    assert twins | set(NO_TWIN) == {info.name for info in common.optim_db}
    assert twins <= set(optim.__all__)
    assert all(CANNOT_PASS.values())


@INFOS
def test_inputs_that_must_fail_do(info: Any) -> None:
    cases = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    for case in cases:
        given = case.optimizer_error_input
        held = given.params
        if held is None:
            held = [torch.nn.Parameter(torch.randn(2, 3))]
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                own(info)(held, **given.kwargs)
        elif case.error_on is common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                own(info)(held, **given.kwargs)
        else:  # pragma: no cover - none of the twins has such a case
            pytest.fail(f"{given.desc}: a refusal in the step is not driven")


@INFOS
def test_ten_steps_of_every_input_equal_torch(info: Any) -> None:
    for kwargs in inputs(info):
        one, two = Problem(info), Problem(info)
        theirs = info.optim_cls(one.parameters, **copy.deepcopy(kwargs))
        mine = own(info)(two.parameters, **copy.deepcopy(kwargs))
        for _ in range(10):
            theirs.step(one.closure)
            mine.step(two.closure)
        for a, b in zip(one.parameters, two.parameters, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=f"{kwargs}")


@INFOS
@pytest.mark.parametrize("is_contiguous", [True, False])
@pytest.mark.parametrize("has_scheduler", [True, False])
def test_it_goes_in_the_right_direction(
    info: Any, is_contiguous: bool, has_scheduler: bool
) -> None:
    makers: Any = info.scheduler_inputs if has_scheduler else [()]
    # The ways to run are one way here; the other tests pass them.
    listed = info.optim_inputs_func(device="cpu", dtype=torch.float32)
    for kwargs in [given.kwargs for given in listed]:
        for group in makers:
            problem = Problem(info, is_contiguous=is_contiguous)
            optimizer = own(info)(problem.parameters, **copy.deepcopy(kwargs))
            schedulers = [make(optimizer) for make in group]
            assert type(optimizer).__name__ in repr(optimizer)
            first = problem.closure().item()
            for _ in range(20):
                loss = optimizer.step(problem.closure)
                for scheduler in schedulers:
                    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
                    is_plateau = isinstance(scheduler, plateau)
                    scheduler.step(*((loss.detach(),) if is_plateau else ()))
            last = problem.closure().item()
            assert last > first if kwargs.get("maximize") else last < first


@INFOS
def test_groups_have_their_own_rate(info: Any) -> None:
    problem, alone = Problem(info), Problem(info)
    weight, bias = problem.parameters
    groups = [{"params": [weight], "lr": 1e-3}, {"params": [bias]}]
    optimizer = own(info)(groups, lr=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.01]
    single = info.optim_cls([alone.bias], lr=0.01)
    for _ in range(3):
        optimizer.step(problem.closure)
    assert not torch.equal(weight, alone.weight)
    assert single.param_groups[0].keys() == optimizer.param_groups[1].keys()


@INFOS
def test_a_state_dict_is_deterministic_and_loads(info: Any) -> None:
    for kwargs in inputs(info):
        problem = Problem(info)
        optimizer = own(info)(problem.parameters, **copy.deepcopy(kwargs))
        for _ in range(3):
            optimizer.step(problem.closure)
        other = Problem(info)
        for mine, theirs in zip(other.parameters, problem.parameters, strict=True):
            mine.data.copy_(theirs.data)
        second = own(info)(other.parameters, **copy.deepcopy(kwargs))
        saved = copy.deepcopy(optimizer.state_dict())
        given = copy.deepcopy(saved)
        second.load_state_dict(given)
        assert_equal(saved, given)
        for _ in range(3):
            optimizer.step(problem.closure)
            second.step(other.closure)
        assert all(map(torch.equal, problem.parameters, other.parameters))
        assert_equal(optimizer.state_dict(), second.state_dict())


def assert_equal(one: Any, two: Any) -> None:
    torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)
    assert [g.keys() for g in one["param_groups"]] == [
        g.keys() for g in two["param_groups"]
    ]


@INFOS
def test_older_state_dicts_load(info: Any) -> None:
    for flag in info.not_og_supported_flags:
        problem, kept = Problem(info), Problem(info)
        optimizer, never_loaded = (own(info)(p.parameters) for p in (problem, kept))
        optimizer.step(problem.closure)
        never_loaded.step(kept.closure)
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            group.pop(flag, None)
        for state in saved["state"].values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].item()
        loaded = own(info)(problem.parameters)
        loaded.load_state_dict(saved)
        loaded.step(problem.closure)
        never_loaded.step(kept.closure)
        assert all(map(torch.equal, problem.parameters, kept.parameters))


@INFOS
@pytest.mark.parametrize("is_named", [(True, True), (True, False), (False, True)])
def test_names_are_kept_by_loading(info: Any, is_named: tuple[bool, bool]) -> None:
    def made(named: bool) -> tuple[Problem, Any]:
        problem = Problem(info)
        pairs = [("weight", problem.weight), ("bias", problem.bias)]
        return problem, own(info)(pairs if named else problem.parameters)

    problem, optimizer = made(is_named[0])
    optimizer.step(problem.closure)
    _, other = made(is_named[1])
    if is_named[0] != is_named[1]:
        with pytest.warns(UserWarning, match="matched by position"):
            other.load_state_dict(optimizer.state_dict())
    else:
        other.load_state_dict(optimizer.state_dict())
    assert other.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize(
    "info",
    [i for i in WITH_TWIN if i.supports_sparse or i.only_supports_sparse_grads],
    ids=lambda info: info.name,
)
def test_sparse_gradients_follow_dense_ones(info: Any) -> None:
    kwargs, makers = info.metadata_for_sparse
    for group in [[], *[[make] for make in makers]]:
        ends = []
        for home in (info.optim_cls, own(info)):
            point = torch.nn.Parameter(torch.tensor([1.5, 1.5]))
            optimizer = home([point], **kwargs)
            schedulers = [make(optimizer) for make in group]
            for number in range(200):
                point.grad = valley_gradient(point.detach(), number % 2)
                optimizer.step()
                for scheduler in schedulers:
                    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
                    is_plateau = isinstance(scheduler, plateau)
                    scheduler.step(*((valley(point.detach()),) if is_plateau else ()))
            ends.append(point.detach())
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)


def valley(point: torch.Tensor) -> torch.Tensor:
    """Rosenbrock's curved valley, lowest at (1, 1)."""
    x, y = point
    return (1 - x).square() + 100 * (y - x.square()).square()


def valley_gradient(point: torch.Tensor, axis: int) -> torch.Tensor:
    """Its gradient along one axis, sparse and in two parts."""
    x, y = point
    slopes = -400 * x * (y - x.square()) - 2 * (1 - x), 200 * (y - x.square())
    parts = torch.stack([slopes[axis] / 4, slopes[axis] * 3 / 4])
    return torch.sparse_coo_tensor([[axis, axis]], parts, (2,))


@INFOS
def test_what_cannot_pass_is_refused_with_its_reason(info: Any) -> None:
    if "differentiable" in info.supported_impls:
        with pytest.raises(NotImplementedError, match="autograd cannot follow"):
            own(info)(Problem(info).parameters, differentiable=True)
    complex_one = torch.randn(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match="does not support complex parameters"):
        own(info)([complex_one])
    if info.has_capturable_arg:
        problem = Problem(info)
        optimizer = own(info)(problem.parameters, capturable=True)
        assert bool(torch.isfinite(optimizer.step(problem.closure)))
