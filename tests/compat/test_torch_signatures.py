"""Names, signatures, defaults and refusals are those of `torch.optim`."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from thalweg import optim

TWINS = (
    *("ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam"),
    *("RAdam", "RMSprop", "Rprop", "SparseAdam"),
)
OWN = ("LAMB", "Lion", "RowWiseAdagrad")


@pytest.mark.parametrize("name", TWINS)
def test_the_signature_is_torchs(name: str) -> None:
    theirs = inspect.signature(getattr(torch.optim, name))
    own = inspect.signature(getattr(optim, name))
    parameters = list(own.parameters.values())
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert [(p.name, p.kind, p.default) for p in parameters[:-1]] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]


@pytest.mark.parametrize("name", TWINS)
def test_it_is_torchs_class_with_torchs_defaults(name: str) -> None:
    theirs, own = getattr(torch.optim, name), getattr(optim, name)
    weight = torch.nn.Parameter(torch.ones(2))
    assert issubclass(own, theirs)
    assert own([weight]).defaults == theirs([weight]).defaults


@pytest.mark.parametrize("name", [*TWINS, *OWN])
def test_the_keywords_beside_torchs_are_checked(name: str) -> None:
    make = getattr(optim, name)
    weight = torch.nn.Parameter(torch.ones(2))
    for extras, problem in [
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"nonfinite": "ignore"}, "nonfinite"),
        ({"slot_dtypes": torch.int8}, "slot_dtypes"),
        ({"sparse_update": "keras"}, "sparse_update"),
    ]:
        with pytest.raises(ValueError, match=problem):
            make([weight], **extras)
    with pytest.raises(TypeError, match="max_grad_norm"):
        make([weight], max_grad_nrom=1.0)


@pytest.mark.parametrize("name", [n for n in TWINS if n != "SparseAdam"])
def test_differentiable_is_refused_with_the_reason(name: str) -> None:
    make = getattr(optim, name)
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(NotImplementedError, match="autograd cannot follow"):
        make([weight], differentiable=True)
    optimizer = make([weight])
    other = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(NotImplementedError, match="autograd cannot follow"):
        optimizer.add_param_group({"params": [other], "differentiable": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("option", ["fused", "foreach"])
def test_ways_to_run_are_accepted(option: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.AdamW([weight], **{option: True})  # type: ignore[arg-type]
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight[0].item() < 1
    # The scaler must unscale and skip by itself: trainers see it do so.
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("name", OWN)
def test_numbers_out_of_range_are_refused(name: str) -> None:
    make: Any = getattr(optim, name)
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        make([weight], lr=-1.0)
    with pytest.raises(ValueError, match="Invalid weight_decay value: -1"):
        make([weight], weight_decay=-1)
    with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
        make([weight], lr=torch.tensor([0.1, 0.1]))
    if name != "RowWiseAdagrad":
        with pytest.raises(ValueError, match="Invalid beta parameter at index 1: 1"):
            make([weight], betas=(0.9, 1.0))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_only_floating_parameters_are_taken(dtype: torch.dtype) -> None:
    weight = torch.ones(2, dtype=dtype)
    with pytest.raises((TypeError, ValueError), match="floating"):
        optim.AdamW([weight])
