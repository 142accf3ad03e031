"""Weights that the trunk of a network on images begins from: a classifier's, a masked autoencoder's, or another network's."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.checkpoints import load_imagenet, load_into, read_published
from body3d.codecs import Size
from body3d.errors import InputError
from body3d.nets.efficientnet_lite import EfficientNetLite
from body3d.nets.hrnet import HRNet
from body3d.nets.resnet import ResNet
from body3d.nets.vitpose import ViT

__all__ = ["Start", "begin_from", "resized_positions"]


Start = Path | Callable[[], Path]  # a file, or what finds it


def begin_from(net: nn.Module, start: Start) -> None:
    """Fill the first ResNet, HRNet, vision transformer or EfficientNet-Lite0 in `net`; the rest stays as it is.

    ResNets: torchvision's names. HRNets: the classification weights of its authors. Transformers: MAE's encoder (He et al.,
    CVPR 2022), its table of positions resized. EfficientNet-Lite0: the classifier's weights, or another network's that stands on it
    (`best.pt` of a training); its first blocks are frozen. InputError if there is no such trunk or the weights are of another one.
    """
    path = start if isinstance(start, Path) else start()
    for part in net.modules():
        if isinstance(part, ResNet | HRNet):
            return load_imagenet(part, path)
        if isinstance(part, ViT):
            return _load_mae(part, path)
        if isinstance(part, EfficientNetLite):
            return _load_lite(part, path)
    whole = type(net.net).__name__ if isinstance(net.net, nn.Module) else type(net).__name__
    raise InputError(f"{path} cannot be begun from: {whole} has no trunk of which there are such weights")


def _load_lite(trunk: EfficientNetLite, path: Path) -> None:
    state, ours = read_published(path), trunk.state_dict()
    first = "_conv_stem.weight"
    before = next((key.removesuffix(first) for key in state if key.endswith(first)), "")
    named = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
    load_into(trunk, {key: value for key, value in named.items() if key in ours} or state, path)
    trunk.freeze()


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
