"""Retarget the free motion capture to the open body: every clip becomes poses (22 rotation vectors) of the SMPL-X tree.

    python scripts/retarget_mocap.py MOCAP --out data/retargeted.npz

Batched inverse kinematics: Levenberg-Marquardt with an analytic Jacobian on many frames at once. A frame's unknowns
are the rotations of the 22 joints and the translation; its residuals, each divided by its spread, are
  * the Human3.6M points, against the body's counterparts (`POINTS`);
  * the orientation of pelvis, chest, head, feet, hands, thighs and upper arms as the source's own skeleton has it,
    because points leave the twist of straight limbs, the feet and the hands open;
  * anatomy: knees and elbows are hinges that do not bend backwards, the spine shares its bend, the rest stays small;
  * in a second pass, the mean of the neighbouring frames.
A source's limbs are longer or shorter than the body's and its "spine" or "thorax" lies elsewhere, which must not bend
the pose. So each source skeleton first gets a copy of the body with its own limb lengths, hip width and shoulder
positions and its own offsets of the loosely defined points, estimated in alternation with the poses. The poses then
belong to the standard body.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import roma
import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from body3d.atomic import atomic
from body3d.body.lbs import chain_jumps, rotation_matrices, world_transforms
from body3d.datasets.mocap import Clip, clip_index, part_orientations, read_clip, shortest_rotation
from body3d.errors import InputError
from body3d.skeletons import SMPLX55

NAMES, PARENTS = SMPLX55.names[:22], SMPLX55.parents[:22]
JUMPS = chain_jumps(PARENTS)
CHUNK = 512  # frames solved at once

# Human3.6M's point: the body joint whose frame carries it, the joint at whose rest position it starts, its spread in
# metres, and whether its offset from there is the source's (estimated) or none. The pelvis is left out, being the
# middle of the hips.
POINTS: dict[str, tuple[str, str, float, bool]] = {
    "Spine": ("spine1", "spine2", 0.06, True),
    "Thorax": ("spine3", "neck", 0.02, True),
    "Nose": ("head", "head", 0.02, True),
    "HeadTop": ("head", "head", 0.02, True),
} | {
    f"{side[0].upper()}{joint.capitalize()}": (f"{side}_{joint}", f"{side}_{joint}", 0.01, False)
    for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
    for side in ("left", "right")
}
CARRIER, ORIGIN = ([NAMES.index(p[k]) for p in POINTS.values()] for k in (0, 1))
POINT_SPREAD = torch.tensor([p[2] for p in POINTS.values()])

# Spread in radians of the source's orientation of a part, its zero included: feet and pelvis are known well, hands
# and the twist of limbs badly.
_PART_SPREAD = {
    "pelvis": 0.15, "spine3": 0.25, "head": 0.15, "ankle": 0.1, "wrist": 0.35, "hip": 0.35, "shoulder": 0.35,
}  # fmt: skip
PARTS = [name for name in NAMES if name.split("_")[-1] in _PART_SPREAD]
PART_JOINT = [NAMES.index(name) for name in PARTS]
PART_SPREAD = torch.tensor([_PART_SPREAD[name.split("_")[-1]] for name in PARTS])

# Spread in radians of a joint's own rotation vector about the body's x (left), y (up), z (front) of the T-pose: there
# the arms twist about x and the legs about y, knees hinge about x and elbows about y. The forearm's roll is shared by
# elbow and wrist.
_LOCAL_SPREAD = {
    "pelvis": (9, 9, 9), "hip": (2, 1, 2), "knee": (3, 0.15, 0.08), "ankle": (0.5, 0.4, 0.4), "foot": (0.1, 0.1, 0.1),
    "spine1": (0.3, 0.3, 0.3), "spine2": (0.3, 0.3, 0.3), "spine3": (0.3, 0.3, 0.3), "neck": (0.4, 0.4, 0.4),
    "head": (0.4, 0.4, 0.4), "collar": (0.15, 0.25, 0.25), "shoulder": (1, 2, 2), "elbow": (0.5, 3, 0.1),
    "wrist": (0.3, 0.3, 0.3),
}  # fmt: skip
LOCAL_SPREAD = torch.tensor([_LOCAL_SPREAD[name.split("_")[-1]] for name in NAMES])
# Bending a hinge the wrong way has this spread; the sign is that of its proper bend.
BACKWARD_SPREAD = 0.05
HINGES = {"left_knee": (0, 1.0), "right_knee": (0, 1.0), "left_elbow": (1, -1.0), "right_elbow": (1, 1.0)}
HINGE_JOINT, HINGE_AXIS = [NAMES.index(n) for n in HINGES], [axis for axis, _ in HINGES.values()]
HINGE_SIGN = torch.tensor([sign for _, sign in HINGES.values()])
SMOOTH_SPREAD = 0.25  # radians from the mean of the neighbouring frames
# No joint turns further than this (degrees). Frames that do are faults of the capture: heads that flip in 60_06 and
# 60_07, feet in 05_05 and 05_06, arms in 13_18.
FURTHEST = {"hip": 150, "knee": 165, "ankle": 80, "shoulder": 165, "elbow": 160, "neck": 75, "head": 75}

# MOVES[i, j]: turning joint j turns joint i.
MOVES = torch.eye(len(NAMES))
for i, parent in enumerate(PARENTS):
    if parent >= 0:
        MOVES[i] += MOVES[parent]


@dataclass(frozen=True)
class Skeleton:
    """The body as one source needs it."""

    rest: Float[Tensor, "22 3"]  # joints of the T-pose, metres
    offsets: Float[Tensor, "P 3"]  # of the points, from the rest position of ORIGIN in the frame of CARRIER


@dataclass(frozen=True)
class Observed:
    """What the source says, world axes, metres."""

    points: Float[Tensor, "N P 3"]
    parts: Float[Tensor, "N Q 3 3"]
    known: Float[Tensor, " Q"]  # 1 where the source has the part, else 0

    def __getitem__(self, i) -> "Observed":
        return Observed(self.points[i], self.parts[i], self.known)


@dataclass(frozen=True)
class Pose:
    rotations: Float[Tensor, "N 22 3 3"]  # each in its parent
    transl: Float[Tensor, "N 3"]  # metres, from the rest position of the pelvis

    def __getitem__(self, i) -> "Pose":
        return Pose(self.rotations[i], self.transl[i])


def cat(poses: Sequence[Pose]) -> Pose:
    return Pose(torch.cat([p.rotations for p in poses]), torch.cat([p.transl for p in poses]))


def observe(clip: Clip, step: int) -> Observed:
    """Every `step`-th frame of a clip."""
    parts = part_orientations(clip)
    points = clip.h36m17[:, [clip.h36m_names.index(n) for n in POINTS]]
    known = torch.tensor([float(name in parts) for name in PARTS])
    unknown = torch.eye(3).expand(len(clip), 3, 3)
    return Observed(points[::step], torch.stack([parts.get(name, unknown) for name in PARTS], 1)[::step], known)


def pose_skeleton(
    pose: Pose, skeleton: Skeleton
) -> tuple[Float[Tensor, "N 22 3 3"], Float[Tensor, "N 22 3"], Float[Tensor, "N P 3"]]:
    """World rotations and positions of the joints, and the points."""
    T = world_transforms(pose.rotations, skeleton.rest.expand(len(pose.transl), -1, -1), JUMPS)
    G, joints = T[..., :3, :3], T[..., :3, 3] + pose.transl[:, None]
    arms = skeleton.rest[ORIGIN] - skeleton.rest[CARRIER] + skeleton.offsets
    return G, joints, joints[:, CARRIER] + (G[:, CARRIER] @ arms[..., None])[..., 0]


def normal_equations(
    pose: Pose, observed: Observed, skeleton: Skeleton, near: Float[Tensor, "N 22 3 3"] | None
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 69 69"], Float[Tensor, "N 69"]]:
    """Half the squared residuals, their Gauss-Newton Hessian and gradient.

    The unknowns are increments: 3 per joint, applied on the right of its rotation (R <- R exp[d]), then the
    translation. Turning joint j by d in its own frame turns all below it by G_j d about its position. Logarithms are
    differentiated as if small.
    """
    G, joints, points = pose_skeleton(pose, skeleton)
    N, J = G.shape[:2]

    lever = points[:, :, None] - joints[:, None]  # N P J 3
    turn = torch.linalg.cross(G.mT[:, None], lever[..., None, :], dim=-1)  # N P J (axis of d) 3
    by_rotation = (turn * MOVES[CARRIER][..., None, None]).movedim(-1, 2).flatten(-2)  # N P 3 3J
    by_transl = torch.eye(3).expand(N, len(POINTS), 3, 3)
    jac_points = (torch.cat([by_rotation, by_transl], -1) / POINT_SPREAD[:, None, None]).flatten(1, 2)
    res_points = ((points - observed.points) / POINT_SPREAD[:, None]).flatten(1)

    weight = observed.known / PART_SPREAD
    relative = G[:, PART_JOINT, None].mT @ G[:, None] * MOVES[PART_JOINT][..., None, None]  # N Q J 3 3
    jac_parts = (relative.movedim(2, 3).flatten(-2) * weight[:, None, None]).flatten(1, 2)
    res_parts = (roma.rotmat_to_rotvec(observed.parts.mT @ G[:, PART_JOINT]) * weight[:, None]).flatten(1)

    # The rest acts on one joint's own increment: a diagonal.
    own = roma.rotmat_to_rotvec(pose.rotations)
    precision = LOCAL_SPREAD.reciprocal().square().repeat(N, 1, 1)
    bend = own[:, HINGE_JOINT, HINGE_AXIS]
    precision[:, HINGE_JOINT, HINGE_AXIS] += (bend * HINGE_SIGN < 0) / BACKWARD_SPREAD**2
    cost, gradient = 0.5 * (precision * own.square()).sum((1, 2)), precision * own
    if near is not None:
        apart = roma.rotmat_to_rotvec(near.mT @ pose.rotations)
        cost = cost + 0.5 * apart.square().sum((1, 2)) / SMOOTH_SPREAD**2
        gradient, precision = gradient + apart / SMOOTH_SPREAD**2, precision + SMOOTH_SPREAD**-2

    hessian, total = jac_points.mT @ jac_points, jac_points.mT @ res_points[..., None]
    hessian[:, : 3 * J, : 3 * J] += jac_parts.mT @ jac_parts
    hessian.diagonal(dim1=1, dim2=2)[:, : 3 * J] += precision.flatten(1)
    total[:, : 3 * J, 0] += (jac_parts.mT @ res_parts[..., None])[..., 0] + gradient.flatten(1)
    return cost + 0.5 * (res_points.square().sum(1) + res_parts.square().sum(1)), hessian, total[..., 0]


def solve(pose: Pose, observed: Observed, skeleton: Skeleton, near: Tensor | None = None, iterations: int = 12) -> Pose:
    """Levenberg-Marquardt; every frame has its own damping and keeps only steps that lower its cost."""
    damping = torch.full((len(pose.transl),), 1e-2)
    cost, hessian, gradient = normal_equations(pose, observed, skeleton, near)
    for _ in range(iterations):
        damped = hessian + torch.diag_embed(damping[:, None] * hessian.diagonal(dim1=1, dim2=2))
        step = -torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(damped))[..., 0]
        turns = rotation_matrices(step[:, :-3].unflatten(1, (-1, 3)))
        trial = Pose(pose.rotations @ turns, pose.transl + step[:, -3:])
        new = normal_equations(trial, observed, skeleton, near)
        better = new[0] < cost

        def keep(old: Tensor, fresh: Tensor, better: Tensor = better) -> Tensor:
            return torch.where(better.reshape(-1, *[1] * (old.ndim - 1)), fresh, old)

        pose = Pose(keep(pose.rotations, trial.rotations), keep(pose.transl, trial.transl))
        cost, hessian, gradient = keep(cost, new[0]), keep(hessian, new[1]), keep(gradient, new[2])
        damping = torch.where(better, damping / 3, damping * 5).clamp(1e-6, 1e6)
    return pose


def first_guess(observed: Observed, skeleton: Skeleton) -> Pose:
    """A start with every limb along its source's and every hinge at right angles to its limb: no twist is far off."""
    index = {name: k for k, name in enumerate(POINTS)}
    G = torch.eye(3).repeat(len(observed.points), len(NAMES), 1, 1)

    def part(name: str, otherwise: Tensor) -> Tensor:
        k = PARTS.index(name)
        return observed.parts[:, k] if observed.known[k] else otherwise

    def between(a: Tensor, b: Tensor, share: float) -> Tensor:
        return a @ roma.rotvec_to_rotmat(roma.rotmat_to_rotvec(a.mT @ b) * share)

    pelvis = part("pelvis", G[:, 0])
    chest = part("spine3", pelvis)
    head = part("head", chest)
    for name, value in {
        "pelvis": pelvis, "spine1": between(pelvis, chest, 1 / 3), "spine2": between(pelvis, chest, 2 / 3),
        "spine3": chest, "left_collar": chest, "right_collar": chest, "neck": between(chest, head, 0.5), "head": head,
    }.items():  # fmt: skip
        G[:, NAMES.index(name)] = value

    for side in ("left", "right"):
        for chain, end in ((("hip", "knee", "ankle"), "foot"), (("shoulder", "elbow", "wrist"), "")):
            joints = [NAMES.index(f"{side}_{n}") for n in chain]
            top, middle, bottom = (observed.points[:, index[f"{side[0].upper()}{n.capitalize()}"]] for n in chain)
            upper, lower = normalize(middle - top, dim=-1), normalize(bottom - middle, dim=-1)
            rest_upper, rest_lower = normalize(skeleton.rest[joints[1:]] - skeleton.rest[joints[:-1]], dim=-1)
            axis_index, sign = HINGES[f"{side}_{chain[1]}"]
            axis = sign * torch.eye(3)[axis_index]
            above = G[:, PARENTS[joints[0]]]
            untwisted = shortest_rotation(above @ rest_upper, upper) @ above
            # The bent limb shows its hinge (the cross product, as long as the bend's sine); the straight one takes
            # the source's.
            hinge = torch.linalg.cross(upper, lower) + 0.3 * part(f"{side}_{chain[0]}", untwisted) @ axis
            G[:, joints[0]] = _frame(upper, hinge) @ _frame(rest_upper, axis).mT
            G[:, joints[1]] = _frame(lower, hinge) @ _frame(rest_lower, axis).mT
            G[:, joints[2]] = part(f"{side}_{chain[2]}", G[:, joints[1]])
            if end:
                G[:, NAMES.index(f"{side}_{end}")] = G[:, joints[2]]
    local = G.clone()
    for j, parent in enumerate(PARENTS):
        if parent >= 0:
            local[:, j] = G[:, parent].mT @ G[:, j]
    hips = observed.points[:, [index["LHip"], index["RHip"]]].mean(1)
    below = skeleton.rest[[NAMES.index("left_hip"), NAMES.index("right_hip")]].mean(0) - skeleton.rest[0]
    return Pose(local, hips - pelvis @ below - skeleton.rest[0])


def _frame(along: Float[Tensor, "*B 3"], beside: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Orthonormal axes as columns: `along` (unit), the part of `beside` at right angles to it, their cross product."""
    beside = normalize(beside - (beside * along).sum(-1, keepdim=True) * along, dim=-1)
    return torch.stack([along, beside, torch.linalg.cross(along, beside)], -1)


def fit_skeleton(observed: Observed, rest: Float[Tensor, "22 3"], rounds: int = 6) -> Skeleton:
    """The body with this source's proportions, symmetric, from some of its frames.

    Limbs, hip width and torso length are the source's medians. Shoulders and loose points are moved by what the poses
    leave unexplained, round by round. The middle of the hips and the orientation of pelvis, chest and head (from the
    source's own joints) pin down what would otherwise trade against a tilt.
    """
    index = {name: k for k, name in enumerate(POINTS)}

    def middle(a: str, b: str) -> Tensor:
        return (observed.points[:, index[a]] + observed.points[:, index[b]]) / 2

    def median_length(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm(dim=-1).median())

    joint = {name: j for j, name in enumerate(NAMES)}
    local = rest - rest[[max(p, 0) for p in PARENTS]]  # bones; the root's is zero
    shoulders = rest[[joint["left_shoulder"], joint["right_shoulder"]]].mean(0)
    hips = rest[[joint["left_hip"], joint["right_hip"]]].mean(0)
    torso = median_length(middle("LShoulder", "RShoulder"), middle("LHip", "RHip")) / float((shoulders - hips).norm())
    for name, j in joint.items():
        if not name.startswith(("left", "right")) or name.endswith("collar"):
            local[j] = local[j] * torso
    for left, right in (("LHip", "RHip"), ("LShoulder", "RShoulder")):
        source = median_length(observed.points[:, index[left]], observed.points[:, index[right]])
        a, b = (joint[POINTS[n][1]] for n in (left, right))
        own = float((rest[a] - rest[b]).norm())
        local[a, 0] += (source - own) / 2
        local[b, 0] -= (source - own) / 2
    for upper, lower in (("Hip", "Knee"), ("Knee", "Ankle"), ("Shoulder", "Elbow"), ("Elbow", "Wrist")):
        ends = [(observed.points[:, index[s + upper]], observed.points[:, index[s + lower]]) for s in "LR"]
        length = sum(median_length(a, b) for a, b in ends) / 2
        for s in "LR":
            j = joint[POINTS[s + lower][1]]
            local[j] = normalize(local[j], dim=-1) * length

    offsets = torch.zeros(len(POINTS), 3)
    offsets[index["Nose"]], offsets[index["HeadTop"]] = torch.tensor([0, 0.05, 0.12]), torch.tensor([0, 0.18, 0.0])
    loose = torch.tensor([p[3] for p in POINTS.values()])
    flip = torch.tensor([-1.0, 1.0, 1.0])
    skeleton = Skeleton(_chain(local, rest[0]), offsets)
    pose = first_guess(observed, skeleton)
    for _ in range(rounds):
        pose = solve(pose, observed, skeleton, iterations=6)
        G, _, points = pose_skeleton(pose, skeleton)
        left_over = (observed.points - points)[..., None]
        move = (G[:, CARRIER].mT @ left_over)[..., 0].median(0).values
        offsets = offsets + torch.where(loose[:, None], move * torch.tensor([0.0, 1.0, 1.0]), 0.0)
        # A shoulder hangs on its collar: what is left over in the chest's frame, the same on both sides.
        in_chest = (G[:, joint["spine3"], None].mT @ left_over)[..., 0].median(0).values
        left, right = in_chest[index["LShoulder"]], in_chest[index["RShoulder"]]
        shift = (left + flip * right) / 2
        local[joint["left_shoulder"]] += shift
        local[joint["right_shoulder"]] += flip * shift
        skeleton = Skeleton(_chain(local, rest[0]), offsets)
    return skeleton


def _chain(bones: Float[Tensor, "22 3"], root: Float[Tensor, "3"]) -> Float[Tensor, "22 3"]:
    joints = [root]
    for j, parent in enumerate(PARENTS[1:], start=1):
        joints.append(joints[parent] + bones[j])
    return torch.stack(joints)


def neighbours(rotations: Float[Tensor, "N 22 3 3"], clip: Sequence[int]) -> Float[Tensor, "N 22 3 3"]:
    """Half way between the frames before and after; at the ends of a clip, the one neighbour there is."""
    clips = torch.as_tensor(clip)
    same = clips[1:] == clips[:-1]
    here = torch.arange(len(clips))
    before = torch.where(torch.cat([torch.tensor([False]), same]), here - 1, here)
    after = torch.where(torch.cat([same, torch.tensor([False])]), here + 1, here)
    before, after = torch.where(before == here, after, before), torch.where(after == here, before, after)
    a, b = rotations[before], rotations[after]
    return a @ roma.rotvec_to_rotmat(roma.rotmat_to_rotvec(a.mT @ b) / 2)


def plausible(pose: Float[np.ndarray, "N 22 3"]) -> Bool[np.ndarray, " N"]:
    """Whether all joints of a frame (rotation vectors) stay within `FURTHEST`."""
    limit = np.radians([FURTHEST.get(name.split("_")[-1], 180) for name in NAMES])
    return (np.linalg.norm(pose, axis=-1)[:, 1:] <= limit[1:]).all(1)


def rest_joints(body: Path) -> Float[Tensor, "22 3"]:
    """Rest positions (metres) of the first 22 joints of a body file in the SMPL-X layout, at mean shape."""
    with np.load(body, allow_pickle=False) as file:
        joints = file["J_template"] if "J_template" in file.files else file["J_regressor"] @ file["v_template"]
    return torch.from_numpy(np.asarray(joints, dtype=np.float32)[: len(NAMES)])


def retarget(
    clips: Sequence[Clip], rest: Float[Tensor, "22 3"], step: int, progress: tqdm
) -> tuple[Pose, Skeleton, Float[Tensor, "N P 3"], Float[Tensor, "N P"]]:
    """All clips of one source skeleton: poses, skeleton, the source's points and the distances to them (metres)."""
    views = [observe(clip, step) for clip in clips]
    observed = Observed(torch.cat([v.points for v in views]), torch.cat([v.parts for v in views]), views[0].known)
    total = len(observed.points)
    some = torch.linspace(0, total - 1, min(total, 400)).long()
    skeleton = fit_skeleton(observed[some], rest)

    chunks = [slice(i, i + CHUNK) for i in range(0, total, CHUNK)]
    poses = []
    for chunk in chunks:
        poses.append(solve(first_guess(observed[chunk], skeleton), observed[chunk], skeleton))
        progress.update(len(observed[chunk].points))
    pose = cat(poses)
    near = neighbours(pose.rotations, np.repeat(np.arange(len(views)), [len(v.points) for v in views]).tolist())
    poses = []
    for chunk in chunks:
        poses.append(solve(pose[chunk], observed[chunk], skeleton, near[chunk], iterations=4))
        progress.update(len(observed[chunk].points))
    pose = cat(poses)
    points = pose_skeleton(pose, skeleton)[2]
    return pose, skeleton, observed.points, (points - observed.points).norm(dim=-1)


def main(
    mocap: Annotated[Path, tyro.conf.Positional],
    out: Path = Path("data/retargeted.npz"),
    body: Path = Path(__file__).parents[1] / "body3d/body/open_body.npz",
    fps: float = 15.0,
) -> None:
    """Retarget every clip of a mocap folder.

    Args:
        mocap: folder of the clips and their index.csv.
        out: the npz to write: `pose` (N, 22, 3) rotation vectors, `transl` (N, 3) metres for the standard body,
            `plausible` (N,) false where a joint is turned impossibly far, `points` (N, 16, 3) the source's points in
            metres, `clip` (N,) the clip of each frame, and per clip `clip_id`, `subject`, `source`, `licence`.
        body: body file in the SMPL-X layout whose joints are used.
        fps: frames per second to keep.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    rest = rest_joints(body)
    infos = clip_index(mocap)
    groups: dict[tuple, list[int]] = {}  # clips on the same skeleton, proportions included
    for i, info in enumerate(infos):
        clip = read_clip(info)
        groups.setdefault((info.source, clip.joint_names, clip.offsets.numpy().tobytes()), []).append(i)

    results: dict[int, tuple[Pose, Tensor]] = {}
    total = sum(len(range(0, info.frames, max(round(30 / fps), 1))) for info in infos)
    with tqdm(total=2 * total, unit="frame", file=sys.stderr) as progress:
        for (source, *_), members in groups.items():
            clips = [read_clip(infos[i]) for i in members]
            step = max(round(clips[0].fps / fps), 1)
            pose, skeleton, points, error = retarget(clips, rest, step, progress)
            legs = _leg(rest) / _leg(skeleton.rest)
            # The standard body's pelvis as high above the ground as its legs are long.
            pelvis = (pose.transl + skeleton.rest[0]) * legs - rest[0]
            pose = replace(pose, transl=pelvis)
            start = 0
            for i, clip in zip(members, clips, strict=True):
                frames = slice(start, start := start + len(range(0, len(clip), step)))
                results[i] = (pose[frames], points[frames])
            median = (1000 * error.median(0).values).round().int().tolist()
            worst = 1000 * float(error.max(1).values.quantile(0.99))
            table = " ".join(f"{name} {mm}" for name, mm in zip(POINTS, median, strict=True))
            progress.write(f"{source}, {len(error)} frames, mm: {table}; 99 % of frames within {worst:.0f}")

    order = range(len(infos))
    everything = cat([results[i][0] for i in order])
    pose = roma.rotmat_to_rotvec(everything.rotations).numpy()
    arrays = {
        "pose": pose.astype(np.float16),
        "plausible": plausible(pose),
        "transl": everything.transl.numpy(),
        "points": torch.cat([results[i][1] for i in order]).numpy(),
        "point_names": np.array(list(POINTS)),
        "joint_names": np.array(NAMES),
        "clip": np.repeat(np.arange(len(infos)), [len(results[i][1]) for i in order]).astype(np.int16),
        "clip_id": np.array([info.id for info in infos]),
        "subject": np.array([info.subject for info in infos]),
        "source": np.array([info.source for info in infos]),
        "licence": np.array([info.licence for info in infos]),
        "fps": np.float32(fps),
    }
    with atomic(out) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    megabytes = out.stat().st_size / 1e6
    print(f"{out}: {len(arrays['pose'])} frames of {len(infos)} clips at {fps:g} fps, {megabytes:.1f} MB")
    print(f"{(~arrays['plausible']).sum()} frames are marked as implausible")


def _leg(rest: Float[Tensor, "22 3"]) -> float:
    """Length of hip, knee, ankle in metres."""
    hip, knee, ankle = (rest[NAMES.index(f"left_{n}")] for n in ("hip", "knee", "ankle"))
    return float((hip - knee).norm() + (knee - ankle).norm())


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        sys.exit(f"error: {error}")
