"""What to write instead of what a rule cannot use.

A name that is near a known one is a slip of the pen only if neither torch nor math has
such a name: whoever writes `flip` does not mean `clip`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch

__all__ = ["advice_for"]

_OPERATIONS = (
    "Write it with arithmetic, comparisons, torch.where, maximum, minimum, abs, sign, "
    "sqrt, exp, log and the like."
)
_FOLD = "Reductions are sum, mean, amax, amin, torch.norm and torch.linalg.vector_norm."
_MATRIX = (
    "A rule is elementwise: multiply matrices before it, in a gradient transformer, or "
    "in a class that overrides `_resource_apply_dense`."
)
_SHAPE = "A rule is elementwise; it sees its tensors in their own shape."
_ORDER = (
    "A rule is elementwise: move or sort elements before it, in a gradient transformer."
)
_CONVERSION = (
    "The kernel converts when it loads and stores; drop the conversion. As a number, a "
    "mask is torch.where(mask, 1.0, 0.0)."
)
_RANDOM = "A rule is a pure function; make the random number a scalar."
_NUMBER = "A number cannot leave the kernel; keep computing with the value."
_PLAIN = "The values of a rule have no graph, gradient or device of their own; drop it."
_VARIANCE = (
    "Write torch.sum((x - torch.mean(x)) ** 2) / (n - 1), or its root, where n is "
    "x.numel(), or x.shape[-1] for rows; torch's correction is 1 unless it is given."
)
_RETURN = "A rule changes nothing in place: return the new value."
_VALUE = "A rule sees values of variables: use the argument itself, or make it a flag."
_EXTREME = "Write torch.amax or torch.amin, with dim and keepdim=True for rows."

_FAMILIES: dict[str, str] = {
    "matmul mm bmm einsum mv outer addmm tensordot kron svd qr inverse pinverse "
    "linalg_svd linalg_qr linalg_inv linalg_eigh linalg_matrix_norm": _MATRIX,
    "view reshape transpose t T mT permute flatten squeeze unsqueeze expand expand_as "
    "broadcast_to movedim view_as reshape_as repeat tile": _SHAPE,
    "sort argsort topk flip roll cumsum cumprod cummax diff cat stack split chunk "
    "gather scatter masked_select nonzero unique median quantile tril triu": _ORDER,
    "prod nansum nanmean logsumexp argmax argmin": _FOLD,
    "to float double half bfloat16 type type_as int long bool dtype": _CONVERSION,
    "cuda cpu device grad data requires_grad is_leaf grad_fn is_cuda "
    "is_sparse layout": _PLAIN,
    "rand_like randn_like rand randn bernoulli normal dropout": _RANDOM,
    "item tolist numpy": _NUMBER,
    "mod remainder": "Write a - b * torch.floor(a / b).",
    "assign assign_add assign_sub": _RETURN,
    "value read_value handle path trainable": _VALUE,
    "floordiv floor_divide": "Write torch.floor(a / b).",
    "fmax fmin": "Write torch.maximum or torch.minimum, which keep a NaN.",
    "new_zeros new_ones new_full new_empty new_tensor empty_like": (
        "Write torch.zeros_like or torch.full_like."
    ),
    "any all": "No value is known before the kernel runs: compare in torch.where.",
    "var std var_mean std_mean": _VARIANCE,
    "logsigmoid log_sigmoid": (
        "Write torch.clamp(x, max=0.0) - torch.log1p(torch.exp(-torch.abs(x)))."
    ),
    "dot vdot inner": "Write torch.sum(a * b).",
    "aminmax": _EXTREME,
}
_ONES: dict[str, str] = {
    "getitem": "A rule is elementwise; it cannot index its tensors.",
    "fmod": "Write a - b * torch.trunc(a / b).",
    "math.remainder": "Write a - b * torch.floor(a / b + 0.5), which rounds halves up.",
    "bool": "Write x != 0.",
    "round": "Write torch.floor(x + 0.5), which rounds halves up.",
    "log10": "Write torch.log(x) * (1 / math.log(10)).",
    "atan": "Write torch.atan2(x, torch.ones_like(x)).",
    "mse_loss": "Write torch.mean((a - b) ** 2).",
    "l1_loss": "Write torch.mean(torch.abs(a - b)).",
    "nelement": "Write x.numel().",
    "sgn": "Write torch.sign(x).",
    "erfc": "Write 1 - torch.erf(x).",
    "frac": "Write x - torch.trunc(x).",
    "copysign": "Write torch.where(b < 0, -torch.abs(a), torch.abs(a)).",
    "heaviside": "Write torch.where with comparisons.",
    "nan_to_num": (
        "Write torch.where(torch.isnan(x), 0.0, torch.clamp(x, -m, m)), where m is the "
        "largest number, such as torch.finfo(torch.float32).max."
    ),
    "isclose": "Write torch.abs(a - b) <= atol + rtol * torch.abs(b).",
    "count_nonzero": "Write torch.sum(x != 0).",
    "softmax": (
        "Write e / torch.sum(e, -1, True), where e is "
        "torch.exp(x - torch.amax(x, -1, True))."
    ),
    "normalize": (
        "Write x / torch.clamp(torch.linalg.vector_norm(x, dim=dim, keepdim=True), "
        "min=1e-12), with the dim of normalize, which is 1 unless it is given."
    ),
    "dist": "Write torch.linalg.vector_norm(a - b).",
    "clip_grad_norm_": "Pass clipnorm or global_clipnorm to the optimizer.",
    "relu6": "Write torch.clamp(x, 0.0, 6.0).",
    "softsign": "Write x / (1 + torch.abs(x)).",
    "size": _SHAPE,
}
_ADVICE: dict[str, str] = {
    **{name: text for names, text in _FAMILIES.items() for name in names.split()},
    **_ONES,
}
_HOMES = (torch, torch.Tensor, torch.nn.functional, torch.special, torch.linalg, math)
_LEAST_LIKENESS = 0.75


def advice_for(name: str, known: Iterable[str]) -> str:
    """What to write instead of a name that has no meaning in a rule.

    Args:
        name: Name of a function, method or attribute; "math." before one of math.
        known: Names that have one.

    Returns:
        A sentence.

    Example:
        >>> advice_for("sqrtt", ["abs", "sqrt"])
        "Did you mean 'sqrt'?"
        >>> advice_for("erfc", ["erf"])
        'Write 1 - torch.erf(x).'
    """
    last = name
    for prefix in ("linalg_", "special_", "math."):
        last = last.removeprefix(prefix)
    advice = _ADVICE.get(name) or _ADVICE.get(last)
    if advice or any(hasattr(home, last) for home in _HOMES):
        return advice or _OPERATIONS
    close = difflib.get_close_matches(name, known, n=1, cutoff=_LEAST_LIKENESS)
    return f"Did you mean {close[0]!r}?" if close else _OPERATIONS
