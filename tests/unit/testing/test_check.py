"""`testing.check`: what keeps the contract passes, what breaks it is named."""

from __future__ import annotations

from typing import Any

import pytest

import thalweg as tw
from tests.unit.testing import broken
from thalweg.testing import CheckFailedError, check

FAILURES = [
    (broken.Cancelling, {}, "float32 follows the rule in float64", "largest error"),
    (broken.Forgetful, {}, "save and resume", "three steps later, variable 0"),
    (broken.Configless, {}, "configuration round trip", "keep rate: 0.05 comes back"),
    (broken.Nameless, {}, "configuration round trip", "keep learning_rate: 0.05 comes"),
    (broken.Nameless, {}, "configuration round trip", ", beta: 0.45 comes back as 0.9"),
    (broken.Flagless, {}, "configuration round trip", "keep flipped: True comes back"),
    (broken.Uneven, {}, "configuration round trip", "other steps"),
    (broken.Spilling, {}, "NaN and inf stay local", "nan in the gradient of one"),
    (broken.Allocating, {}, "a steady step allocates nothing", "aten.mul.Tensor"),
    (broken.Hasty, {}, "a refused step changes nothing", "changed something"),
    (broken.Truncating, {}, "bfloat16 follows the rule", "one rounding a step"),
    (broken.Stuck, {}, "empty and 0-d variables", "0-d variable and one of shape (1,)"),
    (
        broken.Summing,
        {"gradient_accumulation_steps": 2},
        "float32 follows the rule in float64",
        "largest error",
    ),
    (broken.WrongRows, {}, "rows = dense update", "a row without a gradient"),
]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"learning_rate": 0.5, "beta": 0.0},
        {"clipvalue": 0.5, "clipnorm": 1.0},
        {"global_clipnorm": 0.1, "weight_decay": 0.1},
        {"use_ema": True},
        {"nonfinite": "error", "low_precision_copy": "bfloat16"},
        {"slot_dtypes": {"m": "bfloat16"}},
        {"slot_dtypes": {"m": "float16"}, "low_precision_copy": "float16"},
        {"stochastic_rounding": True, "slot_dtypes": "variable", "rounding_seed": 3},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 5, "clipnorm": 1.0, "slot_dtypes": "variable"},
        {
            "ema_overwrite_frequency": 3,
            "use_ema": True,
            "slot_dtypes": {"average": "bfloat16"},
            "low_precision_copy": "float16",
        },
        {"per_variable": {"*bias": {"learning_rate": tw.scale(0.5)}}},
        {"learning_rate": tw.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9)},
        {"learning_rate": lambda step: 0.1 / int(step + 1)},
        {"sparse_update": "exact"},
        {"sparse_update": "keras"},
        {"gradient_transformers": [lambda pairs: [(2 * g, v) for g, v in pairs]]},
    ],
    ids=lambda arguments: ",".join(arguments) or "defaults",
)
def test_what_keeps_the_contract_passes(arguments: dict[str, Any]) -> None:
    report = check(broken.Momentum, **arguments)
    report.raise_if_failed()
    assert len(report.passed) >= 10


@pytest.mark.parametrize(
    ("cls", "arguments", "name", "detail"),
    FAILURES,
    ids=[cls.__name__ for cls, *_ in FAILURES],
)
def test_what_breaks_it_is_named(
    cls: Any, arguments: dict[str, Any], name: str, detail: str
) -> None:
    report = check(cls, **arguments)
    failed = {line.name: line.detail for line in report.failed}
    assert detail in failed[name]
    with pytest.raises(CheckFailedError, match="failed"):
        report.raise_if_failed()


def test_a_class_that_updates_by_hand_is_excused_from_what_only_a_rule_can() -> None:
    report = check(broken.Spilling)
    skipped = {line.name: line.detail for line in report.skipped}
    assert "without a rule" in skipped["kernel = interpreter"]
    assert "no sparse gradients" in skipped["rows = dense update"]
    assert "of its own" in skipped["a steady step allocates nothing"]


def test_an_exception_of_the_class_is_a_failed_line() -> None:
    class Raising(broken.Momentum):
        def get_config(self) -> dict[str, Any]:
            raise OSError("no")

    report = check(Raising)
    (line,) = report.failed
    assert "not at the top" in {x.name: x.detail for x in report.skipped}["pickle"]
    assert (line.name, line.detail) == ("configuration round trip", "OSError: no")


class Flipping(broken.Momentum):
    """Has a rule that cannot be compiled."""

    @staticmethod
    def update(
        var: Any, m: Any, grad: Any, *, learning_rate: float, beta: float
    ) -> tuple[Any, Any]:
        return var - learning_rate * grad.flip(0), m


class Heightened(broken.Momentum):
    """Reads the shape of the variable."""

    @staticmethod
    def update(
        var: Any, m: Any, grad: Any, *, learning_rate: float, beta: float
    ) -> tuple[Any, Any]:
        m_new = beta * m + grad / (1 + sum(var.shape))
        return var - learning_rate * m_new / (1 + var.ndim), m_new


def test_rows_are_held_against_a_dense_step_of_all_rows() -> None:
    report = check(Heightened)
    assert not report.failed
    passed = {line.name: line.detail for line in report.passed}
    assert passed["rows = dense update"].startswith("bit for bit")


class Centralizing(broken.Momentum):
    """Takes the mean off every gradient, which leaves nothing of a single one."""

    @staticmethod
    def update(
        var: Any, m: Any, grad: Any, *, learning_rate: float, beta: float
    ) -> tuple[Any, Any]:
        m_new = beta * m + (grad - grad.mean())
        return var - learning_rate * m_new, m_new


def test_a_rule_may_leave_a_single_number_where_it_is() -> None:
    assert not check(Centralizing).failed


class Still(tw.Optimizer):
    """Updates by hand, and moves what has an axis."""

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        if var.ndim:
            var.assign_sub(0.1 * grad)


def test_a_class_by_hand_moves_a_variable_without_axes_as_one_with() -> None:
    failed = {line.name: line.detail for line in check(Still).failed}
    detail = "a variable of shape () does not move, a variable of shape (1,) moves"
    assert failed["empty and 0-d variables"] == detail


def test_averages_of_cycles_are_excused_from_the_reference() -> None:
    report = check(broken.Momentum, gradient_accumulation_steps=2, use_ema=True)
    assert not report.failed
    reasons = {line.name: line.detail for line in report.skipped}
    names = ["float32 follows the rule in float64", "bfloat16 follows the rule"]
    assert list(reasons) == names
    assert all("averages move" in reason for reason in reasons.values())


def test_sums_of_16_bits_are_excused_from_rows() -> None:
    report = check(
        broken.Momentum,
        gradient_accumulation_steps=3,
        slot_dtypes={"gradient_accumulator": "bfloat16"},
    )
    assert not report.failed
    (line,) = report.skipped
    assert line.name == "rows = dense update"


def test_a_rule_that_is_refused_is_said_once() -> None:
    report = check(Flipping)
    (line,) = report.failed
    assert line == report.lines[0]
    assert line.detail.startswith("TraceError: rule Flipping.update (")
    assert len(report.skipped) == len(report.lines) - 1
    details = {line.detail for line in report.skipped}
    assert details == {"not run: the rule is refused, see above"}
    assert str(report).count("'flip'") == 1


def test_without_a_compiler_the_rest_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fresh(broken.Momentum):
        """Has kernels of its own, which no other test has compiled."""

        @staticmethod
        def update(
            var: Any, m: Any, grad: Any, *, learning_rate: float, beta: float
        ) -> tuple[Any, Any]:
            m_new = beta * m - grad
            return var + learning_rate * m_new, m_new

    monkeypatch.setenv("THALWEG_COMPILER", "0")
    report = check(Fresh)
    assert report.failed == []
    skipped = {line.name: line.detail for line in report.skipped}
    assert "no C compiler" in skipped["kernel = interpreter"]


@pytest.mark.parametrize("given", [tw.optimizers.SGD(), "sgd", int])
def test_anything_but_a_class_of_optimizers_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"subclass of tw\.Optimizer"):
        check(given)


def test_arguments_that_are_refused_are_the_caller_s_mistake() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        check(broken.Momentum, learning_rate=-1.0)
