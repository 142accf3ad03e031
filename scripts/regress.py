"""3D joints straight from photos: `python scripts/regress.py photo.jpg --weights best.pt` (the same as `body3d regress`)."""

from body3d.cli import run
from body3d.commands.regress import Regress, regress

if __name__ == "__main__":
    run(Regress, regress, "regress.py")
