"""`body3d train-lifter` and `scripts/train_lifter.py`: `body3d train` with an option that only lifters have."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from body3d.commands.train import Train, changed, run_training


@dataclass(frozen=True)
class TrainLifter(Train):
    """Train a 2D-to-3D lifter as a config says, and write a run folder with checkpoints, log and curves."""

    config: tyro.conf.Positional[Path]
    """A file of configs/ that says how a lifter is trained, such as configs/h36m_simple_baseline.py."""
    noisy: bool = False
    """Train and validate on keypoints as the embedded detector would see them."""


def train_lifter(args: TrainLifter) -> int:
    """Run `TrainLifter`; the exit code."""
    from body3d.learn.configs import read_config

    run = read_config(args.config)
    return run_training(args, changed(run, "--noisy", noisy=True) if args.noisy else run)
