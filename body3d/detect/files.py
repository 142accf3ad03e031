"""Keypoints that somebody else detected: OpenPose's JSON and COCO's result and annotation JSON."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from body3d import skeletons
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.skeletons import BODY25, COCO17, COCO_WHOLEBODY133, FACE68, HAND21, OPENPOSE137
from body3d.types import Boxes, Detections, Keypoints2D

__all__ = ["coco_results", "read_keypoints"]

# OpenPose's 18-point body: COCO's 17 in another order, with the neck.
_COCO18 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
# The part's key (since 1.3 with "_2d" at its end), then what its points are, by their number.
_OPENPOSE = (
    ("pose_keypoints", (BODY25.names, _COCO18)),
    ("hand_left_keypoints", (HAND21["left"].names,)),
    ("hand_right_keypoints", (HAND21["right"].names,)),
    ("face_keypoints", ((*FACE68.names, "right_pupil", "left_pupil"), FACE68.names)),
)
# COCO-WholeBody's annotations and results keep the parts under keys of their own.
_WHOLEBODY = (("foot_kpts", 6), ("face_kpts", 68), ("lefthand_kpts", 21), ("righthand_kpts", 21))
# An annotated point that is hidden was placed by guess.
_CONFIDENCE_OF_HIDDEN = 0.5


def read_keypoints(path: Path | str, image: Path | str | int | None = None) -> Detections:
    """The people of one image from a JSON file: OpenPose's, or COCO's results or annotations (17 or 133 keypoints).

    A COCO file holds many images: `image` says which, by file name (its folder and ending do not matter) or id; not
    needed where the file speaks of one image only. OpenPose files become `OPENPOSE137`, with confidence 0 for the parts
    that were not detected; COCO's stay in COCO's sets, or in the one that `coco_results` was given. A file in which
    nobody was found gives no people; `InputError` names the file and the key of anything that is not as it should be.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # no text, no JSON, or a number of thousands of digits
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if isinstance(content, dict) and "people" in content:
        return _openpose(path, content["people"])
    if isinstance(content, dict) and "annotations" in content:
        return _coco_annotations(path, content, image)
    if isinstance(content, list):
        return _coco_results(path, content, image)
    raise InputError(
        f"{path}: neither OpenPose's JSON (an object with 'people') nor COCO's (a list of results, or an object with "
        f"'annotations'); its top is {_kind(content)}"
    )


# ---- OpenPose ------------------------------------------------------------------------------------------------------
def coco_results(detections: Detections, image: str) -> list[dict[str, Any]]:
    """The people of one image as COCO results, which `read_keypoints` reads; the image's id is the stem of its name.

    `keypoints` are COCO's 17 or COCO-WholeBody's 133. From another joint set they are converted to the 17, and what was found
    stands beside them: `joint_names`, and `points` with x, y and confidence of each.
    """
    found, boxes = detections.keypoints, detections.boxes
    foreign = found.joints not in (COCO17, COCO_WHOLEBODY133)
    coco = found.convert(COCO17) if foreign else found
    people = []
    for n, ((x0, y0, x1, y1), score) in enumerate(zip(boxes.xyxy.tolist(), boxes.score.tolist(), strict=True)):
        box = [round(v, 2) for v in (x0 + 0.5, y0 + 0.5, x1 - x0, y1 - y0)]  # COCO counts from the corner of a pixel
        entry: dict[str, Any] = {"image_id": Path(image).stem, "category_id": 1, "keypoints": _triplets(coco[n])}
        entry |= {"score": round(score, 4), "bbox": box}
        if foreign:
            entry |= {"joint_names": list(found.joints.names), "points": _triplets(found[n])}
        people.append(entry)
    return people


def _triplets(person: Keypoints2D) -> list[float]:
    return [round(v, 3) for v in torch.cat([person.xy, person.conf[:, None]], -1).flatten().tolist()]


def _openpose(path: Path, people: Any) -> Detections:
    rows = []
    for i, person in enumerate(_list(path, "people", people)):
        person = _object(path, f"people[{i}]", person)
        row = torch.zeros(len(OPENPOSE137), 3)
        for key, choices in _OPENPOSE:
            key = f"{key}_2d" if f"{key}_2d" in person else key
            if not person.get(key):
                continue
            points = _points(path, f"people[{i}].{key}", person[key], [len(names) for names in choices])
            names = next(names for names in choices if len(names) == len(points))
            row[OPENPOSE137.indices(names)] = points
        if (row[:, 2] > 0).any():
            rows.append(row)
    if not rows:
        return _detections(torch.zeros(0, len(OPENPOSE137), 3), OPENPOSE137)
    points = torch.stack(rows)
    if points[..., :2].abs().max() <= 1:
        raise InputError(
            f"{path}: its coordinates lie between -1 and 1; run OpenPose with --keypoint_scale 0, to write pixels"
        )
    return _detections(points, OPENPOSE137)


# ---- COCO ----------------------------------------------------------------------------------------------------------
def _coco_annotations(path: Path, content: dict, image: Path | str | int | None) -> Detections:
    entries = [
        _object(path, f"annotations[{i}]", a) for i, a in enumerate(_list(path, "annotations", content["annotations"]))
    ]
    names = {}
    for i, one in enumerate(_list(path, "images", content.get("images", []))):
        one = _object(path, f"images[{i}]", one)
        names[_id(path, f"images[{i}].id", one.get("id"))] = str(one.get("file_name", ""))
    ids = {_id(path, f"annotations[{i}].image_id", e.get("image_id")) for i, e in enumerate(entries)}
    wanted = _choose(path, ids | set(names), names, image)
    labelled = [
        (f"annotations[{i}]", e)
        for i, e in enumerate(entries)
        if e.get("image_id") == wanted and not e.get("iscrowd") and e.get("num_keypoints", 1)
    ]
    detections = _coco_people(path, labelled)
    # COCO's v: 0 not labelled, 1 labelled but hidden, 2 labelled and visible. Faces and hands hold confidences instead.
    conf = detections.keypoints.conf.clone()
    body = conf[:, : len(COCO17) + 6]  # the feet too
    body[body == 1] = _CONFIDENCE_OF_HIDDEN
    keypoints = Keypoints2D(detections.keypoints.xy, conf.clamp(0, 1), detections.keypoints.joints)
    return Detections(keypoints, detections.boxes)


def _coco_results(path: Path, content: list, image: Path | str | int | None) -> Detections:
    entries = [_object(path, f"[{i}]", e) for i, e in enumerate(content)]
    if entries and not any("keypoints" in e for e in entries):
        raise InputError(f"{path}: COCO results without 'keypoints' (its entries have {', '.join(sorted(entries[0]))})")
    ids = {_id(path, f"[{i}].image_id", e.get("image_id")) for i, e in enumerate(entries)}
    wanted = _choose(path, ids, {}, image)
    detections = _coco_people(path, [(f"[{i}]", e) for i, e in enumerate(entries) if e.get("image_id") == wanted])
    keypoints = detections.keypoints
    return Detections(Keypoints2D(keypoints.xy, keypoints.conf.clamp(0, 1), keypoints.joints), detections.boxes)


def _coco_people(path: Path, entries: list[tuple[str, dict]]) -> Detections:
    rows, boxes, scores = [], [], []
    joints = _foreign_joints(path, entries)
    for where, entry in entries:
        if joints is None:
            points = _coco_points(path, where, entry)
        else:
            points = _points(path, f"{where}.points", entry["points"], [len(joints)])
        rows.append(points)
        boxes.append(_box(path, f"{where}.bbox", entry["bbox"]) if entry.get("bbox") else _around(points))
        score = entry.get("score", 1.0)
        if not _number(score):
            raise InputError(f"{path}: {where}.score is {_kind(score)}, expected a number")
        scores.append(float(score))
    if joints is None:
        joints = COCO_WHOLEBODY133 if any(len(r) > len(COCO17) for r in rows) else COCO17
    full = torch.zeros(len(rows), len(joints), 3)
    for i, row in enumerate(rows):
        full[i, : len(row)] = row
    return _detections(full, joints, torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores))


def _coco_points(path: Path, where: str, entry: dict) -> Float[Tensor, "J 3"]:
    """17 or 133 keypoints of one person."""
    if "keypoints" not in entry:
        raise InputError(f"{path}: {where} has no 'keypoints'")
    points = _points(path, f"{where}.keypoints", entry["keypoints"], [len(COCO17), len(COCO_WHOLEBODY133)])
    if len(points) == len(COCO17) and any(key in entry for key, _ in _WHOLEBODY):
        parts = [
            _points(path, f"{where}.{key}", entry[key], [n]) if key in entry else torch.zeros(n, 3)
            for key, n in _WHOLEBODY
        ]
        points = torch.cat([points, *parts])
    return points


def _foreign_joints(path: Path, entries: list[tuple[str, dict]]) -> JointSet | None:
    """The joints of the `points` that `coco_results` put beside COCO's; None unless everybody has them, of the same joints."""
    named = [entry["joint_names"] for _, entry in entries if "joint_names" in entry and "points" in entry]
    if not named or len(named) < len(entries) or any(names != named[0] for names in named):
        return None
    where = f"{entries[0][0]}.joint_names"
    names = tuple(_list(path, where, named[0]))
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"{path}: {where} are not names that differ")
    known = (joints for joints in vars(skeletons).values() if isinstance(joints, JointSet))
    return next((joints for joints in known if joints.names == names), JointSet(path.name, names, (-1,) * len(names)))


def _choose(path: Path, ids: set, names: dict[Any, str], image: Path | str | int | None) -> Any:
    """The id of the wanted image among those that the file speaks of; None if there are none."""
    if not ids:
        return None
    if image is None and len(ids) == 1:
        return next(iter(ids))
    some = ", ".join(str(names.get(i) or i) for i in sorted(ids, key=str)[:5]) + (", …" if len(ids) > 5 else "")
    if image is None:
        raise InputError(f"{path}: {len(ids)} images in it; name the one wanted ({some})")
    stem = Path(str(image)).stem
    own = lambda i: Path(names[i]).stem if names.get(i) else str(i)
    # COCO's own files are named after their id: 000000000785.jpg, COCO_val2014_000000000192.jpg.
    number = _last_number(stem)
    for fits in (
        lambda i: i == image or str(i) == str(image),
        lambda i: own(i) == stem,
        lambda i: number is not None and i == number == _last_number(own(i)),
    ):
        if found := [i for i in ids if fits(i)]:
            return found[0]
    raise InputError(f"{path}: nothing about the image {Path(str(image)).name!r}; it speaks of {some}")


def _last_number(name: str) -> int | None:
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else None


# ---- reading values ------------------------------------------------------------------------------------------------
def _detections(
    points: Float[Tensor, "N J 3"],
    joints: JointSet,
    boxes: Float[Tensor, "N 4"] | None = None,
    scores: Float[Tensor, " N"] | None = None,
) -> Detections:
    xy, conf = points[..., :2], points[..., 2]
    if boxes is None:
        boxes = torch.tensor([_around(p) for p in points]).reshape(-1, 4)
    if scores is None:
        known = conf > 0
        scores = (conf * known).sum(1) / known.sum(1).clamp_min(1)
    return Detections(Keypoints2D(xy, conf, joints), Boxes(boxes, scores))


def _points(path: Path, where: str, values: Any, counts: list[int]) -> Float[Tensor, "K 3"]:
    """x, y, confidence triplets, for one of the numbers of points in `counts`."""
    expected = " or ".join(f"{3 * n} (x, y, confidence of {n} points)" for n in counts)
    if not isinstance(values, list) or not all(_number(v) for v in values):
        raise InputError(f"{path}: {where} is not a list of finite numbers; expected {expected}")
    if len(values) not in [3 * n for n in counts]:
        raise InputError(f"{path}: {where} has {len(values)} numbers; expected {expected}")
    points = torch.tensor(values, dtype=torch.float32).reshape(-1, 3)
    if (points[:, 2] < 0).any():
        raise InputError(f"{path}: {where} has a negative confidence")
    return points


def _box(path: Path, where: str, values: Any) -> list[float]:
    """COCO's x, y, width, height count from the corner of pixel 0; x0, y0, x1, y1 here from its centre."""
    if not isinstance(values, list) or len(values) != 4 or not all(_number(v) for v in values):
        raise InputError(f"{path}: {where} is {_kind(values)}; expected 4 numbers, x, y, width, height")
    x, y, width, height = values
    return [x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5]


def _around(points: Float[Tensor, "K 3"]) -> list[float]:
    """The box around the points with any confidence."""
    known = points[points[:, 2] > 0, :2]
    if not len(known):
        return [0.0, 0.0, 0.0, 0.0]
    return [*known.amin(0).tolist(), *known.amax(0).tolist()]


def _number(value: Any) -> bool:
    """A number that single precision holds, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _id(path: Path, where: str, value: Any) -> int | float | str | None:
    if not isinstance(value, int | float | str | None):
        raise InputError(f"{path}: {where} is {_kind(value)}, expected a number or a name")
    return value


def _list(path: Path, where: str, value: Any) -> list:
    if not isinstance(value, list):
        raise InputError(f"{path}: {where} is {_kind(value)}, expected a list")
    return value


def _object(path: Path, where: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where} is {_kind(value)}, expected an object")
    return value


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "an object", list: f"a list of {len(value)}" if isinstance(value, list) else "", type(None): "null"}
    return names.get(type(value)) or repr(value)
