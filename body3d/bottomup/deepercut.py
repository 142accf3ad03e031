"""DeeperCut: DeepCut with a residual network, pairwise terms that look at the image, and a program solved step by step.

Insafutdinov et al., "DeeperCut: A deeper, stronger, and faster multi-person pose estimation model", ECCV 2016. Besides the parts,
the network says at each place where every other part of the same person should be. How well two candidates meet what each says
of the other, in distance and in angle, is how probable it is that they are of one person.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.bottomup.deepcut import (
    Candidates,
    Grouping,
    Labelled,
    Logistic,
    assemble,
    diagonal,
    distance_features,
    fit_logistic,
    objective,
    pair_examples,
    solve,
    stack_logistic,
    symmetric,
    turned,
)
from body3d.codecs.base import Size, from_grid
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.nets.resnet import ResNet, resnet101, resnet152
from body3d.posenet import IMAGENET, Normalise
from body3d.tensors import Tensors
from body3d.types import Keypoints2D

__all__ = [
    "DeeperCut", "ImageModel", "PairStatistics", "PartMaps", "Proposals", "deepercut_loss", "deepercut_r101", "deepercut_r152",
    "fit_image_model", "group", "incremental", "propose", "steps_of",
]  # fmt: skip

REFINE = math.sqrt(53)  # pixels that refinements are in units of, as released
RADIUS = 17.0  # pixels around a part that are the part, of people 340 pixels tall


# ---- the network ---------------------------------------------------------------------------------------------------
class PartMaps(NamedTuple):
    """What the network says at stride 8. `offset[:, c, b]`, c not b, is from a place that is a c to the b of the same person."""

    score: Float[Tensor, "B C h w"]  # logits: within `RADIUS` of the part
    refine: Float[Tensor, "B C 2 h w"]  # from the cell to the part, in units of `REFINE`
    offset: Float[Tensor, "B C C 2 h w"]  # in units of `PairStatistics`; 0 where c is b
    early: Float[Tensor, "B C h w"]  # logits from the middle of the trunk, in training


class DeeperCut(nn.Module):
    """(B, 3, H, W), H and W multiples of 16, to `PartMaps` at stride 8.

    A ResNet whose last stage is dilated instead of strided, and one transposed 3x3 convolution for each kind of output: C parts,
    2 C refinements, 2 C (C - 1) offsets, and once more C parts from the `early` block of the fourth stage (conv4).
    """

    def __init__(self, trunk: ResNet, joints: JointSet, early: int = 12, normalise: Normalise = IMAGENET):
        super().__init__()
        C = len(joints)
        self.trunk, self.joints, self.early, self.normalise = trunk, joints, early, normalise
        self.part, self.refine = _upsampled(trunk.channels, C), _upsampled(trunk.channels, 2 * C)
        self.offset = _upsampled(trunk.channels, 2 * C * (C - 1))
        self.intermediate = _upsampled(trunk.widths[2], C)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> PartMaps:
        trunk, C = self.trunk, len(self.joints)
        x = F.max_pool2d(F.relu(trunk.bn1(trunk.conv1(self.normalise(image)))), 3, 2, 1)
        x = trunk.layer3[: self.early](trunk.layer2(trunk.layer1(x)))
        early = self.intermediate(x)
        x = trunk.layer4(trunk.layer3[self.early :](x))
        offset = self.offset(x).unflatten(1, (C, C - 1, 2))
        # The C - 1 other parts of each part, in their places between the C.
        whole = offset.new_zeros(offset.shape[0], C * C, *offset.shape[3:])
        others = (~torch.eye(C, dtype=torch.bool, device=offset.device)).flatten().nonzero().squeeze(-1)
        whole = whole.index_copy(1, others, offset.flatten(1, 2)).unflatten(1, (C, C))
        return PartMaps(self.part(x), self.refine(x).unflatten(1, (C, 2)), whole, early)


def _upsampled(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)


def deepercut_r101(joints: JointSet) -> DeeperCut:
    return DeeperCut(resnet101(16), joints)


def deepercut_r152(joints: JointSet) -> DeeperCut:
    """The paper's best."""
    return DeeperCut(resnet152(16), joints)


# ---- what it learns ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PairStatistics(Tensors):
    """Of steps from part c to part b of one person, over a data set: what offsets are normalised by."""

    mean: Float[Tensor, "C C 2"]  # pixels
    deviation: Float[Tensor, "C C 2"]

    @staticmethod
    def of(xy: Float[Tensor, "N C 2"], weight: Float[Tensor, "N C"]) -> "PairStatistics":
        step = xy[:, None, :] - xy[:, :, None]
        known = ((weight[:, None, :] > 0) & (weight[:, :, None] > 0)).to(xy).unsqueeze(-1)
        count = known.sum(0).clamp_min(1)
        mean = (step * known).sum(0) / count
        variance = ((step - mean).square() * known).sum(0) / count
        return PairStatistics(mean, torch.where(variance > 0, variance.sqrt(), 1))


def deepercut_loss(
    maps: PartMaps, people: Sequence[Keypoints2D], size: Size, statistics: PairStatistics, radius: float = RADIUS
) -> Float[Tensor, ""]:
    """Cross entropy of the parts (twice: `early` too), and 0.05 times Huber's loss of refinements and of offsets.

    `people`: those of each image, (N, C). A cell within `radius` pixels of a part is that part, of the nearest person; only such
    cells teach refinements and offsets.
    """
    device, grid = maps.score.device, maps.score.shape[-2:]
    targets = [_targets(p.to(device), size, grid, statistics.to(device), radius) for p in people]
    score, refine, offset, known = (torch.stack(t) for t in zip(*targets, strict=True))
    parts = sum(F.binary_cross_entropy_with_logits(logit, score) for logit in (maps.score, maps.early))

    def huber(prediction: Tensor, target: Tensor, where: Tensor) -> Tensor:
        where = where.expand_as(target)
        return (F.huber_loss(prediction, target, reduction="none") * where).sum() / where.sum().clamp_min(1)

    return parts + 0.05 * (huber(maps.refine, refine, score.unsqueeze(2)) + huber(maps.offset, offset, known))


def _targets(
    people: Keypoints2D, size: Size, grid: Sequence[int], statistics: PairStatistics, radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one image: parts (C h w), refinements (C 2 h w), offsets (C C 2 h w) and where those are known (C C 1 h w)."""
    h, w = grid
    place = cells((h, w), size).to(people.xy)  # (h w 2)
    xy, there = people.xy, people.conf > 0
    N, C = there.shape
    if N == 0:
        zeros = lambda *shape: xy.new_zeros(*shape, h, w)
        return zeros(C), zeros(C, 2), zeros(C, C, 2), zeros(C, C, 1)
    step = xy[:, :, None, None] - place  # (N C h w 2)
    distance = torch.where(there[..., None, None], step.norm(dim=-1), torch.inf)
    near, whose = distance.min(0)
    score = (near <= radius).to(xy)
    index = whose[None, ..., None].expand(1, C, h, w, 2)
    refine = torch.where(score.unsqueeze(-1) > 0, step.gather(0, index)[0], 0) / REFINE
    # From each cell of part c to every part b of the person whose part it is.
    target = xy[whose]  # (C h w C 2)
    offset = (target - place[:, :, None]).permute(0, 3, 4, 1, 2)
    offset = (offset - statistics.mean[..., None, None]) / statistics.deviation[..., None, None]
    other = ~torch.eye(C, dtype=torch.bool, device=xy.device)
    known = there[whose].permute(0, 3, 1, 2) & other[..., None, None] & (score > 0).unsqueeze(1)
    known = known.unsqueeze(2)
    return score, refine.permute(0, 3, 1, 2), torch.where(known, offset, 0), known.to(xy)


def cells(grid: Size, size: Size) -> Float[Tensor, "h w 2"]:
    """The pixels in the middle of the cells."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return from_grid(torch.stack([x, y], -1).float(), grid, size)


# ---- candidates ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Proposals(Candidates):
    cell: Float[Tensor, "D 2"]  # pixels: where the network said all this
    offset: Float[Tensor, "D C C 2"]  # pixels, from the cell: if it is a c, where the b of the same person is


@torch.no_grad()
def propose(
    maps: PartMaps,
    size: Size,
    statistics: PairStatistics,
    per_part: int = 20,
    least: float = 0.2,
    split: float = 0.4,
    reach: int = 3,
) -> Proposals:
    """Candidates of one image (maps of a batch of one): cells that are the best of some part within `reach` cells around.

    Of each part the `per_part` best are taken. Probabilities below `least` count as 0; a cell with two parts or more above `split`
    is taken once for each of them, for they may be of two people. The numbers are the released ones.
    """
    prob = maps.score[0].sigmoid()
    statistics = statistics.to(prob.device)
    C, h, w = prob.shape
    window = 2 * reach + 1
    best = F.max_pool2d(prob[None], window, 1, reach)[0]
    peak = torch.where((prob == best) & (prob >= least), prob, 0).flatten(1)
    value, index = peak.topk(min(per_part, h * w))
    at = index[value > 0].unique()
    scores = prob.flatten(1)[:, at].T
    scores = torch.where(scores >= least, scores, 0)
    # Copies of a candidate, each without the other parts that are likely.
    likely = scores >= split
    several = likely.sum(1) > 1
    rows, part = (likely & several[:, None]).nonzero().unbind(1)
    copies = scores[rows] * ~(likely[rows] & (torch.arange(C, device=part.device) != part[:, None]))
    order = torch.cat([(~several).nonzero().squeeze(1), rows])
    scores, at = torch.cat([scores[~several], copies]), at[order]
    cell = cells((h, w), size).to(prob).flatten(0, 1)[at]
    refine = maps.refine[0].flatten(2)[..., at].permute(2, 0, 1) * REFINE
    offset = maps.offset[0].flatten(3)[..., at].permute(3, 0, 1, 2) * statistics.deviation + statistics.mean
    return Proposals(cell[:, None] + refine, scores, cell, offset)


# ---- probabilities of pairs ----------------------------------------------------------------------------------------
def image_features(
    forward: Float[Tensor, "*B 2"],
    said_forward: Float[Tensor, "*B 2"],
    backward: Float[Tensor, "*B 2"],
    said_backward: Float[Tensor, "*B 2"],
) -> Float[Tensor, "*B 8"]:
    """Distance and angle between where the one candidate is and where the other says it is, both ways, and exp(-) of all four."""
    pairs = ((forward, said_forward), (backward, said_backward))
    angle = lambda v: torch.atan2(v[..., 1], v[..., 0])
    four = [f for real, said in pairs for f in ((real - said).norm(dim=-1), turned(angle(real) - angle(said)).abs())]
    features = torch.stack(four, -1)
    return torch.cat([features, torch.exp(-features)], -1)


@dataclass(frozen=True)
class ImageModel(Tensors):
    """p_dd'cc' from what the network says at the candidates."""

    other: Logistic  # (C, C): parts that differ, of which the first is the lower
    same: Logistic  # (C)

    def probability(self, proposals: Proposals) -> Float[Tensor, "D D C C"]:
        step = (
            proposals.xy[None] - proposals.cell[:, None, None]
        )  # (D, E, B 2): from a cell to another candidate as a b
        forward = step[:, :, None].expand(-1, -1, proposals.prob.shape[1], -1, -1)
        backward = step.transpose(0, 1)[:, :, :, None].expand_as(forward)
        said_forward = proposals.offset[:, None].expand_as(forward)
        said_backward = proposals.offset.transpose(1, 2)[None].expand_as(forward)
        features = image_features(forward, said_forward, backward, said_backward)
        apart = proposals.xy[None, :, None] - proposals.xy[:, None, :, None]
        return symmetric(self.other(features), self.same(distance_features(diagonal(apart))))


def fit_image_model(
    scenes: Sequence[tuple[Proposals, Int[Tensor, " _"], Int[Tensor, " _"]]], kinds: int, C: float = 1.0
) -> ImageModel:
    """Learn from candidates of annotated images, and which part of which person each is (those that are none, left out). On the
    CPU, wherever they are."""
    scenes = [(proposals.to("cpu"), label.cpu(), person.cpu()) for proposals, label, person in scenes]
    nothing = fit_logistic(torch.zeros(0, 8), torch.zeros(0))
    other, same = [nothing] * kinds**2, []
    for c in range(kinds):
        for b in range(c, kinds):
            features, together = [torch.zeros(0, 2 if b == c else 8)], [torch.zeros(0)]
            for proposals, label, person in scenes:
                pairs, ours = pair_examples(Labelled(proposals.cell, label, person), c, b)
                i, j = pairs.unbind(1)
                xy, cell, offset = proposals.xy, proposals.cell, proposals.offset
                if b == c:
                    features.append(distance_features(xy[j, c] - xy[i, c]))
                else:
                    steps = (xy[j, b] - cell[i], offset[i, c, b], xy[i, c] - cell[j], offset[j, b, c])
                    features.append(image_features(*steps))
                together.append(ours)
            model = fit_logistic(torch.cat(features), torch.cat(together), C)
            if b == c:
                same.append(model)
            else:
                other[c * kinds + b] = model
    return ImageModel(stack_logistic(other).map(lambda t: t.unflatten(0, (kinds, kinds))), stack_logistic(same))


# ---- step by step --------------------------------------------------------------------------------------------------
def steps_of(joints: JointSet) -> tuple[tuple[int, ...], ...]:
    """Head and shoulders, then elbows and wrists, then the rest: the paper's three steps."""
    head = ("head", "neck", "thorax", "nose", "eye", "ear", "shoulder")
    arms = ("elbow", "wrist")
    rank = [0 if _has(name, head) else 1 if _has(name, arms) else 2 for name in joints.names]
    return tuple(step for r in range(3) if (step := tuple(i for i, s in enumerate(rank) if s == r)))


def _has(name: str, words: Sequence[str]) -> bool:
    return any(word in words for word in name.split("_"))


def incremental(
    prob: Float[Tensor, "D C"],
    pair: Float[Tensor, "D D C C"],
    steps: Sequence[Sequence[int]],
    time_limit: float | None = None,
) -> Grouping:
    """Solve with the parts of the first step; keep what was found; add candidates for the parts of the next; and so on.

    Labels and persons once found stay. Candidates that were none come back only if they may be one of the new parts. The objective
    is that of the whole program, so it is never below `deepcut.solve`'s.
    """
    label = torch.full((len(prob),), -1, device=prob.device)
    person = torch.full_like(label, -1)
    optimal = True
    parts: list[int] = []
    for step in steps:
        parts += step
        chosen = (label >= 0) | (prob[:, list(step)] > 0).any(1)
        rows = chosen.nonzero().squeeze(-1)
        known = Grouping(label[rows], person[rows], 0.0)
        limited = torch.zeros_like(prob[rows])
        limited[:, parts] = prob[rows][:, parts]
        found = solve(limited, pair[rows][:, rows], known=known, time_limit=time_limit)
        label[rows], person[rows] = found.label, found.person
        optimal = optimal and found.optimal
    return Grouping(label, person, objective(prob, pair, label, person), optimal)


def group(
    proposals: Proposals, model: ImageModel, joints: JointSet, least: int = 3, time_limit: float | None = None
) -> Keypoints2D:
    """The people of an image, those with the most confidence first: (N, C). People of fewer than `least` parts are left out."""
    if proposals.prob.shape[1] != len(joints):
        raise InputError(
            f"the candidates are of {proposals.prob.shape[1]} kinds, {joints.name} has {len(joints)} joints"
        )
    pair = model.to(proposals.prob.device).probability(proposals)
    grouping = incremental(proposals.prob, pair, steps_of(joints), time_limit)
    return assemble(proposals, grouping, joints, least)
