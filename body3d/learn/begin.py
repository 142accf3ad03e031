"""Weights that the trunk of a 2D network begins from: a classifier's, or those of a masked autoencoder."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from body3d.checkpoints import load_imagenet, load_into, read_published
from body3d.codecs import Size
from body3d.errors import InputError
from body3d.nets.hrnet import HRNet
from body3d.nets.resnet import ResNet
from body3d.nets.vitpose import ViT
from body3d.posenet import PoseNet

__all__ = ["begin_from", "resized_positions"]


def begin_from(net: PoseNet, path: Path) -> None:
    """Fill the first ResNet, HRNet or vision transformer in `net`; the rest stays as it is.

    ResNets: torchvision's names. HRNets: the classification weights of its authors. Transformers: MAE's encoder (He et al.,
    CVPR 2022), its table of positions resized. InputError if there is no such trunk or the weights are of another one.
    """
    for part in net.modules():
        if isinstance(part, ResNet | HRNet):
            return load_imagenet(part, path)
        if isinstance(part, ViT):
            return _load_mae(part, path)
    raise InputError(
        f"{path} cannot be begun from: {type(net.net).__name__} has no ResNet, HRNet or vision transformer"
    )


def _load_mae(vit: ViT, path: Path) -> None:
    ours, state = vit.state_dict(), {}
    for key, value in read_published(path).items():
        key = key.replace("patch_embed.proj.", "patch_embed.")
        key = f"last_{key}" if key.startswith("norm.") else key
        state[key] = resized_positions(value, vit.grid) if key == "pos_embed" else value
    load_into(vit, {key: value for key, value in state.items() if key in ours}, path)


def resized_positions(table: Float[Tensor, "1 N C"], grid: Size) -> Float[Tensor, "1 M C"]:
    """The class token's entry, then those of a square of patches resized to `grid` (bicubic, as ViTPose does it)."""
    first, square = table[:, :1], table[:, 1:]
    side = round(square.shape[1] ** 0.5)
    maps = square.mT.unflatten(2, (side, side))
    resized = F.interpolate(maps, grid, mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2).mT], 1)
