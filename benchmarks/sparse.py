"""Time of updates of touched rows, beside torch, TensorFlow and FBGEMM.

Tables of 1,000,000 rows of 64; 8,192 indices, some of them more than once, others in
each of eight steps that are taken in turn. One timing is the mean of all eight, and the
first round, which makes the touched pages, does not count.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import thalweg as tw
from benchmarks.cases import OURS, Bound, Case, arguments, run
from benchmarks.contenders import MissingError, Problem, Setup, Step

WIDTH = 64
BATCHES = 8
TORCH, TENSORFLOW = "torch sparse", "TensorFlow raw op"
FBGEMM, FBGEMM_ROWS = "FBGEMM TBE", "FBGEMM TBE, row-wise"
COO = "thalweg, torch's sparse gradient"
SINGLE, LARGE = "ten single tables", "ten times the table"


@dataclass(frozen=True)
class Tables:
    """Sizes of the tables, and the indices of each step.

    Attributes:
        num_rows: Of one table.
        num_indices: Of one step.
    """

    num_rows: int
    num_indices: int

    def table(self, factor: int = 1) -> torch.Tensor:
        """A new table of zeros, of which only touched pages take memory."""
        return torch.zeros(self.num_rows * factor, WIDTH)

    def indices(self, factor: int = 1) -> list[torch.Tensor]:
        """The indices of all steps; about one in eight occurs more than once."""
        generator = torch.Generator().manual_seed(0)
        count, rows = self.num_indices, self.num_rows * factor
        made = []
        for _ in range(BATCHES):
            fresh = torch.randint(rows, (count,), generator=generator)
            repeated = torch.randint(count, (count // 8,), generator=generator)
            fresh[: count // 8] = fresh[repeated]
            made.append(fresh)
        return made

    def values(self) -> torch.Tensor:
        """The gradient of the rows of one step."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.num_indices, WIDTH, generator=generator).mul_(1e-3)


def thalweg_rows(
    make: Callable[[], tw.Optimizer],
    tables: Tables,
    factor: int = 1,
    *,
    coo: bool = False,
) -> Setup:
    """`apply_gradients` with `IndexedSlices`, or with a sparse COO tensor."""

    def setup(_: Problem) -> Step:
        optimizer, variable = make(), tw.Variable(tables.table(factor))
        values, shape = tables.values(), tuple(variable.shape)
        slices = [tw.IndexedSlices(values, i, shape) for i in tables.indices(factor)]
        grads = [s.to_sparse() if coo else s for s in slices]
        steps = itertools.cycle([(grad, variable)] for grad in grads)
        return lambda: optimizer.apply_gradients(next(steps))

    return setup


def thalweg_ten_tables(tables: Tables, *, together: bool) -> Setup:
    """Ten tables in one step, or in ten."""

    def setup(_: Problem) -> Step:
        optimizer, values = tw.optimizers.Adam(), tables.values()
        held = [tw.Variable(tables.table()) for _ in range(10)]
        all_indices = itertools.cycle(tables.indices())

        def pairs() -> list[Any]:
            shape = tuple(held[0].shape)
            return [
                (tw.IndexedSlices(values, next(all_indices), shape), variable)
                for variable in held
            ]

        def in_one() -> None:
            optimizer.apply_gradients(pairs())

        def in_ten() -> None:
            for pair in pairs():
                optimizer.apply_gradients([pair])

        return in_one if together else in_ten

    return setup


def torch_rows(name: str, tables: Tables) -> Setup:
    """A torch optimizer with sparse COO gradients."""

    def setup(_: Problem) -> Step:
        # Torch's optimizers warn that they make sparse tensors without checking them.
        torch.sparse.check_sparse_tensor_invariants.disable()
        parameter = torch.nn.Parameter(tables.table())
        optimizer = getattr(torch.optim, name)([parameter])
        values, shape = tables.values(), tuple(parameter.shape)
        grads = [
            torch.sparse_coo_tensor(i[None], values, shape) for i in tables.indices()
        ]
        cycle = itertools.cycle(grads)

        def step() -> None:
            parameter.grad = next(cycle)
            optimizer.step()

        return step

    return setup


def tensorflow_rows(name: str, tables: Tables) -> Setup:
    """A sparse raw op of TensorFlow in a `tf.function`."""

    def setup(_: Problem) -> Step:
        try:
            import tensorflow  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        except ImportError as error:
            raise MissingError("TensorFlow is not installed") from error
        tf: Any = tensorflow
        op, zeros = getattr(tf.raw_ops, name), tf.constant(tables.table().numpy())
        var, accum = tf.Variable(zeros), tf.Variable(zeros)
        values = tf.constant(tables.values().numpy())
        steps = itertools.cycle(tf.constant(i.numpy()) for i in tables.indices())
        numbers = {"lr": 0.01, "epsilon": 1e-7}

        @tf.function
        def step(indices: Any) -> None:
            op(
                var=var.handle,
                accum=accum.handle,
                grad=values,
                indices=indices,
                **numbers,
            )

        return lambda: step(next(steps))

    return setup


# -- embedding: forward, backward, update -------------------------------------


def thalweg_embedding(make: Callable[[], tw.Optimizer], tables: Tables) -> Setup:
    """Forward and backward through the tape, then the update."""

    def setup(_: Problem) -> Step:
        optimizer, weight = make(), torch.nn.Parameter(tables.table())
        cycle, slope = itertools.cycle(tables.indices()), tables.values()

        def step() -> None:
            with tw.GradientTape() as tape:
                rows = torch.nn.functional.embedding(next(cycle), weight, sparse=True)
            (grad,) = tape.gradient(rows, [weight], output_gradients=slope)
            optimizer.apply_gradients([(grad, weight)])

        return step

    return setup


def torch_embedding(tables: Tables) -> Setup:
    """The same with torch's engine and its sparse Adagrad."""

    def setup(_: Problem) -> Step:
        torch.sparse.check_sparse_tensor_invariants.disable()
        weight = torch.nn.Parameter(tables.table())
        optimizer = torch.optim.Adagrad([weight])
        cycle, slope = itertools.cycle(tables.indices()), tables.values()

        def step() -> None:
            optimizer.zero_grad()
            rows = torch.nn.functional.embedding(next(cycle), weight, sparse=True)
            rows.backward(slope)
            optimizer.step()

        return step

    return setup


def fbgemm_embedding(rule: str, tables: Tables) -> Setup:
    """FBGEMM's table-batched embedding, whose backward pass updates."""

    def setup(_: Problem) -> Step:
        try:
            from fbgemm_gpu import (  # pyright: ignore[reportMissingImports]
                split_embedding_configs,
                split_table_batched_embeddings_ops_common,
                split_table_batched_embeddings_ops_training,
            )
        except ImportError as error:
            raise MissingError("FBGEMM is not installed") from error
        except OSError as error:
            raise MissingError("this FBGEMM is not for this torch") from error
        training = split_table_batched_embeddings_ops_training
        location = split_table_batched_embeddings_ops_common.EmbeddingLocation.HOST
        table = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(tables.num_rows, WIDTH, location, training.ComputeDevice.CPU)],
            optimizer=getattr(split_embedding_configs.EmbOptimType, rule),
        )
        offsets = torch.arange(tables.num_indices + 1)
        cycle, slope = itertools.cycle(tables.indices()), tables.values()
        return lambda: table(next(cycle), offsets).backward(slope)

    return setup


# -- cases --------------------------------------------------------------------


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All cases, one table before ten."""
    rows, indices = (10_000, 512) if options.quick else (1_000_000, 8_192)
    tables, nothing = Tables(rows, indices), Problem([], options.device)
    adam, adagrad = tw.optimizers.Adam, tw.optimizers.Adagrad
    yield Case(
        "Adam, 8,192 of 1M rows",
        nothing,
        {
            OURS: thalweg_rows(adam, tables),
            COO: thalweg_rows(adam, tables, coo=True),
            LARGE: thalweg_rows(adam, tables, 10),
            TORCH: torch_rows("SparseAdam", tables),
        },
        [
            Bound(OURS, TORCH, 12.0),
            Bound(COO, TORCH, 12.0),
            Bound(OURS, LARGE, at_most=1.3),
        ],
        repeats=BATCHES,
    )
    yield Case(
        "Adagrad, 8,192 of 1M rows",
        nothing,
        {
            OURS: thalweg_rows(adagrad, tables),
            TORCH: torch_rows("Adagrad", tables),
            TENSORFLOW: tensorflow_rows("ResourceSparseApplyAdagradV2", tables),
        },
        [Bound(OURS, TORCH, 1.0), Bound(OURS, TENSORFLOW, 1.0)],
        repeats=BATCHES,
    )
    yield from embeddings(tables, nothing)
    yield Case(
        "ten tables in one step",
        nothing,
        {
            OURS: thalweg_ten_tables(tables, together=True),
            SINGLE: thalweg_ten_tables(tables, together=False),
        },
        [Bound(SINGLE, OURS, at_most=1.1)],
        repeats=BATCHES // 2,
    )


def embeddings(tables: Tables, nothing: Problem) -> Iterator[Case]:
    """Forward, backward and update."""
    yield Case(
        "embedding + Adagrad",
        nothing,
        {
            OURS: thalweg_embedding(tw.optimizers.Adagrad, tables),
            TORCH: torch_embedding(tables),
            FBGEMM: fbgemm_embedding("EXACT_ADAGRAD", tables),
        },
        [Bound(OURS, TORCH, 4.0), Bound(OURS, FBGEMM, 4.0)],
        repeats=BATCHES,
    )
    yield Case(
        "embedding + row-wise Adagrad",
        nothing,
        {
            OURS: thalweg_embedding(tw.optimizers.RowWiseAdagrad, tables),
            FBGEMM_ROWS: fbgemm_embedding("EXACT_ROWWISE_ADAGRAD", tables),
        },
        [Bound(OURS, FBGEMM_ROWS, 1.0)],
        repeats=BATCHES,
    )


def main(words: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args(words)
    run("sparse", cases(options), options)


if __name__ == "__main__":
    main()
