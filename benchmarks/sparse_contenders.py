"""The setups of updates of touched rows: tables, indices, and who updates them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import thalweg as tw
from benchmarks.contenders import (
    MissingError,
    Problem,
    Setup,
    Step,
    on_cpu,
    optax_modules,
    tensorflow_module,
)

BATCHES = 8


@dataclass(frozen=True)
class Tables:
    """Sizes of the tables, and the indices of each step.

    Attributes:
        num_rows: Of one table.
        num_indices: Of one step.
        width: Of one row.
        device: Where they are.
    """

    num_rows: int
    num_indices: int
    width: int = 64
    device: str = "cpu"

    @property
    def num_bytes(self) -> int:
        """Of one table."""
        return 4 * self.num_rows * self.width

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width of one table."""
        return self.num_rows, self.width

    def table(self, factor: int = 1) -> torch.Tensor:
        """A new table of zeros, of which only touched pages take a CPU's memory."""
        return torch.zeros(self.num_rows * factor, self.width, device=self.device)

    def indices(self, factor: int = 1) -> list[torch.Tensor]:
        """The indices of all steps; about one in eight occurs more than once."""
        generator = torch.Generator().manual_seed(0)
        count, rows = self.num_indices, self.num_rows * factor
        made = []
        for _ in range(BATCHES):
            fresh = torch.randint(rows, (count,), generator=generator)
            repeated = torch.randint(count, (count // 8,), generator=generator)
            fresh[: count // 8] = fresh[repeated]
            made.append(fresh.to(self.device))
        return made

    def values(self) -> torch.Tensor:
        """The gradient of the rows of one step."""
        generator = torch.Generator().manual_seed(1)
        shape = self.num_indices, self.width
        return torch.randn(shape, generator=generator).mul_(1e-3).to(self.device)


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


def torch_rows(name: str, tables: Tables, module: Any = torch.optim) -> Setup:
    """An optimizer of torch, or of another module, with sparse COO gradients."""

    def setup(_: Problem) -> Step:
        # Torch's optimizers warn that they make sparse tensors without checking them.
        torch.sparse.check_sparse_tensor_invariants.disable()
        parameter = torch.nn.Parameter(tables.table())
        optimizer = getattr(module, name)([parameter])
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


def tensorflow_adagrad(tables: Tables, *, reads: bool = False) -> Setup:
    """The sparse raw op of TensorFlow in a `tf.function`, perhaps with a lookup."""

    def setup(_: Problem) -> Step:
        tf = tensorflow_module(tables.device)
        var, accum = (tf.Variable(tf.zeros(tables.shape)) for _ in range(2))
        values = tf.constant(tables.values().numpy())
        numbers = {"lr": 0.01, "epsilon": 1e-7}

        @tf.function
        def step(indices: Any) -> Any:
            rows, grad = (), values
            if reads:
                with tf.GradientTape() as tape:
                    rows = tf.gather(var, indices)
                found = tape.gradient(rows, var, output_gradients=values)
                grad, indices = found.values, found.indices
            tf.raw_ops.ResourceSparseApplyAdagradV2(
                var=var.handle,
                accum=accum.handle,
                grad=grad,
                indices=indices,
                **numbers,
            )
            return rows

        steps = itertools.cycle(tf.constant(i.numpy()) for i in tables.indices())
        return lambda: step(next(steps))

    return setup


def tensorflow_adam(tables: Tables) -> Setup:
    """Adam from raw ops in a `tf.function`, the way Keras 2.6 puts them together."""

    def setup(_: Problem) -> Step:
        tf = tensorflow_module(tables.device)
        var, m, v = (tf.Variable(tf.zeros(tables.shape)) for _ in range(3))
        values = tf.constant(tables.values().numpy())
        add = tf.raw_ops.ResourceScatterAdd

        @tf.function
        def step(indices: Any) -> None:
            rows, place = tf.unique(indices)
            grad = tf.math.unsorted_segment_sum(values, place, tf.shape(rows)[0])
            m.assign(0.9 * m)
            add(resource=m.handle, indices=rows, updates=0.1 * grad)
            v.assign(0.999 * v)
            add(resource=v.handle, indices=rows, updates=0.001 * grad * grad)
            var.assign_sub(1e-3 * m / (tf.sqrt(v) + 1e-7))

        steps = itertools.cycle(tf.constant(i.numpy()) for i in tables.indices())
        return lambda: step(next(steps))

    return setup


def optax_rows(name: str, tables: Tables) -> Setup:
    """An optax rule in `jax.jit` with donated buffers; it takes dense gradients."""

    def setup(_: Problem) -> Step:
        jax, optax = optax_modules(tables.device)
        rule, numpy = getattr(optax, name)(1e-3), jax.numpy

        def update(table: Any, state: Any, indices: Any, values: Any) -> Any:
            rows, pull = jax.vjp(lambda held: held[indices], table)
            updates, state = rule.update(*pull(values), state, table)
            return optax.apply_updates(table, updates), state, rows

        compiled = jax.jit(update, donate_argnums=(0, 1))
        values = numpy.asarray(tables.values().numpy())
        steps = itertools.cycle(numpy.asarray(i.numpy()) for i in tables.indices())
        table = numpy.zeros(tables.shape)
        held = [table, rule.init(table)]

        def step() -> None:
            *held[:], rows = compiled(*held, next(steps), values)
            jax.block_until_ready((held, rows))

        return step

    return setup


# -- embedding: forward, backward, update -------------------------------------


def thalweg_embedding(
    make: Callable[[], tw.Optimizer],
    tables: Tables,
    variable: Callable[[torch.Tensor], torch.Tensor] = tw.Variable,
) -> Setup:
    """Forward and backward through the tape, then the update."""

    def setup(_: Problem) -> Step:
        optimizer, weight = make(), variable(tables.table())
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
        on_cpu("FBGEMM", tables.device)
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
            [(*tables.shape, location, training.ComputeDevice.CPU)],
            optimizer=getattr(split_embedding_configs.EmbOptimType, rule),
        )
        offsets = torch.arange(tables.num_indices + 1)
        cycle, slope = itertools.cycle(tables.indices()), tables.values()
        return lambda: table(next(cycle), offsets).backward(slope)

    return setup
