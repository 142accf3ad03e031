"""Correct keypoints and correct parts of 2D poses, as fractions."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.skeletons import JointSet

HEAD_BIAS = 0.6  # MPII's head size is 0.6 times the diagonal of the head's rectangle

# The limbs of PCP: ten on LSP (torso and head are the first two), eight without them.
LIMBS: dict[str, tuple[str, str]] = {
    "torso": ("neck", "mid_hip"), "head": ("neck", "head_top"),
    **{f"{s} {limb}": (f"{s}_{a}", f"{s}_{b}") for limb, a, b in (
        ("upper arm", "shoulder", "elbow"), ("forearm", "elbow", "wrist"), ("thigh", "hip", "knee"), ("shin", "knee", "ankle"),
    ) for s in ("left", "right")},
}  # fmt: skip


def correct(
    predicted: Float[Tensor, "N J 2"], truth: Float[Tensor, "N J 2"], size: Float[Tensor, " N"], threshold: float
) -> Bool[Tensor, "N J"]:
    """Whether each keypoint lies within `threshold` times its person's reference size (<=)."""
    return (predicted - truth).norm(dim=-1) / size[:, None] <= threshold


def share(right: Bool[Tensor, "N J"], counted: Bool[Tensor, "N J"]) -> tuple[Float[Tensor, " J"], Float[Tensor, ""]]:
    """Per joint, and over all keypoints that count (so a joint weighs by how often it is annotated); NaN where none is."""
    right = (right & counted).double()
    return right.sum(0) / counted.sum(0), right.sum() / counted.sum()


def torso_size(truth: Float[Tensor, "N J 2"], joints: JointSet) -> Float[Tensor, " N"]:
    """Left shoulder to right hip: the "torso diameter" of PCK@0.2 on LSP and FLIC (Yang & Ramanan; Toshev & Szegedy)."""
    return (truth[:, joints.index("left_shoulder")] - truth[:, joints.index("right_hip")]).norm(dim=-1)


def head_size(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """PCKh's reference: 0.6 of the diagonal of the head's rectangle x0 y0 x1 y1 (Andriluka et al., CVPR 2014)."""
    return HEAD_BIAS * (boxes[:, 2:] - boxes[:, :2]).norm(dim=-1)


def pck(
    predicted: Float[Tensor, "N J 2"],
    truth: Float[Tensor, "N J 2"],
    counted: Bool[Tensor, "N J"],
    size: Float[Tensor, " N"],
    threshold: float,
) -> tuple[Float[Tensor, " J"], Float[Tensor, ""]]:
    """Percentage (as a fraction) of correct keypoints, per joint and overall: PCK@t with `torso_size`, PCKh@t with `head_size`.

    PCKh counts 14 of MPII's 16 joints: leave pelvis and thorax out of `counted`.
    """
    return share(correct(predicted, truth, size, threshold), counted)


def pck_curve(
    predicted: Float[Tensor, "N J 2"],
    truth: Float[Tensor, "N J 2"],
    counted: Bool[Tensor, "N J"],
    size: Float[Tensor, " N"],
    thresholds: Sequence[float],
) -> Float[Tensor, " T"]:
    """The overall PCK at each threshold; PCKh is usually drawn over 0 to 0.5."""
    return torch.stack([pck(predicted, truth, counted, size, t)[1] for t in thresholds])


def pcp(
    predicted: Float[Tensor, "N J 2"],
    truth: Float[Tensor, "N J 2"],
    counted: Bool[Tensor, "N J"],
    joints: JointSet,
    strict: bool = True,
    limbs: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Percentage (as a fraction) of correct parts, per limb, and their mean as "mean" (Ferrari et al., CVPR 2008).

    strict: both ends within half the limb's true length; loose: the mean of both ends is. Limbs whose joints the set has not
    are left out. Limbs that are nowhere annotated are NaN and not in the mean.
    """
    out = {}
    for name, (a, b) in (limbs or LIMBS).items():
        if a in joints and b in joints:
            ends = [joints.index(a), joints.index(b)]
            half = (truth[:, ends[0]] - truth[:, ends[1]]).norm(dim=-1) / 2
            error = (predicted[:, ends] - truth[:, ends]).norm(dim=-1)
            right = (error <= half[:, None]).all(1) if strict else error.mean(1) <= half
            both = counted[:, ends].all(1)
            out[name] = ((right & both).sum() / both.sum()).item()
    known = [v for v in out.values() if v == v]
    return out | {"mean": sum(known) / len(known) if known else float("nan")}
