"""Model files as plain arrays: .npz without pickles, .pkl through a reader that knows arrays and nothing else.

A pickle is a program; the ones that carry SMPL, SMPL-H and the Gaussian-mixture prior were written by Python 2 with
chumpy and scipy objects in them. The reader here rebuilds numpy arrays, takes the attributes of scipy's sparse matrices
and of chumpy's arrays without running either, and refuses every other name.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from body3d.errors import InputError

__all__ = ["read_arrays", "read_pickle"]


def read_arrays(
    path: str | Path, wanted: Iterable[str] | None, required: Iterable[str] = (), what: str = "body model"
) -> dict[str, np.ndarray]:
    """Those of the `wanted` arrays (None: all) that the file has, for .npz and .pkl files alike.

    Raises InputError, which calls the file `what`, if it cannot be read or lacks a `required` array. Entries that are
    not wanted are not touched: the official SMPL-X files keep Python objects (`joint2num`, `part2num`) there.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a {what} (.npz or .pkl) was expected")
    if path.suffix.lower() == ".npz":
        arrays = _read_npz(path, wanted)
    elif path.suffix.lower() == ".pkl":
        content = read_pickle(path)
        if not isinstance(content, dict):
            raise InputError(f"{path} holds a {type(content).__name__}, not the dictionary of arrays of a {what}")
        arrays = {key: _as_array(content[key], path, key) for key in wanted or content if key in content}
    else:
        raise InputError(f"{path}: a {what} is a file that ends in .npz or .pkl, not in {path.suffix or 'nothing'!r}")
    missing = [key for key in required if key not in arrays]
    if missing:
        raise InputError(f"{path} is not a {what}: it has no {', '.join(repr(key) for key in missing)}")
    return arrays


def _read_npz(path: Path, wanted: Iterable[str] | None) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or only the beginning of one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in wanted or archive.files if key in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an .npz archive of arrays: {_one_line(error)}") from error
    return {key: _as_array(value, path, key) for key, value in arrays.items()}


def _as_array(value: object, path: Path, key: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.hasobject or isinstance(value, bytes):
        raise InputError(f"{path} cannot be read: {key!r} is not an array")
    return array


# ---- pickles -------------------------------------------------------------------------------------------------------
class _Foreign:
    """An object of another package, known only by the attributes that its pickle sets."""

    state: dict[str, Any]

    def __new__(cls, *args):
        self = super().__new__(cls)
        self.state = {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state)

    def array(self) -> np.ndarray:
        raise NotImplementedError


class _Chumpy(_Foreign):
    """chumpy's `Ch`, whose value is `x`, or its `Select`: the entries `idxs` of `a`, reshaped."""

    def array(self) -> np.ndarray:
        if "x" in self.state:
            return np.asarray(self.state["x"])
        source = np.asarray(_plain(self.state["a"]))
        return source.ravel()[np.asarray(self.state["idxs"])].reshape(self.state["preferred_shape"])


class _Compressed(_Foreign):
    """scipy.sparse's csc or csr matrix, built anew: the names of its attributes changed over scipy's versions."""

    make = staticmethod(sparse.csc_matrix)

    def array(self) -> np.ndarray:
        parts = self.state["data"], self.state["indices"], self.state["indptr"]
        return self.make(parts, self.state.get("_shape", self.state.get("shape"))).toarray()


class _CompressedRows(_Compressed):
    make = staticmethod(sparse.csr_matrix)


def _reconstruct_object(cls: type, base: type, state: object) -> _Foreign:
    """copy_reg._reconstructor as Python 2 wrote it, for the classes above only."""
    if not (isinstance(cls, type) and issubclass(cls, _Foreign)):
        raise pickle.UnpicklingError(f"it asks to build {cls!r}")
    return cls()


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode as pickles use it: the bytes of an array written as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], object]:
    """What a pickle may name, under the modules' old names and new ones."""
    core = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
    multiarray, numeric = import_module(f"{core}.multiarray"), import_module(f"{core}.numeric")
    table: dict[tuple[str, str], object] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    for package in ("numpy.core", "numpy._core"):
        table[f"{package}.multiarray", "_reconstruct"] = multiarray._reconstruct
        table[f"{package}.multiarray", "scalar"] = multiarray.scalar
        table[f"{package}.numeric", "_frombuffer"] = numeric._frombuffer
    for name, cls in (("csc", _Compressed), ("csr", _CompressedRows)):
        for module in (f"scipy.sparse.{name}", f"scipy.sparse._{name}"):
            table[module, f"{name}_matrix"] = table[module, f"{name}_array"] = cls
    for module, name in (("ch", "Ch"), ("reordering", "Select")):
        table[f"chumpy.{module}", name] = table["chumpy", name] = _Chumpy
    for module in ("copy_reg", "copyreg"):
        table[module, "_reconstructor"] = _reconstruct_object
    for module in ("__builtin__", "builtins"):
        table[module, "object"] = object
        table[module, "set"] = set  # an attribute of every chumpy array
    return table


ALLOWED = _allowed()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")
        return ALLOWED[module, name]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_pickle(path: str | Path) -> object:
    """A pickle of arrays, lists, dictionaries, numbers and text; sparse and chumpy arrays come back as dense arrays.

    Raises InputError for anything else; nothing in the file is ever run.
    """
    path = Path(path)
    try:
        return _plain(_ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load())
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except Exception as error:  # a broken pickle may raise anything at all
        raise InputError(f"{path} cannot be read as a pickle of arrays: {_one_line(error)}") from error


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.array() if isinstance(value, _Foreign) else value


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
