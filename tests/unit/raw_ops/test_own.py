"""An op of one's own stands beside those that are shipped."""

from __future__ import annotations

import inspect
import logging
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import thalweg as tw
from thalweg.errors import TraceError
from thalweg.raw_ops import RawOp, raw_op


def heavy_ball(
    weight: Any, velocity: Any, gradient: Any, *, rate: Any, decay: Any = 0.5, up: bool
) -> Any:
    """Move along a velocity."""
    velocity = decay * velocity - rate * gradient
    return (weight - velocity if up else weight + velocity), velocity


@pytest.fixture
def op() -> RawOp:
    return raw_op(name="ApplyHeavyBall")(heavy_ball)


def arguments(**changed: Any) -> dict[str, Any]:
    given = {
        "weight": tw.Variable(torch.ones(3, 2)),
        "velocity": torch.ones(3, 2),
        "gradient": torch.full((3, 2), 0.5),
        "rate": 0.5,
        "up": False,
    }
    return given | changed


def test_it_runs_its_rule_in_place(op: RawOp) -> None:
    given = arguments()
    for _ in range(2):
        assert op(**given) is None
    assert given["velocity"].unique().tolist() == [-0.125]
    assert given["weight"].unique().tolist() == [1.125]
    up = arguments(up=True, decay=torch.tensor(0.0), name="accepted")
    op(**up)
    assert up["weight"].unique().tolist() == [1.25]


def test_it_is_listed_and_described(op: RawOp) -> None:
    assert "ApplyHeavyBall" in tw.raw_ops.list()
    assert tw.raw_ops.ApplyHeavyBall is op
    assert op.__doc__ == "Move along a velocity."
    names = ["weight", "velocity", "gradient", "rate", "decay", "up", "name"]
    assert list(inspect.signature(op).parameters) == names
    assert inspect.signature(op).parameters["decay"].default == 0.5
    with pytest.raises(AttributeError, match="ApplyHeavierBall"):
        tw.raw_ops.ApplyHeavierBall  # noqa: B018 - asking is the test


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"velocity": torch.ones(2)}, ValueError, "velocity of the shape of weight"),
        ({"gradient": torch.ones(2)}, ValueError, "gradient of the shape of weight"),
        ({"weight": 1.0}, TypeError, "a Variable, its handle, or a tensor"),
        ({"rate": "fast"}, TypeError, "a number or a 0-d tensor"),
        ({"rate": torch.ones(2)}, ValueError, "a scalar"),
        ({"decai": 1.0}, TypeError, "Did you mean 'decay'"),
        ({"indices": [1]}, TypeError, "'indices'"),
    ],
)
def test_what_is_wrong_is_refused(
    op: RawOp, changed: dict[str, Any], error: type[Exception], text: str
) -> None:
    given = arguments(**changed)
    with pytest.raises(error, match=f"ApplyHeavyBall.*{text}"):
        op(**given)
    if "velocity" not in changed:
        assert given["velocity"].unique().tolist() == [1.0]
    with pytest.raises(TypeError, match="no rate"):
        op(weight=torch.ones(1), velocity=torch.ones(1), gradient=torch.ones(1))


def test_its_kernel_can_be_read(op: RawOp) -> None:
    assert "heavy_ball" in op.kernel_source("cpu", up=True)
    assert "double" in op.kernel_source(dtype=torch.float64)
    assert "import triton" in op.kernel_source("cuda")
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        op.kernel_source("tpu")
    with pytest.raises(ValueError, match="flags"):
        op.kernel_source(down=True)


def test_a_sparse_op_updates_rows_in_sequence(op: RawOp) -> None:
    sparse = raw_op(name="SparseApplyHeavyBall", sparse=True)(heavy_ball)
    ours, theirs = arguments(), arguments()
    ours["gradient"] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    sparse(**ours, indices=[1, 1, 0])
    for row, index in zip(ours["gradient"], (1, 1, 0), strict=True):
        views = {n: theirs[n].detach()[index] for n in ("weight", "velocity")}
        op(**{**theirs, **views, "gradient": row})
    for name in ("weight", "velocity"):
        assert torch.equal(ours[name], theirs[name])
    with pytest.raises(ValueError, match="SparseApplyHeavyBall: Index 3 at offset 0"):
        sparse(**ours, indices=[3, 0, 0])
    assert torch.equal(ours["weight"], theirs["weight"])
    assert "sequence" in sparse.kernel_source()


def test_torch_compiles_it_once(op: RawOp) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(weight: torch.Tensor, velocity: torch.Tensor, rate: Any) -> torch.Tensor:
        op(
            weight=weight,
            velocity=velocity,
            gradient=weight * 0.5,
            rate=rate,
            up=False,
        )
        return weight.sum()

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    ours = [torch.ones(3), torch.zeros(3)]
    theirs = [torch.ones(3), torch.zeros(3)]
    for rate in (0.5, 0.25, 0.125):
        found = compiled(*ours, torch.tensor(rate))
        assert torch.equal(found, step(*theirs, torch.tensor(rate)))
    assert counter.frame_count == 1


def test_torch_finds_no_fault_with_its_operator(op: RawOp) -> None:
    # Named after the op, and numbered where a test has made it before.
    name = op._operator.name
    tensors = (torch.ones(3), torch.zeros(3), torch.ones(3))
    numbers = (torch.tensor(0.5), torch.tensor(0.25))
    operator = getattr(torch.ops.thalweg, name).default
    outcome = torch.library.opcheck(operator, (*tensors, *numbers, False))
    assert set(outcome.values()) == {"SUCCESS"}


def descent(*, up: bool = False) -> Any:
    """A rule that is made anew in each call, as by a cell that is run again."""
    if up:

        def descend(var: Any, grad: Any, *, lr: Any) -> Any:
            return var + lr * grad

        return descend

    def descend(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad

    return descend


def test_a_rule_that_is_defined_again_replaces_its_op(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="thalweg")
    first = raw_op(name="ApplyAgain")(descent())
    assert not caplog.messages
    second = raw_op(name="ApplyAgain")(descent(up=True))
    assert caplog.messages == [
        "The raw op ApplyAgain is replaced: its rule was defined again."
    ]
    assert tw.raw_ops.ApplyAgain is second
    assert tw.raw_ops.list().count("ApplyAgain") == 1
    for op, expected in ((first, -1.0), (second, 1.0)):
        var = torch.zeros(2)
        op(var=var, grad=torch.ones(2), lr=1.0)
        assert var.tolist() == [expected, expected]


def test_a_rule_of_a_module_that_was_loaded_anew_replaces_its_op() -> None:
    known, again = descent(), descent()
    raw_op(name="ApplyReloaded")(known)
    again.__module__ = "__mp_main__"
    assert raw_op(name="ApplyReloaded")(again) is tw.raw_ops.ApplyReloaded
    elsewhere = types.FunctionType(
        known.__code__.replace(co_filename="elsewhere.py"),
        {},
        closure=known.__closure__,
    )
    elsewhere.__qualname__, elsewhere.__kwdefaults__ = known.__qualname__, None
    elsewhere.__module__ = "elsewhere"
    with pytest.raises(ValueError, match=r"raw_op ApplyReloaded: .*elsewhere"):
        raw_op(name="ApplyReloaded")(elsewhere)


def test_another_rule_of_the_same_name_is_refused(op: RawOp) -> None:
    for other in (descent(), lambda var, grad, *, lr: var + lr * grad):
        with pytest.raises(ValueError, match="raw_op ApplyHeavyBall: expected a name"):
            raw_op(name="ApplyHeavyBall")(other)
    assert tw.raw_ops.ApplyHeavyBall is op
    for _ in range(2):  # a cell that is run again
        raw_op(name="ApplyUnnamed")(lambda var, grad, *, lr: var + lr * grad)
    with pytest.raises(ValueError, match="raw_op ApplyUnnamed"):
        raw_op(name="ApplyUnnamed")(lambda var, grad, *, lr: var - lr * grad)


def test_arguments_without_a_name_are_refused(op: RawOp) -> None:
    given = arguments()
    with pytest.raises(TypeError, match=r"ApplyHeavyBall: .*weight, velocity.*got "):
        op(given["weight"], given["velocity"], rate=0.5)
    assert given["velocity"].unique().tolist() == [1.0]


def test_rules_that_cannot_be_ops_are_refused() -> None:
    def branching(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad if lr > 0 else var

    with pytest.raises(TraceError, match="branching"):
        raw_op(branching)
    with pytest.raises(TypeError, match="a signature"):
        raw_op(lambda var: var)
    with pytest.raises(TypeError, match="a rule function"):
        raw_op("descent")  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(ValueError, match="a name that tw"):
        raw_op(name="ResourceApplyAdam")(heavy_ball)
    with pytest.raises(ValueError, match=r"a name that tw.*got 'list'"):
        raw_op(name="list")(heavy_ball)
    with pytest.raises(ValueError, match=r"an identifier of ASCII.*got a lambda"):
        raw_op(lambda var, grad, *, lr: var - lr * grad)
    with pytest.raises(ValueError, match=r"an identifier of ASCII.*got 'has space'"):
        raw_op(name="has space")(heavy_ball)
    with pytest.raises(ValueError, match="'indices'"):
        raw_op(name="ApplyTaken")(lambda var, indices, grad: (var, indices))
    assert "branching" not in tw.raw_ops.list()


def test_names_and_defaults_that_torch_cannot_say_are_refused() -> None:
    def selfish(self: Any, grad: Any, *, lr: Any) -> Any:
        return self - lr * grad

    def foreign(var: Any, grad: Any, *, é: Any) -> Any:
        return var - é * grad

    def odd(var: Any, grad: Any, *, up: bool = "yes") -> Any:  # type: ignore[assignment]
        return var + grad if up else var - grad

    with pytest.raises(ValueError, match="'self'"):
        raw_op(selfish)
    with pytest.raises(ValueError, match=r"ASCII letters.*'é'"):
        raw_op(foreign)
    with pytest.raises(ValueError, match="an identifier of ASCII"):
        raw_op(name="Applyé")(heavy_ball)
    with pytest.raises(TypeError, match="odd: default of up: expected True or False"):
        raw_op(odd)
    assert not {"selfish", "foreign", "Applyé", "odd"} & set(tw.raw_ops.list())


@pytest.mark.parametrize("default", ["a", None, 1j, [0.5], 10**400])
def test_a_default_that_is_no_number_is_refused(default: Any) -> None:
    def mistaken(var: Any, grad: Any, *, lr: Any = default) -> Any:
        return var - lr * grad

    with pytest.raises(TypeError, match="mistaken: default of lr: expected a number"):
        raw_op(mistaken)
    assert "mistaken" not in tw.raw_ops.list()


@pytest.mark.parametrize("default", [1, True, np.float32(0.5), torch.tensor(0.5)])
def test_a_default_may_be_anything_that_holds_a_number(default: Any) -> None:
    def held(var: Any, grad: Any, *, lr: Any = default) -> Any:
        return var - lr * grad

    op, var = raw_op(name="ApplyHeldDefault")(held), torch.ones(2)
    op(var=var, grad=torch.ones(2))
    assert var.tolist() == [1 - float(default)] * 2


def test_a_star_that_was_forgotten_is_named() -> None:
    def starless(var: Any, grad: Any, lr: Any) -> Any:
        return var - lr * grad

    words = r"2 results \(var, grad\); got 1\. .*put numbers behind a star"
    with pytest.raises(TraceError, match=words):
        raw_op(starless)


def test_an_unknown_self_is_named(op: RawOp) -> None:
    with pytest.raises(TypeError, match=r"ApplyHeavyBall: expected.*got 'self'"):
        op(**arguments(), self=1)


def by_share(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad / abs(grad).sum(-1, keepdim=True)


def by_height(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad * var.shape[0]


def by_mean(var: Any, grad: Any, *, lr: Any, up: bool) -> Any:
    return var - lr * grad / (abs(grad).mean() if up else 2.0)


def of_all(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad / abs(grad).mean()


def test_a_rule_of_rows_cannot_read_them_all() -> None:
    with pytest.raises(ValueError, match=r"reduces over the whole .*leave sparse"):
        raw_op(sparse=True)(of_all)
    assert "of_all" not in tw.raw_ops.list()
    flagged = raw_op(sparse=True, name="ByMean")(by_mean)
    shared = raw_op(sparse=True, name="ByShare")(by_share)
    matrix, vector, indices = torch.ones(4, 2), torch.ones(4), torch.tensor([1])
    given = {"lr": 1.0, "indices": indices}
    with pytest.raises(ValueError, match="reduces over the whole"):
        flagged(var=matrix, grad=torch.ones(1, 2), up=True, **given)
    with pytest.raises(ValueError, match="reduces over the whole"):
        shared(var=vector, grad=torch.ones(1), **given)
    assert matrix.eq(1).all()
    assert vector.eq(1).all()
    flagged(var=matrix, grad=torch.ones(1, 2), up=False, **given)
    shared(var=matrix, grad=torch.ones(1, 2), **given)
    assert matrix[:, 0].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_a_rule_of_rows_sees_the_shape_of_the_variable() -> None:
    op = raw_op(sparse=True, name="ByHeight")(by_height)
    for rows in (4, 6, 4):
        table = torch.ones(rows, 2)
        for left in (1.0 - rows, 1.0 - 2 * rows):
            op(var=table, grad=torch.ones(1, 2), indices=torch.tensor([1]), lr=1.0)
            assert table[1].tolist() == [left, left]
