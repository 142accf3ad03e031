"""OpenPose: heat maps of joints, fields that point along the limbs, and people put together limb by limb.

Cao, Simon, Wei & Sheikh, "Realtime multi-person 2D pose estimation using part affinity fields", CVPR 2017. The matching of all
joints is relaxed to one bipartite matching per limb, and each of those is greedy (sections 2.3 and 2.4). Modules bear the names of
the released Caffe model; people are read as Hzzone/pytorch-openpose reads them, which follows the authors' own Python code.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.bottomup.people import PLUS, fit_frame, labelled, local_maxima, parabola, surest_first
from body3d.checkpoints import filled
from body3d.codecs.base import Size
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.nets3d.orpm import affinity_fields, heat_of_all
from body3d.posenet import Normalise, evaluating
from body3d.skeletons import BODY18
from body3d.types import Keypoints2D

__all__ = [
    "LIMBS", "Candidates", "OpenPose", "PartMaps", "People", "assemble", "candidates", "decode", "find", "from_caffe",
    "limb_scores", "loss", "openpose_body", "targets",
]  # fmt: skip

STRIDE = 8
GREY = 128 / 255  # what surrounds the image; 0 after normalising
NORMALISE = Normalise((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), bgr=True, scale=255 / 256)


def _limbs() -> tuple[tuple[str, str], ...]:
    pairs = []
    for side in ("right", "left"):
        pairs += pairwise(("neck", f"{side}_hip", f"{side}_knee", f"{side}_ankle"))
    for side in ("right", "left"):
        pairs += pairwise(("neck", f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist"))
        pairs.append((f"{side}_shoulder", f"{side}_ear"))
    pairs.append(("neck", "nose"))
    for joint in ("eye", "ear"):
        pairs += [(f"{side}_eye" if joint == "ear" else "nose", f"{side}_{joint}") for side in ("right", "left")]
    return tuple(pairs)


LIMBS = _limbs()  # from, to: in the order of the channels of the fields


def _in_order_of_assembly() -> tuple[tuple[str, str], ...]:
    """Arms, legs, head; last the limbs from shoulders to ears, which begin no person."""
    pairs = [("neck", "right_shoulder"), ("neck", "left_shoulder")]
    for side in ("right", "left"):
        pairs += pairwise((f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist"))
    for side in ("right", "left"):
        pairs += pairwise(("neck", f"{side}_hip", f"{side}_knee", f"{side}_ankle"))
    pairs.append(("neck", "nose"))
    for side in ("right", "left"):
        pairs += pairwise(("nose", f"{side}_eye", f"{side}_ear"))
    return (*pairs, *_NO_BEGINNING)


_NO_BEGINNING = (("right_shoulder", "right_ear"), ("left_shoulder", "left_ear"))
ASSEMBLY = _in_order_of_assembly()


# ---- network -------------------------------------------------------------------------------------------------------
class PartMaps(NamedTuple):
    heat: Float[Tensor, "*B K h w"]  # one per joint; the last is the background's, 1 where no joint is
    fields: Float[Tensor, "*B E 2 h w"]  # one (x, y) per limb of `LIMBS`


class OpenPose(nn.Module):
    """(B, 3, H, W) to one `PartMaps` of H/8 x W/8 per stage, the last being the answer; H and W must be multiples of 8.

    Images as `NORMALISE` makes them. Hzzone's port puts a ReLU after the last heat maps, by an oversight in its list of layers
    without one; paper and Caffe model have none, and neither has this.
    """

    def __init__(self, joints: JointSet = BODY18, limbs: int = len(LIMBS), stages: int = 6, width: int = 128):
        super().__init__()
        self.joints = joints
        maps = len(joints) + 1
        self.model0 = nn.Sequential()
        inputs = 3
        for group, widths in enumerate(_GROUPS, 1):
            if group > 1:
                self.model0.append(nn.MaxPool2d(2))
            for i, outputs in enumerate((*widths, width) if group == 4 else widths, 1):
                _add(self.model0, f"conv{group}_{i}" + "_CPM" * (group == 4 and i > 2), inputs, outputs, 3)
                inputs = outputs
        self.stages = stages
        for stage in range(1, stages + 1):
            for branch, outputs in ((1, 2 * limbs), (2, maps)):
                self.add_module(f"model{stage}_{branch}", _branch(stage, branch, width, 2 * limbs + maps, outputs))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[PartMaps]:
        x = features = self.model0(image)
        out = []
        for stage in range(1, self.stages + 1):
            fields, heat = (self.get_submodule(f"model{stage}_{branch}")(x) for branch in (1, 2))
            out.append(PartMaps(heat, fields.unflatten(1, (-1, 2))))
            x = torch.cat([fields, heat, features], 1)
        return out


# VGG-19 to conv4_2, then what the authors put upon it.
_GROUPS = ((64, 64), (128, 128), (256,) * 4, (512, 512, 256))


def _branch(stage: int, branch: int, width: int, maps: int, outputs: int) -> nn.Sequential:
    net = nn.Sequential()
    if stage == 1:
        sizes = ((width, width, 3), (width, width, 3), (width, width, 3), (width, 512, 1), (512, outputs, 1))
        name = lambda i: f"conv5_{i}_CPM_L{branch}"
    else:
        sizes = ((width + maps, width, 7), *((width, width, 7),) * 4, (width, width, 1), (width, outputs, 1))
        name = lambda i: f"Mconv{i}_stage{stage}_L{branch}"
    for i, (before, after, kernel) in enumerate(sizes, 1):
        _add(net, name(i), before, after, kernel, active=i < len(sizes))
    return net


def _add(to: nn.Sequential, name: str, inputs: int, outputs: int, kernel: int, active: bool = True) -> None:
    to.add_module(name, nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
    if active:
        to.add_module(f"{name}_relu", nn.ReLU(inplace=True))


def from_caffe(state: dict[str, Tensor], net: OpenPose) -> dict[str, Tensor]:
    """A state_dict in the layers' names (`conv4_3_CPM.weight`), with or without the port's `model0.` before them, in ours."""
    layer = lambda key: ".".join(key.split(".")[-2:])
    ours = {layer(key): key for key in net.state_dict()}
    return {ours.get(layer(key), key): value for key, value in state.items()}


def openpose_body(weights: Path | str | None = None) -> OpenPose:
    """18 joints, 19 limbs, 52.3 million weights. `weights`: the released body model in PyTorch (Hzzone's body_pose_model.pth)."""
    net = OpenPose()
    return filled(net, weights, lambda state: from_caffe(state, net))


# ---- training ------------------------------------------------------------------------------------------------------
# The ends of the limbs as joints of their own: limbs are no tree, but each of them is a bone of this set.
_ENDS = JointSet(
    "openpose_limb_ends",
    tuple(f"{joint} {i}{end}" for i, pair in enumerate(LIMBS) for end, joint in zip("ab", pair, strict=True)),
    tuple(parent for i in range(len(LIMBS)) for parent in (-1, 2 * i)),
)


def targets(people: Keypoints2D, size: Size, grid: Size, sigma: float = 7.0, width: float = 1.0) -> PartMaps:
    """The maps that stand for `people` (N, J) of one image of `size` pixels.

    Heat is the highest of everybody's Gaussians, `sigma` pixels wide as released; fields are unit vectors from half a cell before
    a limb to half a cell behind it and within `width` cells of it, the mean where people overlap. A joint whose `conf` is 0 leaves
    no trace, nor do its limbs. InputError unless the joints are `BODY18`: `Keypoints2D.convert` makes the neck.
    """
    if people.joints != BODY18:
        raise InputError(
            f"OpenPose's joints are {BODY18.name}, got {people.joints.name}: convert them (Keypoints2D.convert)"
        )
    xy, known = people.xy, people.conf > 0
    heat = heat_of_all(xy, known, size, grid, sigma * grid[0] / size[0])
    ends = BODY18.indices([joint for pair in LIMBS for joint in pair])
    fields = affinity_fields(xy[:, ends], known[:, ends], size, _ENDS, grid, width)
    return PartMaps(torch.cat([heat, 1 - heat.amax(0, keepdim=True)]), fields)


def loss(
    stages: Sequence[PartMaps],
    people: Sequence[Keypoints2D],
    size: Size,
    unlabelled: Sequence[Float[Tensor, "_ 4"]] | None = None,
) -> Float[Tensor, ""]:
    """Half the sum of squares over all stages, maps and cells, by the number of images (equation 5; Caffe's halves).

    `people` and `unlabelled`: per image, who is labelled, and the boxes of those who are not, where nothing is learnt.
    """
    heat, fields = stages[-1]
    grid = (heat.shape[-2], heat.shape[-1])
    drawn = [targets(p, size, grid) for p in people]
    target = PartMaps(*(torch.stack(maps).to(heat) for maps in zip(*drawn, strict=True)))
    mask = heat.new_ones(len(heat), *grid)
    if unlabelled is not None:
        mask = torch.stack([labelled(boxes, size, grid) for boxes in unlabelled]).to(heat)
    total = heat.new_zeros(())
    for heat, fields in stages:
        total = total + ((heat - target.heat) * mask[:, None]).square().sum()
        total = total + ((fields - target.fields) * mask[:, None, None]).square().sum()
    return total / 2 / len(mask)


# ---- joints --------------------------------------------------------------------------------------------------------
class Candidates(NamedTuple):
    """Peaks of all heat maps, joint by joint, in reading order."""

    xy: Int[Tensor, "P 2"]  # whole cells
    score: Float[Tensor, " P"]
    joint: Int[Tensor, " P"]
    place: Float[Tensor, "P 2"]  # the top of the blurred map around `xy`, between cells


def candidates(heat: Float[Tensor, "J H W"], threshold: float = 0.1, sigma: float = 3.0) -> Candidates:
    """Peaks of the maps after a Gaussian blur that exceed `threshold` there; the score is that of the map itself."""
    smooth = _blurred(heat, sigma)
    joint, y, x = (local_maxima(smooth, PLUS) & (smooth > threshold)).nonzero().unbind(-1)
    xy = torch.stack([x, y], -1)
    return Candidates(xy, heat[joint, y, x], joint, xy + parabola(smooth, joint, xy))


def _blurred(maps: Float[Tensor, "J H W"], sigma: float) -> Float[Tensor, "J H W"]:
    """SciPy's `gaussian_filter`: cut at 4 sigma, the map mirrored beyond its border with the outer cells twice."""
    radius = int(4 * sigma + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=maps.device).to(maps) / sigma).square())
    taps = taps / taps.sum()
    for turned in (False, True):
        kernel = taps[None, None, None, :] if turned else taps[None, None, :, None]
        n = maps.shape[-1 if turned else -2]
        place = torch.arange(-radius, n + radius, device=maps.device) % (2 * n)
        maps = maps.index_select(-1 if turned else -2, torch.minimum(place, 2 * n - 1 - place))
        maps = F.conv2d(maps[:, None], kernel)[:, 0]
    return maps


# ---- limbs ---------------------------------------------------------------------------------------------------------
def limb_scores(
    field: Float[Tensor, "2 H W"],
    starts: Int[Tensor, "P 2"],
    ends: Int[Tensor, "Q 2"],
    agreement: float = 0.05,
    samples: int = 10,
) -> Float[Tensor, "P Q"]:
    """How far the field points from each start to each end (equation 10): the mean over `samples` places between them.

    Limbs longer than half the map's height lose length / (height / 2), backwards: half the height by the length, less 1, is added.
    -inf where a fifth of the places or more does not exceed `agreement`, or where nothing is left.
    """
    a, b = starts.double()[:, None], ends.double()[None]
    length = (b - a).norm(dim=-1)
    along = (b - a) / length.clamp_min(1e-9)[..., None]
    steps = torch.arange(samples, device=field.device).double()[:, None, None, None] / (samples - 1)
    x, y = (a + (b - a) * steps).round().long().unbind(-1)
    agree = field[0, y, x].double() * along[..., 0] + field[1, y, x].double() * along[..., 1]  # (S, P, Q)
    score = agree.mean(0) + (0.5 * field.shape[-2] / length.clamp_min(1e-9) - 1).clamp_max(0)
    most = (agree > agreement).sum(0) > 0.8 * samples
    return torch.where(most & (score > 0), score, -torch.inf)


def _connect(scores: Float[Tensor, "P Q"]) -> list[tuple[int, int, float]]:
    """The best pair, then the best of what is left, ...: which row, which column, its score."""
    order = scores.flatten().argsort(descending=True, stable=True)
    order = order[: int(scores.isfinite().sum())]
    taken: list[tuple[int, int, float]] = []
    rows, columns = set(), set()
    for index, score in zip(order.tolist(), scores.flatten()[order].tolist(), strict=True):
        row, column = divmod(index, scores.shape[1])
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            taken.append((row, column, score))
    return taken


# ---- people --------------------------------------------------------------------------------------------------------
class People(NamedTuple):
    member: Int[Tensor, "N J"]  # which candidate each joint is; -1: none
    score: Float[Tensor, " N"]  # of joints and limbs together
    parts: Int[Tensor, " N"]  # joints, as they were counted


def assemble(found: Candidates, fields: Float[Tensor, "E 2 H W"], fewest: int = 4, least: float = 0.4) -> People:
    """People from the candidates on the grid of the `fields`, as released.

    Limb by limb in the order of `ASSEMBLY`: a connection whose one end belongs to somebody gives them the other; one between two
    people who have no joint in common makes them one; others begin a person. So a joint can be given twice, and is counted twice.
    People of less than `fewest` joints, or less than `least` of score per joint, are nobody.
    """
    score = found.score.tolist()
    people: list[tuple[dict[int, int], list[float]]] = []  # joint -> candidate; score and number of parts
    for limb in ASSEMBLY:
        start, end = BODY18.indices(limb)
        first, second = (found.joint == start).nonzero()[:, 0], (found.joint == end).nonzero()[:, 0]
        if len(first) == 0 or len(second) == 0:
            continue
        strength = limb_scores(fields[LIMBS.index(limb)], found.xy[first], found.xy[second])
        for row, column, value in _connect(strength):
            a, b = int(first[row]), int(second[column])
            owners = [p for p in people if p[0].get(start) == a or p[0].get(end) == b]
            if not owners:
                if limb not in _NO_BEGINNING:
                    people.append(({start: a, end: b}, [score[a] + score[b] + value, 2]))
                continue
            members, tally = owners[0]
            if len(owners) > 1 and not members.keys() & owners[1][0].keys():
                other, gained = owners[1]
                members |= other
                tally[0] += gained[0] + value
                tally[1] += gained[1]
                people = [p for p in people if p is not owners[1]]
            elif len(owners) > 1 or members.get(end) != b:
                members[end] = b
                tally[0] += score[b] + value
                tally[1] += 1
    people = [p for p in people if p[1][1] >= fewest and p[1][0] / p[1][1] >= least]
    member = torch.full((len(people), len(BODY18)), -1)
    for n, (members, _) in enumerate(people):
        member[n, list(members)] = torch.tensor(list(members.values()))
    total = torch.tensor([tally[0] for _, tally in people], dtype=torch.float64)
    return People(member, total, torch.tensor([int(tally[1]) for _, tally in people], dtype=torch.long))


@torch.no_grad()
def decode(
    heat: Float[Tensor, "K h w"], fields: Float[Tensor, "E 2 h w"], size: Size
) -> tuple[Float[Tensor, "N J 2"], Float[Tensor, "N J"]]:
    """The people in maps (with the background's last): places on a grid of `size` over the same area, and the heat there.

    The maps are brought to that grid by bicubic interpolation. Released code gives whole cells of it, these places lie between; 0
    where a joint was not found.
    """
    heat, fields = enlarged(heat[:-1], size).cpu(), enlarged(fields, size).cpu()
    found = candidates(heat)
    member = assemble(found, fields).member
    there = member >= 0
    if not len(found.score):
        return heat.new_zeros(0, member.shape[1], 2), heat.new_zeros(0, member.shape[1])
    xy, conf = found.place[member.clamp_min(0)].to(heat), found.score[member.clamp_min(0)].to(heat)
    return xy * there[..., None], conf * there


def enlarged(maps: Float[Tensor, "C *D h w"], size: Size) -> Float[Tensor, "C *D H W"]:
    """OpenCV's bicubic interpolation onto a grid of `size` over the same area."""
    flat = maps.flatten(0, -3)[None]
    return F.interpolate(flat, size, mode="bicubic", align_corners=False)[0].unflatten(0, maps.shape[:-2])


@torch.no_grad()
def find(net: nn.Module, image: np.ndarray, scales: Sequence[float] = (1.0,), height: int = 368) -> Keypoints2D:
    """Everybody in an RGB image (H, W, 3) of 8 bits and any size: (N, 18) `BODY18` in its pixels, surest first.

    `net` gives `PartMaps`, as `openpose_body` and `lightweight_openpose`. The image is brought to `height` pixels (368 in the
    paper, half of that in Hzzone's code) and surrounded with grey to whole cells; with several `scales` (the paper's: 0.5, 1, 1.5,
    2) the mean of their maps is read. It is read in pixels of what the net sees at scale 1, where the released Python code has
    those of the image: what blurs the maps is then 3 pixels of the one or the other. `conf` is the heat, at most 1, 0 for joints
    that were not found; with nobody in the image N is 0. InputError for anything but such an image.
    """
    frame = fit_frame(image, "height", height, STRIDE, scales)
    device = next(net.parameters()).device
    heat = fields = torch.zeros(())
    with evaluating(net):
        for at in scales:
            maps = net(NORMALISE(frame.show(image, at, GREY, device)))[-1]
            heat = heat + enlarged(maps.heat[0], frame.box).cpu() / len(scales)
            fields = fields + enlarged(maps.fields[0], frame.box).cpu() / len(scales)
    rows, columns = frame.inside(frame.box)
    inside = (rows, columns)
    xy, conf = decode(heat[..., :rows, :columns], fields[..., :rows, :columns], inside)
    return surest_first(frame.to_image(xy, frame.box), conf.clamp_max(1), BODY18)
