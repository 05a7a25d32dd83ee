"""What each of several processes saves and restores: uneven and empty boxes."""

from __future__ import annotations

from pathlib import Path

import torch

from thalweg.checkpoint.boxes import Box
from thalweg.checkpoint.folder import Reader, write_folder
from thalweg.checkpoint.manifest import Manifest
from thalweg.checkpoint.pieces import Piece
from thalweg.checkpoint.ranks import Ranks

LENGTHS = (1, 2, 7, 64)
MOST_RANKS = 4


def pieces(number: int, size: int) -> dict[str, Piece]:
    """What one of `size` ranks holds of each tensor, cut along the first dimension."""
    held: dict[str, Piece] = {}
    for length in LENGTHS:
        whole = torch.arange(length * 3.0).reshape(length, 3)
        each = -(-length // size)
        begin = min(number * each, length)
        part = whole[begin : min(begin + each, length)]
        box = Box((begin, 0), (part.shape[0], 3))
        held[f"t{length}"] = Piece(part, box, (length, 3))
    return held


def save(path: str) -> None:
    """Save on every rank."""
    ranks = Ranks()
    mine = pieces(ranks.number, ranks.size)
    write_folder(Path(path), mine, Manifest(), False, ranks)


def wrong(folder: str) -> int:
    """Restore what every number of ranks saved; how many pieces have other bits."""
    ranks, found = Ranks(), 0
    for saving in range(1, MOST_RANKS + 1):
        reader = Reader(Path(folder) / str(saving))
        for key, piece in pieces(ranks.number, ranks.size).items():
            target = torch.full_like(piece.tensor, -1.0)
            reader.read_piece(key, piece._replace(tensor=target))
            found += not torch.equal(target, piece.tensor)
    return found
