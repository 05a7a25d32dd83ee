"""Which state goes to which parameter, where names are missing, unique or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import optim
from thalweg.optim import AdamW

ENTRIES = "exp_avg", "exp_avg_sq"
Names = list[list[str]]


class Two(torch.nn.Module):
    """Two parts that call their parameters alike."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).tanh()).square().sum()


def two(cls: Any, how: str) -> tuple[Two, Any]:
    torch.manual_seed(5)
    model = Two()
    parts: dict[str, Any] = {
        "modules": (model.body, model.head),
        "pairs": (model.body.named_parameters(), model.head.named_parameters()),
        "tensors": (model.body.parameters(), model.head.parameters()),
    }
    body, head = parts[how]
    groups = [{"params": body, "lr": 1e-3}, {"params": head, "lr": 1e-2}]
    return model, cls(groups)


def steps(model: Two, optimizer: Any, number: int = 2) -> None:
    for i in range(number):
        optimizer.zero_grad()
        model(torch.full((2, 3), 1.0 + i)).backward()
        optimizer.step()


@pytest.mark.parametrize("how", ["modules", "pairs", "tensors"])
def test_groups_whose_names_are_alike_resume_to_the_bit(how: str) -> None:
    model, optimizer = two(AdamW, how)
    steps(model, optimizer)
    other_model, other = two(AdamW, how)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [1e-3, 1e-2]
    assert [len(other.state[p]) for p in other_model.parameters()] == [3] * 4
    steps(model, optimizer)
    steps(other_model, other)
    pairs = zip(model.parameters(), other_model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("strict", [True, False])
def test_names_that_occur_twice_do_not_join_groups(strict: bool) -> None:
    model, optimizer = two(AdamW, "modules")
    steps(model, optimizer)
    other = AdamW(Two())
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"\['bias', 'weight'\] name more than one"):
        other.load_state_dict(optimizer.state_dict(), strict=strict)
    assert other.state_dict() == before


def test_other_names_are_told_where_position_decides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer = two(AdamW, "modules")
    steps(model, optimizer)
    _, other = two(AdamW, "modules")
    other.load_state_dict(optimizer.state_dict())
    assert not caplog.records
    whole = dict(model.named_parameters())
    groups = [{n: p for n, p in whole.items() if part in n} for part in ("body", "hea")]
    named = AdamW([{"params": list(group.items())} for group in groups])
    named.load_state_dict(optimizer.state_dict())
    assert "AdamW.load_state_dict matches parameters by position" in caplog.text
    assert [group["lr"] for group in named.param_groups] == [1e-3, 1e-2]


# -- whatever the groups are ---------------------------------------------------

_SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=3)


@st.composite
def _named(draw: Any, sizes: list[int]) -> Names | None:
    """Names of groups of such sizes: none, each once, or some twice."""
    kind = draw(st.sampled_from(["none", "once", "some"]))
    total = sum(sizes)
    if kind == "none":
        return None
    if kind == "once":
        flat = draw(st.permutations([f"p{i}" for i in range(total)]))
    else:
        names = st.sampled_from(["weight", "bias", "p0", "p1"])
        flat = draw(st.lists(names, min_size=total, max_size=total))
    rest = iter(flat)
    return [[next(rest) for _ in range(size)] for size in sizes]


@st.composite
def _sides(draw: Any) -> tuple[list[int], Names | None, list[int], Names | None]:
    """Sizes and names of the groups that save, and of those that load."""
    saved = draw(_SIZES)
    own = draw(st.sampled_from([saved, saved[::-1]]) | _SIZES)
    return saved, draw(_named(saved)), own, draw(_named(own))


def _made(cls: Any, sizes: list[int], names: Names | None, rate: float) -> Any:
    """An optimizer in whose state each number says where it comes from."""
    groups: list[dict[str, Any]] = []
    for i, size in enumerate(sizes):
        held: list[Any] = [torch.nn.Parameter(torch.zeros(2)) for _ in range(size)]
        if names is not None:
            held = list(zip(names[i], held, strict=True))
        groups.append({"params": held, "lr": rate + i})
    optimizer = cls(groups)
    for i, parameter in enumerate(_parameters(optimizer)):
        values = {key: torch.full((2,), rate + i) for key in ENTRIES}
        optimizer.state[parameter] = {"step": torch.tensor(3.0), **values}
    return optimizer


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _numbers(optimizer: Any) -> list[tuple[float, float]]:
    """What each parameter has: its rate, and the number in its state."""
    return [
        (group["lr"], optimizer.state[p]["exp_avg"][0].item())
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def _by_name(saved: Any, names: list[str], wanted: list[str]) -> list[float] | None:
    """The state that names ask for; None where a name is on one side only."""
    if sorted(names) != sorted(wanted):
        return None
    held = dict(zip(names, (state for _, state in _numbers(saved)), strict=True))
    return [held[name] for name in wanted]


def _by_torch(saved: Any, theirs: Any) -> list[float] | None:
    """The state that torch gives each parameter; None where it refuses."""
    try:
        theirs.load_state_dict(saved.state_dict())
    except ValueError:
        return None
    return [state for _, state in _numbers(theirs)]


def _flat(names: Names) -> list[str]:
    return [name for group in names for name in group]


def _are_unique(names: Names | None) -> bool:
    return names is not None and len(set(_flat(names))) == len(_flat(names))


@pytest.mark.filterwarnings("ignore:.*parameter names:UserWarning")
@settings(max_examples=200, deadline=None)
@given(_sides())
def test_what_is_loaded_is_what_names_say_or_torch(sides: Any) -> None:
    sizes, names, own_sizes, own_names = sides
    saved = _made(torch.optim.Adam, sizes, names, 100.0)
    own = _made(optim.Adam, own_sizes, own_names, 200.0)
    theirs = _made(torch.optim.Adam, own_sizes, own_names, 200.0)
    before = _numbers(own)
    is_by_name = _are_unique(names) and _are_unique(own_names)
    if is_by_name:
        expected = _by_name(saved, _flat(names), _flat(own_names))
    else:
        expected = _by_torch(saved, theirs)
    if expected is None:
        with pytest.raises(ValueError, match="expected"):
            own.load_state_dict(saved.state_dict())
        assert _numbers(own) == before
        return
    own.load_state_dict(saved.state_dict())
    assert [state for _, state in _numbers(own)] == expected
    assert is_by_name or _numbers(own) == _numbers(theirs)
