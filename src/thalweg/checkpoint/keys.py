"""The spelling of keys: where a value stands in a checkpoint.

A key is an object's name, then the attribute path inside that object, then, for a
slot, the optimizer and the slot's own name: `epoch`, `model/0.weight`,
`model/0.weight/.slot/optimizer/m`. The parts are joined by `/`; a slash inside a part
is written `%2F`, a leading dot `%2E`, a percent sign `%25`, so that no name can look
like another part of a key.
"""

from typing import NamedTuple

SLOT = ".slot"
RANK = ".rank"
HYPER = ".hyper"
FACE = ".face"


class SlotKey(NamedTuple):
    """The three parts of a slot's key: its variable, its optimizer, its own name."""

    variable: str
    owner: str
    slot: str


def escape(part: str) -> str:
    """Spell one part of a key so that it holds no slash and no leading dot."""
    escaped = part.replace("%", "%25").replace("/", "%2F")
    return f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped


def object_key(name: str, path: str = "") -> str:
    """Key of what `path` leads to in the object called `name`.

    Args:
        name: The keyword under which the object was given to `Checkpoint`.
        path: Dotted attribute path inside it; empty for the object itself.

    Example:
        >>> object_key("model", "0.weight")
        'model/0.weight'
    """
    return f"{escape(name)}/{escape(path)}" if path else escape(name)


def slot_key(variable: str, owner: str, slot: str) -> str:
    """Key of a slot: under its variable's key, marked with its owner's.

    Example:
        >>> slot_key("model/0.weight", "optimizer", "m")
        'model/0.weight/.slot/optimizer/m'
    """
    return f"{variable}/{SLOT}/{owner}/{escape(slot)}"


def rank_key(key: str, rank: int) -> str:
    """Key of what one of several ranks has for itself.

    Example:
        >>> rank_key("random_state", 1)
        'random_state/.rank/1'
    """
    return f"{key}/{RANK}/{rank}"


def face_key(owner: str) -> str:
    """Key of what only a face of an optimizer holds.

    Example:
        >>> face_key("optimizer")
        'optimizer/.face'
    """
    return f"{owner}/{FACE}"


def is_face_key(key: str) -> bool:
    """Whether a key is one that `face_key` gave."""
    return key.endswith(f"/{FACE}")


def parse_slot_key(key: str) -> SlotKey | None:
    """Take a slot's key apart; None if `key` is not a slot's."""
    variable, marker, rest = key.partition(f"/{SLOT}/")
    owner, _, slot = rest.rpartition("/")
    return SlotKey(variable, owner, unescape(slot)) if marker and owner else None


def parse_rank_key(key: str) -> str:
    """The key that all ranks share; the key itself if it is not one rank's."""
    return key.partition(f"/{RANK}/")[0]


def hyper_key(owner: str, name: str = "") -> str:
    """Name of a hyperparameter, or of all, in lists of what does not fit."""
    return f"{owner}/{HYPER}/{escape(name)}" if name else f"{owner}/{HYPER}"


def unescape(part: str) -> str:
    """Undo `escape`."""
    return part.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")
