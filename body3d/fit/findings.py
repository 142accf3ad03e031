"""What is wrong with a fit, in numbers and in words: its residual limb by limb, keypoints that it cannot explain, joints bent
further than people's, limbs that nobody saw."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.body.priors import BENDING
from body3d.skeletons import JointSet
from body3d.types import BodyParams

__all__ = ["LIMITS", "Findings", "find", "implausible"]

CONFIDENT = 0.3
KEYPOINT_SIGMA = 0.02  # of a standing person's height: what a good keypoint errs by
UNEXPLAINED = 3.0  # standard deviations

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


@dataclass(frozen=True)
class Findings:
    limb_px: dict[str, float]  # median distance of a limb's known keypoints
    unexplained: tuple[str, ...]  # confident keypoints that lie further off than `UNEXPLAINED` deviations
    implausible: tuple[str, ...]  # in words
    warnings: tuple[str, ...]


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


def find(
    names: tuple[str, ...],
    conf: Float[Tensor, " K"],
    off_px: Float[Tensor, " K"],
    counted: Bool[Tensor, " K"],
    person_px: float,
    belief: float,
    params: BodyParams,
    joints: JointSet,
) -> Findings:
    """What there is to say about one person's fit; `off_px` is how far the body's points are from the keypoints, of which
    `counted` are those that pull. Keypoints in which the `belief` is half are twice as unsure."""
    known = (conf > 0) & counted
    limbs: dict[str, list[float]] = {}
    for name, distance, use in zip(names, off_px.tolist(), known.tolist(), strict=True):
        limb = limb_of(name)
        if use and limb:
            limbs.setdefault(limb, []).append(distance)
    limb_px = {limb: sorted(values)[len(values) // 2] for limb, values in limbs.items()}
    far = known & (conf > CONFIDENT) & (off_px > UNEXPLAINED * KEYPOINT_SIGMA / belief * person_px)
    unexplained = tuple(n for n, f in zip(names, far.tolist(), strict=True) if f)
    bent = implausible(params, joints)

    seen = {n for n, c in zip(names, conf.tolist(), strict=True) if c > CONFIDENT}
    warnings = [
        f"{side} {limb} not seen: its pose is the prior's"
        for limb, ends in _ENDS.items()
        for side in ("left", "right")
        if not seen & {f"{side}_{end}" for end in ends}
    ]
    if unexplained:
        warnings.append(f"keypoints that the body cannot reach: {', '.join(unexplained)}")
    warnings += bent
    return Findings(limb_px, unexplained, bent, tuple(warnings))
