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
