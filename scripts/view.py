"""Look at what a fit wrote: `python scripts/view.py results/photo [--png]` (the same as `body3d view`)."""

from body3d.cli import run
from body3d.commands.view import View, view

if __name__ == "__main__":
    run(View, view, "view.py")
