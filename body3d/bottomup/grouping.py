"""People from heat maps and tags: joint after joint, peaks go to those whose tags are near.

Newell, Huang & Deng, "Associative embedding: end-to-end learning for joint detection and grouping", NeurIPS 2017, as released
(princeton-vl/pose-ae-train) and as HigherHRNet and mmpose have it from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from body3d.bottomup.people import highest
from body3d.joint_set import JointSet

__all__ = ["Assign", "Grouped", "Reading", "group", "quarter", "refine"]


@dataclass(frozen=True)
class Reading:
    """How people are read from maps: by peaks in `window` cells, at most `most` of each joint, above `threshold`.

    A joint is somebody's if its tag is less than `tag_threshold` from the mean of theirs. `enlarged`: read on the grid of the
    image's pixels, as HigherHRNet and mmpose do, not on that of the maps. `quarter_cell`: places a quarter of a cell from the
    highest towards the higher neighbour, as released, not at the top of a parabola. Enlarging is bilinear and draws peaks towards
    the middles of cells, by up to a third of a cell.
    """

    window: int = 3
    threshold: float = 0.1
    tag_threshold: float = 1.0
    most: int = 30
    enlarged: bool = False
    quarter_cell: bool = False


class Grouped(NamedTuple):
    xy: Int[Tensor, "N J 2"]  # cells
    score: Float[Tensor, "N J"]  # the heat there; 0: not found
    tag: Float[Tensor, "N J T"]


Assign = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # costs to rows and their columns

# The release's: the head and the torso first. Joints that it does not have come last.
_FIRST = (
    "nose", *(f"{side}_{joint}" for joint in ("eye", "ear", "shoulder", "hip", "elbow", "wrist", "knee", "ankle")
              for side in ("left", "right")),
)  # fmt: skip


def group(
    heat: Float[Tensor, "J h w"],
    tags: Float[Tensor, "J T h w"],
    joints: JointSet,
    reading: Reading = Reading(),
    assign: Assign = linear_sum_assignment,
) -> Grouped:
    """People from one image's maps, with `T` tags per joint.

    Joint after joint, the peaks are matched to the people found so far so that the sum of 100 x the rounded distances of tags less
    the heats is least (the Hungarian method); a peak that is too far from whom it was given to begins a person. With 30 people
    found nobody is added to, as released. Distances of several tags are root mean squares, as in the release; HigherHRNet has
    norms. Since distances are rounded there are often several best matchings, and which is taken is the choice of `assign`.
    """
    cells, scores = highest(heat, reading.window, reading.most)
    index = cells[..., 1] * heat.shape[-1] + cells[..., 0]
    found_tags = tags.flatten(-2).gather(-1, index[:, None].expand(-1, tags.shape[1], -1)).mT.cpu().numpy()
    value = scores.cpu().numpy()

    people: dict[float, dict[int, int]] = {}  # by the first tag of their first joint: joint -> peak
    own: dict[float, list[np.ndarray]] = {}  # the tags of their joints
    for joint in joints.indices([j for j in _FIRST if j in joints] + [j for j in joints.names if j not in _FIRST]):
        above = int((value[joint] > reading.threshold).sum())
        new = found_tags[joint, :above]
        if not above or len(people) >= reading.most:
            continue
        owner = _owners(new, value[joint, :above], list(own.values()), reading.tag_threshold, assign)
        keys = list(people)
        for peak in range(above):
            begins = owner[peak] < 0
            key = new[peak, 0].item() if begins else keys[owner[peak]]
            people.setdefault(key, {})[joint] = peak
            own[key] = [new[peak]] if begins else [*own[key], new[peak]]

    xy = cells.new_zeros(len(people), len(joints), 2)
    score, tag = heat.new_zeros(xy.shape[:2]), tags.new_zeros(*xy.shape[:2], tags.shape[1])
    for n, person in enumerate(people.values()):
        which, peak = torch.tensor(list(person.items()), device=heat.device).mT
        xy[n, which], score[n, which] = cells[which, peak], scores[which, peak]
        tag[n, which] = torch.from_numpy(found_tags).to(tags)[which, peak]
    return Grouped(xy, score, tag)


def _owners(
    new: np.ndarray, score: np.ndarray, own: list[list[np.ndarray]], threshold: float, assign: Assign
) -> list[int]:
    """For each peak, whose it is, by number; -1: nobody's yet."""
    if not own:
        return [-1] * len(new)
    means = np.stack([np.mean(tags, axis=0) for tags in own])
    distance = np.sqrt(np.mean((new[:, None].astype(np.float64) - means[None]) ** 2, axis=2))
    cost = np.round(distance) * 100 - score[:, None]
    # One more for each peak that would have nobody.
    spare = np.full((len(new), max(0, len(new) - len(own))), 1e10)
    owner = [-1] * len(new)
    for peak, person in zip(*assign(np.concatenate([cost, spare], axis=1)), strict=True):
        if person < len(own) and distance[peak, person] < threshold:
            owner[peak] = int(person)
    return owner


def quarter(heat: Float[Tensor, "J h w"], joint: Int[Tensor, " P"], cell: Int[Tensor, "P 2"]) -> Float[Tensor, "P 2"]:
    """A quarter of a cell towards the higher neighbour along x and along y; back where they are equal, as released."""
    x, y = cell.unbind(-1)
    last_y, last_x = heat.shape[-2] - 1, heat.shape[-1] - 1
    right, left = heat[joint, y, (x + 1).clamp_max(last_x)], heat[joint, y, (x - 1).clamp_min(0)]
    below, above = heat[joint, (y + 1).clamp_max(last_y), x], heat[joint, (y - 1).clamp_min(0), x]
    return torch.where(torch.stack([right > left, below > above], -1), 0.25, -0.25).to(heat)


def refine(found: Grouped, heat: Float[Tensor, "J h w"], tags: Float[Tensor, "J T h w"]) -> Grouped:
    """Every joint that somebody lacks at the cell that is highest after the rounded distance of its tag from theirs is taken off.

    The second pass of the release, for COCO's measure, which guesses cannot lower. Heat of 0 or less fills nothing.
    """
    xy, score, tag = (values.clone() for values in found)
    width = heat.shape[-1]
    for n in range(len(score)):
        has = score[n] > 0
        mean = tag[n, has].mean(0)
        distance = (tags - mean[:, None, None]).square().sum(1).sqrt()
        best = (heat - distance.round()).flatten(1).argmax(1)
        there = heat.flatten(1).gather(1, best[:, None])[:, 0]
        fill = ~has & (there > 0)
        xy[n, fill] = torch.stack([best % width, best // width], -1)[fill]
        score[n, fill] = there[fill]
        tag[n, fill] = tags.flatten(-2)[fill, :, best[fill]]
    return Grouped(xy, score, tag)
