"""Direct regressors on rendered people whom nothing was trained on: new poses, shapes, colours and cameras.

    body3d bench regress data/retargeted.npz --runs runs/bench_regress

renders what is not rendered, trains what is not trained yet (it can be killed and goes on), then prints the table: root-relative
errors over Human3.6M's 17 joints in millimetres, around true boxes, of crops averaged with their mirror images. How the trainings'
validation went is drawn into curves.png beside them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from body3d.camera import Camera
from body3d.detect.embedded import detect_embedded
from body3d.errors import InputError
from body3d.images import write_image
from body3d.learn.configs import read_config
from body3d.learn.pose3d import MM, RegressRun, RegressTask, regress_people, root_people
from body3d.learn.pose3d_data import People3D, RenderedScenes
from body3d.learn.pose3d_scenes import SceneRun, SceneTask, find_in_images, matched
from body3d.lift.embedded import embedded_lifter, lift
from body3d.metrics.mpjpe import mpjpe, pa_mpjpe
from body3d.nets3d.methods import ByCoarseToFine, ByIntegral
from body3d.nets3d.regressors import Regressor, RootFinder, SceneRegressor
from body3d.skeletons import H36M17
from body3d.train import LAST, read_checkpoint, train, weights_in
from body3d.types import Boxes
from body3d.view.plot import curves

__all__ = ["CONFIGS", "bench_regress", "held_out_people", "lifted"]

# In the order in which they begin from each other.
CONFIGS = (
    "mppe_posenet_128", "mppe_posenet", "mppe_rootnet", "vnect_128", "vnect", "orpm", "volumetric", "dconvmp",
)  # fmt: skip
SEED = 1  # of the scenes that are scored: not those of the trainings' validation
ROOT = H36M17.index("pelvis")
Row = dict[str, float]


def bench_regress(
    poses: Path,
    configs: Path,
    runs: Path,
    count: int = 500,
    names: Sequence[str] = CONFIGS,
    data: RenderedScenes | None = None,
) -> dict[str, Row]:
    """The table. `configs` is the folder of synthetic_*.py; `data`: in the place of theirs."""
    trained = {name: _trained(name, poses, configs, runs, data) for name in names}
    write_image(runs / "curves.png", _curves(runs, names))
    source = data or RenderedScenes()
    people = held_out_people(source, poses, count)
    truth = people.xyz[:, ROOT]
    table: dict[str, Row] = {}
    of_training = source.training(poses)[0]
    mean_pose = (of_training.xyz - of_training.xyz[:, [ROOT]]).mean(0)
    table["mean pose"] = row(mean_pose.expand_as(people.xyz), people)
    table["detector in the box + lifter"] = _of_found(*lifted(people), people, mean_pose)
    roots = None
    for net in trained.values():
        if isinstance(net, RootFinder):
            roots, k = root_people(net, people)
            table["RootNet"] = {
                "root depth error mm": _depth_error(roots[:, 2], truth), "k alone mm": _depth_error(k, truth),
                "root depth error, median mm": MM * (roots[:, 2] - truth[:, 2]).abs().median().item(),
                "k alone, median mm": MM * (k - truth[:, 2]).abs().median().item(),
                "root error mm": MM * (roots - truth).norm(dim=-1).mean().item(),
            }  # fmt: skip
    for name, net in trained.items():
        if isinstance(net, SceneRegressor):
            found = matched(find_in_images(net, _everybody(source, poses, people)), people)
            table[name] = _of_found(found.xyz, found.known, people, mean_pose)
        elif isinstance(net, Regressor):
            told: dict[str, Tensor | None] = {"": None}
            if isinstance(net.method, ByIntegral | ByCoarseToFine):  # they see depth from the root alone
                told = {"true root depth": truth[:, 2]}
                if isinstance(net.method, ByCoarseToFine):
                    told["root depth by limbs"] = None
                elif roots is not None:
                    told["RootNet's depth"] = roots[:, 2]
            for how, depth in told.items():
                said = regress_people(net, people, depth=depth, flip=True)
                label = f"{name}, {how}" if how else name
                table[label] = row(said.xyz, people) | {"root depth error mm": _depth_error(said.root[:, 2], truth)}
    return table


def _curves(runs: Path, names: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """The figure by which each training is judged, after every epoch."""
    found = {}
    for name in names:
        log = read_checkpoint(runs / f"synthetic_{name}" / LAST)["log"]
        figure = next(key for key in log[0] if key.endswith(" mm"))
        found[f"{name}: {figure}"] = [row[figure] for row in log]
    longest = max(map(len, found.values()))
    return curves(range(1, longest + 1), {k: [*v, *[math.nan] * (longest - len(v))] for k, v in found.items()}, "epoch")


def held_out_people(source: RenderedScenes, poses: Path, count: int) -> People3D:
    """The first `count` people of held-out scenes that no training validates on."""
    scenes = replace(source, seed=source.seed + SEED, held_out=count)
    people = scenes.validation(poses)
    if len(people) < count:
        raise InputError(f"{count} scenes show only {len(people)} people well enough")
    return people[:count]


def _everybody(source: RenderedScenes, poses: Path, people: People3D) -> People3D:
    """All who stand in the images of `people`."""
    scenes = replace(source, seed=source.seed + SEED, held_out=len(people), least_seen=0.0).validation(poses)
    return scenes[torch.isin(scenes.of, people.of.unique())]


def _trained(
    name: str, poses: Path, configs: Path, runs: Path, data: RenderedScenes | None
) -> Regressor | RootFinder | SceneRegressor:
    run = read_config(configs / f"synthetic_{name}.py")
    if not isinstance(run, RegressRun | SceneRun):
        raise InputError(f"synthetic_{name}.py trains no regressor")
    if data is not None:
        run = replace(run, data=data)
    if isinstance(run.start, Path):  # another of these trainings
        run = replace(run, start=runs / run.start.parent.name / run.start.name)
    folder = runs / f"synthetic_{name}"
    task = run.task(poses, torch.device("cpu"))
    assert isinstance(task, RegressTask | SceneTask)
    train(task, run.plan, folder, resume=(folder / LAST).exists(), cpu=True, description=name)
    # The last weights (their average, if there is one), not those that were best on what was validated.
    net = task.net
    net.load_state_dict(weights_in(read_checkpoint(folder / LAST)))
    return net.eval()


def lifted(people: People3D) -> tuple[Float[Tensor, "P 17 3"], Tensor]:
    """The embedded detector in each true box, then the shipped lifter: poses, and who got one."""
    xyz, known = torch.zeros_like(people.xyz), torch.zeros(len(people), dtype=torch.bool)
    lifter = embedded_lifter()
    for n in range(len(people)):
        image = np.ascontiguousarray(people.photos[int(people.of[n])])
        box = people.boxes[n : n + 1].clamp_min(0)
        box[:, 2:] = torch.minimum(box[:, 2:], people.size[n].flip(-1) - 1)
        seen = detect_embedded(image, boxes=Boxes(box, torch.ones(1)))
        if len(seen) and (seen.keypoints.conf > 0).any():
            camera = Camera(people.K[n], torch.eye(3), torch.zeros(3), (image.shape[0], image.shape[1]))
            found = lift(lifter, seen.keypoints[:1], camera)
            xyz[n], known[n] = found.h36m17.xyz[0], found.known[0] > 0
    return xyz, known


def row(xyz: Float[Tensor, "P 17 3"], people: People3D) -> Row:
    truth = people.xyz - people.xyz[:, [ROOT]]
    error = MM * mpjpe(xyz - xyz[:, [ROOT]], truth)
    return {
        "MPJPE mm": error.mean().item(),
        "MPJPE, median mm": error.median().item(),
        "PA-MPJPE mm": MM * pa_mpjpe(xyz, truth).mean().item(),
    }


def _of_found(xyz: Tensor, known: Tensor, people: People3D, mean_pose: Tensor) -> Row:
    """Of all, with the mean pose in the place of those who were missed; and of those who were found."""
    filled = torch.where(known[:, None, None], xyz, mean_pose)
    return row(filled, people) | {
        "found %": 100 * known.float().mean().item(),
        **{f"{name}, found": value for name, value in row(xyz[known], people[known]).items()},
    }


def _depth_error(depth: Float[Tensor, " P"], truth: Float[Tensor, "P 3"]) -> float:
    return MM * (depth - truth[:, 2]).abs().mean().item()
