"""Optimizers give what Keras 3's optimizers of that name give."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.compat import reference_data

DOCUMENT = "keras3_optimizers"
# Keras rounds hyperparameters to float32 and computes 1 - beta in it.
RELATIVE = 5e-5
# Keras's names of slots are those of its attributes.
SLOTS = {
    "average": ("average",),
    "momentum": ("m", "momentum"),
    "velocity": ("v",),
    "velocity_hat": ("vhat",),
}


def is_supported(case: dict[str, Any]) -> bool:
    """Whether the class is there and knows every option of the case."""
    cls = getattr(tw.optimizers, case["optimizer"], None)
    if cls is None:
        return False
    try:
        cls(**case["kwargs"])
    except TypeError:
        return False
    return True


CASES = [c for c in reference_data.document(DOCUMENT)["cases"] if is_supported(c)]


def make_optimizer(case: dict[str, Any]) -> tw.Optimizer:
    excluded = case.get("exclude_from_weight_decay", {}).get("var_names", [])
    settings = {name: {"weight_decay": 0.0} for name in excluded}
    cls = getattr(tw.optimizers, case["optimizer"])
    return cls(**case["kwargs"], per_variable=settings)


def gradients(keys: list[str], dtype: str) -> list[torch.Tensor]:
    return [reference_data.tensor(DOCUMENT, key, dtype) for key in keys]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_optimizer_matches_keras(case: dict[str, Any]) -> None:
    dtype = case["dtype"]
    variables = [
        tw.Variable(reference_data.tensor(DOCUMENT, key, dtype), name=f"v{i}")
        for i, key in enumerate(case["init"])
    ]
    optimizer = make_optimizer(case)
    out = [reference_data.expected(DOCUMENT, key) for key in case["out"]]
    for step, keys in enumerate(case["grads"]):
        pairs = zip(gradients(keys, dtype), variables, strict=True)
        optimizer.apply_gradients(pairs)
        for variable, expected in zip(variables, out, strict=True):
            own = variable.detach().double()
            torch.testing.assert_close(
                own, expected[step], rtol=RELATIVE, atol=RELATIVE
            )
    assert_slots_match(case, optimizer, variables)
    assert_averages_match(case, optimizer, variables)


def assert_averages_match(
    case: dict[str, Any], optimizer: tw.Optimizer, variables: list[tw.Variable]
) -> None:
    """Compare what evaluation sees, in a scope and then for good."""
    if "out_finalized" not in case:
        return
    expected = [reference_data.expected(DOCUMENT, k) for k in case["out_finalized"]]
    with optimizer.ema_scope():
        inside = [v.detach().double().clone() for v in variables]
    optimizer.finalize_variable_values(variables)
    finalized = [v.detach().double() for v in variables]
    for own in (inside, finalized):
        torch.testing.assert_close(own, expected, rtol=RELATIVE, atol=RELATIVE)


def assert_slots_match(
    case: dict[str, Any], optimizer: tw.Optimizer, variables: list[tw.Variable]
) -> None:
    """Compare what Keras keeps per variable, called ``v0_momentum`` and the like."""
    for stored in case["optimizer_variables"]:
        number, _, kind = stored["name"].partition("_")
        if kind not in SLOTS or number not in ("v0", "v1") or "key" not in stored:
            continue
        known = optimizer.get_slot_names()
        (name,) = [n for n in SLOTS[kind] if n in known]
        own = optimizer.get_slot(variables[int(number[1])], name).detach().double()
        expected = reference_data.expected(DOCUMENT, stored["key"])
        torch.testing.assert_close(own, expected, rtol=RELATIVE, atol=RELATIVE)


@pytest.mark.parametrize("name", ["AdamW", "Lamb", "Lion"])
def test_arguments_and_defaults_match_keras(name: str) -> None:
    case = next(c for c in CASES if c["optimizer"] == name)
    options = {"name", "clipnorm", "clipvalue", "global_clipnorm"}
    theirs = {k: v for k, v in case["config"].items() if v is not None}
    config = getattr(tw.optimizers, name)(**case["kwargs"]).get_config()
    own = {k: v for k, v in config.items() if k not in {*options, "decay"}}
    for key, value in own.items():
        assert value == pytest.approx(theirs[key])
    later = {"use_ema", "ema_momentum", "loss_scale_factor"}  # at their defaults
    assert set(theirs) - options - later <= set(own)
    parameters = list(inspect.signature(getattr(tw.optimizers, name)).parameters)
    assert parameters[0] == "learning_rate"


def test_classes_of_keras_3_are_there() -> None:
    assert {"AdamW", "Lamb", "Lion", "SGD", "Adam"} <= {c["optimizer"] for c in CASES}


def test_cases_with_averages_are_there() -> None:
    chosen = [c["id"] for c in CASES if c["kwargs"].get("use_ema")]
    assert len(chosen) >= 5
