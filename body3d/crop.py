"""Which part of an image a top-down network sees, and where its pixels go."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["apply", "box_to_crop", "crop_matrix", "invert"]


def box_to_crop(
    xyxy: Float[Tensor, "*B 4"], size: tuple[int, int], padding: float = 1.25
) -> tuple[Float[Tensor, "*B 2"], Float[Tensor, "*B"]]:
    """The middle of a box and the width in image pixels of the crop around it.

    The box is widened or heightened to the proportions of `size` (height, width), then enlarged by `padding` (HRNet's for COCO).
    """
    extent = xyxy[..., 2:] - xyxy[..., :2]
    width = torch.maximum(extent[..., 0], extent[..., 1] * (size[1] / size[0]))
    return (xyxy[..., :2] + xyxy[..., 2:]) / 2, padding * width


def crop_matrix(
    center: Float[Tensor, "*B 2"],
    width: Float[Tensor, "*B"],
    rotation: Float[Tensor, "*B"],
    size: tuple[int, int],
    places: Literal["pixel", "msra", "udp"] = "pixel",
) -> Float[Tensor, "*B 2 3"]:
    """The affine map from image pixels to those of a crop of `size` (height, width) that shows `width` image pixels.

    Turned by `rotation` radians about `center`: a crop turned by a positive angle shows the image turned counter-clockwise (as
    seen). "pixel": `center` comes to the middle of the crop, ((w - 1) / 2, (h - 1) / 2). "msra": to (w / 2, h / 2), half a pixel
    further, as released with SimpleBaseline and HRNet. "udp": to the middle, but `width` is what lies between the centres of the
    outer pixels, w - 1 steps. The proportions of the crop are kept in all three.
    """
    height, across = size
    steps = across - 1 if places == "udp" else across
    middle = center.new_tensor([across, height]) / 2 - (0.0 if places == "msra" else 0.5)
    c, s = rotation.cos(), rotation.sin()
    turn = torch.stack([c, s, -s, c], -1).unflatten(-1, (2, 2)) * (steps / width)[..., None, None]
    return torch.cat([turn, (middle - (turn @ center.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)], -1)


def invert(matrix: Float[Tensor, "*B 2 3"]) -> Float[Tensor, "*B 2 3"]:
    turn = torch.linalg.inv(matrix[..., :2])
    return torch.cat([turn, -turn @ matrix[..., 2:]], -1)


def apply(matrix: Float[Tensor, "*B 2 3"], xy: Float[Tensor, "*B J 2"]) -> Float[Tensor, "*B J 2"]:
    return xy @ matrix[..., :2].mT + matrix[..., 2].unsqueeze(-2)
