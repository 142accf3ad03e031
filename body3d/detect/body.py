"""One body in a crop: BlazePose's landmarks, refined on its heatmap, averaged with the mirrored crop's.

BlazePose: Bazarevsky et al. 2020 (arXiv:2006.10204); BlazePose GHUM: Grishchenko et al. 2022 (arXiv:2206.11678).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from body3d.detect.crops import Roi
from body3d.detect.tflite import Network, sigmoid
from body3d.skeletons import COCO17, MEDIAPIPE33

__all__ = ["Pose", "look", "settle", "similarity"]

J = len(MEDIAPIPE33)
# After the 33 joints the network gives 6 points that only serve the crop; the first two are the middle of the hips and
# a point on the circle around the whole body, straight above it when the body stands upright in the crop.
MIDDLE, CIRCLE = J, J + 1
CROP_MARGIN = 1.25  # the crop's half side relative to that circle's radius
FLIP = np.array(MEDIAPIPE33.flip)

# The joints by which two poses are compared, with their OKS spreads: COCO's, the face by its nose alone.
COMPARED = [n for n in COCO17.names if n not in ("left_eye", "right_eye", "left_ear", "right_ear")]
COMPARED_INDEX = np.array(MEDIAPIPE33.indices(COMPARED))
assert COCO17.sigmas is not None
COMPARED_SIGMA = np.array([max(COCO17.sigmas[COCO17.index(n)], 0.05) for n in COMPARED])


@dataclass(frozen=True)
class Pose:
    """One estimate of one person."""

    xy: Float[np.ndarray, "33 2"]  # image pixels
    conf: Float[np.ndarray, " 33"]  # 0..1: inside the picture and visible
    world: Float[np.ndarray, "33 3"]  # metres, camera axes, origin between the hips
    presence: float  # 0..1: the network's belief that the crop holds a person
    roi: Roi
    follow: Roi  # the crop that the network would have liked
    score: float = 0.0  # presence and agreement with the mirrored look

    @property
    def box(self) -> Float[np.ndarray, " 4"]:
        """x0, y0, x1, y1 around the joints that are seen (around all if hardly any is)."""
        seen = self.conf > 0.3
        points = self.xy[seen] if seen.sum() >= 4 else self.xy
        return np.concatenate([points.min(0), points.max(0)])

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return max(float((x1 - x0) * (y1 - y0)), 1.0)


def look(network: Network, image: UInt8[np.ndarray, "H W 3"], roi: Roi, mirror: bool = False) -> Pose:
    """One pass of the landmark network over one crop, mirrored on the way in and back on the way out if asked."""
    crop = roi.cut(image, network.size)
    landmarks, presence, _, heatmaps, world = network(np.ascontiguousarray(crop[:, ::-1]) if mirror else crop)
    landmarks = landmarks.reshape(-1, 5)
    u = landmarks[:, :2] / network.size
    u[:J] = refine(u[:J], heatmaps[..., :J])
    conf = sigmoid(landmarks[:J, 3]) * sigmoid(landmarks[:J, 4])
    world = world.reshape(-1, 3)[:J].astype(np.float64)
    if mirror:
        u[:, 0] = 1 - u[:, 0]
        world[:, 0] *= -1
        u[:J], conf, world = u[:J][FLIP], conf[FLIP], world[FLIP]
    xy = roi.to_image(u)
    # The network's depth grows away from the camera, as ours does; its x and y are the crop's axes.
    world[:, :2] = world[:, :2] @ roi.axes.T
    radius = float(np.hypot(*(xy[CIRCLE] - xy[MIDDLE])))
    follow = Roi.upright(xy[MIDDLE], xy[CIRCLE], xy[MIDDLE], 2 * CROP_MARGIN * radius)
    return Pose(xy[:J], conf, world, float(presence[0]), roi, follow)


def refine(
    u: Float[np.ndarray, "J 2"], heatmaps: Float[np.ndarray, "h w J"], reach: int = 4
) -> Float[np.ndarray, "J 2"]:
    """Each landmark moved to the heatmap's centre of mass in the window around it, where the heatmap is sure (over
    0.5).

    The regression is robust but imprecise, the heatmap precise but fooled by the other side; `reach` is in heatmap
    cells.
    """
    h, w, n = heatmaps.shape
    cell = np.floor(u * (w, h)).astype(int)
    offset = np.arange(-reach, reach + 1)
    x, y = cell[:, 0, None, None] + offset, cell[:, 1, None, None] + offset[:, None]  # (J, 1, k), (J, k, 1)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    window = sigmoid(heatmaps[np.clip(y, 0, h - 1), np.clip(x, 0, w - 1), np.arange(n)[:, None, None]]) * inside
    total = window.sum((1, 2))
    # Cell i stands for the input pixels from 4 i on, not for their middle: the network was trained so (see the tests).
    mean = np.stack([(window * x).sum((1, 2)) / w, (window * y).sum((1, 2)) / h], -1) / np.maximum(total, 1e-9)[:, None]
    return np.where((window.max((1, 2)) > 0.5)[:, None], mean, u)


def similarity(a: Pose, b: Pose, area: float) -> float:
    """OKS of two poses over the joints that both see, 0..1, on a person of `area` square pixels."""
    distance2 = ((a.xy - b.xy)[COMPARED_INDEX] ** 2).sum(-1)
    weight = np.minimum(a.conf, b.conf)[COMPARED_INDEX] + 0.05
    return float((np.exp(-distance2 / (8 * COMPARED_SIGMA**2 * area)) * weight).sum() / weight.sum())


def settle(
    network: Network, image: UInt8[np.ndarray, "H W 3"], roi: Roi, steps: int = 2, least_score: float = 0.0
) -> Pose | None:
    """The pose after following the network's own crop `steps` times; None if nobody is there, or `least_score` is out
    of reach.

    The last look is taken in the mirror as well and the two are averaged. `score` is their mean presence times their
    agreement: on a person both see the same body, while a ghost made of folds and shadows falls apart.
    """
    pose = look(network, image, roi)
    for step in range(steps):
        # A seed may lie badly, so the first look is not yet asked for much.
        if pose.presence < least_score * (0.1, 0.5)[min(step, 1)] or not 8 < pose.follow.size < 4 * max(image.shape):
            return None
        pose = look(network, image, pose.follow)
    if math.sqrt(pose.presence) < least_score:
        return None
    mirrored = look(network, image, pose.roi, mirror=True)
    agreement = similarity(pose, mirrored, pose.area / 2)
    return replace(
        pose,
        xy=(pose.xy + mirrored.xy) / 2,
        conf=np.minimum(pose.conf, mirrored.conf),
        world=(pose.world + mirrored.world) / 2,
        score=math.sqrt(pose.presence * mirrored.presence) * agreement,
    )
