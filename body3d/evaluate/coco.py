"""COCO's own files: annotations and keypoint results, scored as pycocotools does."""

import json
from pathlib import Path

import numpy as np

from body3d.datasets.coco import COCO
from body3d.errors import InputError
from body3d.evaluate.result import Figure, Result
from body3d.metrics.oks import Found, coco_ap
from body3d.skeletons import COCO17

__all__ = ["evaluate_coco"]


def evaluate_coco(results: Path, annotations: Path) -> Result:
    """All ten numbers from a results file (a list with image_id, keypoints, score) and person_keypoints_*.json."""
    truth = COCO.keypoints(annotations).truth
    try:
        entries = json.loads(Path(results).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{results} cannot be read as COCO's results ({error})") from error
    if not isinstance(entries, list):
        raise InputError(f"{results} is not a list of results, as COCO's evaluation takes them")
    found: dict = {image: [] for image in truth}
    for i, entry in enumerate(entries):
        try:
            points = np.asarray(entry["keypoints"], np.float64).reshape(len(COCO17), 3)[:, :2]
            image, score = entry["image_id"], float(entry["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{results}: entry {i} is not a result with image_id, 51 keypoints and score ({error})"
            ) from error
        if not np.isfinite(points).all() or not np.isfinite(score):
            raise InputError(f"{results}: entry {i} (image {image}) holds NaN")
        if image not in found:
            raise InputError(f"{results}: entry {i} is of image {image}, which {annotations} does not have")
        found[image].append(Found(points, score))
    numbers = coco_ap([list(people) for people in truth.values()], [found[image] for image in truth])
    figures = tuple(
        Figure(name, "", "coco17, by OKS", "none", "none", value, len(truth)) for name, value in numbers.items()
    )
    return Result("coco", "COCO keypoints: the ten numbers of its evaluation, -1 where nobody counts", figures)
