"""One Gaussian bump per joint (Tompson et al., NeurIPS 2014), read back by one of `peaks`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from body3d.codecs.base import Places, Size, from_grid, swap_joints, to_grid
from body3d.codecs.peaks import Decoder, dark, peaks, quarter_shift, udp_dark
from body3d.losses import joint_mse, ohkm_mse

__all__ = ["Heatmap", "gaussian_maps", "in_view", "msra_heatmap", "msra_maps", "udp_heatmap"]


def gaussian_maps(xy: Float[Tensor, "B J 2"], grid: Size, sigma: float) -> Float[Tensor, "B J h w"]:
    """exp(-r^2 / (2 sigma^2)), r from the exact place `xy`, all in cells; the peak is 1."""
    x, y = (
        torch.exp(-(torch.arange(n, device=xy.device, dtype=xy.dtype) - v).square() / (2 * sigma**2))
        for n, v in zip(grid[::-1], xy.split(1, -1), strict=True)
    )
    return y[..., :, None] * x[..., None, :]


def msra_maps(xy: Float[Tensor, "B J 2"], grid: Size, sigma: float) -> Float[Tensor, "B J h w"]:
    """The released target of SimpleBaseline and HRNet: the bump is at the nearest cell and cut to 6 sigma + 1 cells."""
    centre = msra_centre(xy)
    x, y = (
        ((torch.arange(n, device=xy.device) - v).abs() <= 3 * sigma)
        for n, v in zip(grid[::-1], centre.split(1, -1), strict=True)
    )
    return gaussian_maps(centre, grid, sigma) * (y[..., :, None] & x[..., None, :])


def msra_centre(xy: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
    return (xy + 0.5).trunc()  # int() of the released code: towards 0, also left of the map


def in_view(xy: Float[Tensor, "B J 2"], grid: Size, sigma: float) -> Bool[Tensor, "B J"]:
    """Whether the window of 6 sigma + 1 cells around `xy` touches the map; the released code rounds towards 0."""
    low, high = (xy - 3 * sigma).trunc(), (xy + 3 * sigma + 1).trunc()
    return ((low < xy.new_tensor(grid[::-1])) & (high >= 0)).all(-1)


@dataclass(frozen=True)
class Heatmap:
    """(B, J, h, w) against Gaussians of `sigma` cells (2 for 64x48 maps, 3 for 96x72), by HRNet's mean squared error.

    The bump is at the exact place, as DARK and UDP have it; `rounded` puts it at the nearest cell and cuts it (`msra_maps`).
    `hardest`: only so many joints of each image teach (OHKM). `places` other than "pixel" are for weights trained so; our own
    convention needs no flip shift and has no bias. A joint whose window misses the map has no weight.
    """

    sigma: float = 2.0
    decoder: Decoder = dark
    places: Places = "pixel"
    rounded: bool = False
    hardest: int | None = None

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def target(
        self, xy: Float[Tensor, "B J 2"], size: Size, grid: Size
    ) -> tuple[Float[Tensor, "B J h w"], Bool[Tensor, "B J"]]:
        """The maps that stand for crop pixels `xy`, and which of them the grid shows."""
        cells = to_grid(xy, size, grid, self.places)
        if self.rounded:
            return msra_maps(cells, grid, self.sigma), in_view(msra_centre(cells), grid, self.sigma)
        return gaussian_maps(cells, grid, self.sigma), in_view(cells, grid, self.sigma)

    def loss(
        self,
        raw: Float[Tensor, "B J h w"],
        xy: Float[Tensor, "B J 2"],
        weight: Float[Tensor, "B J"],
        size: Size,
    ) -> Float[Tensor, ""]:
        target, visible = self.target(xy, size, (raw.shape[-2], raw.shape[-1]))
        if self.hardest is not None:
            return ohkm_mse(raw, target, weight * visible, self.hardest)
        return joint_mse(raw, target, weight * visible)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """Where `decoder` would move more than a cell from the highest one, the map is no bump: it moves one cell."""
        cell, top = peaks(raw)
        xy = cell + (self.decoder(raw) - cell).clamp(-1, 1)
        return from_grid(xy, (raw.shape[-2], raw.shape[-1]), size, self.places), top.clamp_min(0)

    def mirror(self, raw: Float[Tensor, "B J h w"], flip: Sequence[int]) -> Float[Tensor, "B J h w"]:
        """With the "msra" places the maps are moved one cell to the right, as released (SHIFT_HEATMAP)."""
        turned = swap_joints(raw.flip(-1), flip)
        return torch.cat([turned[..., :1], turned[..., :-1]], -1) if self.places == "msra" else turned


def msra_heatmap(sigma: float = 2.0, hardest: int | None = None) -> Heatmap:
    """As SimpleBaseline's and HRNet's published weights were trained and are read."""
    return Heatmap(sigma, quarter_shift, "msra", rounded=True, hardest=hardest)


def udp_heatmap(sigma: float = 2.0, kernel: int = 11) -> Heatmap:
    """As UDP's published Gaussian weights (and ViTPose's) were trained and are read, but the bump is not cut at 3 sigma.

    mmpose 1.x decodes them with the crop's N pixels where UDP has N - 1, up to a pixel off; this does not.
    """
    return Heatmap(sigma, partial(udp_dark, kernel=kernel), "udp")
