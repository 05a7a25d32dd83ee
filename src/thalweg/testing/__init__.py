"""A contract test for optimizers, the package's own and yours.

`check(MyOptimizer)` tries what every optimizer must be able to do, and returns a
report. In a test suite one line is enough:

    tw.testing.check(MyOptimizer, learning_rate=0.1).raise_if_failed()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from thalweg.errors import TraceError, describe, message
from thalweg.optimizers import Optimizer
from thalweg.testing import keeping, layouts, numerics, safety, steady
from thalweg.testing.report import (
    CheckFailedError,
    Line,
    NotApplicableError,
    Report,
)
from thalweg.testing.subject import Subject

__all__ = ["CheckFailedError", "Line", "Report", "check"]

_CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "float32 follows the rule in float64": numerics.float32,
    "bfloat16 follows the rule": numerics.bfloat16,
    "kernel = interpreter": numerics.kernel_equals_interpreter,
    "rows = dense update": numerics.rows_equal_dense,
    "compiles in the first step only": steady.compiles_once,
    "a steady step allocates nothing": steady.allocates_nothing,
    "configuration round trip": keeping.config_round_trip,
    "deepcopy": keeping.deepcopy,
    "pickle": keeping.pickled,
    "save and resume": keeping.save_and_resume,
    "empty and 0-d variables": layouts.empty_and_zero_dimensional,
    "strides": layouts.strides,
    "NaN and inf stay local": safety.nonfinite_stays_local,
    "a refused step changes nothing": safety.refused_step_changes_nothing,
}


def check(optimizer: type[Optimizer], **arguments: Any) -> Report:
    """Try an optimizer class against the contract that all of them keep.

    Variables and gradients are small and always the same; nothing outside is
    changed. A class that updates by hand, without a rule, is excused from what only
    a rule can promise.

    Args:
        optimizer: The class.
        **arguments: Keyword arguments of its constructor. The variables it is tried
            on are named ``layer.weight``, ``layer.bias``, ``scale`` and
            ``embedding.weight``, for patterns of ``per_variable``.

    Returns:
        A report with a line for each check; print it, or call its
        ``raise_if_failed``.

    Raises:
        TypeError: If it is not a class of optimizers.

    Example:
        >>> class Descent(tw.Optimizer):
        ...     learning_rate: tw.Hyper = tw.Hyper(default=0.1, low=0.0)
        ...     @staticmethod
        ...     def update(var, grad, *, learning_rate):
        ...         return var - learning_rate * grad
        >>> report = check(Descent, learning_rate=0.5)
        >>> report.failed
        []
        >>> report.lines[0].name
        'float32 follows the rule in float64'
    """
    given: object = optimizer
    if not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise TypeError(
            message(
                "testing.check",
                "a subclass of tw.Optimizer",
                describe(given),
                "Pass the class, and its arguments as keywords.",
            )
        )
    subject = Subject(optimizer, arguments)
    subject.make()  # arguments that are refused are the caller's mistake
    refusals: set[str] = set()
    lines = [_run(name, test, subject, refusals) for name, test in _CHECKS.items()]
    return Report(subject.title, tuple(lines))


def _run(
    name: str, test: Callable[[Subject], str], subject: Subject, refusals: set[str]
) -> Line:
    try:
        return Line(name, "passed", test(subject))
    except NotApplicableError as reason:
        return Line(name, "skipped", str(reason))
    except CheckFailedError as failure:
        return Line(name, "failed", str(failure))
    except TraceError as refusal:
        text = f"TraceError: {refusal}"
        if text in refusals:
            return Line(name, "skipped", "not run: the rule is refused, see above")
        refusals.add(text)
        return Line(name, "failed", text)
    except Exception as error:  # what a class under test raises is its own
        return Line(name, "failed", f"{type(error).__name__}: {error}")


def __dir__() -> list[str]:
    return sorted(__all__)
