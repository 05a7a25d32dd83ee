"""Plain values as strict JSON, and back, without losing a bit.

JSON knows no tuple, no NaN and no exact float, so these are written as tagged objects:
`{"$float": "0x1.8p+0"}`, `{"$int": "…"}` beyond 53 bits, `{"$tuple": […]}`,
`{"$dict": [[key, value], …]}` for keys that are not plain strings, and
`{"$tensor": key}` or `{"$array": key}` for what lies in the tensor file. Reading
refuses everything that `json` would let pass: NaN, bare floats, duplicate keys.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import numpy
import torch

from thalweg.errors import CheckpointError, message

LARGEST_PLAIN_INT: Final = 2**53
LARGEST_DEPTH: Final = 100

_ENCODER: Final = json.JSONEncoder(allow_nan=False)  # a faster one than with indents

PutTensor = Callable[[str, torch.Tensor], str]
GetTensor = Callable[[str], torch.Tensor]


# What an object of that sign was measured to take, with its place in what holds it.
_BYTES_OF_A_SIGN: Final = {b"[": 104, b"{": 208, b",": 45, b'"': 28, b":": 110}


def is_plain(value: object) -> bool:
    """Whether `value` is None, bool, int, float, str, or containers of such only."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return False


def encode(value: object, where: str, put_tensor: PutTensor | None = None) -> Any:
    """Turn a plain value into what strict JSON can hold.

    Args:
        value: None, bool, int, float, str, lists, tuples and dicts of such; tensors
            and NumPy arrays too if `put_tensor` is given.
        where: Path of `value`, for the error text.
        put_tensor: Called with path and tensor; stores the tensor, returns its key.

    Raises:
        CheckpointError: If `value` holds anything else. Nothing is ever pickled.

    Example:
        >>> encode((1, 0.5), "state")
        {'$tuple': [1, {'$float': '0x1.0000000000000p-1'}]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numpy.generic):
        return encode(value.item(), where, put_tensor)
    if isinstance(value, int):
        plain = abs(value) <= LARGEST_PLAIN_INT
        return int(value) if plain else {"$int": hex(value)}
    if isinstance(value, float):
        return {"$float": float(value).hex()}
    if isinstance(value, list | tuple):
        items = [encode(v, f"{where}.{i}", put_tensor) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        return _encode_dict(value, where, put_tensor)
    if put_tensor is not None and isinstance(value, torch.Tensor):
        return {"$tensor": put_tensor(where, value)}
    if put_tensor is not None and isinstance(value, numpy.ndarray):
        return {"$array": put_tensor(where, _from_array(value, where))}
    raise _not_plain(value, where)


def _encode_dict(
    value: dict[Any, Any], where: str, put_tensor: PutTensor | None
) -> dict[str, Any]:
    if all(isinstance(k, str) and not k.startswith("$") for k in value):
        return {k: encode(v, f"{where}.{k}", put_tensor) for k, v in value.items()}
    pairs = [
        [encode(k, where), encode(v, f"{where}.{k}", put_tensor)]
        for k, v in value.items()
    ]
    return {"$dict": pairs}


def _from_array(array: numpy.ndarray, where: str) -> torch.Tensor:
    try:
        return torch.from_numpy(array.copy())
    except TypeError:
        raise _not_plain(array, where) from None


def _not_plain(value: object, where: str) -> CheckpointError:
    kind = type(value).__name__
    if isinstance(value, numpy.ndarray):
        kind = f"array of dtype {value.dtype}"
    return CheckpointError(
        message(
            f"Checkpoint: '{where}'",
            "None, bool, int, float, str, a tensor, or lists and dicts of such",
            kind,
            "Give the object state_dict() and load_state_dict() that use only these.",
        )
    )


def decode(value: Any, where: str, get_tensor: GetTensor | None = None) -> Any:
    """Undo `encode`.

    Args:
        value: What `parse` gave for an encoded value.
        where: Path of `value`, for the error text.
        get_tensor: Called with a tensor's key, returns the tensor.

    Raises:
        CheckpointError: If a tag is unknown or its content malformed.

    Example:
        >>> decode({"$tuple": [1, {"$float": "inf"}]}, "state")
        (1, inf)
    """
    if isinstance(value, list):
        return [decode(v, f"{where}.{i}", get_tensor) for i, v in enumerate(value)]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {k: decode(v, f"{where}.{k}", get_tensor) for k, v in value.items()}
    try:
        if len(value) == 1:
            return _decode_tagged(tag, value[tag], where, get_tensor)
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise _malformed(value, where) from problem
    raise _malformed(value, where)


def _decode_tagged(
    tag: str, content: Any, where: str, get_tensor: GetTensor | None
) -> Any:
    if tag == "$float":
        return float.fromhex(content)
    if tag == "$int":
        return int(content, 16)
    if tag == "$tuple" and isinstance(content, list):
        return tuple(decode(content, where, get_tensor))
    if tag == "$dict" and isinstance(content, list):
        return {
            decode(k, where): decode(v, f"{where}.{k}", get_tensor) for k, v in content
        }
    if tag == "$tensor" and get_tensor is not None:
        return get_tensor(content)
    if tag == "$array" and get_tensor is not None:
        return get_tensor(content).numpy()
    raise KeyError(tag)


def _malformed(value: object, where: str) -> CheckpointError:
    return CheckpointError(
        message(
            f"Checkpoint: '{where}'",
            "a value as the format describes it",
            repr(value)[:80],
            "The manifest is damaged: restore another checkpoint.",
        )
    )


def tensor_keys(value: Any) -> list[str]:
    """Keys of all tensors that an encoded value refers to."""
    found: list[str] = []
    level = _inside([[value]])
    while level:
        found += [
            key
            for item in level
            if type(item) is dict and len(item) == 1
            for tag, key in item.items()
            if tag in ("$tensor", "$array") and isinstance(key, str)
        ]
        level = _inside(level)
    return found


def _inside(containers: list[Any]) -> list[Any]:
    """The lists and dicts that these hold, one level down."""
    return [
        inner
        for item in containers
        for inner in (item.values() if type(item) is dict else item)
        if type(inner) in (dict, list)
    ]


def dump(value: Any, levels: int = 0) -> bytes:
    """Strict JSON text of a value.

    Args:
        value: With strings as keys.
        levels: Members of this many outer levels have lines of their own.

    Example:
        >>> print(dump({"a": {"x": [1, 2]}, "b": {}}, levels=2).decode())
        {
        "a": {
        "x": [1, 2]
        },
        "b": {}
        }
    """
    return _lines(value, levels).encode()


def _lines(value: Any, levels: int) -> str:
    if levels == 0 or not value or not isinstance(value, dict):
        return _ENCODER.encode(value)
    members = (
        f"{_ENCODER.encode(k)}: {_lines(v, levels - 1)}" for k, v in value.items()
    )
    return "{\n" + ",\n".join(members) + "\n}"


def parsed_bytes(text: bytes) -> int:
    """About how much memory `parse` takes at its peak, and rather more than less.

    Counted are the characters that objects come of, also where they stand in strings.
    """
    is_plain_text = text.isascii() and b"\\u" not in text
    characters = len(text) * (1 if text.isascii() else 4)
    strings = len(text) * (1 if is_plain_text else 7)
    objects = sum(text.count(sign) * size for sign, size in _BYTES_OF_A_SIGN.items())
    return characters + strings + objects


def parse(text: bytes) -> Any:
    """Read strict JSON.

    Args:
        text: In UTF-8.

    Raises:
        ValueError: For malformed text, NaN, Infinity, a bare float, a duplicate key,
            or nesting deeper than 100.
    """
    try:
        value = _STRICT.decode(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not _is_flatter(value, LARGEST_DEPTH):
        raise ValueError(f"nested more than {LARGEST_DEPTH} deep")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"the key {twice!r} stands twice")
    return table


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:40]} is not allowed here: floats are written as hex")


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse
)


def _is_flatter(value: Any, levels: int) -> bool:
    """Whether containers stand in containers no more than so many times."""
    level = _inside([[value]])
    for _ in range(levels):
        level = _inside(level)
    return not level
