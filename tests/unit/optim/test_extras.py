"""Clips, checks, averages and sparse gradients: what torch's optimizers do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.optim.twins import (
    OWN,
    TWINS,
    assert_alike,
    parameters,
    run,
    set_gradients,
)
from thalweg import IndexedSlices, optim

EVERY = (*TWINS, *OWN)


def table(rows: int = 6, width: int = 3) -> torch.nn.Embedding:
    torch.manual_seed(5)
    return torch.nn.Embedding(rows, width, sparse=True).double()


# -- clips and checks ---------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_norm_of_all_gradients_is_bounded(name: str) -> None:
    theirs, own = parameters(), parameters()
    make = getattr(optim, name)
    by_hand, folded = make(theirs, lr=0.05), make(own, lr=0.05, max_grad_norm=0.5)
    for number in range(5):
        set_gradients(number, theirs, own)
        grads = [p.grad for p in theirs if p.grad is not None]
        kept = [p.grad.clone() for p in own if p.grad is not None]
        norm = torch.sqrt(torch.stack([g.square().sum() for g in grads]).sum())
        for grad in grads:
            grad.mul_((0.5 / norm).clamp(max=1.0))
        by_hand.step()
        folded.step()
        assert all(map(torch.equal, kept, [p.grad for p in own if p.grad is not None]))
    assert_alike(own, theirs, 1e-11)


def test_a_step_with_a_nan_is_left_out() -> None:
    held, plain = parameters(), parameters()
    optimizer = optim.AdamW(held, nonfinite="skip", max_grad_norm=1.0)
    same = optim.AdamW(plain, max_grad_norm=1.0)
    for number in range(6):
        set_gradients(number, held, plain)
        if number % 2:
            held[0].grad.view(-1)[-1] = torch.nan  # type: ignore[union-attr]
        optimizer.step()
        assert optimizer.last_step_applied == (number % 2 == 0)
        if number % 2 == 0:
            same.step()
    assert all(map(torch.equal, held, plain))
    assert float(optimizer.state[held[0]]["step"]) == 3.0


def test_a_nan_is_an_error_that_changes_nothing() -> None:
    held = parameters()
    optimizer = optim.AdamW(held, nonfinite="error")
    set_gradients(0, held)
    held[1].grad = torch.full_like(held[1], torch.inf)
    before = [p.detach().clone() for p in held]
    with pytest.raises(FloatingPointError, match="Nothing was changed"):
        optimizer.step()
    assert all(map(torch.equal, before, held))


@pytest.mark.parametrize("kind", ["module", "named", "group", "unnamed"])
def test_an_error_calls_parameters_by_their_names(kind: str) -> None:
    model = torch.nn.Linear(2, 1)
    parameters: dict[str, Any] = {
        "module": model,
        "named": model.named_parameters(),
        "group": [{"params": list(model.named_parameters())}],
        "unnamed": model.parameters(),
    }
    optimizer = optim.SGD(parameters[kind], lr=0.1, nonfinite="error")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    names = "weight, bias"
    if kind == "unnamed":
        names = r"an unnamed one of shape \(1, 2\), an unnamed one of shape \(1,\)"
    with pytest.raises(FloatingPointError, match=f"in those of {names}"):
        optimizer.step()


def test_a_sparse_gradient_is_checked_and_clipped_with_the_others() -> None:
    embedding, dense = table(), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    plain = torch.nn.Parameter(embedding.weight.detach().clone())
    other = torch.nn.Parameter(dense.detach().clone())
    optimizer = optim.SGD([embedding.weight, dense], lr=1.0, max_grad_norm=0.5)
    embedding(torch.tensor([1, 4, 1])).square().sum().backward()
    dense.grad = torch.ones_like(dense)
    plain.grad = embedding.weight.grad.to_dense()  # type: ignore[union-attr]
    other.grad = torch.ones_like(other)
    optimizer.step()
    optim.SGD([plain, other], lr=1.0, max_grad_norm=0.5).step()
    assert_alike([embedding.weight, dense], [plain, other])
    checked = optim.SGD([embedding.weight, dense], lr=1.0, nonfinite="skip")
    dense.grad = torch.full_like(dense, torch.nan)
    before = embedding.weight.detach().clone()
    checked.step()
    assert not checked.last_step_applied
    assert torch.equal(embedding.weight, before)


# -- averages -----------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_averages_follow_the_parameters(name: str) -> None:
    held = parameters()
    optimizer = getattr(optim, name)(held, lr=0.05, ema_decay=0.9)
    averages = [p.detach().clone() for p in held]
    for number in range(6):
        set_gradients(number, held)
        used = [p.grad is not None for p in held]
        optimizer.step()
        for average, parameter, is_used in zip(averages, held, used, strict=True):
            if is_used:
                average.mul_(0.9).add_(parameter.detach(), alpha=0.1)
    trained = [p.detach().clone() for p in held]
    with optimizer.ema_scope():
        assert_alike(held, averages)
        for refused in (optimizer.step, optimizer.state_dict, optimizer.__getstate__):
            with pytest.raises(RuntimeError, match=r"ema_scope\(\)"):
                refused()
    assert all(map(torch.equal, held, trained))


def test_averages_are_saved() -> None:
    held = parameters()
    optimizer = optim.AdamW(held, ema_decay=0.5)
    run([optimizer], [held], 3)
    other_held = [torch.nn.Parameter(p.detach().clone()) for p in held]
    other = optim.AdamW(other_held, ema_decay=0.5)
    other.load_state_dict(optimizer.state_dict())
    run([optimizer, other], [held, other_held], 2)
    for one, two in zip(held, other_held, strict=True):
        assert torch.equal(optimizer.state[one]["average"], other.state[two]["average"])


def test_there_is_no_scope_without_averages() -> None:
    optimizer = optim.AdamW(parameters())
    with pytest.raises(RuntimeError, match="ema_decay"), optimizer.ema_scope():
        pass


# -- sparse gradients ---------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in EVERY if n != "LAMB"])
def test_rows_without_a_gradient_stay(name: str) -> None:
    embedding = table()
    before = embedding.weight.detach().clone()
    optimizer = getattr(optim, name)(embedding.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        embedding(torch.tensor([1, 4, 1])).square().sum().backward()
        optimizer.step()
    moved = (embedding.weight != before).any(dim=1)
    assert moved.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("name", EVERY)
def test_exact_is_the_dense_update(name: str) -> None:
    embedding, dense = table(), table()
    dense.sparse = False
    options: dict[str, Any] = {"lr": 0.1}
    make = getattr(optim, name)
    one = make(embedding.parameters(), sparse_update="exact", **options)
    two = make(dense.parameters(), **options)
    for number in range(4):
        for optimizer, layer in ((one, embedding), (two, dense)):
            optimizer.zero_grad()
            layer(torch.tensor([1, number, 1])).square().sum().backward()
            optimizer.step()
    assert_alike([embedding.weight], [dense.weight])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", ["SparseAdam", "Adagrad", "SGD"])
@pytest.mark.parametrize("maximize", [False, True])
def test_rows_equal_torch(name: str, maximize: bool) -> None:
    theirs, own = table(), table()
    options = {"lr": 0.1, "maximize": maximize}
    pair = [
        getattr(home, name)(layer.parameters(), **options)
        for home, layer in ((torch.optim, theirs), (optim, own))
    ]
    torch.set_default_dtype(torch.float64)
    for number in range(10):
        for optimizer, layer in zip(pair, (theirs, own), strict=True):
            optimizer.zero_grad()
            layer(torch.tensor([2, number % 6, 2])).square().sum().backward()
            optimizer.step()
    assert_alike([own.weight], [theirs.weight])


def test_dense_and_sparse_gradients_in_one_model() -> None:
    embedding, head = table(), torch.nn.Linear(3, 1).double()
    optimizer = optim.AdamW([*embedding.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (head(embedding(torch.tensor([0, 3, 3]))) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize("make", [optim.SGD, optim.Adagrad])
def test_a_dense_gradient_in_a_table_is_read_before_its_rows_are_written(
    make: Any,
) -> None:
    found: list[torch.Tensor] = []
    for is_shared in (True, False):
        held = torch.nn.Parameter(torch.arange(12.0).view(6, 2))
        other = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer = make([held, other], lr=1.0)
        for step in range(5):
            if step == 3:
                held.data = held.data.clone()
            lent = held.detach()[:2]
            rows = IndexedSlices(torch.ones(2, 2), torch.tensor([0, 3]), (6, 2))
            held.grad = rows.to_sparse()
            other.grad = lent if is_shared else lent.clone()
            optimizer.step()
        found.append(other.detach())
    assert torch.equal(*found)


def test_a_parameter_changes_between_dense_and_sparse() -> None:
    own, dense = table(), table()
    dense.sparse = False
    one = optim.Adagrad(own.parameters(), lr=0.1)
    two = optim.Adagrad(dense.parameters(), lr=0.1)
    for number in range(6):
        own.sparse = number % 2 == 0
        for optimizer, layer in ((one, own), (two, dense)):
            optimizer.zero_grad()
            layer(torch.tensor([1, 5])).square().sum().backward()
            optimizer.step()
    assert_alike([own.weight], [dense.weight])


def test_an_index_out_of_range_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optim.AdamW([weight])
    bad = torch.sparse_coo_tensor(
        [[5]], torch.ones(1, 2), (2, 2), check_invariants=False
    )
    weight.grad = bad
    with pytest.raises((ValueError, IndexError), match="5"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))


def test_a_gradient_without_rows_moves_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optim.SparseAdam([weight])
    weight.grad = torch.sparse_coo_tensor(
        torch.empty(1, 0), torch.empty(0, 2), (2, 2), check_invariants=True
    )
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))


def test_scalars_and_vectors_with_sparse_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    values = torch.tensor([1.0, 2.0])
    weight.grad = torch.sparse_coo_tensor([[1, 1]], values, (4,), check_invariants=True)
    optim.SGD([weight], lr=0.5).step()
    assert weight.tolist() == [1.0, -0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", EVERY)
def test_dtypes_of_state_that_no_option_brings_are_refused(name: str) -> None:
    weight, make = torch.nn.Parameter(torch.ones(2)), getattr(optim, name)
    with pytest.raises(ValueError, match=r"slot_dtypes.*'nope'"):
        make([weight], slot_dtypes={"nope": torch.bfloat16})
    known = make([weight])
    keys = known.possible_keys(known.param_groups[0])
    optimizer = make([weight], slot_dtypes=dict.fromkeys(keys, torch.float64))
    other = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [other]})
    assert len(optimizer.param_groups) == 2


def test_dtypes_of_state_that_no_group_asks_for_are_refused_in_the_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    dtypes = {"max_exp_avg_sq": torch.bfloat16}
    optimizer = optim.AdamW([parameter], slot_dtypes=dtypes)
    with pytest.raises(ValueError, match=r"exp_avg_sq.*'max_exp_avg_sq'.*or turn on"):
        optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    assert optimizer.state[parameter]["max_exp_avg_sq"].dtype == torch.bfloat16


def test_keys_are_known_that_other_options_bring() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "momentum": 0.9}]
    optimizer = optim.SGD(groups, slot_dtypes={"momentum_buffer": torch.float64})
    for weight in weights:
        weight.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[weights[1]]["momentum_buffer"].dtype == torch.float64
    with pytest.raises(ValueError, match="'average'"):
        optim.SGD(groups, slot_dtypes={"average": torch.float64})
    optim.SGD(groups, slot_dtypes={"average": torch.float64}, ema_decay=0.9)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("epsilon", "eps"),
        ("weight_decy", "weight_decay"),
        ("max_grad_nrm", "max_grad_norm"),
        ("beta", "betas"),
    ],
)
def test_an_unknown_keyword_is_told_the_nearest_one(given: str, meant: str) -> None:
    class Own(optim.AdamW):
        def __init__(self, params: Any, *, strength: float = 1.0, **more: Any) -> None:
            super().__init__(params, lr=strength, **more)

    for kind in (optim.AdamW, Own):
        make: Any = kind
        question = rf"{kind.__name__}: .*got '{given}'\. Did you mean '{meant}'\?"
        with pytest.raises(TypeError, match=question):
            make([torch.nn.Parameter(torch.ones(2))], **{given: 0.5})


def test_keywords_of_the_whole_optimizer_are_refused_in_a_group() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="max_grad_norm"):
        optim.SGD([{"params": [weight], "max_grad_norm": 1.0}], lr=1.0)
    optimizer = optim.SGD([weight], lr=1.0)
    other = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="nonfinite"):
        optimizer.add_param_group({"params": [other], "nonfinite": "skip"})
    assert len(optimizer.param_groups) == 1
