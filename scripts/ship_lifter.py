"""Put a trained lifter into the package: `python scripts/ship_lifter.py RUN body3d/lift/embedded_lifter.npz`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from body3d.cli import run
from body3d.lift.embedded import RayLifter, save_lifter
from body3d.train import BEST, read_checkpoint


@dataclass(frozen=True)
class Ship:
    """Store the best weights of a run in half precision."""

    folder: tyro.conf.Positional[Path]
    """The run's folder."""
    out: tyro.conf.Positional[Path]
    """The .npz to write."""


def ship(args: Ship) -> int:
    """Run `Ship`; the exit code."""
    best = read_checkpoint(args.folder / BEST)
    state = best["model"]
    width = len(state["net.w1.bias"])
    blocks = len({key.split(".")[2] for key in state if key.startswith("net.linear_stages.")})
    lifter = RayLifter(width, blocks)
    lifter.load_state_dict(state)
    save_lifter(args.out, lifter, width, blocks)
    print(f"{args.out}: epoch {best['epoch']}, {best['figures']}")
    return 0


if __name__ == "__main__":
    run(Ship, ship, "ship_lifter.py")
