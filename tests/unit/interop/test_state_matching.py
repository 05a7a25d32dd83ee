"""Which saved state belongs to which parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.interop.state_matching import check_shapes, match_parameters

A, B, C = (torch.zeros(shape) for shape in ((2, 3), (3,), ()))
OWN = [{"params": [A, B], "param_names": ["a", "b"], "lr": 0.1, "mine": 1}]


def saved(*groups: dict[str, Any]) -> list[dict[str, Any]]:
    return list(groups)


def test_by_name_in_any_order() -> None:
    theirs = saved({"params": [0, 1], "param_names": ["b", "a"], "lr": 0.5})
    match = match_parameters("Adam", OWN, theirs)
    assert match.parameters[0] is B
    assert match.parameters[1] is A
    assert match.groups[0]["params"] == OWN[0]["params"]
    assert (match.groups[0]["lr"], match.groups[0]["mine"]) == (0.5, 1)


def test_segments_of_wrappers_are_no_part_of_a_name() -> None:
    names = ["_orig_mod.a", "_fsdp_wrapped_module.b"]
    match = match_parameters(
        "Adam", OWN, saved({"params": [0, 1], "param_names": names})
    )
    assert match.parameters[0] is A


def test_a_group_made_of_two_keeps_its_own_numbers() -> None:
    theirs = saved(
        {"params": [0], "param_names": ["a"], "lr": 0.5},
        {"params": [1], "param_names": ["b"], "lr": 0.25},
    )
    match = match_parameters("Adam", OWN, theirs)
    assert match.groups[0]["lr"] == 0.1
    assert match.parameters[1] is B


def test_by_position_where_a_side_has_no_names() -> None:
    match = match_parameters("Adam", OWN, saved({"params": [7, 8], "lr": 0.5}))
    assert match.parameters[7] is A
    assert match.groups[0]["param_names"] == ["a", "b"]


def test_names_on_one_side_only_are_refused() -> None:
    theirs = saved({"params": [0, 1], "param_names": ["a", "c"]})
    with pytest.raises(ValueError, match=r"missing \['b'\], unexpected \['c'\]"):
        match_parameters("Adam", OWN, theirs)


@pytest.mark.parametrize("theirs", [[{"params": [0]}], [{"params": [0]}] * 2])
def test_groups_of_other_sizes_are_refused(theirs: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="groups of"):
        match_parameters("Adam", OWN, theirs)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (), (1,)])
def test_shapes_of_slots(shape: tuple[int, ...]) -> None:
    match = match_parameters("Adam", OWN, saved({"params": [0, 1]}))
    check_shapes("Adam", {0: {"m": torch.zeros(shape)}}, match)


def test_another_shape_is_refused() -> None:
    match = match_parameters("Adam", OWN, saved({"params": [0, 1]}))
    with pytest.raises(ValueError, match=r"'m' of 0: \(3, 2\) for \(2, 3\)"):
        check_shapes("Adam", {0: {"m": torch.zeros(3, 2)}}, match)


def grouped(*names: list[str], places: bool = False) -> list[dict[str, Any]]:
    """Groups of (3,) parameters, or of their numbers, with names and a rate."""
    groups: list[dict[str, Any]] = []
    for i, own in enumerate(names):
        first = sum(len(group["params"]) for group in groups)
        held = [first + j if places else torch.zeros(3) for j in range(len(own))]
        groups.append({"params": held, "param_names": own, "lr": i})
    return groups


@pytest.mark.parametrize("strict", [True, False])
def test_names_that_occur_twice_leave_it_to_positions(
    strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    own = grouped(["a", "b"], ["a", "b"])
    theirs = grouped(["a", "b"], ["a", "b"], places=True)
    match = match_parameters("Adam", own, theirs, strict=strict)
    held = [parameter for group in own for parameter in group["params"]]
    assert [match.parameters[i] is held[i] for i in range(4)] == [True] * 4
    assert not match.is_by_name
    assert not caplog.records


@pytest.mark.parametrize(
    "names",
    [(["a", "b"], ["c", "d"]), (["b", "a"], ["a", "b"]), (["a"] * 2, ["b"] * 2)],
)
def test_positions_against_names_are_logged(
    names: tuple[list[str], ...], caplog: pytest.LogCaptureFixture
) -> None:
    own = grouped(["a", "b"], ["a", "b"])
    match = match_parameters("Adam", own, grouped(*names, places=True))
    assert match.parameters[3] is own[1]["params"][1]
    assert "matches parameters by position, though names differ" in caplog.text


def test_other_groups_with_names_that_occur_twice_are_refused() -> None:
    theirs = grouped(["a", "b", "a", "b"], places=True)
    with pytest.raises(ValueError, match=r"got \[4\]. \['a', 'b'\] name more than one"):
        match_parameters("Adam", grouped(["a", "b"], ["a", "b"]), theirs)


def test_without_strict_what_is_in_both_is_found_by_name() -> None:
    theirs = grouped(["b", "c"], places=True)
    own = grouped(["a", "b"])
    match = match_parameters("Adam", own, theirs, strict=False)
    assert match.parameters == {0: own[0]["params"][1]}
