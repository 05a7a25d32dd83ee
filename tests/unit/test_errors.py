"""The wording of refusals."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from thalweg.errors import CheckpointError, TraceError, describe, message, nearest
from thalweg.state import IndexedSlices


def test_message_has_four_parts() -> None:
    text = message("assign of 'w'", "shape (2,)", "shape (3,)", "Reshape it.")
    assert text == "assign of 'w': expected shape (2,); got shape (3,). Reshape it."


def test_message_without_advice_ends_after_what_arrived() -> None:
    assert message("f", "one", "two", "") == "f: expected one; got two."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (2.5, "2.5 (float)"),
        ("adam", "'adam' (str)"),
        (dict, "the class dict"),
        ([1], "a list of 1 item"),
        (OrderedDict(a=1, b=2), "an OrderedDict of 2 items"),
        ({"a": 1, "b": 2}, "a dict of 2 items"),
        (np.zeros((2, 1), np.float32), "float32 array of shape (2, 1)"),
        (torch.zeros(3, 4), "float32 tensor of shape (3, 4) on cpu"),
        (torch.zeros((), dtype=torch.bfloat16), "bfloat16 tensor of shape () on cpu"),
        (torch.empty(2, device="meta"), "float32 tensor of shape (2,) on meta"),
    ],
)
def test_describe(value: object, text: str) -> None:
    assert describe(value) == text


def test_describe_rows() -> None:
    rows = IndexedSlices(torch.ones(1, 2), torch.tensor([3]), (5, 2))
    assert describe(rows) == (
        "float32 IndexedSlices with 1 row of shape (2,) of a variable of shape (5, 2)"
        " on cpu"
    )
    unknown = describe(IndexedSlices(torch.ones(2), torch.tensor([3, 0])))
    assert "2 rows of shape () of a variable of unknown shape" in unknown


def test_describe_shortens_long_texts() -> None:
    text = describe("x" * 500)
    assert len(text) < 100
    assert text.endswith("… (str)")


def test_describe_does_not_print_numbers_of_tensors() -> None:
    assert "7.25" not in describe(torch.full((3,), 7.25))


def test_nearest_suggests_whatever_the_case() -> None:
    assert nearest("ADAM", ["SGD", "Adam"]) == "Did you mean 'Adam'? Known: Adam, SGD."


def test_nearest_without_anything_close_only_lists() -> None:
    assert nearest("zzz", ["sgd", "adam", "sgd"]) == "Known: adam, sgd."
    assert nearest(3, ["sgd"]) == "Known: sgd."
    assert nearest("sgd", []) == "Nothing is known here."


def test_nearest_leaves_a_long_list_out_where_something_is_close() -> None:
    names = [f"option_{letter}" for letter in "abcdefghijklm"] + ["learning_rate"]
    assert nearest("lerning_rate", names) == "Did you mean 'learning_rate'?"
    assert nearest("zzz", names).startswith("Known: learning_rate, option_a")


def test_nearest_names_several_that_are_alike() -> None:
    assert nearest("beta", ["beta_1", "beta_2", "eps"]).startswith(
        "Did you mean 'beta_1' or 'beta_2'?"
    )


def test_nearest_knows_words_of_other_libraries() -> None:
    assert nearest("EPS", ["epsilon", "steps"]).startswith("Did you mean 'epsilon'?")
    assert nearest("eps", ["rho"]) == "Known: rho."


KERAS = ("learning_rate", "beta_1", "beta_2", "epsilon", "rho", "ema_momentum")
TORCH = ("lr", "betas", "eps", "alpha", "ema_decay", "max_grad_norm", "weight_decay")


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("lr", KERAS, "'learning_rate'"),
        ("learning_rate", TORCH, "'lr'"),
        ("betas", KERAS, "'beta_1' or 'beta_2'"),
        ("beta_1", TORCH, "'betas'"),
        ("beta2", TORCH, "'betas'"),
        ("b1", KERAS, "'beta_1'"),
        ("eps", KERAS, "'epsilon'"),
        ("epsilon", TORCH, "'eps'"),
        ("alpha", KERAS, "'rho'"),
        ("rho", TORCH, "'alpha'"),
        ("ema_decay", KERAS, "'ema_momentum'"),
        ("use_ema", TORCH, "'ema_decay'"),
        ("global_clipnorm", TORCH, "'max_grad_norm'"),
        ("step_size", TORCH, "'lr'"),
        ("wd", TORCH, "'weight_decay'"),
    ],
)
def test_nearest_knows_keras_s_words_and_torch_s(
    name: str, known: tuple[str, ...], meant: str
) -> None:
    assert nearest(name, known).startswith(f"Did you mean {meant}?")


def test_describe_names_the_class_of_what_has_no_short_text() -> None:
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    assert describe(optimizer) == "an object of torch.optim.sgd.SGD"
    assert describe(object()) == "an object of builtins.object"


def test_kinds_of_errors_are_the_builtin_ones() -> None:
    assert issubclass(TraceError, TypeError)
    assert issubclass(CheckpointError, ValueError)


def test_errors_and_settings_load_without_torch() -> None:
    code = (
        "import sys, thalweg.errors, thalweg.settings; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
