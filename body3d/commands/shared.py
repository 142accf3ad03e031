"""What several commands need: exit codes, one-line complaints, a check of the device, names of folders."""

import re
import sys
from pathlib import Path

from body3d.errors import InputError

DONE, BAD_INPUT, NOBODY = 0, 2, 3


def complain(text: str) -> None:
    """One line on stderr."""
    print(re.sub(r"\s*\n\s*", " ", text), file=sys.stderr)


def check_device(device: str) -> None:
    """InputError if tensors cannot live there."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used here: {reason}") from None


def folder_names(images: tuple[Path, ...]) -> list[str]:
    """A folder name for each image: its stem, numbered where two images share one."""
    names: list[str] = []
    for image in images:
        name, k = image.stem, 2
        while name in names:
            name, k = f"{image.stem}_{k}", k + 1
        names.append(name)
    return names
