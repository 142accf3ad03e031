"""`body3d train` and `scripts/train.py`."""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from body3d.errors import InputError

if TYPE_CHECKING:
    from body3d.learn.configs import Run


@dataclass(frozen=True)
class Train:
    """Train a network as a config says, and write a run folder with checkpoints, log, curves and sample predictions.

    If it begins from the training of another config beside it that has not run yet, that one is run first.
    """

    config: tyro.conf.Positional[Path]
    """A file of configs/, such as configs/lspet_hrnet_w32.py."""
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
    start: Path | None = None
    """A checkpoint to begin from: of 2D networks a classifier's weights for the trunk, of PoseAug a trained lifter."""
    device: str = "cpu"
    """cpu or cuda; several GPUs with `accelerate launch`."""


def train(args: Train) -> int:
    """Run `Train`; the exit code."""
    from body3d.learn.configs import read_config

    return run_training(args, read_config(args.config))


def _check(args: Train) -> None:
    """InputError for what can be refused before anything is read or trained."""
    from body3d.atomic import check_writable
    from body3d.commands.shared import check_device
    from body3d.train import check_new

    check_device(args.device)
    if args.epochs is not None and args.epochs < 1:
        raise InputError(f"--epochs is a number from 1, got {args.epochs}")
    check_writable(_folder(args))
    if not args.resume:
        check_new(_folder(args))


def _folder(args: Train) -> Path:
    return args.out or Path("runs") / args.config.stem


def _train_first(args: Train, run: "Run") -> None:
    """The training that `run` begins from, unless it has run to its end or no config beside this one makes it."""
    from body3d.learn.configs import read_config
    from body3d.train import LAST, finished

    start = getattr(run, "start", None)
    if not isinstance(start, Path):
        return
    folder, config = start.parent, args.config.with_name(f"{start.parent.name}.py")
    if config == args.config or not config.is_file() or finished(folder, read_config(config).plan.epochs):
        return
    print(f"{args.config} begins from {start}: {config} is trained first", file=sys.stderr)
    train(Train(config, args.data, folder, resume=(folder / LAST).exists(), seed=args.seed, device=args.device))


def run_training(args: Train, run: "Run") -> int:
    """Train what `run` says with what `args` changes of it."""
    import torch

    from body3d.commands.shared import DONE
    from body3d.train import BEST
    from body3d.train import train as train_task

    _check(args)
    # A trial of some epochs shall not take hours before; a run that goes on has begun already.
    if args.start is None and args.epochs is None and not args.resume:
        _train_first(args, run)
    if args.seed is not None:
        run = changed(run, "--seed", plan=replace(run.plan, seed=args.seed))
    if args.start is not None:
        run = changed(run, "--start", start=args.start)
    folder = _folder(args)
    task = run.task(args.data, torch.device(args.device))
    # The task has read the config's plan: what changes over the training does so as if it went on to its end.
    plan = run.plan if args.epochs is None else replace(run.plan, epochs=args.epochs)
    log = train_task(task, plan, folder, args.resume, cpu=args.device == "cpu", description=str(args.config))
    print(f"{folder}: {len(log)} epochs, best {log[-1]['best']:.4g}; weights in {folder / BEST}")
    return DONE


def changed(run: "Run", option: str, **change: Any) -> "Run":
    """The run with other values of its fields. InputError, naming the option, if it has no such fields."""
    known: Any = run
    if missing := [name for name in change if name not in {f.name for f in fields(known)}]:
        raise InputError(f"{option} is not for a {type(run).__name__}: it has no {missing[0]!r}")
    return replace(known, **change)
