"""AI Challenger's human keypoints (Wu et al., 2017): 14 joints, several people per photo.

    AIC.original(keypoint_train_annotations_20170909.json, keypoint_train_images_20170902)
    AIC.coco_style(aic_train.json, ...)   the conversion that mmpose and others publish

210 000 training photos with about 378 000 people, 30 000 photos for validation and twice 30 000 for test. In the original v is
1 visible, 2 hidden, 3 not annotated, and boxes are given by their corners. OKS takes the area of the box (mmpose's 0.53 of it).
"""

from pathlib import Path

import numpy as np

from body3d.datasets.people import ScoredPeople, photo_folder, read_annotations, read_json, scored, stacked
from body3d.errors import InputError
from body3d.skeletons import AIC14

__all__ = ["AIC"]

_SOURCE = "github.com/AIChallenger/AI_Challenger_2017"
_COCO_STYLE = "mmpose (download.openmmlab.com/mmpose/datasets/aic_annotations.tar)"


class AIC(ScoredPeople):
    @staticmethod
    def original(path: Path | str, images: Path | str | None = None) -> "AIC":
        """A list with one entry per photo: image_id, keypoint_annotations and human_annotations of human1, human2 ..."""
        what = "keypoint_*_annotations.json of AI Challenger"
        content = read_json(path, what, _SOURCE)
        if not isinstance(content, list) or not content:
            raise InputError(f"{path} is not a list of photos; {what} was expected, from {_SOURCE}")
        photos, ids, owners, people = {}, [], [], []
        for i, photo in enumerate(content):
            try:
                name = f"{photo['image_id']}.jpg"
                photos[photo["image_id"]] = name
                for human, points in photo["keypoint_annotations"].items():
                    people.append({"points": points, "box": photo["human_annotations"][human]})
                    ids.append(f"{name}/{human}")
                    owners.append(photo["image_id"])
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: photo {i} of the list has no {error}; {what} is from {_SOURCE}") from error
        points = stacked(people, "points", (42,), path, "keypoint_annotations").reshape(-1, 14, 3)
        if not np.isin(points[..., 2], (1, 2, 3)).all():
            raise InputError(
                f"{path}: v of keypoint_annotations is 1, 2 or 3; COCO's 0, 1, 2 is read by AIC.coco_style"
            )
        points[..., 2] = 3 - points[..., 2]
        boxes = stacked(people, "box", (4,), path, "human_annotations")
        boxes[:, 2:] -= boxes[:, :2]
        fields = scored(photos, ids, owners, points, boxes, boxes[:, 2:].prod(-1), [False] * len(people))
        return AIC(joints=AIC14, images=photo_folder(images, _SOURCE), source=_SOURCE, **fields)

    @staticmethod
    def coco_style(path: Path | str, images: Path | str | None = None) -> "AIC":
        """The layout of COCO, with 14 joints."""
        fields = read_annotations(path, {"keypoints": 14}, "json of AI Challenger in COCO's layout", _COCO_STYLE)
        return AIC(joints=AIC14, images=photo_folder(images, _SOURCE), **fields)
