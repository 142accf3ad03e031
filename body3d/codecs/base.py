"""What a codec is, and how coordinates go between the crop and a grid."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.geometry import rescale

__all__ = ["Codec", "Mirrors", "Places", "Size", "from_fraction", "from_grid", "swap_joints", "to_fraction", "to_grid"]

Size = tuple[int, int]  # (height, width): of the crop in pixels, of a map in cells

# Where cell i of a grid of n cells lies on a crop of N pixels.
#   pixel: ours. Cells tile the crop, centres at the integers: i = (x + 0.5) n / N - 0.5. A mirrored crop gives mirrored cells.
#   msra:  i = x n / N, as released with SimpleBaseline, HRNet, DARK and most that followed. Half a cell less half a pixel away
#          from where the cell is, so mirroring moves what is read by 1 - n / N cells.
#   udp:   i = x (n - 1) / (N - 1), UDP's: first and last cells lie on the first and last pixels. Mirrors exactly too.
Places = Literal["pixel", "msra", "udp"]


@runtime_checkable
class Codec(Protocol):
    """How what a network puts out stands for coordinates: three answers about one representation of joints.

    Places are pixels of the crop, pixel centres at the integers. `raw` is whatever `head` gives: a tensor or a named tuple of
    tensors. Codecs are frozen values and have no weights: what must be learned along (a flow, a code book) is part of the head,
    and reaches the loss in `raw`. So one codec can serve many networks and be compared, copied and written down.
    """

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        """From the last feature map of a trunk, (B, channels, h, w), to `raw`."""
        ...

    def loss(self, raw: Any, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size) -> Float[Tensor, ""]:
        """`weight` 0: the joint is unknown and teaches nothing."""
        ...

    def decode(self, raw: Any, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """Places, and a confidence that is at least 0."""
        ...


@runtime_checkable
class Mirrors(Protocol):
    """A codec whose raw output of a mirrored crop can be turned back, so that a flip test can average before decoding."""

    def mirror(self, raw: Any, flip: Sequence[int]) -> Any:
        """`raw` of the mirrored crop as that of the crop itself; `flip` is `JointSet.flip`."""
        ...


def to_grid(xy: Float[Tensor, "*B 2"], size: Size, grid: Size, places: Places = "pixel") -> Float[Tensor, "*B 2"]:
    """Crop pixels to cells of a grid over the crop."""
    return _between(xy, size, grid, places)


def from_grid(xy: Float[Tensor, "*B 2"], grid: Size, size: Size, places: Places = "pixel") -> Float[Tensor, "*B 2"]:
    """Cells of a grid to crop pixels."""
    return _between(xy, grid, size, places)


def _between(xy: Tensor, source: Size, target: Size, places: Places) -> Tensor:
    less = 1 if places == "udp" else 0
    factor = xy.new_tensor([(t - less) / max(s - less, 1) for s, t in zip(source[::-1], target[::-1], strict=True)])
    return rescale(xy, factor) if places == "pixel" else xy * factor


def to_fraction(xy: Float[Tensor, "*B 2"], size: Size, places: Places = "pixel") -> Float[Tensor, "*B 2"]:
    """Crop pixels to fractions of the crop: 0 is its left or upper edge, 1 the other (udp: centres of the outer pixels)."""
    half, less = _edges(places)
    return (xy + half) / xy.new_tensor([size[1] - less, size[0] - less])


def from_fraction(xy: Float[Tensor, "*B 2"], size: Size, places: Places = "pixel") -> Float[Tensor, "*B 2"]:
    half, less = _edges(places)
    return xy * xy.new_tensor([size[1] - less, size[0] - less]) - half


def _edges(places: Places) -> tuple[float, int]:
    return (0.5 if places == "pixel" else 0.0), (1 if places == "udp" else 0)


def swap_joints(maps: Float[Tensor, "B J *S"], flip: Sequence[int]) -> Float[Tensor, "B J *S"]:
    """The joints in the order `flip` (`JointSet.flip`): left ones for right ones."""
    return maps[:, torch.as_tensor(flip, device=maps.device)]
