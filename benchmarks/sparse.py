"""Time of updates of touched rows, beside torch, TensorFlow, optax and FBGEMM.

Tables of 1,000,000 rows of 64; 8,192 indices, some of them more than once, others in
each of eight steps that are taken in turn. One timing is the mean of all eight, and the
first round, which makes the touched pages, does not count. Optax knows no sparse
gradients, and Adam of TensorFlow's raw ops decays all slots: both pass over the whole
table, so they have cases of their own with few rounds. On a GPU (`--device cuda`) there
is one more case: 65,536 indices, a table of 10,000,000 rows of 128.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

import thalweg as tw
from benchmarks import devices
from benchmarks.cases import OURS, Bound, Case, arguments, run
from benchmarks.contenders import Problem
from benchmarks.sparse_contenders import (
    BATCHES,
    Tables,
    fbgemm_embedding,
    optax_rows,
    tensorflow_adagrad,
    tensorflow_adam,
    thalweg_embedding,
    thalweg_rows,
    thalweg_ten_tables,
    torch_embedding,
    torch_rows,
)

GPU_WIDTH = 128
ROUNDS = 3  # where contenders pass over whole tables
TORCH, TENSORFLOW, OPTAX = "torch sparse", "TensorFlow raw ops", "optax jit"
FBGEMM, FBGEMM_ROWS = "FBGEMM TBE", "FBGEMM TBE, row-wise"
DROP_IN = "thalweg.optim.SparseAdam"
COO, PLAIN = "thalweg, torch's sparse gradient", "thalweg, torch's parameter"
SINGLE, LARGE = "ten single tables", "ten times the table"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All cases, one table before ten."""
    rows, indices = (10_000, 512) if options.quick else (1_000_000, 8_192)
    tables = Tables(rows, indices, device=options.device)
    nothing, is_cpu = Problem([], options.device), options.device == "cpu"
    if not is_cpu:
        yield large_table(options, nothing)
    yield from one_table(tables, nothing)
    yield from embeddings(tables, nothing)
    if is_cpu:
        yield from whole_tables(tables, nothing)
    yield Case(
        "ten tables in one step",
        nothing,
        {
            OURS: thalweg_ten_tables(tables, together=True),
            SINGLE: thalweg_ten_tables(tables, together=False),
        },
        [Bound(SINGLE, OURS, at_most=1.1)],
        repeats=BATCHES // 2,
        keeps=10 * _kept(tables),
    )


def _kept(tables: Tables) -> int:
    """Bytes of a table and two slots."""
    return 3 * tables.num_bytes


def large_table(options: argparse.Namespace, nothing: Problem) -> Case:
    """The table of a GPU: as many rows as there is room for, up to ten million."""
    # A table, two slots, and as much again for what is made within a step.
    count = devices.fitting(10_000_000, 2 * 3 * 4 * GPU_WIDTH, options.device)
    rows, indices = (10_000, 512) if options.quick else (count, 65_536)
    tables = Tables(rows, indices, GPU_WIDTH, options.device)
    adam = tw.optimizers.Adam
    return Case(
        f"Adam, 65,536 of {count // 1_000_000}M rows of {GPU_WIDTH}",
        nothing,
        {
            OURS: thalweg_rows(adam, tables),
            TORCH: torch_rows("SparseAdam", tables),
            COO: thalweg_rows(adam, tables, coo=True),
            DROP_IN: torch_rows("SparseAdam", tables, tw.optim),
        },
        [
            Bound(OURS, TORCH, 3.0, device="cuda"),
            Bound(COO, TORCH, 3.0, device="cuda"),
        ],
        repeats=BATCHES,
        keeps=_kept(tables),
    )


def one_table(tables: Tables, nothing: Problem) -> Iterator[Case]:
    """The update alone."""
    adam, adagrad = tw.optimizers.Adam, tw.optimizers.Adagrad
    yield Case(
        "Adam, 8,192 of 1M rows",
        nothing,
        {
            OURS: thalweg_rows(adam, tables),
            COO: thalweg_rows(adam, tables, coo=True),
            DROP_IN: torch_rows("SparseAdam", tables, tw.optim),
            LARGE: thalweg_rows(adam, tables, 10),
            TORCH: torch_rows("SparseAdam", tables),
        },
        [
            Bound(OURS, TORCH, 12.0),
            Bound(COO, TORCH, 12.0),
            Bound(OURS, LARGE, at_most=1.3),
        ],
        repeats=BATCHES,
        keeps=10 * _kept(tables),
    )
    yield Case(
        "Adagrad, 8,192 of 1M rows",
        nothing,
        {
            OURS: thalweg_rows(adagrad, tables),
            TORCH: torch_rows("Adagrad", tables),
            TENSORFLOW: tensorflow_adagrad(tables),
        },
        [Bound(OURS, TORCH, 1.0), Bound(OURS, TENSORFLOW, 1.0)],
        repeats=BATCHES,
        keeps=_kept(tables),
    )


def embeddings(tables: Tables, nothing: Problem) -> Iterator[Case]:
    """Forward, backward and update."""
    yield Case(
        "embedding + Adagrad",
        nothing,
        {
            OURS: thalweg_embedding(tw.optimizers.Adagrad, tables),
            PLAIN: thalweg_embedding(tw.optimizers.Adagrad, tables, torch.nn.Parameter),
            TORCH: torch_embedding(tables),
            FBGEMM: fbgemm_embedding("EXACT_ADAGRAD", tables),
            TENSORFLOW: tensorflow_adagrad(tables, reads=True),
        },
        [
            Bound(OURS, TORCH, 4.0),
            Bound(OURS, FBGEMM, 4.0),
            Bound(OURS, TENSORFLOW, 1.0),
        ],
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


def whole_tables(tables: Tables, nothing: Problem) -> Iterator[Case]:
    """Beside contenders that pass over all rows."""
    yield Case(
        "Adam, beside whole tables",
        nothing,
        {
            OURS: thalweg_rows(tw.optimizers.Adam, tables),
            TENSORFLOW: tensorflow_adam(tables),
            OPTAX: optax_rows("adam", tables),
        },
        [Bound(OURS, TENSORFLOW, 1.0), Bound(OURS, OPTAX, 1.0)],
        repeats=BATCHES,
        rounds=ROUNDS,
    )
    yield Case(
        "embedding + Adagrad, beside whole tables",
        nothing,
        {
            OURS: thalweg_embedding(tw.optimizers.Adagrad, tables),
            OPTAX: optax_rows("adagrad", tables),
        },
        [Bound(OURS, OPTAX, 1.0)],
        repeats=BATCHES,
        rounds=ROUNDS,
    )


def main(words: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(__doc__, gpu=True).parse_args(words)
    run("sparse", cases(options), options)


if __name__ == "__main__":
    main()
