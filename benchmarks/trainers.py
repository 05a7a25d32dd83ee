"""Time per step of the Hugging Face Trainer with its own optimizer and with this one.

A tiny GPT-2 made on the spot, random tokens, everything else at the trainer's defaults:
clipping by the trainer, linear schedule. Each round trains every contender from the
same first weights; the first steps are not counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import interleaved, report, summary

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZES: dict[str, Any] = {
    **{"n_embd": 64, "n_layer": 4, "n_head": 4},
    **{"n_positions": 32, "vocab_size": 256},
}
STEPS = 40
NOT_COUNTED = 5
ROUNDS = 9
BATCH_SIZE = 4
THREADS = 2
BOUND = 1.0


def trainer(folder: str, steps: int, **options: Any) -> Any:
    """Return a trainer of a new model, the same each time."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))
    tokens = torch.randint(SIZES["vocab_size"], (256, SIZES["n_positions"]))
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    return Trainer(model, arguments, train_dataset=rows, **options)


def contender(
    folder: str, steps: int, options: Callable[[], dict[str, Any]]
) -> Callable[[], float]:
    """Return a function that trains and gives seconds per counted step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes when the counted steps begin."""

        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Start at the first counted step."""
            if state.global_step == NOT_COUNTED:
                self.start = time.perf_counter()

    def run() -> float:
        clock = Clock()
        made = trainer(folder, steps, callbacks=[clock], **options())
        made.train()
        return (time.perf_counter() - clock.start) / (steps - NOT_COUNTED)

    return run


def doors() -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what each contender adds to the trainer's arguments."""
    from thalweg.interop import as_torch
    from thalweg.optim import AdamW

    class Face:
        """A factory of the other face."""

        def __call__(self, model: Any, **options: Any) -> Any:
            return as_torch("adamw", model)

    return {
        "default": dict,
        "thalweg.optim.AdamW": lambda: {"optimizer_cls_and_kwargs": (AdamW, _NUMBERS)},
        "thalweg, clip inside": lambda: {
            "optimizer_cls_and_kwargs": (AdamW, {**_NUMBERS, "max_grad_norm": 1.0})
        },
        "as_torch": lambda: {"optimizer_cls_and_kwargs": (Face, {})},
    }


_NUMBERS = {"lr": 1e-3}


def step_alone(name: str, folder: str) -> dict[str, Any]:
    """Return the class of a contender's optimizer and what a step of it takes."""
    made = trainer(folder, 1, **doors()[name]())
    made.train()
    optimizer = made.optimizer.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    kind = type(optimizer)
    return {
        "class": f"{kind.__module__.split('.')[0]}.{kind.__name__}",
        "fused": bool(optimizer.defaults.get("fused")),
        "step_us": round(1e6 * summary(seconds)["median"], 1),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        import transformers
    except ModuleNotFoundError:
        sys.exit("transformers and accelerate are not installed")
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: contender(folder, arguments.steps, options)
            for name, options in doors().items()
        }
        timings = interleaved(runs, arguments.rounds)
        alone = {name: step_alone(name, folder) for name in runs}
    figures = {name: summary(seconds) for name, seconds in timings.items()}
    rows = [
        {
            "contender": name,
            **{f"{k}_ms": round(1e3 * v, 3) for k, v in row.items()},
            **alone[name],
        }
        for name, row in figures.items()
    ]
    ratios = sorted(
        ours / theirs
        for ours, theirs in zip(
            timings["thalweg.optim.AdamW"], timings["default"], strict=True
        )
    )
    verdicts = {
        "over_default": round(ratios[len(ratios) // 2], 3),
        "at_most": BOUND,
    }
    report("trainers", rows, verdicts, write=not arguments.dry)


if __name__ == "__main__":
    main()
