"""torch's optimizers over the rules of this package: change one import.

Names, signatures, defaults, formulas and state dicts are those of `torch.optim`; a step
is one compiled pass over memory. `docs/optim.md` is the guide.

Example:
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = AdamW(model.parameters(), lr=1e-3)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> isinstance(optimizer, torch.optim.AdamW)
    True
"""

from thalweg.optim.adadelta import Adadelta
from thalweg.optim.adagrad import Adagrad, RowWiseAdagrad
from thalweg.optim.adam import Adam, AdamW
from thalweg.optim.adamax import Adamax
from thalweg.optim.asgd import ASGD
from thalweg.optim.lamb import LAMB
from thalweg.optim.lion import Lion
from thalweg.optim.nadam import NAdam
from thalweg.optim.optimizer import DropIn
from thalweg.optim.options import Extras
from thalweg.optim.radam import RAdam
from thalweg.optim.rmsprop import RMSprop
from thalweg.optim.rprop import Rprop
from thalweg.optim.sgd import SGD
from thalweg.optim.sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "DropIn",
    "Extras",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "RowWiseAdagrad",
    "SparseAdam",
]
