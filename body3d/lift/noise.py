"""The embedded detector's errors as a random process, for training on projected joints as if they had been detected.

The constants are measured, by `python scripts/fit_detector_noise.py`, on 220 photos of Leeds Sports
Pose Extended (limbs) and the COCO samples (face and feet: a dozen people, so these rows are rough). They are of people whom the
detector finds; acrobats are harder than most. What COCO's annotators differ by among themselves is taken off in quadrature. What
the definitions of a joint differ by is left out (hips lie 2 % of the person's size further in than annotated).

Lengths are in units of the person's size, the longer side of the box around shoulders, elbows, wrists, hips, knees and ankles.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.errors import InputError
from body3d.joint_set import JointSet

__all__ = ["DetectorNoise", "PartNoise", "person_size"]


@dataclass(frozen=True)
class PartNoise:
    median: float  # of the error, in sizes, left and right told apart
    missing: float  # share of joints with a confidence below MISSING_BELOW, which count as not seen
    logit: float  # mean of log(conf / (1 - conf)) of the others, at the median error
    slope: float  # by how much it falls when the error grows e-fold
    spread: float  # its standard deviation at one and the same error


MISSING_BELOW = 0.1
PARTS: dict[str, PartNoise] = {
    "nose": PartNoise(0.026, 0.000, 6.6, 0.09, 1.1),
    "eye": PartNoise(0.011, 0.000, 6.4, 0.00, 1.1),
    "ear": PartNoise(0.021, 0.000, 6.0, 0.19, 1.3),
    "shoulder": PartNoise(0.032, 0.000, 6.8, 0.03, 1.1),
    "elbow": PartNoise(0.027, 0.028, 2.9, 0.34, 2.0),
    "wrist": PartNoise(0.028, 0.024, 2.5, 0.45, 1.7),
    "hip": PartNoise(0.043, 0.000, 6.9, 0.00, 1.0),
    "knee": PartNoise(0.030, 0.018, 2.8, 0.74, 1.8),
    "ankle": PartNoise(0.034, 0.028, 2.2, 0.84, 1.8),
    "big_toe": PartNoise(0.016, 0.000, 3.2, 1.51, 1.0),
    "heel": PartNoise(0.021, 0.000, 1.7, 0.94, 1.1),
}
# No data: the nearest part's. The small toes are not among the detector's joints.
PARTS |= {
    "small_toe": PartNoise(0.0, 1.0, 0.0, 0.0, 0.0),
    "pelvis": PARTS["hip"], "mid_hip": PARTS["hip"], "spine": PARTS["hip"],
    "thorax": PARTS["shoulder"], "neck": PARTS["shoulder"], "mid_shoulder": PARTS["shoulder"],
    "neck_nose": PARTS["nose"], "head": PARTS["ear"], "head_top": PARTS["ear"],
}  # fmt: skip

FREEDOM = 2.0  # of Student's t, whose tails the errors have
LARGEST = 0.5  # sizes: a person with wilder joints is not found
SHARED = 0.23  # correlation of the joints' errors within a person, once made normal; 0.22 between their ranks
# Share of people with all, the legs', or the arms' left and right exchanged. Half of what was seen: of the few where
# the eye can tell, the annotation is the wrong one as often as the detector.
SWAPS = {"all": 0.041, "legs": 0.015, "arms": 0.004}
LIMBS = {"legs": ("hip", "knee", "ankle", "big_toe", "small_toe", "heel"), "arms": ("shoulder", "elbow", "wrist")}
SIZED_BY = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def part(joint: str) -> str:
    """left_knee -> knee."""
    return joint.removeprefix("left_").removeprefix("right_")


def person_size(xy: Float[Tensor, "*B J 2"], known: Bool[Tensor, "*B J"], joints: JointSet) -> Float[Tensor, "*B"]:
    """The longer side of the box around the known limb joints, in the unit of `xy`; 0 if none is known."""
    limbs = torch.tensor([part(name) in SIZED_BY for name in joints.names], device=xy.device)
    w = (known & limbs)[..., None]
    box = torch.where(w, xy, -torch.inf).amax(-2) - torch.where(w, xy, torch.inf).amin(-2)
    return box.amax(-1).clamp_min(0)


def radius(exceeded: Float[Tensor, "*B"], freedom: float = FREEDOM) -> Float[Tensor, "*B"]:
    """The length that a 2D vector of Student's t exceeds with the given probability, in units of its median length.

    P(r > x) = (1 + x²/f)^(-f/2), so x² = f (p^(-2/f) - 1).
    """
    return ((exceeded ** (-2 / freedom) - 1) / (2 ** (2 / freedom) - 1)).sqrt()


@dataclass(frozen=True)
class DetectorNoise:
    """What becomes of true joints on their way through the detector.

    A person may have left and right exchanged. Each joint is moved in a random direction, by a length with the tails of Student's t
    that is correlated among the joints of a person (a Gaussian copula). Confidence falls with the length.
    """

    joints: JointSet

    def __post_init__(self):
        if unknown := [name for name in self.joints.names if part(name) not in PARTS]:
            raise InputError(
                f"the detector's noise is not known for {', '.join(unknown)} of {self.joints.name}; it is for {', '.join(PARTS)}"
            )

    def sample(
        self, xy: Float[Tensor, "*B J 2"], size: Float[Tensor, "*B"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "*B J 2"], Float[Tensor, "*B J"]]:
        """Joints as detected, and their confidences. `size` is `person_size`; any unit. Missing joints: 0, 0."""
        normal = lambda *shape: torch.randn(*shape, generator=generator, device=xy.device, dtype=xy.dtype)
        uniform = lambda *shape: torch.rand(*shape, generator=generator, device=xy.device, dtype=xy.dtype)
        batch, J = size.shape, len(self.joints)
        parts = [PARTS[part(name)] for name in self.joints.names]
        median, missing, logit, slope, spread = torch.tensor(
            [(p.median, p.missing, p.logit, p.slope, p.spread) for p in parts], device=xy.device, dtype=xy.dtype
        ).T

        hard = math.sqrt(SHARED) * normal(*batch, 1)
        rank = lambda: torch.special.ndtr(hard + math.sqrt(1 - SHARED) * normal(*batch, J))  # uniform, shared in part
        stretch = radius((1 - rank()).clamp_min(1e-6))
        length = (median * stretch).clamp_max(LARGEST) * size[..., None]
        angle = 2 * math.pi * uniform(*batch, J)
        moved = self._swapped(xy, uniform(*batch)) + length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)

        conf = torch.sigmoid(logit - slope * stretch.clamp_min(1e-3).log() + spread * normal(*batch, J))
        seen = 1 - rank() >= missing
        return torch.where(seen[..., None], moved, 0.0), torch.where(seen, conf.clamp_min(MISSING_BELOW), 0.0)

    def _swapped(self, xy: Float[Tensor, "*B J 2"], chance: Float[Tensor, "*B"]) -> Float[Tensor, "*B J 2"]:
        swap = torch.zeros(xy.shape[:-1], dtype=torch.bool, device=xy.device)
        for group, share in SWAPS.items():
            members = [group == "all" or part(name) in LIMBS[group] for name in self.joints.names]
            hit = (chance >= 0) & (chance < share)
            swap |= hit[..., None] & torch.tensor(members, device=xy.device)
            chance = chance - share
        return torch.where(swap[..., None], xy[..., list(self.joints.flip), :], xy)
