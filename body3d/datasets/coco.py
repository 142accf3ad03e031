"""COCO keypoints (Lin et al., ECCV 2014) and COCO-WholeBody (Jin et al., ECCV 2020); boxes that a detector found.

    COCO.keypoints(person_keypoints_val2017.json, val2017)        17 joints: 149 813 people in train2017, 6352 in val2017
    COCO.wholebody(coco_wholebody_val_v1.0.json, val2017)         133 joints of the same people
    read_detections(COCO_val2017_detections_AP_H_56_person.json)  boxes by photo: 104 125 in val2017

The files count a keypoint's pixel from 0 and a box's edges from 0 too, so boxes move by half a pixel. Points of faces and hands do
not tell hidden from seen: all that are annotated count as visible.
"""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from body3d.datasets.people import ScoredPeople, photo_folder, read_annotations, read_json, stacked
from body3d.errors import InputError
from body3d.skeletons import COCO17, COCO_WHOLEBODY133
from body3d.types import Boxes

__all__ = ["COCO", "read_detections"]

_SOURCE = "cocodataset.org/#download"
_WHOLEBODY = "github.com/jin-s13/COCO-WholeBody"
_DETECTIONS = "HRNet's README (github.com/leoxiaobin/deep-high-resolution-net.pytorch)"
_PARTS = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
_FLAGGED = _PARTS["keypoints"] + _PARTS["foot_kpts"]  # of whose points v tells hidden from visible


class COCO(ScoredPeople):
    @staticmethod
    def keypoints(path: Path | str, images: Path | str | None = None) -> "COCO":
        """person_keypoints_{train,val}2017.json."""
        fields = read_annotations(path, {"keypoints": 17}, "person_keypoints_*.json of COCO", _SOURCE)
        return COCO(joints=COCO17, images=photo_folder(images, _SOURCE), **fields)

    @staticmethod
    def wholebody(path: Path | str, images: Path | str | None = None) -> "COCO":
        """coco_wholebody_{train,val}_v1.0.json. Needs several GB of memory for the training set."""
        fields = read_annotations(path, _PARTS, "json of COCO-WholeBody", _WHOLEBODY)
        people = COCO(joints=COCO_WHOLEBODY133, images=photo_folder(images, _SOURCE), **fields)
        visible = torch.cat([people.visible[:, :_FLAGGED], people.labelled[:, _FLAGGED:]], 1)
        return replace(people, visible=visible)


def read_detections(path: Path | str, min_score: float = 0.0) -> dict[Hashable, Boxes]:
    """Boxes (n, 4) of people by the photo's id, best first, from COCO results with `bbox`; other categories are left out."""
    entries = read_json(path, "list of detected boxes", _DETECTIONS)
    if not isinstance(entries, list):
        raise InputError(
            f"{path} is not a list of detections (bbox, category_id, image_id, score), as {_DETECTIONS} has"
        )
    boxes = stacked(entries, "bbox", (4,), path, "list")
    owner, kind, score = (stacked(entries, key, (), path, "list") for key in ("image_id", "category_id", "score"))
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1) - 0.5
    found: dict[Hashable, list[int]] = {}
    for i in np.argsort(-score, kind="stable"):
        if kind[i] == 1 and score[i] >= min_score:
            found.setdefault(int(owner[i]), []).append(int(i))
    tensor = lambda values: torch.from_numpy(values).float()
    return {photo: Boxes(tensor(corners[rows]), tensor(score[rows])) for photo, rows in found.items()}
