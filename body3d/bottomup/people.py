"""What the ways of finding everybody at once share: the image as a network sees it, the peaks of maps, who is labelled, people.

An image lies at the top left of a box whose sides suit the network; at another test scale both are that many times as large, so
the maps of all scales cover the same box and can be averaged after being brought to one grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from body3d.codecs.base import Size, from_grid, to_grid
from body3d.errors import InputError
from body3d.geometry import rescale
from body3d.images import warp_crop
from body3d.joint_set import JointSet
from body3d.types import Keypoints2D

__all__ = ["PLUS", "Frame", "fit_frame", "highest", "labelled", "local_maxima", "parabola", "square", "surest_first"]

LONGEST = 4.0  # times the length that an image's measured side is brought to: what memory allows


# ---- the image -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Frame:
    """An image of `image` (H, W) pixels, `scale` times as large, at the top left of `box` (h, w)."""

    image: Size
    scale: float
    box: Size

    def show(
        self, image: np.ndarray, at: float = 1.0, fill: float = 0.0, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "1 3 h w"]:
        """The box, RGB in 0..1, at the test scale `at`; `fill` is the grey outside the image."""
        factor = self.scale * at
        height, width = (round(side * at) for side in self.box)
        # One more pixel around, so that the border does not fade into what surrounds it.
        wider = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        shift = 0.5 * factor - 0.5 - factor
        seen = warp_crop(wider, np.array([[factor, 0, shift], [0, factor, shift]]), (height, width))
        picture = torch.from_numpy(seen).to(device).permute(2, 0, 1).float() / 255
        rows, columns = (math.ceil(side * factor - 0.5) for side in self.image)
        picture[:, rows:] = fill
        picture[:, :, columns:] = fill
        return picture[None]

    def inside(self, grid: Size) -> Size:
        """How many rows and columns of a grid over the box show the image."""
        rows, columns = (
            min(g, math.ceil(side * self.scale * g / b - 0.5))
            for side, g, b in zip(self.image, grid, self.box, strict=True)
        )
        return max(rows, 1), max(columns, 1)

    def to_image(self, cells: Float[Tensor, "*B 2"], grid: Size) -> Float[Tensor, "*B 2"]:
        """Cells of a grid over the box to pixels of the image."""
        return rescale(from_grid(cells, grid, self.box), 1 / self.scale)


def fit_frame(image: np.ndarray, side: str, length: int, multiple: int, scales: Sequence[float]) -> Frame:
    """The frame in which the `side` ("height", "shorter" or "longer") of an RGB image is `length` pixels.

    An image more than `LONGEST` times as long as that side is made smaller. At each of the test `scales` the box is a multiple of
    `multiple` pixels. InputError for what is no 8-bit RGB image, and for scales that are not fractions of small numbers.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"people are looked for in an RGB image, uint8 of shape (height, width, 3), got {got}")
    height, width = image.shape[:2]
    if min(height, width) == 0:
        raise InputError(f"the image has no pixels: {height} x {width}")
    fractions = [Fraction(s).limit_denominator(8) for s in scales]
    if not fractions or any(f <= 0 or abs(float(f) - s) > 1e-6 for f, s in zip(fractions, scales, strict=True)):
        raise InputError(
            f"test scales are positive fractions with denominators up to 8, such as 0.5, 1 and 1.5; got {tuple(scales)}"
        )
    measured = {"height": height, "shorter": min(height, width), "longer": max(height, width)}[side]
    scale = min(length / measured, LONGEST * length / max(height, width))
    unit = multiple * math.lcm(*(f.denominator for f in fractions))
    box_height, box_width = (unit * max(1, math.ceil(n * scale / unit - 1e-6)) for n in (height, width))
    return Frame((height, width), scale, (box_height, box_width))


# ---- peaks ---------------------------------------------------------------------------------------------------------
PLUS = ((-1, 0), (0, -1), (0, 1), (1, 0))  # (dy, dx) of the neighbours that share an edge


def square(window: int) -> tuple[tuple[int, int], ...]:
    """(dy, dx) of the neighbours in a square of `window` x `window` cells."""
    steps = range(-(window // 2), window // 2 + 1)
    return tuple((dy, dx) for dy in steps for dx in steps if (dy, dx) != (0, 0))


def local_maxima(maps: Float[Tensor, "*B h w"], around: Sequence[tuple[int, int]]) -> Bool[Tensor, "*B h w"]:
    """Cells that none of the neighbours `around` them exceeds; of equal neighbours the first in reading order.

    Published code takes all of the equal ones: a flat top is then a crowd.
    """
    height, width = maps.shape[-2:]
    reach = max(max(abs(dy), abs(dx)) for dy, dx in around)
    padded = F.pad(maps, (reach,) * 4, value=-torch.inf)
    found = torch.ones_like(maps, dtype=torch.bool)
    for dy, dx in around:
        other = padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        found &= maps > other if (dy, dx) < (0, 0) else maps >= other
    return found


def highest(
    maps: Float[Tensor, "*B h w"], window: int, most: int
) -> tuple[Int[Tensor, "*B P 2"], Float[Tensor, "*B P"]]:
    """The `most` highest peaks of each map, (x, y) in cells, and their heights; 0 for those that there are not."""
    alone = torch.where(local_maxima(maps, square(window)), maps, 0).flatten(-2)
    value, index = alone.topk(min(most, alone.shape[-1]), -1)
    width = maps.shape[-1]
    return torch.stack([index % width, index // width], -1), value


def parabola(maps: Float[Tensor, "J h w"], joint: Int[Tensor, " P"], cell: Int[Tensor, "P 2"]) -> Float[Tensor, "P 2"]:
    """From peaks of the maps `joint` to the tops of parabolas through the logarithms of three cells along each axis.

    Exact for a Gaussian. Not across the border of a map, and half a cell at most.
    """
    log = F.pad(maps.clamp_min(1e-6).log(), (1, 1, 1, 1), value=torch.nan)
    x, y = (cell + 1).unbind(-1)
    here = log[joint, y, x]
    shift = lambda low, high: 0.5 * (high - low) / (2 * here - low - high).clamp_min(1e-6)
    along_x = shift(log[joint, y, x - 1], log[joint, y, x + 1])
    along_y = shift(log[joint, y - 1, x], log[joint, y + 1, x])
    return torch.stack([along_x, along_y], -1).nan_to_num(0).clamp(-0.5, 0.5)


# ---- people --------------------------------------------------------------------------------------------------------
def labelled(boxes: Float[Tensor, "M 4"], size: Size, grid: Size) -> Float[Tensor, "h w"]:
    """The mask of a loss over maps: 0 at cells whose centres lie in the `boxes` (x, y, x, y in pixels) of people without joints."""
    height, width = grid
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = from_grid(torch.stack([x, y], -1).to(boxes), grid, size)[..., None, :]
    within = ((xy >= boxes[:, :2]) & (xy <= boxes[:, 2:])).all(-1)
    return (~within.any(-1)).to(boxes)


def cells_of(xy: Float[Tensor, "*B 2"], size: Size, grid: Size) -> tuple[Int[Tensor, "*B 2"], Bool[Tensor, "*B"]]:
    """The cells in which places in pixels lie (the nearest ones, for places outside), and which lie inside."""
    cell = (to_grid(xy, size, grid) + 0.5).floor()
    last = cell.new_tensor([grid[1] - 1, grid[0] - 1])
    return cell.clamp(cell.new_zeros(2), last).long(), ((cell >= 0) & (cell <= last)).all(-1)


def surest_first(xy: Float[Tensor, "N J 2"], conf: Float[Tensor, "N J"], joints: JointSet) -> Keypoints2D:
    """People by their mean confidence over all joints; a joint that was not found has confidence 0 and stands at the origin."""
    order = conf.mean(1).argsort(descending=True, stable=True)
    xy, conf = xy[order], conf[order]
    return Keypoints2D(xy * (conf > 0).to(xy).unsqueeze(-1), conf, joints)
