"""GradientTape beyond the recorded cases of TensorFlow."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import embedding

from thalweg.gradients import GradientTape, UnconnectedGradients
from thalweg.state import IndexedSlices, Variable, as_variable, convert_to_tensor


def test_stand_alone_tape_sees_what_torch_recorded():
    x = Variable(3.0)
    y = x * x
    assert GradientTape().gradient(y, x).item() == 6.0


def test_a_tape_says_how_it_stands():
    x = nn.Parameter(torch.tensor(3.0))
    tape = GradientTape()
    assert repr(tape) == "<GradientTape, not recording>"
    with tape:
        assert repr(tape) == "<GradientTape, recording>"
        y = x * x
    tape.gradient(y, x)
    assert repr(tape) == "<GradientTape, used up>"
    assert repr(GradientTape(persistent=True)).startswith("<persistent GradientTape,")


def test_tape_entered_after_the_computation():
    x = Variable(3.0)
    y = x * x
    tape = GradientTape()
    with tape:
        assert tape.gradient(y, x).item() == 6.0


def test_plain_tensor_is_unchanged_after_the_scope():
    x = torch.tensor([1.0, 2.0])
    with GradientTape() as tape:
        tape.watch(x)
        assert x.requires_grad
        y = (x * x).sum()
    assert not x.requires_grad
    assert x.is_leaf
    assert x.grad is None
    assert tape.gradient(y, x).tolist() == [2.0, 4.0]


def test_plain_tensor_is_unchanged_after_an_error():
    x = torch.tensor(1.0)
    tape = GradientTape()
    tape.watch(x)
    with pytest.raises(KeyError), tape:
        raise KeyError
    assert not x.requires_grad


def test_inner_scope_does_not_end_the_watch_of_the_outer():
    x = torch.tensor(2.0)
    with GradientTape() as outer:
        with GradientTape() as inner:
            inner.watch(x)
            outer.watch(x)
            y = x * x
        z = y * x
    assert not x.requires_grad
    assert inner.gradient(y, x).item() == 4.0
    assert outer.gradient(z, x).item() == 12.0


def test_second_order_of_a_watched_tensor():
    x = torch.tensor(2.0)
    with GradientTape() as outer:
        outer.watch(x)
        with GradientTape() as inner:
            inner.watch(x)
            y = x**3
        dy = inner.gradient(y, x)
    assert outer.gradient(dy, x).item() == 12.0


def test_gradient_penalty():
    weight, x = Variable([2.0, 3.0]), torch.tensor([1.0, 1.0])
    with GradientTape() as outer:
        with GradientTape() as inner:
            inner.watch(x)
            score = (weight * x * x).sum()
        penalty = inner.gradient(score, x).square().sum()
    assert outer.gradient(penalty, weight).tolist() == [16.0, 24.0]


def test_two_tapes_over_one_graph():
    a, b = Variable(2.0), Variable(3.0)
    with GradientTape() as first, GradientTape() as second:
        shared = a * b
        one, two = shared * shared, shared * 3.0
    assert first.gradient(one, a).item() == 36.0
    assert second.gradient(two, b).item() == 6.0


def test_graph_is_freed_by_the_only_tape():
    x = Variable(2.0)
    with GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


def test_watched_source_that_is_a_result():
    x = Variable(3.0)
    with GradientTape() as tape:
        h = x * x
        tape.watch(h)
        y = h * h
    assert [g.item() for g in tape.gradient(y, [h, x])] == [18.0, 108.0]


def test_unwatched_result_as_source():
    x = Variable(3.0)
    with GradientTape() as tape:
        h = x * x
        y = h * h
    assert tape.gradient(y, h).item() == 18.0


def test_target_is_its_own_source():
    x, v = torch.tensor([1.0, 2.0]), Variable([3.0, 4.0])
    with GradientTape(persistent=True) as tape:
        tape.watch(x)
    assert tape.gradient(x, x).tolist() == [1.0, 1.0]
    assert tape.gradient(v, v).tolist() == [1.0, 1.0]
    assert tape.jacobian(x, x).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_not_watching_variables():
    a, b = Variable(2.0), Variable(3.0)
    with GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(a)
        seen, unseen = a * 2, b * 2
        y = seen * unseen * b
    sources = [a, b, seen, unseen]
    grads = tape.gradient(y, sources)
    assert [None if g is None else g.item() for g in grads] == [36.0, None, 18.0, None]
    assert [v is a for v in tape.watched_variables()] == [True]


def test_reset_cuts_what_came_before():
    x, w = Variable(3.0), Variable(2.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        only_old = w * w
        tape.reset()
        z = y * x + only_old
    assert tape.gradient(z, x).item() == 9.0
    assert tape.gradient(z, w) is None
    assert tape.gradient([y, z], x).item() == 9.0
    assert tape.jacobian(z, x).item() == 9.0


def test_stop_recording_makes_constants():
    x = Variable(3.0)
    with GradientTape() as tape:
        with tape.stop_recording():
            c = x * x
        y = c * x
    assert tape.gradient(y, x).item() == 9.0


def test_stop_recording_of_an_inner_tape_only():
    x = Variable(3.0)
    with GradientTape() as outer:
        with GradientTape() as inner:
            with inner.stop_recording():
                c = x * x
            y = c * x
        dy = inner.gradient(y, x)
    assert dy.item() == 9.0
    assert outer.gradient(y, x).item() == 27.0


def test_gradient_inside_stop_recording_is_not_recorded():
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        with tape.stop_recording():
            g = tape.gradient(y, x)
    assert not g.requires_grad


def test_a_used_tape_can_be_entered_again():
    x = Variable(3.0)
    tape = GradientTape()
    for factor in (1.0, 2.0):
        with tape:
            y = factor * x
        assert tape.gradient(y, x).item() == factor


def test_failed_call_does_not_use_the_tape_up():
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x
    with pytest.raises(TypeError, match="target"):
        tape.gradient(None, x)
    with pytest.raises(TypeError, match="sources"):
        tape.gradient(y, [None])
    with pytest.raises(ValueError, match="output_gradients"):
        tape.gradient(y, x, output_gradients=[])
    assert tape.gradient(y, x).item() == 6.0


def test_sources_from_an_iterator():
    module = nn.Linear(2, 1)
    with GradientTape(persistent=True) as tape:
        y = module(torch.ones(1, 2)).sum()
    grads = tape.gradient(y, module.parameters())
    assert [tuple(g.shape) for g in grads] == [(1, 2), (1,)]
    named = tape.gradient(y, dict(module.named_parameters()))
    assert torch.equal(named["weight"], grads[0])


def test_target_without_any_graph():
    x = Variable(3.0)
    tape = GradientTape(persistent=True)
    assert tape.gradient(torch.tensor(1.0), [x]) == [None]
    zero = tape.gradient(torch.tensor(1.0), [x], unconnected_gradients="zero")
    assert [g.item() for g in zero] == [0.0]
    some = tape.gradient([torch.tensor(1.0), x * 2, torch.tensor(1)], x)
    assert some.item() == 2.0


def test_zeros_have_the_shape_of_the_source():
    x, z = Variable(3.0), torch.ones(2, 3, dtype=torch.int64)
    with GradientTape() as tape:
        y = x * x
    grad = tape.gradient(y, [z], unconnected_gradients=UnconnectedGradients.ZERO)
    assert torch.equal(grad[0], torch.zeros(2, 3, dtype=torch.int64))


def test_number_as_output_gradient():
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y = x * x
    assert tape.gradient(y, x, output_gradients=10.0).tolist() == [20.0, 40.0]


def test_rows_of_an_inner_tape_have_a_gradient():
    table = Variable([[1.0, 2.0], [3.0, 4.0]])
    index = torch.tensor([1, 1])
    with GradientTape() as outer:
        with GradientTape() as inner:
            loss = (embedding(index, table, sparse=True) ** 3).sum()
        rows = inner.gradient(loss, table)
        total = convert_to_tensor(rows).sum()
    second = convert_to_tensor(outer.gradient(total, table))
    # d/dx of 3 x ** 2, and the row is taken twice
    assert second.tolist() == [[0.0, 0.0], [36.0, 48.0]]


def test_sparse_embedding_gives_rows_and_dense_use_a_tensor():
    table = Variable([[1.0], [2.0], [3.0]])
    index = torch.tensor([2, 0, 2])
    with GradientTape(persistent=True) as tape:
        sparse = embedding(index, table, sparse=True).sum()
        mixed = sparse + table.sum()
    rows = tape.gradient(sparse, table)
    assert isinstance(rows, IndexedSlices)
    assert rows.indices.tolist() == [2, 0, 2]
    assert tape.gradient(mixed, table).flatten().tolist() == [2.0, 1.0, 3.0]
    jacobian = tape.jacobian(sparse, table)
    assert jacobian.flatten().tolist() == [1.0, 0.0, 2.0]


def test_source_may_be_the_view_of_a_parameter():
    parameter = nn.Parameter(torch.tensor(3.0))
    with GradientTape() as tape:
        y = parameter * parameter
    assert tape.gradient(y, as_variable(parameter)).item() == 6.0


def test_watched_variables_of_a_model_after_the_gradient():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with GradientTape() as tape:
        loss = module(torch.ones(1, 2)).sum()
    tape.gradient(loss, list(module.parameters()))
    del loss
    found = tape.watched_variables()
    assert {id(v) for v in found} == {id(p) for p in module.parameters()}
    assert GradientTape().watched_variables() == ()


def test_persistent_warning_is_given_once_per_tape(caplog):
    x = Variable(3.0)
    with (
        caplog.at_level(logging.WARNING, logger="thalweg"),
        GradientTape(persistent=True) as tape,
    ):
        y = x * x
        tape.gradient(y, x)
        tape.gradient(y, x)
    assert len(caplog.records) == 1


def test_hooked_parameter_keeps_its_grad():
    x = nn.Parameter(torch.tensor(3.0))
    seen = []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.item()))
    with GradientTape() as tape:
        y = x * x
    assert tape.gradient(y, [x])[0].item() == 6.0
    assert seen == [6.0]
    assert x.grad is None


def test_complex_target_takes_ones():
    z = torch.tensor(1.0 + 2.0j)
    with GradientTape() as tape:
        tape.watch(z)
        y = z * z
    assert tape.gradient(y, z).item() == 2.0 - 4.0j
