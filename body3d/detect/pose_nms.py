"""Pose NMS and proposals that follow poses: what RMPE does before and after its network.

Fang et al., "RMPE: Regional multi-person pose estimation", ICCV 2017. A detector finds the same person several times; NMS of poses
keeps the best and drops (or merges) those similar to it. In training, boxes are drawn as a detector would have drawn them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.types import Detections, Keypoints2D

__all__ = [
    "Kept", "PaperRule", "Proposals", "RELEASED_PROPOSALS", "ReleasedRule", "atomic_poses", "fit_proposals", "merge_detections",
    "pose_nms",
]  # fmt: skip


# ---- which poses are the same person -------------------------------------------------------------------------------
@dataclass(frozen=True)
class PaperRule:
    """A pose is dropped if its similarity to a better one, K + `mu` H, reaches `eta` (the paper's elimination rule).

    K sums tanh(c_i / delta1) tanh(c_j / delta1) over the joints of the one pose that lie in the box around the same joint of the
    other, a tenth of the person's box wide and high; H sums exp(-d^2 / delta2). The paper writes that poses are dropped when a
    distance falls below eta, but both terms are similarities. It fits the four numbers to a validation set and does not print
    them: there are no defaults. Poses that are dropped are not merged.
    """

    delta1: float
    delta2: float  # pixels^2
    mu: float
    eta: float
    reference: float = 0.1  # sides of the boxes around joints, in sides of the person's
    least: float = 0.0  # a pose whose best joint is below is no person
    merge: float = 0.0  # pixels: nothing is merged

    def same(self, xy: Tensor, conf: Tensor, boxes: Tensor, best: int) -> Bool[Tensor, " N"]:
        step = xy - xy[best]
        inside = (step.abs() <= self.reference / 2 * (boxes[best, 2:] - boxes[best, :2])).all(-1)
        agree = torch.tanh(conf[best] / self.delta1) * torch.tanh(conf / self.delta1) * inside
        near = torch.exp(-step.square().sum(-1) / self.delta2)
        return agree.sum(-1) + self.mu * near.sum(-1) >= self.eta


@dataclass(frozen=True)
class ReleasedRule:
    """As AlphaPose has it for bodies, whose numbers are the defaults.

    H sums exp(-d / delta2) with the distance itself, K counts joints at most one pixel apart, a pose is dropped if the sum exceeds
    `eta` or if `match` joints lie within min(`reference` times the longer side of the better pose's box, 7 pixels), and those
    dropped are merged into the kept one: the mean, by confidence, of the joints within min(that length, `merge` pixels).
    """

    delta1: float = 1.0
    delta2: float = 2.65  # pixels
    mu: float = 1.7
    eta: float = 22.48
    match: int = 5
    reference: float = 0.1
    least: float = 0.3
    merge: float = 15.0

    def same(self, xy: Tensor, conf: Tensor, boxes: Tensor, best: int) -> Bool[Tensor, " N"]:
        distance = (xy - xy[best]).norm(dim=-1)
        agree = torch.tanh(conf[best] / self.delta1) * torch.tanh(conf / self.delta1) * (distance <= 1)
        similarity = agree.sum(-1) + self.mu * torch.exp(-distance / self.delta2).sum(-1)
        reach = (self.reference * (boxes[best, 2:] - boxes[best, :2]).max()).clamp_max(7)
        return (similarity > self.eta) | ((distance <= reach).sum(-1) >= self.match)


@dataclass(frozen=True)
class Kept:
    picked: Int[Tensor, " K"]  # rows of what was given, best first
    xy: Float[Tensor, "K J 2"]
    conf: Float[Tensor, "K J"]


def pose_nms(
    xy: Float[Tensor, "N J 2"],
    conf: Float[Tensor, "N J"],
    boxes: Float[Tensor, "N 4"],
    rule: ReleasedRule | PaperRule = ReleasedRule(),
) -> Kept:
    """Poses in pixels, their joints' confidences and their boxes (x0, y0, x1, y1), to one pose for each person.

    The pose with the best mean confidence is kept, all that are `rule.same` leave with it, and so on. Confidences of 0 count as
    1e-5, as released. None in, none out.
    """
    conf = torch.where(conf == 0, 1e-5, conf)
    mean = conf.mean(-1)
    left = torch.arange(len(xy), device=xy.device)
    picked, places, scores = [], [], []
    while len(left):
        best = int(mean[left].argmax())
        gone = rule.same(xy[left], conf[left], boxes[left], best)
        gone[best] = True
        group, pick = left[gone], left[best]
        left = left[~gone]
        reach = (rule.reference * (boxes[pick, 2:] - boxes[pick, :2]).max()).clamp_max(rule.merge)
        weight = conf[group] * ((xy[group] - xy[pick]).norm(dim=-1) <= reach)
        share = weight / weight.sum(0)
        merged = (weight * share).sum(0)
        if torch.minimum(conf[pick].max(), merged.max()) >= rule.least:
            picked.append(pick)
            places.append((xy[group] * share.unsqueeze(-1)).sum(0))
            scores.append(merged)
    if not picked:
        return Kept(left.new_zeros(0), xy[:0], conf[:0])
    return Kept(torch.stack(picked), torch.stack(places), torch.stack(scores))


def merge_detections(found: Detections, rule: ReleasedRule | PaperRule = ReleasedRule()) -> Detections:
    """The people of one image, each once. The boxes of those kept stay; their scores too."""
    kept = pose_nms(found.keypoints.xy, found.keypoints.conf, found.boxes.xyxy, rule)
    world = None if found.world is None else found.world[kept.picked]
    return Detections(Keypoints2D(kept.xy, kept.conf, found.keypoints.joints), found.boxes[kept.picked], world)


# ---- boxes as a detector would have drawn them ---------------------------------------------------------------------
@dataclass(frozen=True)
class Proposals:
    """P(box of the detector - true box | pose): for each of A atomic poses a mixture of M Gaussians.

    Offsets of x0, y0, x1, y1 are in widths (x) and heights (y) of the true box; variances are diagonal.
    """

    centres: Float[Tensor, "A F"]  # atomic poses, as `atomic_poses` normalises them; F is 0 where there is only one
    weight: Float[Tensor, "A M"]
    mean: Float[Tensor, "A M 4"]
    deviation: Float[Tensor, "A M 4"]

    def atom(self, shape: Float[Tensor, "N F"]) -> Int[Tensor, " N"]:
        """The nearest atomic pose of normalised poses."""
        return torch.cdist(shape, self.centres.to(shape)).argmin(-1)

    def sample(
        self, boxes: Float[Tensor, "N 4"], atom: Int[Tensor, " N"] | None = None, random: torch.Generator | None = None
    ) -> Float[Tensor, "N 4"]:
        """A proposal for each true box whose pose is `atom` (None: the first), as drawn; it may be empty or beside the image."""
        if atom is None:
            atom = torch.zeros(len(boxes), dtype=torch.long)
        part = torch.multinomial(self.weight[atom], 1, generator=random).squeeze(-1) if len(atom) else atom
        noise = torch.randn(len(boxes), 4, generator=random)
        offset = self.mean[atom, part] + self.deviation[atom, part] * noise
        return boxes + offset.to(boxes) * _sides(boxes)


# AlphaPose's: one Gaussian for all poses. It also replaces 15 per cent of the boxes by random parts of them; this does not.
RELEASED_PROPOSALS = Proposals(
    torch.zeros(1, 0),
    torch.ones(1, 1),
    torch.tensor([[[-0.0142, 0.0043, 0.0154, -0.0013]]]),
    torch.tensor([[[0.1158, 0.068, 0.1337, 0.0711]]]),
)


def atomic_poses(people: Keypoints2D) -> Float[Tensor, "N F"]:
    """Poses with torsos of one length, about the middle of the torso; unknown joints are where the others' mean is.

    InputError for people without both shoulders and both hips, or whose shoulders and hips are at one place.
    """
    joints: JointSet = people.joints
    sides = ("left", "right")
    shoulders, hips = (joints.indices([f"{side}_{part}" for side in sides]) for part in ("shoulder", "hip"))
    known = people.conf > 0
    middle = [people.xy[:, rows].mean(1) for rows in (shoulders, hips)]
    length = (middle[0] - middle[1]).norm(dim=-1)
    bad = ~known[:, [*shoulders, *hips]].all(-1) | (length == 0)
    if bad.any():
        raise InputError(
            f"person {int(bad.nonzero()[0])} has no torso: both shoulders and both hips must be known, and apart; leave people "
            "without them out"
        )
    shape = (people.xy - (middle[0] + middle[1]).unsqueeze(1) / 2) / length[:, None, None]
    seen = known.unsqueeze(-1)
    mean = (shape * seen).sum(0) / seen.sum(0).clamp_min(1)
    return torch.where(seen, shape, mean).flatten(1)


def fit_proposals(
    people: Keypoints2D,
    truth: Float[Tensor, "N 4"],
    detected: Float[Tensor, "_ 4"],
    atoms: int = 8,
    components: int = 2,
    seed: int = 0,
) -> Proposals:
    """Learn how a detector's boxes differ from annotated ones, by pose: k-means of the poses, then a mixture for each.

    `detected` are the detector's boxes of the annotated people, in their order, of boxes `truth`. The paper does not print the
    numbers of atomic poses and components. InputError as of `atomic_poses`, for empty true boxes, and for fewer people than atoms.
    """
    if len(truth) < max(atoms, 1) or len(people.xy) != len(truth) or len(detected) != len(truth):
        raise InputError(
            f"got {len(people.xy)} poses, {len(truth)} true and {len(detected)} detected boxes: one of each for at least "
            f"{atoms} people (atoms) was expected"
        )
    if not (truth[:, 2:] > truth[:, :2]).all():
        raise InputError("a true box is empty: x0 < x1 and y0 < y1 was expected")
    shape = atomic_poses(people)
    centres, atom = _kmeans(shape.double(), atoms, seed)
    offsets = ((detected - truth) / _sides(truth)).double()
    everybody = _mixture(offsets, components, seed)
    rows = [atom == a for a in range(atoms)]
    # Too few people for a mixture of their own: that of all.
    fits = [_mixture(offsets[r], components, seed) if r.sum() > 2 * components else everybody for r in rows]
    weight, mean, deviation = (torch.stack(values).float() for values in zip(*fits, strict=True))
    return Proposals(centres.float(), weight, mean, deviation)


def _sides(boxes: Tensor) -> Float[Tensor, "N 4"]:
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _mixture(
    x: Float[Tensor, "N D"], components: int, seed: int, rounds: int = 200
) -> tuple[Float[Tensor, " M"], Float[Tensor, "M D"], Float[Tensor, "M D"]]:
    """Weights, means and deviations by expectation-maximisation, from k-means."""
    share = torch.nn.functional.one_hot(_kmeans(x, components, seed)[1], components).to(x)
    share = 0.9 * share + 0.1 / components
    floor = 1e-6 + 1e-3 * x.var(0, correction=0)
    last = -math.inf
    for _ in range(rounds):
        count = share.sum(0)
        mean = share.T @ x / count[:, None]
        variance = (share.T @ x.square() / count[:, None] - mean.square()).clamp_min(0) + floor
        log = count.log() - math.log(len(x))
        log = log - 0.5 * ((x[:, None] - mean).square() / variance + (2 * math.pi * variance).log()).sum(-1)
        share = log.softmax(-1)
        likelihood = float(log.logsumexp(-1).mean())
        if likelihood - last < 1e-9:
            break
        last = likelihood
    return count / len(x), mean, variance.sqrt()  # type: ignore[possibly-undefined]


def _kmeans(
    x: Float[Tensor, "N D"], k: int, seed: int, rounds: int = 100
) -> tuple[Float[Tensor, "K D"], Int[Tensor, " N"]]:
    """Centres, and whose each point is. Starts from k points far from each other (k-means++); a lost centre stays where it is."""
    random = torch.Generator().manual_seed(seed)
    centres = x[torch.randint(len(x), (1,), generator=random)]
    for _ in range(1, k):
        far = torch.cdist(x, centres).amin(1).square()
        chosen = torch.multinomial(far + 1e-12, 1, generator=random)
        centres = torch.cat([centres, x[chosen]])
    member = torch.cdist(x, centres).argmin(1)
    for _ in range(rounds):
        share = torch.nn.functional.one_hot(member, k).to(x)
        count = share.sum(0)[:, None]
        centres = torch.where(count > 0, share.T @ x / count.clamp_min(1), centres)
        former, member = member, torch.cdist(x, centres).argmin(1)
        if torch.equal(former, member):
            break
    return centres, member
