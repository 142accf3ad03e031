"""Fit whole bodies to photos: `python scripts/fit_smplx.py photo.jpg` (the same as `body3d fit`)."""

from body3d.cli import run
from body3d.commands.fit import Fit, fit

if __name__ == "__main__":
    run(Fit, fit, "fit_smplx.py")
