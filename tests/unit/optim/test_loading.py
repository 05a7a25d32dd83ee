"""State dicts: matched by name or position, of plain values, never cast."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.optim.twins import OWN, TWINS, assert_alike, parameters, run, twin
from thalweg import optim

EVERY = (*TWINS, *OWN, "SparseAdam")


def trained(name: str, steps: int = 4, **options: Any) -> tuple[Any, Any]:
    held = parameters(dtype=torch.float32)
    optimizer = getattr(optim, name)(held, **options)
    run([optimizer], [held], steps)
    return held, optimizer


def copied(held: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in held]


def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    )


def step(model: torch.nn.Module, optimizer: Any, number: int = 0) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_state_continues_to_the_bit(name: str) -> None:
    held, optimizer = trained(name)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other_held = copied(held)
    other = getattr(optim, name)(other_held)
    other.load_state_dict(saved)
    run([optimizer, other], [held, other_held], 5)
    assert all(map(torch.equal, held, other_held))


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_round_trip_changes_nothing(name: str) -> None:
    held = parameters(dtype=torch.float32)
    other_held = parameters(dtype=torch.float32)
    optimizer, other = getattr(optim, name)(held), getattr(optim, name)(other_held)
    before = copy.deepcopy(other.state_dict())
    other.load_state_dict(other.state_dict())
    assert other.state_dict()["param_groups"] == before["param_groups"]
    assert other.state_dict()["state"].keys() == before["state"].keys()
    run([optimizer, other], [held, other_held], 3)
    assert all(map(torch.equal, held, other_held))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_continues_to_the_bit(name: str, how: str) -> None:
    held, optimizer = trained(name)
    copies: Any = (
        copy.deepcopy((held, optimizer))
        if how == "deepcopy"
        else pickle.loads(pickle.dumps((held, optimizer)))
    )
    run([optimizer, copies[1]], [held, copies[0]], 5)
    assert all(map(torch.equal, held, copies[0]))


def test_a_pickle_does_not_grow_with_the_square_of_the_parameters() -> None:
    held = [torch.nn.Parameter(torch.ones(())) for _ in range(300)]
    optimizer = optim.AdamW(held)
    run([optimizer], [held], 1)
    assert len(pickle.dumps(optimizer)) < 600_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_is_never_cast(dtype: torch.dtype) -> None:
    held = parameters(dtype=torch.bfloat16)
    optimizer = optim.AdamW(held, slot_dtypes=dtype)
    run([optimizer], [held], 2)
    saved = optimizer.state_dict()
    other_held = copied(held)
    other = optim.AdamW(other_held)
    other.load_state_dict(copy.deepcopy(saved))
    for number, state in other.state_dict()["state"].items():
        for key, value in state.items():
            assert value.dtype == saved["state"][number][key].dtype
    run([optimizer, other], [held, other_held], 3)
    assert all(map(torch.equal, held, other_held))


def test_loaded_state_is_a_copy() -> None:
    held, optimizer = trained("AdamW")
    other = optim.AdamW(copied(held))
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    own = other.state_dict()["state"][0]["exp_avg"]
    assert own.data_ptr() != saved["state"][0]["exp_avg"].data_ptr()


def test_state_that_fits_is_filled_in_place() -> None:
    held, optimizer = trained("AdamW")
    saved = copy.deepcopy(optimizer.state_dict())
    address = optimizer.state[held[0]]["exp_avg"].data_ptr()
    run([optimizer], [held], 2)
    optimizer.load_state_dict(saved)
    state = optimizer.state[held[0]]
    assert state["exp_avg"].data_ptr() == address
    assert torch.equal(state["exp_avg"], saved["state"][0]["exp_avg"])


def test_names_are_written_and_found_in_any_order() -> None:
    model, other_model = module(), module()
    optimizer = optim.AdamW(model.named_parameters(), lr=0.1)
    step(model, optimizer)
    other_model.load_state_dict(model.state_dict())
    backwards = list(other_model.named_parameters())[::-1]
    other = optim.AdamW(backwards, lr=0.5)
    saved = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    assert saved["param_groups"][0]["param_names"] == names
    other.load_state_dict(copy.deepcopy(saved))
    assert other.param_groups[0]["lr"] == 0.1
    step(model, optimizer, 1)
    step(other_model, other, 1)
    assert_alike(list(other_model.parameters()), list(model.parameters()), 0.0)


def test_names_are_found_across_groups_and_wrappers() -> None:
    model = module()
    optimizer = optim.AdamW(model)
    step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["param_names"] = [f"_orig_mod.{name}" for name in group["param_names"]]
    named = list(model.named_parameters())
    other = optim.AdamW([{"params": named[:1]}, {"params": named[1:], "lr": 0.7}])
    other.load_state_dict(saved)
    assert [group["lr"] for group in other.param_groups] == [1e-3, 1e-3]
    for parameter in model.parameters():
        ours = other.state[parameter]["exp_avg"]
        assert torch.equal(ours, optimizer.state[parameter]["exp_avg"])


def test_what_is_missing_is_named() -> None:
    model = module()
    named = list(model.named_parameters())
    optimizer, part = optim.AdamW(named), optim.AdamW(named[:2])
    step(model, optimizer)
    step(model, part)
    with pytest.raises(ValueError, match=r"unexpected \['2.weight', '2.bias'\]"):
        part.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"missing \['2.weight', '2.bias'\]"):
        optimizer.load_state_dict(part.state_dict())
    kept = optim.AdamW(named)
    kept.load_state_dict(part.state_dict(), strict=False)
    assert set(kept.state) == {p for _, p in named[:2]}


def test_names_on_one_side_are_said() -> None:
    model = module()
    optimizer, unnamed = optim.AdamW(model), optim.AdamW(model.parameters())
    step(model, optimizer)
    with pytest.warns(UserWarning, match="only the state dict has parameter names"):
        unnamed.load_state_dict(optimizer.state_dict())
    assert "param_names" in unnamed.param_groups[0]


def test_other_groups_are_refused_in_torchs_words() -> None:
    held, optimizer = trained("AdamW")
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optim.AdamW([{"params": held[:1]}, {"params": held[1:]}]).load_state_dict(saved)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optim.AdamW(held[:2]).load_state_dict(saved)


def test_other_shapes_are_refused_before_anything_is_changed() -> None:
    held, optimizer = trained("AdamW")
    other_held = [torch.nn.Parameter(torch.ones(2, 2)), *copied(held)[1:]]
    other = optim.AdamW(other_held)
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter 0: \(4, 3\)"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_numpy_numbers_among_options_load_safely() -> None:
    held, optimizer = trained("AdamW")
    optimizer.param_groups[0]["lr"] = np.float64(0.25)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert type(saved["param_groups"][0]["lr"]) is float
    assert len(held) == 4


def test_keys_of_the_user_survive() -> None:
    held, optimizer = trained("SGD")
    optimizer.param_groups[0]["use_muon"] = False
    saved = copy.deepcopy(optimizer.state_dict())
    other = optim.SGD(held)
    other.load_state_dict(saved)
    assert other.param_groups[0]["use_muon"] is False


def test_state_without_options_of_later_versions_loads() -> None:
    held, optimizer = trained("Adam")
    saved = copy.deepcopy(optimizer.state_dict())
    for option in ("maximize", "foreach", "fused", "decoupled_weight_decay"):
        del saved["param_groups"][0][option]
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    other = optim.Adam(copied(held))
    other.load_state_dict(saved)
    run([other], [other.param_groups[0]["params"]], 1)
    assert float(other.state_dict()["state"][0]["step"]) == 5.0


def test_hooks_of_saving_and_loading_run() -> None:
    held, optimizer = trained("SGD", momentum=0.9)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("before saving"))

    def after_saving(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        seen.append("after saving")
        return {**saved, "note": 7}

    def before_loading(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        seen.append(f"before loading {saved['note']}")
        return saved

    optimizer.register_state_dict_post_hook(after_saving)
    optimizer.register_load_state_dict_pre_hook(before_loading)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [
        *("before saving", "after saving", "before loading 7", "after loading")
    ]
    assert len(held) == 4


def test_a_hook_may_give_something_else_than_a_state_dict() -> None:
    optimizer = optim.SGD(parameters(), lr=0.5)
    optimizer.register_state_dict_post_hook(lambda _, saved: {"optimizer": saved})
    assert optimizer.state_dict()["optimizer"]["param_groups"][0]["lr"] == 0.5


@pytest.mark.parametrize("name", TWINS)
def test_torch_loads_what_was_saved_before_the_first_step(name: str) -> None:
    torch_class, own_class = twin(name)
    held = parameters(dtype=torch.float32)
    torch_class(held).load_state_dict(own_class(held, lr=0.25).state_dict())
    loaded = own_class(held)
    loaded.load_state_dict(torch_class(held, lr=0.25).state_dict())
    assert [group["lr"] for group in loaded.param_groups] == [0.25]


# A group says which of the two it is.
ALIKE = [{"Adam", "AdamW"}]


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", EVERY)
def test_state_of_another_kind_of_optimizer_is_refused(name: str, steps: int) -> None:
    cls = getattr(optim, name)
    for other in EVERY:
        if other == name or {other, name} in ALIKE:
            continue
        for source in (getattr(torch.optim, other, None), getattr(optim, other)):
            if source is None or (steps and source is torch.optim.SparseAdam):
                continue  # which takes no dense gradients
            held = parameters(dtype=torch.float32)
            first, second = source(held, lr=0.5), cls(held, lr=0.25)
            run([first], [held], steps)
            before = dict(second.state)
            with pytest.raises(ValueError, match="of the same kind"):
                second.load_state_dict(first.state_dict())
            assert second.param_groups[0]["lr"] == 0.25
            assert dict(second.state) == before


def test_adam_goes_on_as_adamw_but_not_the_other_way_round() -> None:
    held = parameters(dtype=torch.float32)
    first = optim.AdamW(held, lr=0.1, weight_decay=0.5)
    run([first], [held], 3)
    other_held = copied(held)
    second = optim.Adam(other_held)
    second.load_state_dict(first.state_dict())
    run([first, second], [held, other_held], 3)
    assert all(map(torch.equal, held, other_held))
    with_penalty = optim.Adam(held, weight_decay=0.5).state_dict()
    with pytest.raises(ValueError, match=r"of AdamW; got a group of Adam, with a pen"):
        first.load_state_dict(with_penalty)
