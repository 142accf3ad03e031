"""Losses that more than one method uses: weighted maps, hard joints, bones."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bone_loss", "joint_mse", "ohkm_mse", "weighted_mean"]


def weighted_mean(loss: Float[Tensor, "*B"], weight: Float[Tensor, "*B"]) -> Float[Tensor, ""]:
    """The mean of the losses by their weights; 0, with a gradient of 0, where all weights are 0."""
    return (loss * weight).sum() / weight.sum().clamp_min(1e-9)


def joint_mse(
    pred: Float[Tensor, "B J *S"], target: Float[Tensor, "B J *S"], weight: Float[Tensor, "B J"]
) -> Float[Tensor, ""]:
    """Half the mean squared error of maps, (B, J, h, w) or of any other shape after the joints.

    HRNet's convention: maps are multiplied by the joint's weight before they are compared, so a weight counts squared, and joints
    without weight still count in the mean.
    """
    return 0.5 * _squares(pred, target, weight).mean()


def ohkm_mse(
    pred: Float[Tensor, "B J *S"], target: Float[Tensor, "B J *S"], weight: Float[Tensor, "B J"], hardest: int = 8
) -> Float[Tensor, ""]:
    """As `joint_mse`, over the `hardest` joints of each image alone (online hard keypoint mining, CPN, CVPR 2018); all if there
    are no more."""
    squares = _squares(pred, target, weight)
    return 0.5 * squares.topk(min(hardest, squares.shape[-1]), -1).values.mean()


def _squares(pred: Tensor, target: Tensor, weight: Tensor) -> Float[Tensor, "B J"]:
    return (pred - target).square().flatten(2).mean(-1) * weight.square()


def bone_loss(
    pred: Float[Tensor, "B J D"],
    target: Float[Tensor, "B J D"],
    bones: Sequence[tuple[int, int]],
    weight: Float[Tensor, "B E"] | None = None,
    over: Literal["sum", "mean", "batch"] = "mean",
) -> Float[Tensor, ""]:
    """How much the lengths of bones differ, in 2D or 3D, in the unit of the coordinates.

    `bones` are pairs of joints (`JointSet.bones`), `weight` is one number per bone of `bones` in their order. Kulon et al.,
    "Weakly-supervised mesh-convolutional hand reconstruction in the wild", CVPR 2020, sum the absolute differences over the bones
    ("sum", then the mean over the batch); "mean" is the mean over the bones. "batch" is mmpose's: it takes the mean length over
    the batch before the difference, so errors of opposite sign cancel.
    """
    start, end = torch.tensor(bones, device=pred.device).mT
    difference = (pred[:, end] - pred[:, start]).norm(dim=-1) - (target[:, end] - target[:, start]).norm(dim=-1)
    if weight is not None:
        difference = difference * weight
    if over == "batch":
        return difference.mean(0).abs().mean()
    return difference.abs().sum(-1).mean() if over == "sum" else difference.abs().mean()
