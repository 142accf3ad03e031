"""3D poses that a fit is given beside its keypoints: a detector's, a lifter's, each with how far to trust it.

What is passed on is the directions of bones: where a pose stands and how large it is, the photo tells better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.camera import Camera
from body3d.errors import InputError
from body3d.tensors import Tensors
from body3d.types import Keypoints2D, Keypoints3D

__all__ = ["BONES", "Directions", "Given3D", "bone_matrix", "detector_3d", "directions", "ray_rotation"]

# The bones whose directions a given 3D pose passes on; each end is a mean of joints. The torso's come first.
Bone = tuple[tuple[str, ...], tuple[str, ...]]
_SHOULDERS, _HIPS = ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")
TORSO: tuple[Bone, ...] = (
    (_HIPS, _SHOULDERS),
    (_SHOULDERS, ("nose",)),
    (("left_shoulder",), ("right_shoulder",)),
    (("left_hip",), ("right_hip",)),
    (("left_ear",), ("right_ear",)),
)
BONES: tuple[Bone, ...] = (
    *TORSO,
    *(
        ((f"{side}_{a}",), (f"{side}_{b}",))
        for side in ("left", "right")
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("heel", "big_toe"))
    ),
)

# How far the errors of two joints of one person go together: a lifter that puts a shoulder too near puts its elbow too near
# as well, so a bone is known better than its two ends.
CORRELATION = 0.5
LEAST_SIGMA = 0.005  # metres; a source that claims more is not believed


@dataclass(frozen=True)
class Given3D(Tensors):
    """One source's 3D poses of all N people, in camera axes or, with `along_ray`, in those of the ray through each person."""

    keypoints: Keypoints3D  # (N, J); the origin does not matter
    sigma: (
        Float[Tensor, "N J"] | None
    )  # metres, the standard deviation along each axis; None: `Options.direction_sigma`
    name: str  # as it is to be called in results
    along_ray: bool = False  # a network that sees a crop gives depth along the ray through the crop's middle
    lean: bool = False  # upright people lean in it (BlazePose: towards the camera); the fit finds out how far


def detector_3d(world: Keypoints3D) -> Given3D:
    """BlazePose's 3D points, or those of another network that sees a crop."""
    return Given3D(world, None, "detector's 3D", along_ray=True, lean=True)


@dataclass(frozen=True)
class Directions(Tensors):
    """What all sources together say of N people: M statements, each about one of the body's bones."""

    bones: Float[Tensor, "N M 3"]  # unit vectors, camera axes
    conf: Float[Tensor, "N M"]
    sigma: Float[Tensor, "N M"]  # radians: the standard deviation of a direction, along each axis across it

    def __len__(self) -> int:
        return self.conf.shape[1]


def directions(
    given: Sequence[Given3D],
    bones: Sequence[Sequence[Bone]],
    usual: Sequence[Float[Tensor, " M"]],
    xy: Float[Tensor, "N K 2"],
    conf: Float[Tensor, "N K"],
    camera: Camera,
    sigma_m: float,
) -> Directions:
    """The statements of `bones[s]` by each source, one after another. `xy`, `conf` are the people's keypoints.

    A bone's two ends w (signed shares of joints, whose errors have the deviations s and correlate by r) err by
    (1 - r) w²·s² + r (w·s)² along each axis. A source without deviations errs by `sigma_m` (m) of the `usual` length.
    """
    found = []
    for source, of, usual_length in zip(given, bones, usual, strict=True):
        points = source.keypoints
        matrix = bone_matrix(of, points.joints.names).to(xy)
        known = (points.xyz.isfinite().all(-1) & (points.conf > 0)).to(xy)
        d = matrix @ points.xyz.nan_to_num()
        length = d.norm(dim=-1)
        certain = torch.where(matrix != 0, (points.conf.nan_to_num() * known).unsqueeze(1), torch.inf).amin(-1)
        certain = torch.where(length > 1e-6, certain, 0.0)
        if source.along_ray:
            d = d @ ray_rotation(xy, conf, camera).mT
        if source.sigma is None:
            sigma = (sigma_m / usual_length).expand_as(length)
        else:
            s = source.sigma.nan_to_num(1.0, 1.0).clamp_min(LEAST_SIGMA)
            variance = (1 - CORRELATION) * s.square() @ matrix.mT.square() + CORRELATION * (s @ matrix.mT).square()
            sigma = variance.sqrt() / length.clamp_min(0.05)
        found.append(Directions(d / length.clamp_min(1e-9).unsqueeze(-1), certain, sigma))
    if not found:
        nothing = xy.new_zeros(len(xy), 0)
        return Directions(nothing[..., None].expand(-1, -1, 3), nothing, nothing)
    return Directions(*(torch.cat([getattr(f, name) for f in found], 1) for name in ("bones", "conf", "sigma")))


def bone_matrix(bones: Sequence[Bone], points: Sequence[str]) -> Float[Tensor, "M P"]:
    """Bones as end minus start, from the points."""
    matrix = torch.zeros(len(bones), len(points))
    position = {name: i for i, name in enumerate(points)}
    for m, ends in enumerate(bones):
        for sign, names in zip((-1.0, 1.0), ends, strict=True):
            for n in names:
                matrix[m, position[n]] += sign / len(names)
    return matrix


def bones_of(joints: Sequence[str], body: Sequence[str]) -> tuple[Bone, ...]:
    """The bones that a source's joints and the body's points both have."""
    return tuple(b for b in BONES if all(n in joints and n in body for end in b for n in end))


def ray_rotation(xy: Float[Tensor, "N K 2"], conf: Float[Tensor, "N K"], camera: Camera) -> Float[Tensor, "N 3 3"]:
    """The rotation that takes the camera's axis to the ray through the middle of each person's keypoints, without roll."""
    middle = (conf[..., None] * xy).sum(1) / conf.sum(1).clamp_min(1e-6)[:, None]
    uv = torch.linalg.solve(camera.K[:2, :2], (middle - camera.K[:2, 2]).mT).mT
    # About the axis z × ray = (-v, u, 0), by the angle between the two.
    tangent = uv.norm(dim=-1, keepdim=True)
    axis = torch.stack([-uv[:, 1], uv[:, 0], torch.zeros_like(uv[:, 0])], -1) / tangent.clamp_min(1e-9)
    return roma.rotvec_to_rotmat(axis * torch.atan(tangent))


def check_given(given: Sequence[Given3D], keypoints: Keypoints2D) -> None:
    """InputError where a source does not speak of the same people."""
    people, names = len(keypoints.xy), [source.name for source in given]
    if len(set(names)) < len(names):
        raise InputError(f"two 3D poses have the same name, and results could not tell which won: {', '.join(names)}")
    for source in given:
        if len(source.keypoints.xyz) != people:
            raise InputError(
                f"{source.name}: 3D poses of {len(source.keypoints.xyz)} people came with the keypoints of {people}"
            )
        if source.sigma is not None and source.sigma.shape != source.keypoints.conf.shape:
            raise InputError(
                f"{source.name}: deviations of shape {tuple(source.sigma.shape)} came with "
                f"{tuple(source.keypoints.conf.shape)} points; one for each joint is expected"
            )
