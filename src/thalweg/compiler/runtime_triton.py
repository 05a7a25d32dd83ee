"""Functions that Triton kernels share; a kernel's text holds those it calls.

Division and root are correctly rounded, halves are rounded to the nearest even, and
sums have the order of `reductions`. Triton's interpreter cuts bits off where the
device rounds a float32 to a bfloat16, so that there integers do it.
"""

from __future__ import annotations

import re

__all__ = ["shared_functions"]

_FUNCTIONS: dict[str, str] = {
    "INTERPRETED": """
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
""",
    "pointer": """
@triton.jit
def pointer(place, KIND: tl.constexpr, IS_ALIGNED: tl.constexpr):
    # An address as a pointer, with the promise that 16 bytes can be moved at once.
    at = place.to(tl.pointer_type(KIND))
    return tl.multiple_of(at, 16) if IS_ALIGNED else at
""",
    "divide": """
@triton.jit
def divide(a, b):
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)
""",
    "root": """
@triton.jit
def root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)
""",
    "widen_bfloat16": """
@triton.jit
def widen_bfloat16(x):
    if INTERPRETED:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)
""",
    "round_bfloat16": """
@triton.jit
def round_bfloat16(x):
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where(x != x, 0x7FC0, nearest).to(tl.uint16)
        return half.to(tl.bfloat16, bitcast=True)
    else:
        return x.to(tl.bfloat16, fp_downcast_rounding="rtne")
""",
    "mix_bits": """
@triton.jit
def mix_bits(bits):
    # lowbias32 of Chris Wellons, "hash-prospector"; public domain.
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)
""",
    "rounding_key": """
@triton.jit
def rounding_key(variable, step, PAIR: tl.constexpr):
    # One number for seed and variable, step, and pair of outputs of the rule.
    key = mix_bits(variable.to(tl.int64).to(tl.uint32))
    return mix_bits(mix_bits(key + PAIR) + step.to(tl.int64).to(tl.uint32))
""",
    "round_stochastically": """
@triton.jit
def round_stochastically(x, key, place, SHIFT: tl.constexpr):
    # Up as often as x is near to the upper neighbour: by half of a hash, the other
    # half is for the other output of the pair. Beyond the largest finite number to
    # nearest.
    high = (place >> 32).to(tl.uint32) * 0x9E3779B9
    chance = (mix_bits(high + place.to(tl.uint32) + key) >> SHIFT) & 0xFFFF
    bits = x.to(tl.uint32, bitcast=True)
    nearest = 0x7FFF + ((bits >> 16) & 1)
    addend = tl.where((bits & 0x7FFFFFFF) > 0x7F7F0000, nearest, chance)
    half = tl.where(x != x, 0x7FC0, (bits + addend) >> 16).to(tl.uint16)
    return half.to(tl.bfloat16, bitcast=True)
""",
    "larger": """
@triton.jit
def larger(a, b):
    return tl.where(a > b, a, tl.where(a != a, a, b))
""",
    "half_sum": """
@triton.jit
def half_sum(lanes, HALF: tl.constexpr):
    low, high = tl.split(tl.trans(tl.reshape(lanes, [2, HALF])))
    return low + high
""",
    "fold_sum": """
@triton.jit
def fold_sum(lanes):
    # 256 lanes folded in halves: the order is that of every other dialect.
    lanes = half_sum(half_sum(half_sum(half_sum(lanes, 128), 64), 32), 16)
    low, high = tl.split(half_sum(half_sum(half_sum(lanes, 8), 4), 2))
    return low + high
""",
    "half_maximum": """
@triton.jit
def half_maximum(lanes, HALF: tl.constexpr):
    low, high = tl.split(tl.trans(tl.reshape(lanes, [2, HALF])))
    return larger(low, high)
""",
    "fold_maximum": """
@triton.jit
def fold_maximum(lanes):
    lanes = half_maximum(half_maximum(lanes, 128), 64)
    lanes = half_maximum(half_maximum(lanes, 32), 16)
    low, high = tl.split(half_maximum(half_maximum(half_maximum(lanes, 8), 4), 2))
    return larger(low, high)
""",
}


def shared_functions(text: str) -> str:
    """The shared functions that a text calls, directly or through each other.

    Args:
        text: Kernels.

    Returns:
        Definitions, to stand before the text.

    Example:
        >>> "def divide(" in shared_functions("x = divide(a, b)")
        True
        >>> shared_functions("x = a + b")
        ''
    """
    wanted: set[str] = set()
    waiting = [text]
    while waiting:
        words = set(re.findall(r"\w+", waiting.pop()))
        found = (words & _FUNCTIONS.keys()) - wanted
        wanted |= found
        waiting += [_FUNCTIONS[name] for name in found]
    return "\n".join(body for name, body in _FUNCTIONS.items() if name in wanted)
