"""Nine samples of a data set in one picture: wrong joint orders, axes and crops are seen at once."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from body3d.errors import InputError
from body3d.images import warp_crop
from body3d.skeletons import SMPL22, JointSet
from body3d.types import BodyParams, Keypoints2D, Sample
from body3d.view.draw import draw_keypoints
from body3d.view.sides import contact_sheet

__all__ = ["nine_samples"]

TILE = 360  # pixels
PAPER = 245  # grey


def nine_samples(samples: Sequence[Sample]) -> UInt8[np.ndarray, "H W 3"]:
    """Evenly spread over the set: the photo around the person if there is one, the joints on paper if not.

    InputError for a set without samples.
    """
    if not len(samples):
        raise InputError("0 samples: there is nothing to draw")
    picks = [round((k + 0.5) * len(samples) / 9 - 0.5) for k in range(9)]
    tiles = {}
    for i in dict.fromkeys(picks):
        sample = samples[i]
        tiles[f"{i}: {sample.id[-34:]}"] = _tile(sample)
    return contact_sheet(tiles, columns=3)


def _tile(sample: Sample) -> UInt8[np.ndarray, "360 360 3"]:
    """One sample; of several people in a frame, all."""
    joints, xy, conf = _points(sample)
    seen = xy[conf > 0]
    paper = np.full((TILE, TILE, 3), PAPER, np.uint8)
    if not len(seen):
        return paper
    low, high = seen.amin(0), seen.amax(0)
    if sample.box is not None and sample.image is not None:
        box = sample.box.xyxy.reshape(-1, 4)
        low, high = torch.minimum(low, box[:, :2].amin(0)), torch.maximum(high, box[:, 2:].amax(0))
    scale = TILE / (1.25 * (high - low).amax().clamp_min(1e-3)).item()
    shift = (TILE - 1) / 2 - scale * (low + high) / 2
    image = paper
    if sample.image is not None:
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        image = warp_crop(sample.image.numpy(), matrix, (TILE, TILE))
    return draw_keypoints(image, Keypoints2D(scale * xy + shift, conf, joints), thickness=3.0)


def _points(sample: Sample) -> tuple[JointSet, Float[Tensor, "N J 2"], Float[Tensor, "N J"]]:
    """The joints in the image; without an image or 2D, seen from the front and a little from above."""
    if sample.kp2d is not None:
        k = sample.kp2d
        return k.joints, k.xy.reshape(-1, len(k.joints), 2), k.conf.reshape(-1, len(k.joints))
    if sample.params is not None and sample.kp3d is None:
        joints, xyz = _posed(sample.params)
        conf = torch.ones(1, len(joints))
    elif (k := sample.kp3d) is None:
        raise ValueError(f"sample {sample.id} has neither keypoints nor parameters to draw")
    else:
        joints, xyz, conf = k.joints, k.xyz.reshape(-1, len(k.joints), 3), k.conf.reshape(-1, len(k.joints))
        if k.frame != "world":
            return joints, xyz[..., :2], conf  # camera axes: x right, y down
    x, y, z = xyz.unbind(-1)
    return joints, torch.stack([x + 0.3 * z, 0.15 * z - y], -1), conf  # y up


def _posed(params: BodyParams) -> tuple[JointSet, Float[Tensor, "1 22 3"]]:
    """The open body's joints in the pose of another body of the family: same names, other bones."""
    from body3d.body.model import BodyModel

    model = BodyModel.open()
    zero = model.zero_params(1)
    pose = zero.pose.clone()
    pose[0, : len(SMPL22)] = params.pose[: len(SMPL22)]
    points = model.subset(SMPL22.names)(BodyParams(pose, zero.shape, params.transl[None], zero.expression))
    return SMPL22, points
