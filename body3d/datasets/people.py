"""What the sets of annotated photos share: one person per sample, the photo decoded when the sample is asked for."""

import json
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.datasets.reading import _first_line, existing, finite
from body3d.errors import InputError
from body3d.images import read_image
from body3d.metrics.oks import Person
from body3d.skeletons import JointSet
from body3d.types import Boxes, Keypoints2D, Sample

__all__ = [
    "People", "ScoredPeople", "joint_boxes", "numbered", "photo_folder", "read_annotations", "read_h5", "read_json", "read_mat",
    "scored", "stacked",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class People:
    """Annotated people; a sample is one of them.

    `sample.image` is (H, W, 3) 8-bit RGB and None without a folder of photos; a joint's confidence is 1 where it is annotated,
    hidden or not, and 0 elsewhere.
    """

    joints: JointSet
    ids: tuple[str, ...] = field(repr=False)  # the photo and, where it may show several, which person
    files: tuple[str, ...] = field(repr=False)  # the photo of each person, below `images`
    xy: Float[Tensor, "N J 2"] = field(repr=False)  # pixels, 0 where not annotated
    labelled: Bool[Tensor, "N J"] = field(repr=False)
    visible: Bool[Tensor, "N J"] = field(repr=False)  # annotated, and not marked as hidden
    boxes: Float[Tensor, "N 4"] = field(repr=False)  # pixels, as `Boxes` has them
    images: Path | None = None
    source: str = field(repr=False)  # where the set can be had

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        image = None
        if self.images is not None:
            image = torch.from_numpy(read_image(existing(self.images / self.files[i], "photo", self.source)))
        keypoints = Keypoints2D(self.xy[i], self.labelled[i].float(), self.joints)
        return Sample(self.ids[i], image, Boxes(self.boxes[i], torch.tensor(1.0)), keypoints)


@dataclass(frozen=True, kw_only=True)
class ScoredPeople(People):
    """People of photos in which several may stand, scored by OKS: `truth` is what `metrics.oks.coco_ap` compares with."""

    photo_ids: tuple[Hashable, ...] = field(repr=False)  # the photo of each sample, a key of `photos` and `truth`
    photos: Mapping[Hashable, str] = field(repr=False)  # every photo of the file, with or without people
    truth: Mapping[Hashable, list[Person]] = field(repr=False)  # all people of each, crowds and unlabelled ones too


def photo_folder(path: Path | str | None, source: str) -> Path | None:
    return None if path is None else existing(path, "folder of photos", source)


def joint_boxes(xy: Float[Tensor, "N J 2"], labelled: Bool[Tensor, "N J"]) -> Float[Tensor, "N 4"]:
    """What the annotated joints span, for sets that have no boxes; 0 for somebody without any."""
    unknown = ~labelled[..., None]
    low, high = xy.masked_fill(unknown, torch.inf).amin(1), xy.masked_fill(unknown, -torch.inf).amax(1)
    return torch.cat([low, high], -1).nan_to_num(posinf=0, neginf=0)


def numbered(files: Sequence[str]) -> tuple[str, ...]:
    """Ids of people whose photos may hold several: name/0, name/1, ..."""
    seen: Counter[str] = Counter()
    ids = []
    for name in files:
        ids.append(f"{name}/{seen[name]}")
        seen[name] += 1
    return tuple(ids)


# ---- files ---------------------------------------------------------------------------------------------------------
def read_mat(path: Path | str, key: str, what: str, source: str) -> Any:
    """One variable of a MATLAB file up to version 7: structs as dictionaries, arrays of structs as lists of them."""
    from scipy.io import loadmat

    path = existing(path, what, source)
    try:
        content = loadmat(path, variable_names=[key], simplify_cells=True)
    except Exception as error:  # scipy raises whatever it meets in a broken file
        raise InputError(
            f"{path} cannot be read as a MATLAB file ({_first_line(error)}); {what} is from {source}"
        ) from error
    if key not in content:
        raise InputError(f"{path} has no variable {key!r}; {what} was expected, from {source}")
    return content[key]


def read_h5(path: Path | str, keys: Sequence[str], what: str, source: str) -> dict[str, np.ndarray]:
    """Those data sets of an HDF5 file, all with as many rows as the first."""
    import h5py

    path = existing(path, what, source)
    try:
        with h5py.File(path) as file:
            if missing := [key for key in keys if key not in file]:
                has = ", ".join(file)
                raise InputError(f"{path} has no {', '.join(missing)}, only {has}; {what} was expected, from {source}")
            arrays = {key: np.asarray(file[key]) for key in keys}
    except OSError as error:
        raise InputError(f"{path} is not a whole HDF5 file ({_first_line(error)}); {what} is from {source}") from error
    for key, array in arrays.items():
        if len(array) != len(arrays[keys[0]]):
            raise InputError(f"{path}: {key} has {len(array)} rows, {keys[0]} {len(arrays[keys[0]])}")
    return arrays


def read_json(path: Path | str, what: str, source: str) -> Any:
    path = existing(path, what, source)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON, or only its beginning ({_first_line(error)}); {what} is from {source}"
        ) from error


def stacked(entries: Sequence[Any], key: str, shape: tuple[int, ...], path: Path | str, where: str) -> np.ndarray:
    """entry[key] of all entries, (N, *shape) in double precision; InputError names the first one that is not like that."""
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or key not in entry:
            raise InputError(f"{path}: {where}[{i}] has no {key!r}")
        if np.shape(entry[key]) != shape:
            raise InputError(f"{path}: {key} of {where}[{i}] has the shape {np.shape(entry[key])}, not {shape}")
    array = np.array([entry[key] for entry in entries]).reshape(-1, *shape)
    finite(array, array.shape, path, f"{key} of {where}")
    return array.astype(np.float64)


# ---- the layout of COCO's annotations ------------------------------------------------------------------------------
def read_annotations(path: Path | str, parts: Mapping[str, int], what: str, source: str) -> dict[str, Any]:
    """The people of a JSON file with "images" and "annotations", as the fields of `ScoredPeople` (joints and folder aside).

    `parts` are the keys that hold x, y, v and how many points each; one after the other they are the joints. v: 0 not
    annotated, 1 hidden, 2 visible. Samples are the people with an annotated joint who are not a crowd; `truth` has all.
    """
    content = read_json(path, what, source)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list {key!r}; {what} was expected, from {source}")
    entries = content["annotations"]
    points = np.concatenate(
        [stacked(entries, key, (3 * n,), path, "annotations").reshape(-1, n, 3) for key, n in parts.items()], 1
    )
    boxes = stacked(entries, "bbox", (4,), path, "annotations")
    if any("area" in entry for entry in entries):
        areas = stacked(entries, "area", (), path, "annotations")
    else:  # CrowdPose's files have none: its evaluation takes this share of the box
        areas = 0.53 * boxes[:, 2:].prod(-1)
    try:
        photos = {image["id"]: image["file_name"] for image in content["images"]}
        ids = [f"{photos[e['image_id']]}/{e['id']}" for e in entries]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: an image or annotation has no {error}; {what} is from {source}") from error
    owners = [e["image_id"] for e in entries]
    crowd = [bool(e.get("iscrowd", 0)) for e in entries]
    return scored(photos, ids, owners, points, boxes, areas, crowd) | {"source": source}


def scored(
    photos: Mapping[Hashable, str],
    ids: Sequence[str],
    owners: Sequence[Hashable],
    points: Float[np.ndarray, "A J 3"],
    boxes: Float[np.ndarray, "A 4"],
    areas: Float[np.ndarray, " A"],
    crowd: Collection[bool],
) -> dict[str, Any]:
    """Fields of `ScoredPeople` from all annotations: x, y, v (0, 1 hidden, 2 visible); boxes x, y, width, height."""
    everybody: dict[Hashable, list[Person]] = {owner: [] for owner in photos}
    for owner, xyv, area, box, many in zip(owners, points, areas, boxes, crowd, strict=True):
        everybody[owner].append(Person(xyv, float(area), tuple(box.tolist()), many))
    labelled = points[..., 2] > 0
    keep = np.flatnonzero(labelled.any(-1) & ~np.array(crowd, bool)).tolist()
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1) - 0.5  # COCO's edges start at 0
    return {
        "ids": tuple(ids[i] for i in keep),
        "files": tuple(photos[owners[i]] for i in keep),
        "photo_ids": tuple(owners[i] for i in keep),
        "photos": photos,
        "truth": everybody,
        "xy": torch.from_numpy((points[..., :2] * labelled[..., None])[keep]).float(),
        "labelled": torch.from_numpy(labelled[keep]),
        "visible": torch.from_numpy(points[keep][..., 2] == 2),
        "boxes": torch.from_numpy(corners[keep]).float(),
    }
