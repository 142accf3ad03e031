"""What several commands need: exit codes, one-line complaints, checks of options, one input after the other."""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from body3d.errors import InputError, MissingExtra

DONE, BAD_INPUT, NOBODY = 0, 2, 3


def complain(text: str) -> None:
    """One line on stderr."""
    print(re.sub(r"\s*\n\s*", " ", text), file=sys.stderr)


def said(source: Path, error: Exception) -> int:
    """Complain about an input, by its name; the exit code."""
    complain(str(error) if str(source) in str(error) else f"{source}: {error}")
    return BAD_INPUT


def worst(codes: Iterable[int]) -> int:
    """Bad input before nobody found before done."""
    return max(codes, key=(DONE, NOBODY, BAD_INPUT).index, default=DONE)


def each(sources: Sequence[Path], out: Path, do: Callable[[Path, Path], int]) -> int:
    """`do` each input with its folder in `out`, whatever is wrong with the others; the worst exit code."""
    codes = []
    for source, name in zip(sources, folder_names(sources), strict=True):
        try:
            codes.append(do(source, out / name))
        except (InputError, MissingExtra) as error:
            codes.append(said(source, error))
    return worst(codes)


def check_max_people(most: int | None) -> None:
    """InputError if nobody may be found."""
    if most is not None and most < 1:
        raise InputError(f"--max-people must be at least 1, got {most}")


def check_device(device: str) -> None:
    """InputError if tensors cannot live there."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()  # "meta" would hold nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used here: {reason}") from None


def folder_names(images: Sequence[Path]) -> list[str]:
    """A folder name for each image: its stem, numbered where two images share one."""
    names: list[str] = []
    for image in images:
        name, k = image.stem, 2
        while name in names:
            name, k = f"{image.stem}_{k}", k + 1
        names.append(name)
    return names
