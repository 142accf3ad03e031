"""Where a fit starts: which way the person faces, where they stand, how a given 3D pose bends them; and which starts go on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.fit.given import TORSO, Given3D
from body3d.fit.problem import STANDING_HEIGHT, SWAPS, Problem, Solver, Stage
from body3d.fit.terms import Target
from body3d.tensors import Tensors

# Turns a body (y up, facing +z) so that it stands upright in camera axes (y down) and faces the camera.
FACING = (math.pi, 0.0, 0.0)


def facing(yaws: Float[Tensor, " R"]) -> Float[Tensor, "R 3"]:
    """Root rotation vectors of an upright body turned about its own vertical axis; 0 faces the camera."""
    flip = roma.rotvec_to_rotmat(torch.tensor([FACING], dtype=yaws.dtype, device=yaws.device))
    turn = roma.rotvec_to_rotmat(torch.stack([torch.zeros_like(yaws), yaws, torch.zeros_like(yaws)], -1))
    return roma.rotmat_to_rotvec(flip @ turn)


def kabsch(
    source: Float[Tensor, "*B J 3"], target: Float[Tensor, "*B J 3"], weight: Float[Tensor, "*B J"]
) -> Float[Tensor, "*B 3"]:
    """The rotation vector that best turns `source` onto `target` (both about their weighted means)."""
    w = (weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)).unsqueeze(-1)
    s = source - (w * source).sum(-2, keepdim=True)
    t = target - (w * target).sum(-2, keepdim=True)
    return roma.rotmat_to_rotvec(roma.special_procrustes((w * t).mT @ s))


def translation(
    points: Float[Tensor, "B K 3"], xy: Float[Tensor, "B K 2"], weight: Float[Tensor, "B K"], K: Float[Tensor, "3 3"]
) -> Float[Tensor, "B 3"]:
    """The translation (m) that brings the points closest to their pixels: linear least squares in the equations
    f (X + tx) = u (Z + tz), f (Y + ty) = v (Z + tz), with u, v from the principal point.

    Where the answer is behind the camera or very near it (wrong facing, few points), the depth comes from similar triangles.
    """
    uv = torch.linalg.solve(K[:2, :2], (xy - K[:2, 2]).mT).mT
    w = weight.sqrt()[..., None]
    one, zero = torch.ones_like(w), torch.zeros_like(w)
    A = torch.cat([torch.cat([one, zero, -uv[..., :1]], -1) * w, torch.cat([zero, one, -uv[..., 1:]], -1) * w], 1)
    b = torch.cat(
        [(uv[..., :1] * points[..., 2:] - points[..., :1]) * w, (uv[..., 1:] * points[..., 2:] - points[..., 1:2]) * w],
        1,
    )
    eye = torch.eye(3).to(points)
    t = torch.linalg.solve(A.mT @ A + 1e-9 * eye, A.mT @ b)[..., 0]

    spread = lambda p: ((weight[..., None] * (p - _mean(p, weight)).square()).sum((-2, -1)) / weight.sum(-1)).sqrt()
    depth = (spread(points[..., :2]) / spread(uv).clamp_min(1e-9)).clamp(0.3, 1000.0)
    centre = _mean(uv, weight)[:, 0] * depth[:, None] - _mean(points, weight)[:, 0, :2]
    fallback = torch.cat([centre, depth[:, None] - _mean(points, weight)[:, 0, 2:]], -1)
    usable = t.isfinite().all(-1) & (t[:, 2] > 0.4 * depth) & (t[:, 2] < 2.5 * depth)
    return torch.where(usable[:, None], t, fallback)


def _mean(points: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None] * points).sum(-2, keepdim=True) / weight.sum(-1)[:, None, None].clamp_min(1e-12)


def robust_translation(
    points: Float[Tensor, "B K 3"], xy: Float[Tensor, "B K 2"], weight: Float[Tensor, "B K"], K: Float[Tensor, "3 3"]
) -> Float[Tensor, "B 3"]:
    """`translation` that a few wrong points do not lead astray.

    The first guess comes from medians; points that are far off count ever less (Geman and McClure, at twice the median).
    """
    uv = torch.linalg.solve(K[:2, :2], (xy - K[:2, 2]).mT).mT
    middle = lambda p: torch.where(weight.unsqueeze(-1) > 0, p, torch.nan).nanmedian(1, keepdim=True).values
    size = lambda p: middle((p - middle(p)).norm(dim=-1, keepdim=True))
    depth = (size(points[..., :2]) / size(uv).clamp_min(1e-9)).clamp(0.3, 1000.0)  # (B, 1, 1)
    t = torch.cat([middle(uv) * depth - middle(points[..., :2]), depth - middle(points[..., 2:])], -1)[:, 0]
    for _ in range(4):
        moved = points + t.unsqueeze(1)
        off = (moved[..., :2] / moved[..., 2:].clamp_min(0.1) - uv).norm(dim=-1)
        usual = middle(off.unsqueeze(-1))[..., 0].clamp_min(1e-4)
        t = translation(points, xy, weight * (1 + (off / (2 * usual)).square()) ** -2, K)
    return t


@dataclass(frozen=True)
class Rows(Tensors):
    """Rows of unknowns, sorted by person."""

    x: Float[Tensor, "B D"]
    people: Int[Tensor, " B"]
    person_px: Float[Tensor, " B"]  # the height in pixels of a standing adult where the person is
    start: Int[Tensor, " B"]  # which start the row comes from
    swap: Int[Tensor, " B"]  # see `Problem`
    belief: Float[Tensor, " B"]  # in the person's keypoints: what their confidences are multiplied with
    cost: Float[Tensor, " B"]
    iterations: Int[Tensor, " B"]

    @staticmethod
    def of(x: Float[Tensor, "B D"], people: Int[Tensor, " B"], start: Int[Tensor, " B"]) -> "Rows":
        zero, one = torch.zeros_like(people), torch.ones_like(x[:, 0])
        return Rows(x, people, one, start, zero, one, 0 * one, zero)

    def with_rows(self, more: "Rows") -> "Rows":
        """Both together, sorted by person again."""
        both = Rows(*(torch.cat([getattr(self, f.name), getattr(more, f.name)]) for f in fields(self)))
        return both[both.people.argsort(stable=True)]

    def target(self, problem: Problem) -> Target:
        return problem.target(self.people, self.person_px, self.swap, self.belief)

    def minimised(self, problem: Problem, stage: Stage, iterations: int, solver: Solver) -> tuple["Rows", Tensor]:
        """The rows at a minimum of a stage, and which of them have converged. `problem` is the stage's own (`Problem.seen`)."""
        out = problem.minimise(self.x, self.target(problem), stage, iterations, solver=solver)
        # A limb with left and right exchanged must explain the keypoints clearly better.
        cost = out.cost + SWAP_COST * self.belief.square() * (self.swap > 0)
        return replace(self, x=out.x, cost=cost, iterations=self.iterations + out.iterations), out.converged


# What taking left for right must gain, in the objective's unit, in which one keypoint that cannot be explained costs 600 at most.
SWAP_COST = 150.0


def facing_rows(problem: Problem, yaws: int, given: Sequence[Given3D]) -> tuple[Rows, list[str]]:
    """The mean pose turned to `yaws` sides and to each given 3D pose, for every person; and what the starts are called."""
    people, like = len(problem.xy), problem.xy
    angles = torch.arange(yaws).to(like) * (2 * math.pi / yaws)
    labels = [f"facing {round(math.degrees(a))}°" for a in angles.tolist()]
    mean = torch.zeros(1, len(problem.unknowns)).to(like)
    mean[:, problem.unknowns.slices["body"]] = problem.prior.mean_pose(problem.unknowns.body_joints).flatten()
    orient = [facing(angles).expand(people, -1, -1)]
    for s, source in enumerate(given):
        if s in problem.source:
            orient.append(_turned_to_given(problem, mean, s)[:, None])
            labels.append(source.name)
    turned = torch.cat(orient, 1)
    x = mean.repeat(people * len(labels), 1)
    x[:, problem.unknowns.slices["orient"]] = turned.reshape(-1, 3)
    who = torch.arange(people, device=like.device).repeat_interleave(len(labels))
    return Rows.of(x, who, torch.arange(len(labels), device=like.device).repeat(people)), labels


def _turned_to_given(problem: Problem, mean: Float[Tensor, "1 D"], source: int) -> Float[Tensor, "N 3"]:
    """The root rotation that turns the mean pose's torso onto a source's directions; towards the camera if it says nothing."""
    rows = [m for m, s in enumerate(problem.source) if s == source]
    torso = [m for m in rows if problem.bones[problem.stated[m]] in TORSO] or rows
    own = (problem.bone_mix @ problem.points(problem.unknowns.params(mean)))[:, [problem.stated[m] for m in torso]]
    own = own / own.norm(dim=-1, keepdim=True)
    # Kabsch on directions: each bone and its opposite, so that their mean is the origin.
    pair = lambda d: torch.cat([d, -d], 1)
    weight = problem.given.conf[:, torso]
    silent = weight.amax(1) <= 0
    to = torch.where(silent[:, None, None], -own, problem.given.bones[:, torso])
    weight = torch.cat([weight, weight], 1).clamp_min(1e-3)
    found = kabsch(pair(own).expand(len(weight), -1, -1), pair(to), weight)
    return torch.where(silent[:, None], torch.tensor(FACING).to(found), found)


def bent_rows(
    problem: Problem, rows: Rows, stage: Stage, given: Sequence[Given3D], labels: list[str]
) -> tuple[Rows | None, list[str]]:
    """The starts that are turned to a source with deviations, each joint bent to it as well; and the longer list of names.

    `stage` weighs the given directions against the pose prior; keypoints do not count in it.
    """
    sure = [labels.index(source.name) for source in given if source.sigma is not None and source.name in labels]
    rows = rows[torch.isin(rows.start, torch.tensor(sure, device=rows.start.device))]
    if not sure:
        return None, labels
    blind = problem.seen(stage)
    target = blind.target(rows.people, torch.ones_like(rows.cost))
    out = blind.minimise(rows.x, target, stage, 20, ("orient", "body", "lean"))
    place = torch.tensor([sure.index(s) if s in sure else 0 for s in range(len(labels))], device=rows.start.device)
    bent = replace(rows, x=out.x, start=len(labels) + place[rows.start])
    return bent, [*labels, *(f"bent to {labels[s]}" for s in sure)]


def placed(problem: Problem, rows: Rows, stage: Stage, solver: Solver) -> Rows:
    """The camera step: rows moved to where they cover their keypoints, with each person's height in pixels."""
    conf = torch.where(problem.is_body, problem.conf, 0.0)[rows.people]
    x = rows.x.clone()
    where = robust_translation(problem.keypoints_3d(x), problem.xy[rows.people], conf, problem.camera.K)
    x[:, problem.unknowns.slices["transl"]] = where
    counted = problem.seen(stage)
    height_px = lambda x: problem.camera.K[1, 1] * STANDING_HEIGHT / _depth(problem, x)
    cost = rows.cost
    for _ in range(2):  # the scale of the residuals follows the depth, which follows the residuals
        out = counted.minimise(x, counted.target(rows.people, height_px(x)), stage, 30, ("orient", "transl"), solver)
        x, cost = out.x, out.cost
    # One scale per person, or the costs of its starts could not be compared: that of the best start.
    best = best_rows(cost, problem.keypoints_3d(x), rows.people, 1)
    return replace(rows, x=x, cost=cost, person_px=height_px(x[best])[rows.people])


def _depth(problem: Problem, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    return problem.keypoints_3d(x)[..., 2].mean(-1).clamp_min(0.1)


def swapped_rows(problem: Problem, rows: Rows) -> list[Rows]:
    """Each person's row once more for every limb whose left and right may have been taken for each other: both are known, and
    one of their keypoints lies far from the body's."""
    known = problem.conf[rows.people] > 0
    off = (problem.camera.project(problem.keypoints_3d(rows.x)) - problem.xy[rows.people]).norm(dim=-1)
    far = off > DOUBTFUL * rows.person_px.unsqueeze(-1)
    out = []
    for k, columns in enumerate(problem.columns):
        moved = columns != problem.columns[0]
        doubted = (known & known[:, columns] & far)[:, moved].any(1)
        if bool(doubted.any()):
            out.append(replace(rows[doubted], swap=torch.full_like(rows.swap[doubted], k)))
    return out


DOUBTFUL = 0.04  # of a standing person's height: keypoints further off make one think of left and right


def with_belief(problem: Problem, rows: Rows, usual: float) -> Rows:
    """The rows with the belief that each person's keypoints deserve: `usual` over the median residual of their best row."""
    points = problem.keypoints_3d(rows.x)
    best = best_rows(rows.cost, points, rows.people, 1)
    target = rows[best].target(problem)
    off = (problem.camera.project(points[best]) - target.xy).norm(dim=-1) / target.person_px.unsqueeze(-1)
    counts = (target.conf > 0) & problem.is_body & ~problem.is_ignored
    middle = torch.where(counts, off, torch.nan).nanmedian(-1).values.nan_to_num(usual)
    belief = (usual / middle.clamp_min(1e-6)).clamp(*BELIEF)
    return replace(rows, belief=belief[rows.people])


BELIEF = (0.4, 2.5)  # the keypoints of a fit err by 5 % and by 0.8 % of the person then
DIFFERENT = 0.05  # metres: two solutions further apart than this are not the same one


def _differ(a: Float[Tensor, "*#B K 3"], b: Float[Tensor, "*#B K 3"]) -> Float[Tensor, "*B"]:
    """Mean distance (m) of two poses' points about their own middles."""
    centred = lambda p: p - p.mean(-2, keepdim=True)
    return (centred(a) - centred(b)).norm(dim=-1).mean(-1)


def by_person(people: Int[Tensor, " B"]) -> Int[Tensor, "N R"]:
    """The rows of each person, -1 after the last; `people` is sorted."""
    _, counts = people.unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    place = torch.arange(int(counts.max()), device=people.device).expand(len(counts), -1)
    return torch.where(place < counts[:, None], first[:, None] + place, -1)


def best_rows(
    cost: Float[Tensor, " B"], points: Float[Tensor, "B K 3"], people: Int[Tensor, " B"], keep: int
) -> Int[Tensor, " C"]:
    """For each person the row of least cost, then up to `keep` - 1 more rows that differ from those already taken."""
    rows = by_person(people)
    left = torch.where(rows >= 0, cost[rows], torch.inf).nan_to_num(torch.inf, torch.inf)
    taken = []
    for k in range(min(keep, rows.shape[1])):
        best = rows.take_along_dim(left.argmin(1, keepdim=True), 1)
        taken.append(torch.where(left.isfinite().any(1, keepdim=True) | (k == 0), best, -1))
        same = _differ(points[rows], points[best]) <= DIFFERENT
        left = torch.where(same, torch.inf, left)
    out = torch.cat(taken, 1).flatten()
    return out[out >= 0]


def ambiguities(
    cost: Float[Tensor, " B"], points: Float[Tensor, "B K 3"], people: Int[Tensor, " B"], best: Int[Tensor, " N"]
) -> list[float | None]:
    """Per person: by which part of the best cost the best clearly different solution is worse; None if there is none."""
    rows = by_person(people)
    other = (rows >= 0) & (_differ(points[rows], points[best].unsqueeze(1)) > DIFFERENT)
    gap = torch.where(other, cost[rows], torch.inf).amin(1) / cost[best] - 1
    return [g if math.isfinite(g) else None for g in gap.tolist()]


def start_name(labels: Sequence[str], start: int, swap: int) -> str:
    return labels[start] + (f", left and right {list(SWAPS)[swap - 1]} exchanged" if swap else "")
