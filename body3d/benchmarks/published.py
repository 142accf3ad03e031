"""The fast fit against SMPLify-X as published, and its solver against L-BFGS over the whole mesh: whole bodies, one at a time.

People are the open body with random shapes, hands, jaws and expressions in poses of subjects that no prior or lifter was trained
on. Of SMPLify-X's 118 keypoints one in ten is missing, the others err by 2 pixels. Four fits of each person see the same keypoints
and the same camera:
* `fast`, the fit of this package as it is called by default, from 2D alone;
* `fast + lifter`, the same with what the shipped lifter makes of these keypoints;
* `published`, SMPLify-X with the published stages, solver and starts, without collisions. Its pose is the code of the VAE that
  comes with the package: VPoser's weights may not be shipped. The camera is the true one; published is a focal length of 5000 px;
* `whole mesh L-BFGS` and `LM`: the fast fit's own objective from its own starts, minimised by L-BFGS with every evaluation through
  the whole mesh, and by Levenberg-Marquardt. Both without the steps that are not minimisation (exchanging left and right,
  weighing keypoints by what they missed), so that their final losses are of the same number. L-BFGS has the starts in one batch,
  which is kinder to it than one after another, as published.

Each result is kept in a file of its own: what is there is not done again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.atomic import atomic
from body3d.benchmarks.views import errors, fitted_h36m17, make_views
from body3d.body.definitions import mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.body.subset import SubsetModel
from body3d.body.vposer import shipped_vposer
from body3d.camera import Camera
from body3d.fit.given import Given3D
from body3d.fit.published import TORSO_EDGES, vposer_pose
from body3d.fit.published_person import PublishedFit
from body3d.fit.smplifyx import Options, Trust, fit_keypoints
from body3d.fit.smplifyx_published import smplifyx
from body3d.geometry import align
from body3d.lift.embedded import embedded_lifter, lift
from body3d.skeletons import FACE68, HAND_POINTS, JAW17, OPENPOSE137
from body3d.types import BodyParams, FitResult, Keypoints2D

__all__ = ["CASES", "People", "make_people", "measure", "run", "score", "summary", "whole_mesh"]

Table = dict[str, dict[str, float]]
Record = dict[str, float]  # of one fit
NOISE_PX, MISSING = 2.0, 0.1
HAND_SPREAD = 0.4  # radians along each of a hand's first twelve components
JAW_OPEN = 0.25  # radians at most


# ---- people --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class People:
    """N whole bodies before a camera, and what a detector makes of them."""

    params: BodyParams  # in camera space
    keypoints: Keypoints2D
    camera: Camera
    h36m17: Float[Tensor, "N 17 3"]


def make_people(poses: Path, count: int = 50, seed: int = 0) -> People:
    """The people and cameras of `make_views`, with hands, jaw and expression besides.

    Nobody is without a shoulder and the hip of its side: of such people SMPLify-X cannot guess the depth.
    """
    model, views = BodyModel.open(), make_views(poses, count, noise=0.0, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    pose, joints = views.params.pose.clone(), model.joints
    for side in ("left", "right"):
        rows = [i for i, n in enumerate(joints.names) if n.startswith(f"{side}_") and n[-1].isdigit()]
        pose[:, rows] = model.hand_pose_from_pca(HAND_SPREAD * torch.randn(count, 12, generator=rng), side)
    pose[:, joints.index("jaw"), 0] = JAW_OPEN * torch.rand(count, generator=rng)
    expression = torch.zeros_like(views.params.expression if views.params.expression is not None else pose[:, :0, 0])
    expression[:, :10] = torch.rand(expression[:, :10].shape, generator=rng)
    params = replace(views.params, pose=pose, expression=expression)

    body = model(params)
    found = mixtures(model.keypoints, OPENPOSE137, None)
    columns = OPENPOSE137.indices([n for n in found if n not in JAW17])
    points = mixing_matrix(found, model.keypoints.names) @ body.joints.xyz
    xy, conf = torch.zeros(count, len(OPENPOSE137), 2), torch.zeros(count, len(OPENPOSE137))
    xy[:, OPENPOSE137.indices(tuple(found))] = views.camera.project(points)
    xy += NOISE_PX * torch.randn(xy.shape, generator=rng)
    conf[:, columns] = (torch.rand(count, len(columns), generator=rng) >= MISSING).float()
    sides = [OPENPOSE137.indices(edge) for edge in TORSO_EDGES]
    lost = ~torch.stack([(conf[:, side] > 0).all(1) for side in sides]).any(0)
    for column in sides[0]:
        conf[lost, column] = 1.0
    return People(params, Keypoints2D(xy, conf, OPENPOSE137), views.camera, views.h36m17)


# ---- the fits ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _WholeMesh(SubsetModel):
    """Named points that are taken from the whole posed body, as the published code does."""

    body: BodyModel

    def points_and_joints(self, params: BodyParams) -> tuple[Float[Tensor, "*B N 3"], Float[Tensor, "*B J 3"]]:
        body = self.body(params)
        points = body.joints.xyz[..., self.body.keypoints.indices(self.names), :]
        return points, body.T_world_joint[..., :3, 3]


@dataclass(frozen=True, eq=False)
class _WholeBody(BodyModel):
    def subset(self, names: Sequence[str]) -> SubsetModel:
        part = SubsetModel.of(self, names)
        return _WholeMesh(*(getattr(part, f.name) for f in fields(part)), body=self)


def whole_mesh(model: BodyModel) -> BodyModel:
    """The same body, whose subsets pose the whole mesh at every call: the same points, at the published price."""
    return _WholeBody(*(getattr(model, f.name) for f in fields(model)))


# Both minimise one number from the same starts; L-BFGS gets the iterations that it needs.
COMMON = Options(trust=Trust(usual_residual=None), exchange=False)
LBFGS = replace(COMMON, solver="lbfgs", iterations=300, last_iterations=600)


def _fast(
    people: People, n: int, model: BodyModel, options: Options = Options(), given: tuple[Given3D, ...] = ()
) -> FitResult:
    return fit_keypoints(model, people.keypoints[n : n + 1], people.camera, options=options, given=given)[0]


def _with_lifter(people: People, n: int) -> FitResult:
    lifted = lift(embedded_lifter(), people.keypoints[n : n + 1], people.camera)
    return _fast(people, n, BodyModel.open(), given=(Given3D(lifted.body, lifted.sigma, "lifter"),))


def _published(people: People, n: int) -> PublishedFit:
    model = BodyModel.open()
    return smplifyx(model, people.keypoints[n : n + 1], people.camera, vposer_pose(model, shipped_vposer()))[0]


CASES: dict[str, Callable[[People, int], FitResult]] = {
    "fast": lambda people, n: _fast(people, n, BodyModel.open()),
    "fast + lifter": _with_lifter,
    "LM": lambda people, n: _fast(people, n, BodyModel.open(), COMMON),
    "published": _published,
    "whole mesh L-BFGS": lambda people, n: _fast(people, n, whole_mesh(BodyModel.open()), LBFGS),
}


# ---- scores --------------------------------------------------------------------------------------------------------
def score(people: People, n: int, result: FitResult) -> Record:
    """Millimetres and pixels of one person's fit. Hands and face are the keypoints of SMPLify-X, each put in place on its own."""
    model = BodyModel.open()
    truth = model(people.params[n])
    verts, true_verts = result.body.mesh.verts, truth.mesh.verts
    joints, true_joints = result.body.joints.xyz, truth.joints.xyz
    rows = lambda names: model.keypoints.indices(tuple(n for n in names if n in model.keypoints))
    mm = lambda a, b: 1000 * (a - b).norm(dim=-1).mean().item()
    moved = lambda a, b, origin: mm(a - origin(joints), b - origin(true_joints))
    at = lambda name: lambda xyz: xyz[model.keypoints.index(name)]
    both = lambda values: sum(values) / 2
    mpjpe, pa = errors(fitted_h36m17(model, [result]), people.h36m17[n : n + 1])

    hands = {side: rows(names[1:]) for side, names in HAND_POINTS.items()}
    face = rows(name for name in FACE68.names if name not in JAW17)
    middle = lambda xyz: xyz[face].mean(0)
    pa_of = lambda points: mm(align(joints[points], true_joints[points]), true_joints[points])

    keypoints = people.keypoints[n]
    found = mixtures(model.keypoints, keypoints.joints, None)
    columns = keypoints.joints.indices(tuple(found))
    xy = people.camera.project(mixing_matrix(found, model.keypoints.names) @ joints)
    off = (xy - keypoints.xy[columns]).norm(dim=-1)[keypoints.conf[columns] > 0]
    out: Record = {
        "PA-MPJPE": pa.item(),
        "MPJPE": mpjpe.item(),
        "MPVPE": moved(verts, true_verts, at("pelvis")),
        "PA-MPVPE": mm(align(verts, true_verts), true_verts),
        "hands, from the wrist": both(
            moved(joints[hand], true_joints[hand], at(f"{side}_wrist")) for side, hand in hands.items()
        ),
        "hands, PA": both(pa_of(hand) for hand in hands.values()),
        "face, from its middle": moved(joints[face], true_joints[face], middle),
        "face, PA": pa_of(face),
        "reprojection px": off.mean().item(),
        "iterations": float(result.iterations),
        "loss": sum(result.terms.values()),
    }
    if isinstance(result, PublishedFit):
        out["closures"] = float(result.closures)
        out |= {f"closures, stage {k}": float(c) for k, c in enumerate(result.stage_closures, 1)}
    return out


def _file(runs: Path, n: int, case: str) -> Path:
    return runs / f"{case.replace(' ', '_')}_{n:03d}.json"


def measure(people: People, n: int, case: str, runs: Path) -> Record:
    """One person's fit by one of `CASES`: from its file, or done and written there."""
    path = _file(runs, n, case)
    if path.is_file():
        return json.loads(path.read_text())
    began = time.process_time()
    result = CASES[case](people, n)
    record = {"CPU seconds": time.process_time() - began, **score(people, n, result)}
    with atomic(path) as part:
        part.write_text(json.dumps(record))
    return record


# ---- the table -----------------------------------------------------------------------------------------------------
SLOW = ("published", "whole mesh L-BFGS")


def run(poses: Path, runs: Path, count: int = 50, seed: int = 0, minutes: float = 60.0) -> Table:
    """The table of docs/benchmarks.md, of all results that `runs` has of these people once no more are made.

    The slow fits, about 20 seconds each, go on for `minutes` of CPU time; called again it goes on where it was.
    """
    torch.set_num_threads(1)  # CPU times are of one core
    people = make_people(poses, count, seed)
    runs = runs / f"seed_{seed}_of_{count}"
    CASES["fast"](people, 0)  # what is made once for a body is not counted
    records: dict[str, dict[int, Record]] = {case: {} for case in CASES}
    began = time.process_time()
    for slow in (False, True):
        for n in range(count):
            for case in (case for case in CASES if (case in SLOW) == slow):
                done = _file(runs, n, case).is_file()
                if done or not slow or time.process_time() - began < 60 * minutes:
                    records[case][n] = measure(people, n, case, runs)
    return summary(records)


def summary(records: Mapping[str, Mapping[int, Record]]) -> Table:
    """Medians and means of every case, and how cases compare on the people that both have (`records[case][person]`)."""
    table: Table = {}
    for case, of in records.items():
        if of:
            numbers = next(iter(of.values()))
            each = {name: torch.tensor([r[name] for r in of.values()], dtype=torch.float64) for name in numbers}
            table[case] = {"people": float(len(of))}
            for name, values in each.items():
                table[case] |= {f"{name}, median": values.median().item(), f"{name}, mean": values.mean().item()}
    for ours, theirs in (("fast", "published"), ("fast + lifter", "published"), ("LM", "whole mesh L-BFGS")):
        both = sorted(records[ours].keys() & records[theirs].keys())
        if not both:
            continue
        of = lambda case, name, both=both: torch.tensor([records[case][n][name] for n in both], dtype=torch.float64)
        times = of(theirs, "CPU seconds") / of(ours, "CPU seconds")
        row = {
            "people": float(len(both)),
            "times faster, median": times.median().item(),
            "times faster, least": times.min().item(),
            "PA-MPJPE less, mean": (of(theirs, "PA-MPJPE") - of(ours, "PA-MPJPE")).mean().item(),
            "people with less PA-MPJPE": (of(ours, "PA-MPJPE") < of(theirs, "PA-MPJPE")).double().mean().item(),
        }
        if ours == "LM":
            loss = of(ours, "loss") / of(theirs, "loss")
            row |= {f"final loss, {name}": getattr(loss, f)().item() for name, f in _OF_LOSS}
        table[f"{ours} / {theirs}"] = row
    return table


_OF_LOSS = (("median", "median"), ("worst", "max"), ("best", "min"))
