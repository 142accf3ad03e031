"""Look at what a fit wrote: `python scripts/view.py results/photo [--png]`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from body3d.errors import InputError
from body3d.view.scene import show_results


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    png: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Open a window with the bodies, the camera and the photo; without a display write pictures from four sides.

    Args:
        folder: what the fit wrote for one photo, such as results/photo.
        png: write front.png, side.png, back.png, top.png and sides.png into the folder and open no window.
    """
    try:
        show_results(folder, png)
    except InputError as error:
        print(f"view: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
