"""Train a lifter: `python scripts/train_lifter.py configs/h36m_simple_baseline.py` (the same as `body3d train-lifter`)."""

from body3d.cli import run
from body3d.commands.train_lifter import TrainLifter, train_lifter

if __name__ == "__main__":
    run(TrainLifter, train_lifter, "train_lifter.py")
