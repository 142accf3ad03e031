"""`body3d train-lifter` and `scripts/train_lifter.py`."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro


@dataclass(frozen=True)
class TrainLifter:
    """Train a 2D-to-3D lifter as a config says, and write a run folder with checkpoints, log and curves."""

    config: tyro.conf.Positional[Path]
    """A file of configs/, such as configs/h36m_simple_baseline.py."""
    data: Path | None = None
    """Where the data set lies; the config names the usual place."""
    out: Path | None = None
    """The run's folder; runs/NAME_OF_THE_CONFIG if not given."""
    resume: bool = False
    """Go on with the run in that folder."""
    epochs: int | None = None
    """Stop after so many epochs; the schedule stays the config's."""
    seed: int | None = None
    """In place of the config's."""
    noisy: bool = False
    """Train and validate on keypoints as the embedded detector would see them."""
    device: str = "cpu"
    """cpu or cuda; several GPUs with `accelerate launch`."""


def train_lifter(args: TrainLifter) -> int:
    """Run `TrainLifter`; the exit code."""
    import torch

    from body3d.commands.shared import DONE, check_device
    from body3d.learn.configs import read_config
    from body3d.train import BEST, train

    check_device(args.device)
    run = read_config(args.config)
    plan = run.plan
    if args.seed is not None:
        plan = replace(plan, seed=args.seed)
    if args.epochs is not None:
        plan = replace(plan, epochs=args.epochs)
    run = replace(run, plan=plan, noisy=True) if args.noisy else replace(run, plan=plan)
    folder = args.out or Path("runs") / args.config.stem
    task = run.task(args.data, torch.device(args.device))
    log = train(task, plan, folder, args.resume, cpu=args.device == "cpu", description=str(args.config))
    print(f"{folder}: {len(log)} epochs, best {log[-1]['best']:.1f}; weights in {folder / BEST}")
    return DONE
