"""`body3d bench`: the figures of docs/benchmarks.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.commands.shared import DONE


@dataclass(frozen=True)
class Bench:
    """Print figures of docs/benchmarks.md."""

    what: tyro.conf.Positional[Literal["views", "photos", "one", "data"]]
    """views: synthetic views of held-out motion capture; photos: a folder of photos; one: time and memory of one photo; data: how
    fast the loaders are, on LSPET's folder."""
    path: tyro.conf.Positional[Path]
    """views: the file of scripts/retarget_mocap.py; photos, data: a folder; one: a photo."""
    count: int = 40
    """views: how many."""
    seed: int = 0
    """views: which ones."""
    every: int = 1
    """photos: take every n-th."""


def bench(args: Bench) -> int:
    """Run `Bench`; the exit code."""
    if args.what == "views":
        from body3d.benchmarks.views import run as run_views

        table = run_views(args.path, args.count, args.seed)
    elif args.what == "data":
        from body3d.benchmarks.data import run as run_data

        table = run_data(args.path)
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
