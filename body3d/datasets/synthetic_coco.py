"""Scenes as annotations in COCO's form, which `datasets.coco` reads, with what only rendered people have beside them.

images          file_name, and `camera` with K (pixels)
annotations     keypoints (v: 0 outside the image, 1 hidden, 2 visible), bbox cut at the image's edges, and
                joints3d (metres, camera axes, in the order of `joint_names`), depth_order (0: nearest), seen (share of the surface
                towards the camera), bbox_whole (may reach outside), and the body's pose, shape and transl
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.datasets.synthetic import Scene
from body3d.skeletons import JointSet

__all__ = ["annotations_of", "header", "image_of"]

BODY_OF_BOX = 0.53  # share of a box that a body fills: what CrowdPose's evaluation takes where no outline is known


def header(joints: JointSet) -> dict[str, Any]:
    """All of the file but its lists of images and annotations."""
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": joints.names}
    category["skeleton"] = [[a + 1, b + 1] for a, b in joints.bones]  # COCO counts joints from 1
    return {"info": {"description": "body3d: synthetic scenes"}, "joint_names": joints.names, "categories": [category]}


def image_of(scene: Scene, index: int) -> dict[str, Any]:
    """The entry of one image."""
    height, width = scene.camera.size
    camera = {"K": _short(scene.camera.K, 4)}
    return {"id": index, "file_name": f"{index:06d}.jpg", "height": height, "width": width, "camera": camera}


def annotations_of(scene: Scene, index: int, first: int) -> list[dict[str, Any]]:
    """The entries of an image's people, nearest first, with ids from `first` + 1 on."""
    height, width = scene.camera.size
    edges = scene.boxes.xyxy + 0.5  # COCO's pixel 0 reaches from 0 to 1
    cut = edges.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    flag = (scene.kp2d.conf > 0).int() + scene.visible.int()
    points = torch.cat([scene.kp2d.xy * (flag > 0).unsqueeze(-1), flag.unsqueeze(-1)], -1)
    people = []
    for i in range(len(edges)):
        span = cut[i, 2:] - cut[i, :2]
        people.append(
            {
                "id": first + i + 1, "image_id": index, "category_id": 1, "iscrowd": 0,
                "bbox": _short(torch.cat([cut[i, :2], span]), 2),
                "area": BODY_OF_BOX * float(span.prod()),
                "num_keypoints": int((flag[i] > 0).sum()),
                "keypoints": _short(points[i].flatten(), 2),
                "joints3d": _short(scene.kp3d.xyz[i], 4),
                "depth_order": i,
                "seen": round(float(scene.seen[i]), 3),
                "bbox_whole": _short(torch.cat([edges[i, :2], edges[i, 2:] - edges[i, :2]]), 2),
                "pose": _short(scene.params.pose[i], 5),
                "shape": _short(scene.params.shape[i], 5),
                "transl": _short(scene.params.transl[i], 5),
            }
        )  # fmt: skip
    return people


def _short(numbers: Float[Tensor, "..."], digits: int) -> Any:
    """Nested lists without the digits that mean nothing."""
    return numbers.double().round(decimals=digits).tolist()
