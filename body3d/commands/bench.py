"""`body3d bench`: the figures of docs/benchmarks.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.commands.shared import DONE


@dataclass(frozen=True)
class Bench:
    """Print figures of docs/benchmarks.md."""

    what: tyro.conf.Positional[
        Literal[
            "views", "photos", "one", "data", "lift", "train", "fit", "published", "prior", "codecs", "regress", "nets"
        ]
    ]
    """views: synthetic views of held-out motion capture; fit: the same, with everything else about the fit; published: the
    fit against SMPLify-X as published, over the whole mesh, and its solver against L-BFGS; photos: a folder of
    photos; one: time and memory of one photo; data: how fast the loaders are, on LSPET's folder; lift: lifters trained and scored
    on motion capture; train: how fast they train (needs no path); prior: the two pose priors; codecs: one small network with
    several codecs, trained on LSPET; regress: direct regressors trained and scored on rendered people; nets:
    what the 2D networks take on the processor."""
    path: tyro.conf.Positional[Path] = Path(".")
    """views, fit, published, prior, regress: the file of scripts/retarget_mocap.py; photos, data, lift, codecs: a folder;
    one: a photo; nets: what the networks' names begin with, else all of them."""
    count: int | None = None
    """How many people: views, fit, published (those of 50 are kept apart from those of 40) 40, regress 500."""
    seed: int = 0
    """views, fit, published: which ones."""
    every: int = 1
    """photos: take every n-th."""
    runs: Path | None = None
    """lift, codecs, published, regress: where the trainings or fits are kept (runs/bench_...); what is there is not done again."""
    minutes: float = 60.0
    """published: CPU time for slow fits that are not there yet, of about 20 seconds each."""
    epochs: int = 20
    """codecs: how long each is trained."""
    seeds: int = 3
    """lift: trainings of each method."""
    noisy: bool = False
    """lift: keypoints as the embedded detector would see them, in training and test."""


def bench(args: Bench) -> int:
    """Run `Bench`; the exit code."""
    count = args.count or (500 if args.what == "regress" else 40)
    if args.what == "views":
        from body3d.benchmarks.views import run as run_views

        table = run_views(args.path, count, args.seed)
    elif args.what == "fit":
        from body3d.benchmarks.fit import run as run_fit

        table = run_fit(args.path, count, args.seed)
    elif args.what == "published":
        from body3d.benchmarks.published import run as run_published

        runs = args.runs or Path("runs/bench_published")
        table = run_published(args.path, runs, count, args.seed, args.minutes)
    elif args.what == "prior":
        from body3d.benchmarks.prior import run as run_prior
        from body3d.benchmarks.prior import text

        print(text(run_prior(args.path)))
        return DONE
    elif args.what == "data":
        from body3d.benchmarks.data import run as run_data

        table = run_data(args.path)
    elif args.what == "lift":
        from body3d.benchmarks.lift import bench_lift, standard

        table = bench_lift(
            args.path, standard(Path("configs")), args.runs or Path("runs/bench_lift"), args.seeds, args.noisy
        )
    elif args.what == "codecs":
        from body3d.benchmarks.codecs import bench_codecs

        runs = args.runs or Path("runs/bench_codecs")
        table = bench_codecs(args.path, Path("configs/lspet_lite.py"), runs, args.epochs)
    elif args.what == "regress":
        from body3d.benchmarks.regress import bench_regress

        table = bench_regress(args.path, Path("configs"), args.runs or Path("runs/bench_regress"), count)
    elif args.what == "nets":
        from body3d.benchmarks.nets import bench_nets

        table = bench_nets("" if args.path == Path(".") else str(args.path))
    elif args.what == "train":
        from body3d.benchmarks.training_speed import bench_training

        table = bench_training()
    else:
        from body3d.benchmarks.photos import measure, one_person, photos_in, summary

        table = {
            str(args.path): one_person(args.path)
            if args.what == "one"
            else summary(measure(photos_in(args.path, args.every)))
        }
    for row, figures in table.items():
        print(row)
        for name, value in figures.items():
            print(f"  {name:<40} {value:.3g}" if isinstance(value, float) else f"  {name:<40} {value}")
    return DONE
