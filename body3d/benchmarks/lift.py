"""Lifting on motion capture: people whom nothing was trained on, seen by cameras; protocol 1 and 2 of Human3.6M.

    body3d bench lift MOCAP --runs runs/bench_lift [--noisy]

trains what is not trained yet (it can be killed and goes on), then prints the table: mean and range over the seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.camera import Camera
from body3d.learn.configs import read_config
from body3d.learn.lifting import FreeMocap, LifterRun, LiftTask, detector_noise, score
from body3d.learn.poseaug_training import PoseAugRun, PoseAugTask
from body3d.lift.matching import Library, match, turntable
from body3d.lift.takes import MocapScene, Takes
from body3d.metrics.mpjpe import mpjpe, pa_mpjpe
from body3d.skeletons import H36M16
from body3d.train import LAST, Cosine, read_checkpoint, train
from body3d.types import Keypoints2D, Keypoints3D

AZIMUTHS, ELEVATIONS = 24, (-15.0, 0.0, 15.0, 30.0, 45.0)  # of the library's cameras
QUERIES, POSES = 1000, 8000  # that matching is asked, and that its library is made of
EVERY = 4  # a trained lifter is scored on one frame of so many
UP = (0.0, 0.0, 1.0)

Row = dict[str, str]


@dataclass(frozen=True)
class Trained:
    """A row of the table: a config's run, under its name."""

    name: str
    run: LifterRun
    start: str | None = None  # the row whose lifter of the same seed it goes on from


def bench_lift(mocap: Path, configs: Sequence[Trained], runs: Path, seeds: int, noisy: bool = False) -> dict[str, Row]:
    """The table: errors of each method on the studio's cameras and on eight that nothing was trained on, millimetres."""
    table: dict[str, Row] = {}
    data = {"studio": FreeMocap(), "unseen": FreeMocap(unseen=True)}
    takes = {name: source.validation(mocap, torch.device("cpu")) for name, source in data.items()}
    for name, (studio, unseen) in matching(mocap, takes["studio"], takes["unseen"], noisy).items():
        table[name] = _row([studio], [unseen])
    for trained in configs:
        found = [_train_and_score(trained, mocap, runs, seed, noisy, takes) for seed in range(seeds)]
        table[trained.name] = _row([f["studio"] for f in found], [f["unseen"] for f in found])
    return table


def _train_and_score(
    trained: Trained, mocap: Path, runs: Path, seed: int, noisy: bool, takes: dict[str, Takes]
) -> dict[str, tuple[float, float]]:
    home = lambda name: runs / f"{name.replace(' ', '_')}{'_noisy' if noisy else ''}_{seed}"
    folder, run = home(trained.name), replace(trained.run, plan=replace(trained.run.plan, seed=seed), noisy=noisy)
    if trained.start is not None and isinstance(run, PoseAugRun):
        run = replace(run, start=home(trained.start) / LAST)
    task = run.task(mocap, torch.device("cpu"))
    train(task, run.plan, folder, resume=(folder / LAST).exists(), cpu=True, description=trained.name)
    # The last weights, not those that were best on the people that are scored.
    lifter = task.modules["lifter"].eval()
    lifter.load_state_dict(read_checkpoint(folder / LAST)["modules"]["lifter"])
    lifting = task.lifting if isinstance(task, PoseAugTask) else task
    assert isinstance(lifting, LiftTask)
    out = {}
    for kind, scene in takes.items():
        scene = scene if scene.joints is run.joints else scene.convert(run.joints)
        s = score(lifter, scene, lifting.flip, lifting.noise, EVERY)
        out[kind] = (s.mpjpe.mean().item(), s.pa_mpjpe.mean().item())
    return out


def _row(studio: Sequence[tuple[float, float]], unseen: Sequence[tuple[float, float]]) -> Row:
    """Mean, and in brackets half the range, of several seeds."""

    def words(values: Sequence[float]) -> str:
        mean, spread = sum(values) / len(values), (max(values) - min(values)) / 2
        return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} (±{spread:.1f})"

    out: Row = {}
    for cameras, rows in (("studio", studio), ("unseen", unseen)):
        out[f"{cameras} MPJPE"] = words([r[0] for r in rows])
        out[f"{cameras} PA-MPJPE"] = words([r[1] for r in rows])
    return out


# ---- matching ------------------------------------------------------------------------------------------------------
def queries(
    takes: Takes, index: Int[Tensor, " Q"], noise: Callable | None = None
) -> tuple[Keypoints2D, Camera, Float[Tensor, "Q J 3"]]:
    """Keypoints, cameras and root-relative truth (metres) of some frames; the unit of the image is half its width."""
    K = torch.diag_embed(torch.cat([takes.focal[index], torch.ones_like(takes.focal[index, :1])], -1))
    K[:, :2, 2] = takes.centre[index]
    origin = torch.zeros_like(K[:, 0])
    camera = Camera(K, torch.eye(3).to(K).expand_as(K), origin, (2, 2))
    xy = takes.xy[index]
    if noise is not None:
        xy = noise(xy, torch.Generator().manual_seed(0))
    # A joint that was missed lies at 0, 0: matching can be told, the published lifters cannot.
    known = (xy != 0).any(-1).to(xy) if noise is not None else takes.conf[index]
    return Keypoints2D(xy, known, takes.joints), camera, takes.relative(index)


def matching(mocap: Path, studio: Takes, unseen: Takes, noisy: bool) -> dict[str, list[tuple[float, float]]]:
    """MPJPE and PA-MPJPE in millimetres of the mean pose and of 2D + matching on the two sets of cameras, by name.

    "four views" are level cameras at right angles, what a studio has; the others are the augmented library's.
    """
    scene = MocapScene.open(mocap, held_out=False)
    some = torch.linspace(0, len(scene.xyz) - 1, POSES).long()
    xyz = scene.xyz[some]
    poses = Keypoints3D(xyz, torch.ones_like(xyz[..., 0]), studio.joints, "world")
    few, many = (Library.build(poses, turntable(n, e, UP)) for n, e in ((4, (10.0,)), (AZIMUTHS, ELEVATIONS)))
    noise = detector_noise(studio.joints) if noisy else None
    out: dict[str, list[tuple[float, float]]] = {}
    for takes in (studio, unseen):
        index = takes.index[torch.linspace(0, len(takes.index) - 1, QUERIES).long()]
        for name, row in _matching_rows(few, many, *queries(takes, index, noise)).items():
            out.setdefault(name, []).append(row)
    return out


def _matching_rows(
    few: Library, many: Library, keypoints: Keypoints2D, camera: Camera, truth: Float[Tensor, "Q J 3"]
) -> dict[str, tuple[float, float]]:
    def row(predicted: Float[Tensor, "Q J 3"]) -> tuple[float, float]:
        return 1000 * mpjpe(predicted, truth).mean().item(), 1000 * pa_mpjpe(predicted, truth).mean().item()

    mean = (many.poses.mean(0) @ many.views.mT).mean(0)
    warped = match(keypoints, many, camera)
    return {
        "mean pose": row(mean.expand_as(truth)),
        "matching, four views": row(match(keypoints, few, camera, k=1, warp=0.0).best().xyz),
        "matching, four views, warped": row(match(keypoints, few, camera).best().xyz),
        f"matching, {len(many.views)} views": row(match(keypoints, many, camera, k=1, warp=0.0).best().xyz),
        f"matching, {len(many.views)} views, warped": row(warped.best().xyz),
        f"matching, {len(many.views)} views, mean of the warped": row(warped.mean().xyz),
        "the same in weak perspective": row(match(keypoints, many).mean().xyz),
        "the same with a warp that trusts 5 cm": row(match(keypoints, many, camera, warp=0.05).mean().xyz),
    }


def standard(configs: Path) -> list[Trained]:
    """The rows that are trained: the configs of the free motion capture."""
    runs = {
        name: read_config(configs / f"mocap_{name}.py") for name in ("simple_baseline", "poseaug", "videopose3d_27")
    }
    baseline, poseaug, temporal = (run for run in runs.values() if isinstance(run, LifterRun))
    return [
        Trained("SimpleBaseline", baseline),
        Trained(
            "SimpleBaseline, 16 joints",
            replace(baseline, joints=H36M16, plan=replace(baseline.plan, epochs=15, schedule=Cosine(15))),
        ),
        Trained("SimpleBaseline + PoseAug, 16 joints", poseaug, start="SimpleBaseline, 16 joints"),
        Trained("VideoPose3D, 27 frames", temporal),
    ]
