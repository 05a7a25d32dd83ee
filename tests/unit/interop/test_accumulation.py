"""An optimizer that accumulates gradients, shown as one of torch's."""

from __future__ import annotations

import pytest
import torch

import thalweg as tw


def test_the_torch_face_accumulates_too() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    inner = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    face = tw.as_torch(inner, model)
    for value in (1.0, 3.0):
        model.weight.grad = torch.full((1, 1), value)
        face.step()
    assert model.weight.item() == -2.0


def test_a_torch_face_shows_no_sums_and_saves_none() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    face = tw.as_torch(tw.optimizers.Adam(gradient_accumulation_steps=2), model)
    for _ in range(3):
        model.weight.grad = torch.ones(1, 1)
        face.step()
    assert set(face.state[model.weight]) == {"step", "m", "v"}
    with pytest.raises(RuntimeError, match="after a whole cycle"):
        face.state_dict()
    face.step()
    assert set(face.state_dict()["state"][0]) == {"step", "m", "v"}


def test_a_loss_scale_is_no_torch_face() -> None:
    scaled = tw.LossScaleOptimizer(tw.optimizers.SGD(1.0))
    with pytest.raises(TypeError, match="GradScaler"):
        tw.as_torch(scaled, torch.nn.Linear(1, 1))
