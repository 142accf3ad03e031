"""Training crops that differ each time: mirrored, scaled, turned, of half a body, in other colours, with parts missing.

All movements of a sample are one affine map, so pixels are interpolated once and keypoints move with them. All chance comes
from one `torch.Generator`. The numbers are those of HRNet's published training (Sun et al., CVPR 2019), whose crops are cut
anew from the photo; here a crop is moved, so what a smaller or turned person brings into view is black where the crop ends.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from body3d.crop import apply, box_to_crop, crop_matrix, invert
from body3d.joint_set import JointSet
from body3d.types import Keypoints2D

__all__ = ["COCO_TRAINING", "MPII_TRAINING", "Augmentation", "Colours", "Cutout", "HalfBody", "HideAndSeek", "warp"]

Random = torch.Generator | None  # on the device of the images; None is torch's own
Drop = Callable[[Float[Tensor, "B 3 H W"], Random], Float[Tensor, "B 3 H W"]]  # takes information out of images


@dataclass(frozen=True)
class HalfBody:
    """How often, and of whom, only the upper or the lower half is shown.

    Of samples with more than `least` known joints, the `chance` share; either half with the same chance (the published code
    compares a normal number with 0.5, so that it takes the upper one in 69 % of cases), if more than `least_half` of its joints
    are known. The new crop is around their mean, `padding` times as large as their box.
    """

    chance: float = 0.3
    least: int = 8
    least_half: int = 2
    padding: float = 1.5


@dataclass(frozen=True)
class Colours:
    """Brightness, contrast, saturation and the gain of each channel are multiplied by factors within 1 +- these, in that order.

    Contrast is about the image's mean grey, saturation about each pixel's. The result is cut to 0..1.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    channel: float = 0.0

    def __call__(self, image: Float[Tensor, "B 3 H W"], random: Random = None) -> Float[Tensor, "B 3 H W"]:
        def factor(channels: int, by: float) -> Tensor:
            u = torch.rand(len(image), channels, 1, 1, generator=random, device=image.device, dtype=image.dtype)
            return 1 + by * (2 * u - 1)

        image = image * factor(1, self.brightness)
        mean = _grey(image).mean((-1, -2), keepdim=True)
        image = mean + (image - mean) * factor(1, self.contrast)
        grey = _grey(image)
        image = grey + (image - grey) * factor(1, self.saturation)
        return (image * factor(3, self.channel)).clamp(0, 1)


@dataclass(frozen=True)
class Augmentation:
    """What is done to training crops, and how strongly; in this order: half body, scale, rotation, flip, colours, dropping.

    `flip`: how often mirrored, left joints becoming right ones. `scale`: a crop shows 1 + `scale` n of its width, n normal, within
    1 +- `scale`. `rotation`: the standard deviation of the angle in radians, cut at twice that; a `rotated` share is turned.
    """

    flip: float = 0.5
    scale: float = 0.35
    rotation: float = math.radians(45)
    rotated: float = 0.6
    half_body: HalfBody | None = HalfBody()
    colours: Colours | None = None
    drop: Drop | None = None

    def __call__(
        self, image: Float[Tensor, "*B 3 H W"], keypoints: Keypoints2D, random: Random = None
    ) -> tuple[Float[Tensor, "*B 3 H W"], Keypoints2D]:
        """Other images, RGB in 0..1, and keypoints in pixels of them. One sample, or any number of batch dimensions.

        Joints that leave the image keep their places outside of it and their confidences.
        """
        batch, size = image.shape[:-3], (image.shape[-2], image.shape[-1])
        flat = image.reshape(-1, *image.shape[-3:])
        xy, conf = keypoints.xy.reshape(len(flat), -1, 2), keypoints.conf.reshape(len(flat), -1)
        matrix, flipped = self.matrix(xy, conf, keypoints.joints, size, random)
        flat, xy = warp(flat, matrix), apply(matrix, xy)
        xy, conf = (_swapped(x, flipped, keypoints.joints) for x in (xy, conf))
        for change in (self.colours, self.drop):
            if change is not None:
                flat = change(flat, random)
        moved = Keypoints2D(xy.reshape(keypoints.xy.shape), conf.reshape(keypoints.conf.shape), keypoints.joints)
        return flat.reshape(*batch, *flat.shape[1:]), moved

    def matrix(
        self,
        xy: Float[Tensor, "B J 2"],
        conf: Float[Tensor, "B J"],
        joints: JointSet,
        size: tuple[int, int],
        random: Random = None,
    ) -> tuple[Float[Tensor, "B 2 3"], Bool[Tensor, " B"]]:
        """From pixels of the crop to those of the new crop, and whether it mirrors."""
        n, height, width = len(xy), *size
        uniform = lambda: torch.rand(n, generator=random, device=xy.device, dtype=xy.dtype)
        normal = lambda: torch.randn(n, generator=random, device=xy.device, dtype=xy.dtype)
        center = xy.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(n, 2)
        across = xy.new_full((n,), float(width))
        if self.half_body is not None:
            center, across = _half_body(
                self.half_body, center, across, xy, conf > 0, joints, size, uniform(), uniform()
            )
        across = across * (1 + (self.scale * normal()).clamp(-self.scale, self.scale))
        angle = (self.rotation * normal()).clamp(-2 * self.rotation, 2 * self.rotation)
        angle = torch.where(uniform() < self.rotated, angle, 0)
        matrix = crop_matrix(center, across, angle, size)
        flipped = uniform() < self.flip
        sides, shift = xy.new_tensor([[-1.0], [1.0]]), xy.new_tensor([[0.0, 0.0, width - 1], [0.0, 0.0, 0.0]])
        return torch.where(flipped[:, None, None], sides * matrix + shift, matrix), flipped


def warp(image: Float[Tensor, "B C H W"], matrix: Float[Tensor, "B 2 3"]) -> Float[Tensor, "B C H W"]:
    """The image whose pixel `matrix @ (x, y, 1)` shows `image` at pixel (x, y): bilinear, black beyond its border."""
    height, width = image.shape[-2:]
    x, y = (torch.arange(n, device=image.device, dtype=image.dtype) for n in (width, height))
    target = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    source = apply(invert(matrix), target.expand(len(matrix), -1, -1)).unflatten(1, (height, width))
    grid = (2 * source + 1) / source.new_tensor([width, height]) - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


COCO_TRAINING = Augmentation()
MPII_TRAINING = Augmentation(scale=0.25, rotation=math.radians(30), half_body=None)


# ---- information dropping ------------------------------------------------------------------------------------------
# Huang, Zhu & Huang, "AID: pushing the performance boundary of human pose estimation with information dropping augmentation",
# 2020. Who cannot see a joint must learn where it is from the others. The paper's point: it takes a longer schedule, or a first
# training without it; else it does harm.
@dataclass(frozen=True)
class Cutout:
    """A black ellipse, its centre anywhere in the image, each half axis `radius` (1 + u) times the image's width, u uniform in
    0..1.

    Black is 0 before colours are normalised, as released with UDP.
    """

    radius: float = 0.2
    chance: float = 1.0

    def __call__(self, image: Float[Tensor, "B 3 H W"], random: Random = None) -> Float[Tensor, "B 3 H W"]:
        height, width = image.shape[-2:]
        uniform = torch.rand(len(image), 5, generator=random, device=image.device, dtype=image.dtype)
        x, y, a, b, chance = uniform[..., None, None].unbind(1)
        x, y = x * width - 0.5, y * height - 0.5
        a, b = self.radius * (1 + a) * width, self.radius * (1 + b) * width
        along = (torch.arange(width, device=image.device) - x) / a  # (B, 1, W)
        down = (torch.arange(height, device=image.device)[:, None] - y) / b  # (B, H, 1)
        hidden = (along.square() + down.square() < 1) & (chance < self.chance)
        return torch.where(hidden[:, None], 0, image)


@dataclass(frozen=True)
class HideAndSeek:
    """Black squares: the image in cells of a size drawn from `grids` (pixels; 0: nothing is hidden), each hidden with a chance
    of `hidden`.

    Singh & Lee, "Hide-and-seek", ICCV 2017. The release of AID never draws the last size, 56, by an error of one; here it is
    drawn.
    """

    grids: tuple[int, ...] = (0, 16, 32, 44, 56)
    hidden: float = 0.5

    def __call__(self, image: Float[Tensor, "B 3 H W"], random: Random = None) -> Float[Tensor, "B 3 H W"]:
        height, width = image.shape[-2:]
        least = min((g for g in self.grids if g > 0), default=1)
        draw = torch.randint(len(self.grids), (len(image),), generator=random, device=image.device)
        grid = torch.tensor(self.grids, device=image.device)[draw, None]
        column, row = (torch.arange(n, device=image.device) // grid.clamp_min(least) for n in (width, height))
        cells = len(image), -(-height // least), -(-width // least)
        off = torch.rand(cells, generator=random, device=image.device) < self.hidden
        hidden = off[torch.arange(len(image), device=image.device)[:, None, None], row[:, :, None], column[:, None]]
        return torch.where((hidden & (grid > 0)[..., None])[:, None], 0, image)


# ---- parts ---------------------------------------------------------------------------------------------------------
_LOWER = ("pelvis", "hip", "knee", "ankle", "heel", "toe", "foot")


def _half_body(
    how: HalfBody,
    center: Float[Tensor, "B 2"],
    across: Float[Tensor, " B"],
    xy: Float[Tensor, "B J 2"],
    known: Bool[Tensor, "B J"],
    joints: JointSet,
    size: tuple[int, int],
    chance: Float[Tensor, " B"],
    which: Float[Tensor, " B"],
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
    """Centre and width in pixels of the crop around half a body where there is to be one, else as given."""
    is_lower = [any(part in name.split("_") for part in _LOWER) for name in joints.names]
    lower = known & torch.tensor(is_lower, device=known.device)
    upper = known & ~lower
    enough_upper, enough_lower = (half.sum(-1) > how.least_half for half in (upper, lower))
    use_upper = enough_upper & ((which < 0.5) | ~enough_lower)
    half = torch.where(use_upper[:, None], upper, lower)[..., None]
    low, high = torch.where(half, xy, torch.inf).amin(1), torch.where(half, xy, -torch.inf).amax(1)
    _, width = box_to_crop(torch.cat([low, high], -1), size, how.padding)
    middle = torch.where(half, xy, 0).sum(1) / half.sum(1).clamp_min(1)
    use = (chance < how.chance) & (known.sum(-1) > how.least) & (enough_upper | enough_lower) & (width > 1)
    return torch.where(use[:, None], middle, center), torch.where(use, width, across)


def _swapped(x: Shaped[Tensor, "B J *D"], flipped: Bool[Tensor, " B"], joints: JointSet) -> Shaped[Tensor, "B J *D"]:
    """Left joints for right ones where the image is mirrored."""
    other = x[:, list(joints.flip)]
    return torch.where(flipped.view(-1, *(1 for _ in x.shape[1:])), other, x)


def _grey(image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    weights = image.new_tensor([0.299, 0.587, 0.114])
    return (image * weights[:, None, None]).sum(1, keepdim=True)
