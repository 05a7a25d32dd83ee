"""Weights of Hugging Face models: safetensors files, one or many with an index.

Tensors are read one by one from the mapped files into the module's own, after every
file's header has been checked and every name matched. Nothing is executed, and no other
package is needed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from thalweg.checkpoint.boxes import Box
from thalweg.checkpoint.pieces import piece_of
from thalweg.checkpoint.tensor_file import TensorFile
from thalweg.errors import CheckpointError, message
from thalweg.state import aliases, handle_of, named_variables

__all__ = ["LoadedWeights", "load_weights"]

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
LARGEST_INDEX_BYTES: Final = 1 << 28
FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
LONGEST_LIST: Final = 20


class LoadedWeights(NamedTuple):
    """What was loaded, by the module's names, and what was not.

    Attributes:
        loaded: Tensors that have their value now.
        missing: Tensors of the module that no file has.
        unexpected: Tensors of the files that the module has not.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class _Source(NamedTuple):
    """A tensor in a file."""

    file: TensorFile
    key: str

    def read(self) -> torch.Tensor:
        return self.file.read(self.key)


def load_weights(
    module: Any,
    path: str | os.PathLike[str],
    *,
    rename: Callable[[str], str | None] | None = None,
    partial: bool = False,
    cast: bool = False,
) -> LoadedWeights:
    """Load safetensors weights into a module, matched by name.

    A tied tensor may come under any of its names; where files have several, they must
    agree. A sharded tensor takes its own part only.

    Args:
        module: A module or Trackable whose names are those of the files, as those of
            the model class that saved them are.
        path: A ``.safetensors`` file, a ``….safetensors.index.json``, or a folder that
            holds ``model.safetensors`` or ``model.safetensors.index.json``. Links are
            followed: caches of downloaded models are made of them.
        rename: Gives the module's name for a file's, or None to leave a tensor out.
        partial: Whether tensors on one side only are let pass.
        cast: Whether another dtype is converted to the module's.

    Returns:
        What was loaded, and what is on one side only.

    Raises:
        CheckpointError: If a file is missing or malformed, or names, shapes or dtypes
            do not fit; all that does not fit is listed, and nothing was changed.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_model
        >>> saved, model = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(saved, f"{folder}/model.safetensors")
        ...     load_weights(model, folder).loaded
        ('weight', 'bias')
        >>> torch.equal(model.weight, saved.weight)
        True
    """
    sources = _renamed(dict(_sources(Path(path))), rename or str)
    named = {
        name: handle_of(tensor) for name, tensor in named_variables(module).items()
    }
    names: dict[str, list[str]] = {name: [name] for name in named}
    for other, first in aliases(module).items():
        names[first].append(other)
    found = {
        first: [sources[name] for name in every if name in sources]
        for first, every in names.items()
    }
    known = {name for every in names.values() for name in every}
    unexpected = tuple(name for name in sources if name not in known)
    missing = tuple(first for first, have in found.items() if not have)
    problems = [*_misfits(named, found, cast)]
    if not partial:
        problems += [*_listed("missing", missing), *_listed("unexpected", unexpected)]
    if problems:
        lines = "".join(f"\n  {line}" for line in problems)
        where = f"load_weights: {path} does not fit the module."
        raise CheckpointError(f"{where}{lines}\nNothing was changed.")
    for first, have in found.items():
        if have:
            _copy(have[0].read(), named[first])
    loaded = tuple(first for first in named if found[first])
    return LoadedWeights(loaded, missing, unexpected)


# -- files --------------------------------------------------------------------


def _sources(path: Path) -> Iterator[tuple[str, _Source]]:
    """All tensors by name, once every file has been checked."""
    if path.is_dir():
        single, index = path / SINGLE, path / INDEX
        path = single if single.exists() or not index.exists() else index
    if path.suffix != ".json":
        file = _open(path)
        for key in file.layout:
            yield key, _Source(file, key)
        return
    table = _read_index(path)
    files = {
        name: _open(path.with_name(name)) for name in dict.fromkeys(table.values())
    }
    for key, name in table.items():
        if key not in files[name].layout:
            raise _malformed(path, f"'{key[:80]}' in {name}, which has it not")
        yield key, _Source(files[name], key)


def _open(path: Path) -> TensorFile:
    if not path.is_file():
        got = "a folder without one" if path.is_dir() else "no such file"
        expected = f"{SINGLE}, {INDEX}, or a .safetensors file"
        action = "Pass the folder that the model was downloaded to."
        raise CheckpointError(message(f"load_weights: {path}", expected, got, action))
    return TensorFile(path)


def _read_index(path: Path) -> dict[str, str]:
    """Names of tensors to names of the files that hold them."""
    if not path.is_file():
        raise _malformed(path, "no such file")
    if path.stat().st_size > LARGEST_INDEX_BYTES:
        raise _malformed(path, f"{path.stat().st_size} bytes")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise _malformed(path, f"no JSON ({problem})") from problem
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise _malformed(path, "no 'weight_map'")
    for name in table.values():
        if not isinstance(name, str) or FILE_NAME.fullmatch(name) is None:
            raise _malformed(path, f"the file name {str(name)[:80]!r}")
    return table


def _malformed(path: Path, got: str) -> CheckpointError:
    expected = "an index of safetensors files"
    action = "Download or save the model again."
    return CheckpointError(message(f"load_weights: {path}", expected, got, action))


# -- matching -----------------------------------------------------------------


def _renamed(
    sources: Mapping[str, _Source], rename: Callable[[str], str | None]
) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    for key, source in sources.items():
        name = rename(key)
        if name is None:
            continue
        if name in found:
            expected, got = "different names", f"'{name}' for two tensors of the files"
            action = "Mend the function."
            raise CheckpointError(
                message("load_weights(rename=…)", expected, got, action)
            )
        found[name] = source
    return found


def _listed(kind: str, names: tuple[str, ...]) -> Iterator[str]:
    yield from (f"{kind}: {name}" for name in names[:LONGEST_LIST])
    if len(names) > LONGEST_LIST:
        yield f"{kind}: {len(names) - LONGEST_LIST} more"


def _misfits(
    named: Mapping[str, torch.Tensor], found: Mapping[str, list[_Source]], cast: bool
) -> Iterator[str]:
    for first, sources in found.items():
        target = named[first]
        for file, key in sources:
            place = file.layout[key]
            is_alike = cast or place.dtype == target.dtype
            if place.shape != tuple(target.shape):
                got = f"shape {place.shape} for {tuple(target.shape)}"
                yield f"{first}: {got}"
            elif not is_alike or target.dtype.is_floating_point != (
                place.dtype.is_floating_point
            ):
                yield f"{first}: {place.dtype} for {target.dtype} (cast=True converts)"
        if len(sources) > 1 and not _agree(sources):
            yield f"{first}: {', '.join(s.key for s in sources)} are tied, and differ"


def _agree(sources: list[_Source]) -> bool:
    first = sources[0].read().clone()
    return all(torch.equal(first, other.read()) for other in sources[1:])


@torch.no_grad()
def _copy(value: torch.Tensor, target: torch.Tensor) -> None:
    piece = piece_of(target)
    piece.tensor.copy_(value[piece.box.inside(Box.whole(value.shape))])
