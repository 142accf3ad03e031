"""Mean per-joint position errors of 3D poses, and their relatives.

Two numbers called "MPJPE" differ by the root, the alignment and the joints. Here alignment is in the name, and what is subtracted
beforehand is the caller's: nothing, for errors in camera space; the root, for protocol 1 of Human3.6M (`root_relative`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.geometry import align


def root_relative(pose: Float[Tensor, "*B J 3"], root: int) -> Float[Tensor, "*B J 3"]:
    """The pose with its root joint at the origin."""
    return pose - pose[..., root : root + 1, :]


def joint_errors(predicted: Float[Tensor, "*B J 3"], truth: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B J"]:
    """Euclidean distance of each joint."""
    return (predicted - truth).norm(dim=-1)


def masked_mean(values: Float[Tensor, "*B J"], conf: Float[Tensor, "*B J"] | None = None) -> Float[Tensor, "*B"]:
    """The mean over the joints that count, weighted by `conf`; NaN where none does."""
    if conf is None:
        return values.mean(-1)
    known = torch.where(conf > 0, values, torch.zeros_like(values))  # what does not count may be NaN
    return (conf * known).sum(-1) / conf.sum(-1)


def mpjpe(
    predicted: Float[Tensor, "*B J 3"], truth: Float[Tensor, "*B J 3"], conf: Float[Tensor, "*B J"] | None = None
) -> Float[Tensor, "*B"]:
    """Mean per-joint position error of each pose, as they stand (Ionescu et al., PAMI 2014)."""
    return masked_mean(joint_errors(predicted, truth), conf)


def pa_mpjpe(
    predicted: Float[Tensor, "*B J 3"],
    truth: Float[Tensor, "*B J 3"],
    conf: Float[Tensor, "*B J"] | None = None,
    scale: bool = True,
) -> Float[Tensor, "*B"]:
    """MPJPE after Procrustes alignment of each pose, never by a reflection.

    With `scale` (rotation, translation, scale) it is protocol 2 of Human3.6M as most papers count it (Martinez et al., 2017).
    Without, it is what 3DMPPE's published evaluation calls PA-MPJPE ("protocol 1"): a larger number.
    """
    if conf is not None:  # what does not count may be NaN
        predicted, truth = (torch.where(conf[..., None] > 0, pose, 0.0) for pose in (predicted, truth))
    return mpjpe(align(predicted, truth, conf, scale), truth, conf)


def n_mpjpe(
    predicted: Float[Tensor, "*B J 3"], truth: Float[Tensor, "*B J 3"], conf: Float[Tensor, "*B J"] | None = None
) -> Float[Tensor, "*B"]:
    """MPJPE after the best scale of each pose, nothing turned or moved (Rhodin et al., CVPR 2018): give root-relative poses."""
    w = torch.ones_like(truth[..., 0]) if conf is None else conf
    dot = lambda a, b: (w[..., None] * torch.nan_to_num(a) * torch.nan_to_num(b)).sum((-2, -1), keepdim=True)
    return mpjpe(predicted * (dot(predicted, truth) / dot(predicted, predicted).clamp_min(1e-12)), truth, conf)


def mpjve(predicted: Float[Tensor, "*B T J 3"], truth: Float[Tensor, "*B T J 3"]) -> Float[Tensor, "*B"]:
    """Mean per-joint velocity error: MPJPE of the differences of consecutive frames, metres a frame (Pavllo et al., CVPR 2019)."""
    return mpjpe(predicted.diff(dim=-3), truth.diff(dim=-3)).mean(-1)


def acceleration_error(
    predicted: Float[Tensor, "*B T J 3"], truth: Float[Tensor, "*B T J 3"], fps: float | None = None
) -> Float[Tensor, "*B"]:
    """Mean error of the second differences: metres per frame², or per s² if `fps` is given (Kanazawa et al., CVPR 2019)."""
    if fps is not None and fps <= 0:
        raise ValueError(f"a frame rate is positive, got {fps}")
    error = mpjpe(predicted.diff(n=2, dim=-3), truth.diff(n=2, dim=-3)).mean(-1)
    return error if fps is None else error * fps**2


def pve(predicted: Float[Tensor, "*B V 3"], truth: Float[Tensor, "*B V 3"]) -> Float[Tensor, "*B"]:
    """Per-vertex error (V2V) of two meshes of one topology, as they stand. Align the roots first for the usual MPVPE."""
    return mpjpe(predicted, truth)


def pa_pve(predicted: Float[Tensor, "*B V 3"], truth: Float[Tensor, "*B V 3"]) -> Float[Tensor, "*B"]:
    """Per-vertex error after a similarity of the whole mesh."""
    return pa_mpjpe(predicted, truth)
