"""A coarse map that says which cell, and maps of offsets that say where in it: UDP's combined maps, CAL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.codecs.base import Places, Size, from_grid, swap_joints, to_grid
from body3d.codecs.heatmap import gaussian_maps, in_view
from body3d.codecs.peaks import gaussian_blur, peaks, read
from body3d.losses import joint_mse

__all__ = ["CAL", "OffsetMaps", "UDPOffset", "fitted_mask"]


def offsets_to(xy: Float[Tensor, "B J 2"], grid: Size) -> Float[Tensor, "B J 2 h w"]:
    """From every cell to `xy`, in cells."""
    h, w = grid
    y, x = torch.meshgrid(*(torch.arange(n, device=xy.device, dtype=xy.dtype) for n in (h, w)), indexing="ij")
    return xy[..., None, None] - torch.stack([x, y])


# ---- UDP -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class UDPOffset:
    """UDP's combined maps, (B, 3 J, h, w): per joint a disc of radius `radius` * h, and x and y from the cell to the joint.

    Huang et al., "The devil is in the details: delving into unbiased data processing for human pose estimation", CVPR 2020. The
    offsets are in radii and count inside the disc; the class map is blurred before its highest cell is sought (2 `kernel` + 1),
    the offsets by `kernel`. The loss is the release's, squares on all three; the paper writes L1 for the offsets.

    What else UDP changes is the convention of pixels, and ours has no bias either: here `places` is "udp" only to fit weights
    published with it. mmpose 1.x decodes such weights with N pixels where UDP has N - 1; this does not.
    """

    radius: float = 0.0546875  # 3.5 of 64
    kernel: int = 11
    places: Places = "udp"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, 3 * joints, 1)

    def target(self, xy: Float[Tensor, "B J 2"], size: Size, grid: Size) -> Float[Tensor, "B J 3 h w"]:
        offset = offsets_to(to_grid(xy, size, grid, self.places), grid) / (self.radius * grid[0])
        disc = (offset.square().sum(2, keepdim=True) <= 1).to(offset)
        return torch.cat([disc, offset * disc], 2)

    def loss(
        self,
        raw: Float[Tensor, "B C h w"],
        xy: Float[Tensor, "B J 2"],
        weight: Float[Tensor, "B J"],
        size: Size,
    ) -> Float[Tensor, ""]:
        target = self.target(xy, size, (raw.shape[-2], raw.shape[-1]))
        disc, pred = target[:, :, 0], raw.unflatten(1, (-1, 3))
        squares = joint_mse(pred[:, :, 0], disc, weight)
        for axis in (1, 2):
            squares = squares + joint_mse(pred[:, :, axis] * disc, target[:, :, axis], weight)
        return squares

    def cells(self, raw: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """Places in cells, and the peaks of the blurred class maps."""
        maps = raw.unflatten(1, (-1, 3))
        cell, top = peaks(gaussian_blur(maps[:, :, 0], 2 * self.kernel + 1, "reflect"))
        offset = [read(gaussian_blur(maps[:, :, axis], self.kernel, "reflect"), cell) for axis in (1, 2)]
        return cell + torch.stack(offset, -1) * (self.radius * raw.shape[-2]), top

    def decode(self, raw: Float[Tensor, "B C h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        xy, top = self.cells(raw)
        return from_grid(xy, (raw.shape[-2], raw.shape[-1]), size, self.places), top.clamp_min(0)

    def mirror(self, raw: Float[Tensor, "B C h w"], flip: Sequence[int]) -> Float[Tensor, "B C h w"]:
        turned = swap_joints(raw.flip(-1).unflatten(1, (-1, 3)), flip)
        return (turned * turned.new_tensor([1, -1, 1])[:, None, None]).flatten(1, 2)


# ---- CAL -----------------------------------------------------------------------------------------------------------
class OffsetMaps(NamedTuple):
    heat: Float[Tensor, "B J h w"]
    offset: Float[Tensor, "B J 2 h w"]  # x and y to the joint, in units of `CAL.radius` cells


class _OffsetHead(nn.Module):
    def __init__(self, channels: int, joints: int):
        super().__init__()
        self.heat, self.offset = nn.Conv2d(channels, joints, 1), nn.Conv2d(channels, 2 * joints, 1)

    def forward(self, features: Float[Tensor, "B C h w"]) -> OffsetMaps:
        return OffsetMaps(self.heat(features), self.offset(features).unflatten(1, (-1, 2)))


@dataclass(frozen=True)
class CAL:
    """Confidence-aware learning: offsets count as much as it is likely that their cell will be the one that is read.

    Wang et al., "Low-resolution human pose estimation", Pattern Recognition 2022, for maps of 16x12 cells. `sigma` of the heat map
    in cells, `radius` of the offsets in cells, their loss by `weight`. `mask`: how offsets are weighed,

    * "fitted": by one Gaussian fitted to how far, in this batch, the highest cell is from the joint's (GOW; what the release does:
      its "mixture" has one component);
    * "gaussian": by exp(-r^2 / 2 sigma^2) / sigma inside the disc of `radius` (MGM; the release can, but does not);
    * "disc": all cells of the disc alike.

    Heat maps are centred on the joint's cell.
    """

    sigma: float = 0.3
    radius: float = 4.0
    weight: float = 0.7
    mask: Literal["fitted", "gaussian", "disc"] = "fitted"
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return _OffsetHead(channels, joints)

    def loss(
        self, raw: OffsetMaps, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        grid = raw.heat.shape[-2], raw.heat.shape[-1]
        place = to_grid(xy, size, grid, self.places)
        cell, weight = place.round(), weight * in_view(place, grid, self.sigma)
        offset = offsets_to(place, grid) / self.radius
        if self.mask == "fitted":
            mask = fitted_mask(peaks(raw.heat)[0] - cell, weight, -offsets_to(cell, grid))
        else:
            mask = (offset.square().sum(2) <= 1).to(offset)
            if self.mask == "gaussian":
                mask = mask * gaussian_maps(place, grid, self.sigma) / self.sigma
        wrong = (raw.offset - offset).abs().mean(2) * mask
        heat = joint_mse(raw.heat, gaussian_maps(cell, grid, self.sigma), weight)
        return heat + self.weight * (wrong * weight[..., None, None]).mean()

    def decode(self, raw: OffsetMaps, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        cell, top = peaks(raw.heat)
        xy = cell + self.radius * torch.stack([read(raw.offset[:, :, axis], cell) for axis in (0, 1)], -1)
        return from_grid(xy, (raw.heat.shape[-2], raw.heat.shape[-1]), size, self.places), top.clamp_min(0)

    def mirror(self, raw: OffsetMaps, flip: Sequence[int]) -> OffsetMaps:
        heat, offset = (swap_joints(maps.flip(-1), flip) for maps in raw)
        return OffsetMaps(heat, offset * offset.new_tensor([-1, 1])[:, None, None])


@torch.no_grad()
def fitted_mask(
    error: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], away: Float[Tensor, "B J 2 h w"], reach: int = 3
) -> Float[Tensor, "B J h w"]:
    """The Gaussian with mean and covariance of `error` over the joints with weight, at the cells that are `away` from theirs.

    Each map is scaled to 0..1, and 0 further than `reach` cells away in x or y (7x7 cells, as released).
    """
    share = (weight > 0).to(error)
    share = (share / share.sum().clamp_min(1)).unsqueeze(-1)
    mean = (share * error).sum((0, 1))
    spread = error - mean
    covariance = torch.einsum("bji,bjk->ik", share * spread, spread) + 1e-6 * torch.eye(2).to(error)
    at = away - mean[:, None, None]
    distance = torch.einsum("bjihw,ik,bjkhw->bjhw", at, torch.linalg.inv(covariance), at)
    distance = torch.where(away.abs().amax(2) <= reach, distance, 1e9)
    # Relative to the likeliest cell: with hardly any spread all densities would vanish.
    density = torch.exp(-0.5 * (distance - distance.amin((-1, -2), keepdim=True)))
    low, high = density.amin((-1, -2), keepdim=True), density.amax((-1, -2), keepdim=True)
    return (density - low) / (high - low).clamp_min(1e-9)
