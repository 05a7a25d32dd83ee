"""What other programs expect: the face of `torch.optim`, their states and weights.

Example:
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = as_torch(tw.optimizers.Adam(1e-3), model)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.iterations.item()
    1
"""

from thalweg.interop.conversion import convert
from thalweg.interop.hugging_face_weights import LoadedWeights, load_weights
from thalweg.interop.torch_face import TorchFace, as_torch
from thalweg.interop.torch_state import load_torch_state, torch_state

__all__ = [
    "LoadedWeights",
    "TorchFace",
    "as_torch",
    "convert",
    "load_torch_state",
    "load_weights",
    "torch_state",
]
