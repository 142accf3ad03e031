"""Joints in a volume over the crop: bumps whose highest voxel is read, coarse to fine in depth, or an expectation.

A voxel is (depth, row, column). x and y are pixels of the crop; z is metres along the camera's axis from the root joint. The volume
reaches from -`reach` to +`reach` metres: of d slices, slice i is centred at ((i + 0.5) / d * 2 - 1) * reach. A network's channels
are joint-major: joint j owns channels j d to (j + 1) d - 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from body3d.codecs.base import Places, Size, from_grid, to_grid
from body3d.codecs.heatmap import gaussian_maps

__all__ = ["CoarseToFine", "IntegralVolume", "from_slices", "soft_argmax_3d", "to_slices", "voxel_argmax"]


def to_slices(z: Float[Tensor, "*B"], slices: int, reach: float = 1.0, places: Places = "pixel") -> Float[Tensor, "*B"]:
    """Metres from the root as (fractional) slices; "msra" counts as 3DMPPE does, half a slice further (+reach is slice d)."""
    cells = (z / reach + 1) / 2 * slices
    return cells - 0.5 if places == "pixel" else cells


def from_slices(
    i: Float[Tensor, "*B"], slices: int, reach: float = 1.0, places: Places = "pixel"
) -> Float[Tensor, "*B"]:
    return ((i + (0.5 if places == "pixel" else 0.0)) / slices * 2 - 1) * reach


def voxel_argmax(volume: Float[Tensor, "B J d h w"]) -> tuple[Float[Tensor, "B J 3"], Float[Tensor, "B J"]]:
    """The highest voxel of each joint as (column, row, slice), and its value."""
    value, index = volume.flatten(2).max(-1)
    height, width = volume.shape[-2:]
    cell = torch.stack([index % width, index // width % height, index // (width * height)], -1)
    return cell.to(volume.dtype), value


def soft_argmax_3d(logits: Float[Tensor, "B J d h w"]) -> Float[Tensor, "B J 3"]:
    """The expectation of (column, row, slice) under a softmax over all voxels, counted from 0.

    Sun et al., "Integral human pose regression", ECCV 2018, as 3DMPPE has it.
    """
    p = logits.flatten(2).softmax(-1).view_as(logits)
    marginals = (p.sum((2, 3)), p.sum((2, 4)), p.sum((3, 4)))
    return torch.stack([m @ torch.arange(m.shape[-1], device=m.device, dtype=m.dtype) for m in marginals], -1)


# ---- coarse to fine ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CoarseToFine:
    """One volume per stack, each finer in depth, against 3D Gaussians of height 1 by mean squared error.

    Pavlakos et al., "Coarse-to-fine volumetric prediction for single-image 3D human pose", CVPR 2017: 64 x 64 maps, `depths` 1, 2,
    4 and 64 (or 1, 64), a cube of 2 m around the pelvis, `sigma` 2 cells. Along depth the bump is as wide in metres at the finest
    resolution, and in coarser volumes it is one slice, as the released code cuts it to the nearest odd number of slices.

    Where the released code differs: it draws with a toolbox's default of a quarter of the window, so its sigma is 3.25 cells; it
    rounds the place to a cell. Here the place is exact, unless there is one slice alone in the window.

    `teach` "entropy" is ours: each volume goes through a softmax, and its cross entropy to the bump, made to sum to 1, is taken.
    Hardly a voxel in a thousand is not 0; by squares a network learns for thousands of steps to say nothing first. Such a volume
    says where a joint may be, and is read by its mean, which errs less than its highest voxel.
    """

    depths: tuple[int, ...] = (1, 2, 4, 64)
    sigma: float = 2.0
    reach: float = 1.0  # metres
    teach: Literal["squares", "entropy"] = "squares"

    def target(
        self, xy: Float[Tensor, "B J 2"], z: Float[Tensor, "B J"], size: Size, grid: Size, slices: int
    ) -> Float[Tensor, "B J d h w"]:
        """Bumps at crop pixels `xy` and at `z` metres from the root."""
        maps = gaussian_maps(to_grid(xy, size, grid), grid, self.sigma)
        return self._along_depth(z, slices, grid)[..., None, None] * maps.unsqueeze(2)

    def _along_depth(self, z: Float[Tensor, "B J"], slices: int, grid: Size) -> Float[Tensor, "B J d"]:
        place = to_slices(z, slices, self.reach).unsqueeze(-1)
        nearest = (place + 0.5).floor()
        away = torch.arange(slices, device=z.device) - nearest
        sigma = self.sigma * slices / grid[1]
        half = int((6 * sigma + 1) // 2)  # slices on each side of the nearest
        window = (away.abs() <= half).to(z)
        return window if half == 0 else window * torch.exp(-(away + nearest - place).square() / (2 * sigma**2))

    def loss(
        self,
        raws: Sequence[Float[Tensor, "B _ h w"]],
        xy: Float[Tensor, "B J 2"],
        z: Float[Tensor, "B J"],
        weight: Float[Tensor, "B J"],
        size: Size,
    ) -> Float[Tensor, ""]:
        """The sum over the stacks, each counting alike; a joint without weight does not teach.

        The released code gives a joint without annotation an empty target instead.
        """
        total = weight.new_zeros(())
        for raw, slices in zip(raws, self.depths, strict=True):
            volume = self.volume(raw, slices)
            target = self.target(xy, z, size, (raw.shape[-2], raw.shape[-1]), slices)
            total = total + (self._apart(volume.flatten(2), target.flatten(2)) * weight).mean()
        return total

    def _apart(self, volume: Float[Tensor, "B J n"], target: Float[Tensor, "B J n"]) -> Float[Tensor, "B J"]:
        if self.teach == "squares":
            return (volume - target).square().mean(-1)
        share = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
        return -(share * volume.log_softmax(-1)).sum(-1)

    def volume(self, raw: Float[Tensor, "B C h w"], slices: int) -> Float[Tensor, "B J d h w"]:
        return raw.unflatten(1, (-1, slices))

    def decode(
        self, raws: Sequence[Float[Tensor, "B _ h w"]], size: Size
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"], Float[Tensor, "B J"]]:
        """Pixels of the crop, metres from the root, and confidence: the place and the value of the last stack's highest voxel.

        By "entropy" the place is the mean, and the confidence is the highest voxel's share over what it would be in a bump.
        """
        raw, slices = raws[-1], self.depths[-1]
        volume = self.volume(raw, slices)
        cell, top = voxel_argmax(volume)
        if self.teach == "entropy":
            cell = soft_argmax_3d(volume)
            bump = (2 * math.pi) ** 1.5 * self.sigma**3 * slices / raw.shape[-1]  # its sum; the highest voxel is 1
            top = (bump * (top - volume.flatten(2).logsumexp(-1)).exp()).clamp_max(1)
        xy = from_grid(cell[..., :2], (raw.shape[-2], raw.shape[-1]), size)
        return xy, from_slices(cell[..., 2], slices, self.reach), top.clamp_min(0)


# ---- expectation ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class IntegralVolume:
    """The expectation over a volume of logits, (B, J, d, h, w), with an L1 loss in cells (3DMPPE's PoseNet, Integral 3D).

    Released weights count with `places` "msra": x and y as i = x w / W, and z with +`reach` at slice d.
    """

    reach: float = 1.0  # metres
    places: Places = "pixel"

    def to_cells(
        self, xy: Float[Tensor, "B J 2"], z: Float[Tensor, "B J"], size: Size, voxels: tuple[int, int, int]
    ) -> Float[Tensor, "B J 3"]:
        """Crop pixels and metres as (column, row, slice) of a volume of `voxels` (slices, rows, columns)."""
        cells = to_grid(xy, size, (voxels[1], voxels[2]), self.places)
        return torch.cat([cells, to_slices(z, voxels[0], self.reach, self.places).unsqueeze(-1)], -1)

    def from_cells(
        self, cells: Float[Tensor, "B J 3"], size: Size, voxels: tuple[int, int, int]
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        xy = from_grid(cells[..., :2], (voxels[1], voxels[2]), size, self.places)
        return xy, from_slices(cells[..., 2], voxels[0], self.reach, self.places)

    def loss(
        self,
        logits: Float[Tensor, "B J d h w"],
        xy: Float[Tensor, "B J 2"],
        z: Float[Tensor, "B J"],
        weight: Float[Tensor, "B J"],
        has_depth: Bool[Tensor, " B"],
        size: Size,
    ) -> Float[Tensor, ""]:
        """`has_depth` False: an image with 2D annotation only, of which z teaches nothing."""
        target = self.to_cells(xy, z, size, _voxels(logits))
        return coordinate_loss(soft_argmax_3d(logits), target, weight, has_depth)

    def decode(
        self, logits: Float[Tensor, "B J d h w"], size: Size
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"], Float[Tensor, "B J"]]:
        """Pixels of the crop, metres from the root, and a confidence of 1: how sharp a volume is does not say how sure it is."""
        xy, z = self.from_cells(soft_argmax_3d(logits), size, _voxels(logits))
        return xy, z, torch.ones_like(z)


def coordinate_loss(
    pred: Float[Tensor, "B J 3"],
    target: Float[Tensor, "B J 3"],
    weight: Float[Tensor, "B J"],
    has_depth: Bool[Tensor, " B"],
) -> Float[Tensor, ""]:
    """3DMPPE's: a third of the absolute errors in x, y and (where there is depth) z, the mean over all joints of all images."""
    axes = F.pad(has_depth.to(pred)[:, None], (2, 0), value=1.0)
    return ((pred - target).abs() * axes[:, None] * weight.unsqueeze(-1)).mean()


def _voxels(volume: Tensor) -> tuple[int, int, int]:
    slices, height, width = volume.shape[2:]
    return slices, height, width
