"""`body3d view` and `scripts/view.py`: look at results."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from body3d.commands.shared import DONE


@dataclass(frozen=True)
class View:
    """Show a results folder in an Open3D window; without a display write views from four sides instead."""

    folder: tyro.conf.Positional[Path]
    """A folder that `fit` wrote, e.g. results/photo."""
    png: bool = False
    """Write the PNGs and open no window."""


def view(args: View) -> int:
    """Run `View`; the exit code."""
    from body3d.view.scene import view_results

    view_results(args.folder, png=args.png)
    return DONE
