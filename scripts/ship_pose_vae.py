"""Put a trained pose prior into the package: `python scripts/ship_pose_vae.py runs/pose_vae body3d/body/pose_vae.npz`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from body3d.body.vposer import save_vposer, vposer_v2
from body3d.cli import run
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.train import BEST, read_checkpoint

SOURCE = (
    "Free motion capture retargeted to the open body: CMU Graphics Lab (mocap.cs.cmu.edu, NSF EIA-0196217), DeepMimic (MIT), "
    "Mesh2Motion (CC0)"
)


@dataclass(frozen=True)
class Ship:
    """Store the best weights of a run in half precision."""

    folder: tyro.conf.Positional[Path]
    """The run's folder."""
    out: tyro.conf.Positional[Path]
    """The .npz to write."""
    source: str = SOURCE
    """What it learnt from, written into the file."""


def ship(args: Ship) -> int:
    """Run `Ship`; the exit code."""
    best = read_checkpoint(args.folder / BEST)
    model = vposer_v2(*best["model"]["decoder_net.0.weight"].shape)
    model.load_state_dict(best["model"])
    save_vposer(args.out, model, source=np.array(args.source), held_out=np.array(sorted(HELD_OUT_SUBJECTS)))
    print(f"{args.out}: epoch {best['epoch']}, {best['figures']}, {args.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    run(Ship, ship, "ship_pose_vae.py")
