"""What is wrong with a fit, in numbers and in words: its residual limb by limb, keypoints that it cannot explain, joints bent
further than people's, limbs that nobody saw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.definitions import Mixture, mixing_matrix
from body3d.body.model import BodyModel
from body3d.body.priors import BENDING
from body3d.fit.problem import IGNORED, SWAPS, swapped
from body3d.skeletons import FACE68, HAND_POINTS, JointSet
from body3d.types import BodyParams, FitResult

__all__ = ["LIMITS", "implausible", "measured", "unseen"]

CONFIDENT = 0.3
KEYPOINT_SIGMA = 0.02  # of a standing person's height: what a good keypoint errs by
UNEXPLAINED = 3.0  # standard deviations
NAMED = 5  # keypoints in a warning: a face has 68
MISSED = 0.05  # of a standing person's height: a larger median distance is a warning
NOT_COMPARED = IGNORED.union(FACE68.names, *HAND_POINTS.values())  # keypoints that `reprojection_px` leaves out

# What keypoints belong to which limb, by what their names hold after the side.
_LIMBS = {
    "arm": ("shoulder", "elbow", "wrist"),
    "hand": ("hand_root", "thumb", "index", "middle", "ring", "pinky"),
    "leg": ("hip", "knee", "ankle"),
    "foot": ("heel", "big_toe", "small_toe"),
}
_ENDS = {"arm": ("elbow", "wrist"), "leg": ("knee", "ankle")}  # unless one of these is seen, the limb is not

# Degrees: the largest rotation of a joint from the rest pose (T pose) that is taken for possible, and for elbows and knees how
# far they may bend backwards. Generous: each holds in 999 of 1000 poses of the motion capture behind the prior.
LIMITS: dict[str, float] = {
    "hip": 145, "knee": 165, "ankle": 80, "foot": 60, "spine1": 60, "spine2": 65, "spine3": 50,
    "neck": 75, "head": 65, "collar": 50, "shoulder": 150, "elbow": 165, "wrist": 100,
}  # fmt: skip
BACKWARDS = 15.0


def limb_of(name: str) -> str | None:
    """The limb of a keypoint, such as "left arm" or "head"; None for what belongs to none."""
    side, _, rest = name.partition("_")
    if side in ("left", "right"):
        for limb, parts in _LIMBS.items():
            if rest.startswith(parts):
                return f"{side} {limb}"
    return "head" if name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear") else None


def implausible(params: BodyParams, joints: JointSet) -> tuple[str, ...]:
    """The joints of one body that are bent further than `LIMITS` or backwards, in words."""
    out = []
    # A rotation vector longer than half a turn is the shorter one the other way.
    turned = torch.rad2deg(math.pi - (params.pose.norm(dim=-1) % (2 * math.pi) - math.pi).abs())
    for name, degrees in zip(joints.names, turned.tolist(), strict=True):
        limit = LIMITS.get(name.removeprefix("left_").removeprefix("right_"))
        if limit is not None and degrees > limit:
            out.append(f"{name} is turned by {degrees:.0f}°, people's by {limit:.0f}° at most")
    for name, axis, sign in BENDING:
        backwards = math.degrees(sign * params.pose[joints.index(name), axis].item())
        if backwards > BACKWARDS:
            out.append(f"{name} is bent backwards by {backwards:.0f}°")
    return tuple(out)


def unseen(names: Sequence[str], conf: Float[Tensor, " K"]) -> tuple[str, ...]:
    """The limbs of which no end was seen, in words."""
    seen = {n for n, c in zip(names, conf.tolist(), strict=True) if c > CONFIDENT}
    return tuple(
        f"{side} {limb} not seen: its pose is the prior's"
        for limb, ends in _ENDS.items()
        for side in ("left", "right")
        if not seen & {f"{side}_{end}" for end in ends}
    )


def measured(result: FitResult, found: Mapping[str, Mixture], model: BodyModel) -> FitResult:
    """The fit with what its body, as it stands now, leaves unexplained: in numbers, and in warnings in place of those before.

    `found` says where on the body the keypoints lie. Of a fit that does not say which keypoints `pulled`, only `reprojection_px`
    is known.
    """
    names, xyz = tuple(found), result.body.joints.xyz
    columns = [result.keypoints.joints.indices(names)[i] for i in swapped(names, SWAPS.get(result.exchanged, ()))]
    xy = result.keypoints.xy[columns]
    conf = torch.where(xy.isfinite().all(-1), result.keypoints.conf[columns].nan_to_num(), 0.0)
    off = (result.camera.project(mixing_matrix(dict(found), model.keypoints.names).to(xyz) @ xyz) - xy).norm(dim=-1)
    flags = lambda of: torch.tensor([n in of for n in names], dtype=torch.bool, device=conf.device)
    confident = conf > CONFIDENT
    counted = confident & ~flags(NOT_COMPARED)
    reprojection = off[counted].median().item() if counted.any() else math.nan
    if not result.pulled:
        return replace(result, reprojection_px=reprojection)

    pulled = flags(result.pulled) & (conf > 0)
    limbs: dict[str, list[float]] = {}
    for name, distance, use in zip(names, off.tolist(), pulled.tolist(), strict=True):
        limb = limb_of(name)
        if use and limb:
            limbs.setdefault(limb, []).append(distance)
    far = pulled & confident & (off > UNEXPLAINED * KEYPOINT_SIGMA / result.belief * result.person_px)
    now = replace(
        result,
        reprojection_px=reprojection,
        limb_px={limb: sorted(values)[len(values) // 2] for limb, values in limbs.items()},
        unexplained=tuple(compress(names, far.tolist())),
        implausible=implausible(result.params, model.joints),
    )
    before = _said(result)
    return replace(now, warnings=(*(w for w in result.warnings if w not in before), *_said(now)))


def _said(result: FitResult) -> tuple[str, ...]:
    """The warnings of what a fit leaves unexplained; none of them holds pixels, which differ from camera to camera."""
    names, more = ", ".join(result.unexplained[:NAMED]), len(result.unexplained) - NAMED
    reach = (f"keypoints that the body cannot reach: {names}{f' and {more} more' * (more > 0)}",) if names else ()
    missed = result.reprojection_px / result.person_px  # false for NaN below
    miss = (f"the body misses the keypoints by {missed:.0%} of its height",) if missed > MISSED else ()
    return (*reach, *result.implausible, *miss)
