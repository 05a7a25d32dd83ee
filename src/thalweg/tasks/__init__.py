"""Tasks: small problems on real data that need no download.

`digits` (scikit-learn's handwritten digits), `text` (a character model of Python's
own sources) and `skipgram` (embeddings of the identifiers in them). A new task is
one new module with a `TASK`.
"""

from thalweg.tasks.comparison import Grid, Standing, compare, verdict
from thalweg.tasks.registry import get, names
from thalweg.tasks.task import Problem, Split, Task
from thalweg.tasks.training_run import Options, Outcome, train

__all__ = [
    "Grid",
    "Options",
    "Outcome",
    "Problem",
    "Split",
    "Standing",
    "Task",
    "compare",
    "get",
    "names",
    "train",
    "verdict",
]
