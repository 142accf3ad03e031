"""Train a pose prior of VPoser's kind: `python scripts/train_pose_vae.py configs/pose_vae.py [--data AMASS_FOLDER]`."""

import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from body3d.cli import run
from body3d.commands.shared import DONE, check_device
from body3d.errors import InputError
from body3d.learn.pose_vae import PoseVAERun
from body3d.train import BEST, train


@dataclass(frozen=True)
class TrainPoseVAE:
    """Train a variational autoencoder of body poses as a config says, and write a run folder."""

    config: tyro.conf.Positional[Path]
    """configs/pose_vae.py or another file that defines `run = PoseVAERun(...)`."""
    data: Path | None = None
    """A folder in AMASS' layout, or the file of scripts/retarget_mocap.py; the config names the usual place."""
    out: Path | None = None
    """The run's folder; runs/NAME_OF_THE_CONFIG if not given."""
    resume: bool = False
    """Go on with the run in that folder."""
    epochs: int | None = None
    """Stop after so many epochs; the schedule stays the config's."""
    device: str = "cpu"
    """cpu or cuda; several GPUs with `accelerate launch`."""


def train_pose_vae(args: TrainPoseVAE) -> int:
    """Run `TrainPoseVAE`; the exit code."""
    check_device(args.device)
    if not args.config.is_file():
        raise InputError(f"{args.config}: there is no such config; see configs/pose_vae.py")
    config = runpy.run_path(str(args.config)).get("run")
    if not isinstance(config, PoseVAERun):
        raise InputError(f"{args.config} defines no `run = PoseVAERun(...)`; see configs/pose_vae.py")
    if args.epochs is not None:
        config = replace(config, plan=replace(config.plan, epochs=args.epochs))
    folder = args.out or Path("runs") / args.config.stem
    task = config.task(args.data, torch.device(args.device))
    log = train(task, config.plan, folder, args.resume, cpu=args.device == "cpu", description=str(args.config))
    print(f"{folder}: {len(log)} epochs, best {log[-1]['best']:.4f}; weights in {folder / BEST}")
    return DONE


if __name__ == "__main__":
    run(TrainPoseVAE, train_pose_vae, "train_pose_vae.py")
