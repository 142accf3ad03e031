"""Crops of people and what is true or said of those who are in them: what direct regressors take and give.

A crop is a square around a person's box, `MARGIN` times as large; k is the depth at which that square would be 2 m wide. What a
network says is brought into one form, `Regressed`: metres from the root in camera axes, and where the root is.

Crops away from the middle of the image are seen at an angle; as in the papers the 3D is in the camera's axes all the same.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.codecs.base import Size
from body3d.crop import crop_matrix
from body3d.errors import InputError
from body3d.tensors import Tensors

__all__ = ["Decoded", "Regressed", "Target", "View", "crop_views", "placed", "projected", "scene_views"]

MARGIN = 1.25  # crop over box, 3DMPPE's
NEAREST = 0.3  # metres; nobody's root is nearer to a camera


@dataclass(frozen=True)
class View(Tensors):
    """Which part of which image crops show."""

    to_crop: Float[Tensor, "B 2 3"]  # pixels of the image to those of the crop
    K: Float[Tensor, "B 3 3"]
    k: Float[Tensor, " B"]  # metres


@dataclass(frozen=True)
class Target(Tensors):
    """What is true of the people in crops."""

    xy: Float[Tensor, "B J 2"]  # pixels of the crop
    weight: Float[Tensor, "B J"]  # 0: not known, or not in the crop
    xyz: Float[Tensor, "B J 3"]  # metres from the root, camera axes
    weight3d: Float[Tensor, "B J"]  # 0: not known in 3D
    has_depth: Bool[Tensor, " B"]  # False: a photo with 2D annotation only
    depth: Float[Tensor, " B"]  # the root's, metres


@dataclass(frozen=True)
class Regressed(Tensors):
    """The people that a regressor found."""

    xyz: Float[Tensor, "B J 3"]  # metres from the root, camera axes
    root: Float[Tensor, "B 3"]  # metres, in the camera's frame
    xy: Float[Tensor, "B J 2"]  # pixels of the image
    conf: Float[Tensor, "B J"]


class Decoded(NamedTuple):
    """What a network says of crops: either z along with xy, or xyz."""

    conf: Float[Tensor, "B J"]
    xy: Float[Tensor, "B J 2"] | None = None  # pixels of the crop
    z: Float[Tensor, "B J"] | None = None  # metres from the root
    xyz: Float[Tensor, "B J 3"] | None = None  # metres from the root


def crop_views(xyxy: Float[Tensor, "B 4"], K: Float[Tensor, "B 3 3"], image: Float[Tensor, "B 2"], size: Size) -> View:
    """The crops of `size` around boxes (pixels), which are clipped to their images of `image` (height, width) pixels first.

    InputError for a box of which nothing is in the image.
    """
    corner = image.flip(-1) - 0.5
    low = torch.minimum(xyxy[:, :2].clamp_min(-0.5), corner)
    high = torch.minimum(xyxy[:, 2:].clamp_min(-0.5), corner)
    extent = high - low
    if not (xyxy.isfinite().all(-1) & (extent > 1).all(-1)).all():
        bad = int((~(xyxy.isfinite().all(-1) & (extent > 1).all(-1))).nonzero()[0])
        raise InputError(
            f"box {bad} is {[round(v, 1) for v in xyxy[bad].tolist()]}: x0 y0 x1 y1 in pixels with more than a pixel of it inside "
            f"the image of {int(image[bad, 1])} x {int(image[bad, 0])} was expected"
        )
    side = MARGIN * extent.amax(-1)
    matrix = crop_matrix((low + high) / 2, side, torch.zeros_like(side), size)
    return View(matrix, K, 2 * (K[:, 0, 0] * K[:, 1, 1]).sqrt() / side)


def scene_views(K: Float[Tensor, "B 3 3"], image: Float[Tensor, "B 2"], size: Size) -> View:
    """Whole images of `image` (height, width) pixels, made to fit into `size`, their middle in its middle. k is not used."""
    scale = (image.new_tensor(size) / image).amin(1)
    middle = (image.flip(-1) - 1) / 2
    matrix = crop_matrix(middle, size[1] / scale, torch.zeros_like(scale), size)
    return View(matrix, K, torch.zeros_like(scale))


def placed(
    xyz: Float[Tensor, "B J 3"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], K: Float[Tensor, "B 3 3"]
) -> Float[Tensor, "B 3"]:
    """Where poses (metres, camera axes) must be moved to be seen at pixels `xy`.

    Linear least squares: x + tx = u (z + tz) and y + ty = v (z + tz) for every joint, u and v its ray.
    """
    rays = torch.linalg.solve(K, torch.cat([xy, torch.ones_like(xy[..., :1])], -1).mT).mT[..., :2]
    w = (weight / weight.sum(1, keepdim=True).clamp_min(1e-9)).unsqueeze(-1)
    side = xyz[..., :2] - rays * xyz[..., 2:]
    # For a given depth the best tx, ty are means; what is left is a line in tz.
    ray_mean, side_mean = (w * rays).sum(1, keepdim=True), (w * side).sum(1, keepdim=True)
    spread = (w * (rays - ray_mean).square()).sum((1, 2)).clamp_min(1e-12)
    tz = ((w * (rays - ray_mean) * (side - side_mean)).sum((1, 2)) / spread).clamp_min(NEAREST)
    return torch.cat([ray_mean[:, 0] * tz[:, None] - side_mean[:, 0], tz[:, None]], -1)


def projected(xyz: Float[Tensor, "B J 3"], K: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B J 2"]:
    uvw = xyz @ K.mT
    return uvw[..., :2] / uvw[..., 2:].clamp_min(1e-3)
