"""The body fit on synthetic views of held-out motion capture: against L-BFGS, accuracy, robustness, calibration, speed, memory.

Every part is a function of the views' file and of how many views; `run` prints them all.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from body3d.benchmarks.views import COUNTED, Views, errors, fitted_h36m17, make_views
from body3d.benchmarks.views import run as accuracy
from body3d.body.model import BodyModel
from body3d.fit.problem import SWAPS
from body3d.fit.smplifyx import Options, Trust, fit_keypoints
from body3d.geometry import align
from body3d.skeletons import H36M17
from body3d.types import Keypoints2D

__all__ = ["accuracy", "calibration", "damaged", "memory", "robustness", "run", "solvers", "speed"]

Table = dict[str, dict[str, float]]
UPPER = (
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "neck_nose",
    "head_top",
)


def solvers(poses: Path, count: int = 20, seed: int = 0) -> Table:
    """Levenberg-Marquardt and L-BFGS on the same objective, from the same starts, in one batch each."""
    model, views = BodyModel.open(), make_views(poses, count, seed=seed)
    table, found = {}, {}
    # With every keypoint believed alike both minimise the same number; L-BFGS gets the iterations that it needs.
    common = Options(trust=Trust(usual_residual=None), exchange=False)
    for options in (common, replace(common, solver="lbfgs", iterations=300, last_iterations=600)):
        solver = options.solver
        cpu = time.process_time()
        results = found[solver] = fit_keypoints(model, views.keypoints, views.camera, options=options)
        cpu = time.process_time() - cpu
        pa = errors(fitted_h36m17(model, results), views.h36m17)[1]
        table[solver] = {
            "PA median": pa.median().item(),
            "PA mean": pa.mean().item(),
            "iterations of the best start, median": _median([r.iterations for r in results]),
            "CPU seconds per person": cpu / count,
        }
    loss = lambda r: sum(r.terms.values())
    ratio = torch.tensor([loss(a) / loss(b) for a, b in zip(found["lm"], found["lbfgs"], strict=True)])
    table["lm / lbfgs"] = {
        "final loss, median": ratio.median().item(),
        "final loss, worst": ratio.max().item(),
        "final loss, best": ratio.min().item(),
        "people within 1 %": (ratio < 1.01).float().mean().item(),
    }
    return table


def damaged(views: Views, seed: int = 0) -> Iterator[tuple[str, Keypoints2D, tuple[int, ...]]]:
    """Keypoints as a bad photo or a bad detector would give them, and the rows of H36M17 that were seen."""
    keypoints, rng = views.keypoints, torch.Generator().manual_seed(seed)
    place = keypoints.joints.index
    yield "clean", keypoints, COUNTED

    known = keypoints.conf > 0
    extent = torch.where(known, keypoints.xy[..., 1], torch.nan)
    size = torch.tensor([(row[k].max() - row[k].min()).item() for row, k in zip(extent, known, strict=True)])
    wrong = known & (torch.rand(known.shape, generator=rng) < 0.2)
    off = (torch.rand(*known.shape, 2, generator=rng) - 0.5) * size[:, None, None]
    yield "20 % outliers", replace(keypoints, xy=keypoints.xy + wrong[..., None] * off), COUNTED

    lower = [i for i, n in enumerate(keypoints.joints.names) if any(p in n for p in ("knee", "ankle", "heel", "toe"))]
    conf = keypoints.conf.clone()
    conf[:, lower] = 0
    yield "upper body only", replace(keypoints, conf=conf), tuple(H36M17.indices(UPPER))

    for limb, names in SWAPS.items():
        xy = keypoints.xy.clone()
        for n in names:
            pair = [place(f"left_{n}"), place(f"right_{n}")]
            xy[:, pair] = xy[:, pair[::-1]]
        yield f"left and right {limb} exchanged", replace(keypoints, xy=xy), COUNTED


def robustness(poses: Path, count: int = 40, noise: float = 0.02, seed: int = 0) -> Table:
    """PA-MPJPE (mm) over the joints that are seen; `ratio` is to the same joints of the undamaged views."""
    model, views = BodyModel.open(), make_views(poses, count, noise, seed=seed)
    table: Table = {}
    clean: Tensor | None = None
    for name, keypoints, joints in damaged(views, seed):
        ours = fitted_h36m17(model, fit_keypoints(model, keypoints, views.camera))
        clean = ours if clean is None else clean
        pa, usual = (_pa(p[:, joints], views.h36m17[:, joints]) for p in (ours, clean))
        table[name] = {
            "PA median": pa.median().item(),
            "PA mean": pa.mean().item(),
            "ratio of medians": (pa.median() / usual.median()).item(),
            "ratio of means": (pa.mean() / usual.mean()).item(),
        }
    return table


def _pa(predicted: Tensor, truth: Tensor) -> Tensor:
    return 1000 * (align(predicted, truth) - truth).norm(dim=-1).mean(-1)


def calibration(poses: Path, count: int = 60, noise: float = 0.02, seed: int = 0) -> Table:
    """The share of true joints within one (68 %) and two (95 %) of the fit's standard deviations, axis by axis."""
    model, views = BodyModel.open(), make_views(poses, count, noise, seed=seed)
    truth = model(views.params).joints.xyz[:, :22]
    table = {}
    for name, given in (("2D", ()), ("2D + lifter", (views.lifted(),))):
        results = fit_keypoints(model, views.keypoints, views.camera, given=given)
        ours = torch.stack([r.body.joints.xyz[:22] for r in results])
        for frame, off, sigma in (
            ("camera", ours - truth, [r.joint_sigma for r in results]),
            (
                "from the root",
                (ours - ours[:, :1] - truth + truth[:, :1])[:, 1:],
                [r.joint_sigma_from_root for r in results],
            ),
        ):
            deviation = torch.stack([s[22 - off.shape[1] : 22] for s in sigma if s is not None])
            z = off.abs() / deviation
            table[f"{name}, {frame}"] = {
                f"within {k} sigma, {axis}": (z[..., a] < k).float().mean().item()
                for k in (1, 2)
                for a, axis in enumerate(("right", "down", "depth"))
            }
    return table


def speed(poses: Path, people: tuple[int, ...] = (1, 16, 64), repeats: int = 3, seed: int = 0) -> Table:
    """Seconds per person from keypoints to the result, starts and uncertainty included, for batches of people."""
    model, table = BodyModel.open(), {}
    for count in people:
        views = make_views(poses, count, seed=seed)
        for name, given in (("2D", ()), ("2D + lifter", (views.lifted(),))):
            fit_keypoints(model, views.keypoints[:1], views.camera, given=tuple(g[:1] for g in given))
            wall, cpu = [], []
            for _ in range(repeats):
                began, used = time.perf_counter(), time.process_time()
                fit_keypoints(model, views.keypoints, views.camera, given=given)
                wall.append((time.perf_counter() - began) / count)
                cpu.append((time.process_time() - used) / count)
            table[f"{name}, {count} at once"] = {"seconds per person": min(wall), "CPU seconds per person": min(cpu)}
    return table


_PEAK = """
import resource, sys
from pathlib import Path
import body3d.benchmarks.fit as bench
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
views = bench.make_views(Path(sys.argv[1]), int(sys.argv[2]))
before = peak()
bench.fit_keypoints(bench.BodyModel.open(), views.keypoints, views.camera)
print(before, peak() - before)
"""


def memory(poses: Path, people: tuple[int, ...] = (1, 64)) -> Table:
    """Megabytes at the highest, each in a process of its own: with everything imported, and what the fit adds."""
    table = {}
    for count in people:
        command = [sys.executable, "-c", _PEAK, str(poses), str(count)]
        before, more = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        table[f"{count} at once"] = {"MB after import": float(before), "MB more for the fit": float(more)}
    return table


def _median(values: list[int]) -> float:
    return float(sorted(values)[len(values) // 2])


def run(poses: Path, count: int = 100, seed: int = 0) -> Table:
    """Everything, for `body3d bench fit`."""
    parts = (
        ("solvers", solvers(poses, min(count, 20), seed)),
        ("accuracy", accuracy(poses, count, seed)),
        ("robustness", robustness(poses, min(count, 60), seed=seed)),
        ("calibration", calibration(poses, min(count, 100), seed=seed)),
        ("speed", speed(poses, seed=seed)),
        ("memory", memory(poses)),
    )
    return {f"{part}: {row}": figures for part, table in parts for row, figures in table.items()}
