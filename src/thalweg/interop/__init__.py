"""What other programs expect: the face of `torch.optim` for Keras-style optimizers.

Example:
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = as_torch(tw.optimizers.Adam(1e-3), model)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.iterations.item()
    1
"""

from thalweg.interop.torch_face import TorchFace, as_torch

__all__ = ["TorchFace", "as_torch"]
