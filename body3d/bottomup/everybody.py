"""The networks that need no boxes, by name, and people as every detector returns them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from body3d.bottomup import associative, higherhrnet, lightweight_openpose, litepose, movenet, openpose
from body3d.posenet import PoseNet
from body3d.types import Boxes, Detections, Keypoints2D

__all__ = ["FINDERS", "Finder", "as_detections"]


@dataclass(frozen=True)
class Finder:
    """`build` takes the published checkpoint; `find` gives the people of an RGB image of 8 bits, (N, J) in its pixels."""

    build: Callable[..., Any]
    find: Callable[[Any, UInt8[np.ndarray, "H W 3"]], Keypoints2D]
    flips: Callable[[Any, UInt8[np.ndarray, "H W 3"]], Keypoints2D] | None = None  # the same, with the mirrored image


def _associative(build: Callable[..., associative.Associative]) -> Finder:
    return Finder(build, associative.find, lambda net, image: associative.find(net, image, flip=True))


def _nearest_middle(net: PoseNet, image: UInt8[np.ndarray, "H W 3"], flip: bool = False) -> Keypoints2D:
    """MoveNet's one person; nobody where it counts none of the heat."""
    assert isinstance(net.codec, movenet.CentreOffsets)
    people = movenet.track(net, [image], flip=flip)[0]
    return people[(people.conf >= net.codec.least).any(1)]


FINDERS: dict[str, Finder] = {
    "openpose_body": Finder(openpose.openpose_body, openpose.find),
    "lightweight_openpose": Finder(lightweight_openpose.lightweight_openpose, openpose.find),
    "ae_hourglass_4": _associative(associative.ae_hourglass_4),
    "ae_hrnet_w32": _associative(associative.ae_hrnet_w32),
    "higherhrnet_w32": _associative(higherhrnet.higherhrnet_w32),
    "higherhrnet_w48": _associative(higherhrnet.higherhrnet_w48),
    "litepose_xs": _associative(lambda weights: litepose.tagged(litepose.litepose_xs(weights=weights))),
    "litepose_s": _associative(lambda weights: litepose.tagged(litepose.litepose_s(weights=weights))),
    "litepose_m": _associative(lambda weights: litepose.tagged(litepose.litepose_m(weights=weights))),
    "litepose_l": _associative(lambda weights: litepose.tagged(litepose.litepose_l(weights=weights))),
    "movenet": Finder(movenet.movenet, _nearest_middle, lambda net, image: _nearest_middle(net, image, flip=True)),
}


def as_detections(people: Keypoints2D) -> Detections:
    """Boxes are those of the joints that were found, scores the means of all confidences."""
    known = (people.conf > 0).unsqueeze(-1)
    low = torch.where(known, people.xy, torch.inf).amin(1)
    high = torch.where(known, people.xy, -torch.inf).amax(1)
    boxes = torch.cat([low, high], -1)
    some = known.any(1).squeeze(-1)
    return Detections(people[some], Boxes(boxes[some], people.conf.mean(1)[some]))
