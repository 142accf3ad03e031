"""Files that are either whole or not there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from body3d.errors import InputError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; when the block ends without an error it becomes `path`.

    The folder is made if need be. If the block fails nothing is left behind and an older file stays as it was; a folder
    or file that cannot be written is an `InputError`.

    >>> with atomic("results/photo/report.json") as part:
    ...     part.write_text("{}")
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        try:
            part.unlink(missing_ok=True)
        except OSError:  # its folder was never there: the reason is on its way already
            pass


def check_writable(folder: str | Path) -> None:
    """Raise InputError now if `folder` could not be made or written to after long work."""
    there = next(p for p in (Path(folder).absolute(), *Path(folder).absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(f"results cannot be written to {folder}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"results cannot be written to {folder}: no permission to write in {there}")


@contextmanager
def staged(folder: str | Path, replaces: str) -> Iterator[Path]:
    """Give a temporary folder to write several files to; when the block ends without an error they all move into `folder`.

    Files there that match the pattern `replaces` and are not among the new ones go (results of an earlier run); all others stay.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    except OSError as error:
        raise InputError(f"results cannot be written to {folder}: {error.strerror or error}") from error
    try:
        yield draft
        new = {part.name for part in draft.iterdir()}
        for part in sorted(draft.iterdir()):
            os.replace(part, folder / part.name)
        for old in folder.glob(replaces):
            if old.name not in new:
                old.unlink()
    except OSError as error:
        raise InputError(f"results cannot be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
