"""Top-down: a box around each person, a crop, a network that sees one person, and its keypoints back in the image."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from body3d.codecs.base import Places
from body3d.crop import apply, box_to_crop, crop_matrix, invert
from body3d.detect.boxes import checked
from body3d.detect.pose_nms import PaperRule, ReleasedRule, merge_detections
from body3d.images import warp_crop
from body3d.posenet import PoseNet, evaluating
from body3d.types import Boxes, Detections, Keypoints2D

__all__ = ["detect_topdown"]


@torch.no_grad()
def detect_topdown(
    net: PoseNet,
    images: Sequence[UInt8[np.ndarray, "H W 3"]],
    boxes: Sequence[Boxes],
    flip: bool = False,
    batch: int = 16,
    padding: float = 1.25,
    nms: ReleasedRule | PaperRule | None = None,
) -> list[Detections]:
    """The keypoints of the person in each box (pixels) of each image; people of several images share a batch.

    The crop shows the box widened to the network's proportions and enlarged by `padding` (1.25 is what networks on COCO were
    trained with). `flip` averages with the mirrored crop. The detections' boxes are those given; their score is the box's times
    the mean confidence of the keypoints. `nms`: how poses of the same person are merged. InputError for a box that is empty, not
    finite or wholly outside its image.
    """
    device = next((p.device for p in net.parameters()), torch.device("cpu"))  # a network in a file of its own has none
    places: Places = getattr(net.codec, "places", "pixel")
    owner = [i for i, found in enumerate(boxes) for _ in range(len(found.xyxy))]
    given = [checked(found, image.shape[:2]) for image, found in zip(images, boxes, strict=True)]
    xyxy = torch.cat([*given, torch.zeros(0, 4)])
    centre, width = box_to_crop(xyxy, net.size, padding)
    matrix = crop_matrix(centre, width, torch.zeros_like(width), net.size, places)
    xy, conf = [], []
    with evaluating(net):
        for rows in torch.arange(len(owner)).split(batch) if owner else ():
            crops = [warp_crop(images[owner[r]], matrix[r].double().numpy(), net.size) for r in rows.tolist()]
            crop = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 255
            seen = net.predict(crop, flip)
            xy.append(apply(invert(matrix[rows]), seen.xy.cpu()))
            conf.append(seen.conf.cpu())
    J = len(net.joints)
    points = torch.cat([*xy, xyxy.new_zeros(0, J, 2)]), torch.cat([*conf, xyxy.new_zeros(0, J)])
    counts = [len(found.xyxy) for found in boxes]
    people = zip(points[0].split(counts), points[1].split(counts), boxes, strict=True)
    found = [
        Detections(Keypoints2D(x, c, net.joints), Boxes(box.xyxy.cpu().float(), box.score.cpu() * c.mean(-1)))
        for x, c, box in people
    ]
    return found if nms is None else [merge_detections(some, nms) for some in found]
