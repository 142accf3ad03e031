"""What the readers of downloaded files share: arrays out of archives without running pickles, and checks that name the file."""

import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from body3d.body.files import _ArrayUnpickler, _plain
from body3d.errors import InputError

__all__ = ["existing", "finite", "locate", "read_npz", "read_object"]


def existing(path: Path | str, what: str, source: str) -> Path:
    """The path, if there is something there; `what` was expected and `source` is where it can be had."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such {what}; it comes from {source}")
    return path


def read_npz(path: Path | str, keys: Sequence[str] | None, what: str, source: str) -> dict[str, np.ndarray]:
    """Those arrays of an .npz (None: all). InputError if the file is missing, not such a file, cut short, or lacks a key."""
    path = existing(path, what, source)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            wanted = archive.files if keys is None else keys
            missing = [key for key in wanted if key not in archive.files]
            if missing:
                raise InputError(
                    f"{path} has no {', '.join(map(repr, missing))}, only {', '.join(archive.files)}; "
                    f"{what} was expected, from {source}"
                )
            return {key: archive[key] for key in wanted}
    except InputError:
        raise
    except Exception as error:  # a broken archive may raise anything, and what is no archive, too
        raise InputError(f"{path} cannot be read as {what} ({_first_line(error)}); it comes from {source}") from error


def read_object(path: Path | str, key: str, what: str, source: str) -> Any:
    """The one Python object (a dictionary of arrays) that `numpy.savez` pickled under `key`.

    It passes through the reader that knows arrays, lists, dictionaries, numbers and text and refuses everything else. The
    archive is streamed: what is held is the arrays, not the file beside them.
    """
    path = existing(path, what, source)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                raise InputError(f"{path} has no {key!r}, only {', '.join(names)}; {what} was expected, from {source}")
            with archive.open(f"{key}.npy") as member:
                version = npy.read_magic(member)
                header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
                shape, _, dtype = header(member)
                if shape != () or not dtype.hasobject:
                    raise InputError(f"{path}: {key!r} is an array {shape} of {dtype}, not the dictionary of {what}")
                return _plain(_ArrayUnpickler(member, encoding="latin1").load().item())
    except InputError:
        raise
    except Exception as error:  # a broken pickle may raise anything at all
        raise InputError(f"{path}: {key!r} cannot be read ({_first_line(error)}); it comes from {source}") from error


def finite(array: np.ndarray, shape: Sequence[int | None], path: Path | str, key: str) -> Tensor:
    """A copy of the array in float32. InputError if its shape is not `shape` (None: any length) or an entry is NaN or infinite."""
    array = np.asarray(array)
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    if len(array.shape) != len(shape) or any(w not in (None, n) for n, w in zip(array.shape, shape, strict=True)):
        raise InputError(f"{path}: {key} has the shape {array.shape}, where {wanted} was expected")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: {key} holds {array.dtype}, where numbers were expected")
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"{path}: {key} has {int(bad.sum())} entries that are NaN or infinite, the first at {where}")
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def locate(ends: Sequence[int], i: int) -> tuple[int, int]:
    """The take and the frame in it of sample `i`, where take k's samples end before number `ends[k]`."""
    total = ends[-1] if ends else 0
    if not -total <= i < total:
        raise IndexError(f"there are {total} samples; number {i} is not among them")
    i %= total
    k = bisect_right(ends, i)
    return k, i - (ends[k - 1] if k else 0)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    if "allow_pickle" in text:  # NumPy's advice for what is no array: to unpickle it
        return "it holds no arrays"
    return text.splitlines()[0] if text else type(error).__name__
