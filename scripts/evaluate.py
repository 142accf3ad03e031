"""Score predictions: `python scripts/evaluate.py PREDICTIONS GROUND_TRUTH --protocol h36m-1` (the same as `body3d evaluate`)."""

from body3d.cli import run
from body3d.commands.evaluate import Evaluate, evaluate

if __name__ == "__main__":
    run(Evaluate, evaluate, "evaluate.py")
