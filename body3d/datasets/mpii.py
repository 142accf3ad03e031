"""MPII Human Pose (Andriluka et al., CVPR 2014): people of everyday activities, sixteen joints, head rectangles for PCKh.

    MPII.release(mpii_human_pose_v1_u12_1.mat, images)         as distributed: the struct RELEASE
    MPII.lists(train.json | valid.json | trainval.json, ...)   as HRNet and mmpose pass it on: 22 246, 2958 and 29 116 people
    MPII.h5(train.h5 | valid.h5, images)                       as the stacked hourglass prepares it: the same 22 246 and 2958

All of them count pixels from 1, as MATLAB does; samples count from 0. `scale` is the person's height over 200 pixels: the box is
the square with that side around `center`. The h5 files have it moved down and enlarged for cropping (center + 15 scale, 1.25 scale)
and joints cut to whole pixels; the box is taken back here, the cut stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.datasets.people import People, numbered, photo_folder, read_h5, read_json, read_mat, stacked
from body3d.datasets.reading import finite
from body3d.errors import InputError
from body3d.metrics.pck import head_size
from body3d.skeletons import MPII16

__all__ = ["MPII"]

_SOURCE = "human-pose.mpi-inf.mpg.de"
_LISTS = "HRNet's or mmpose's preparation of MPII (github.com/leoxiaobin/deep-high-resolution-net.pytorch)"
_H5 = "github.com/princeton-vl/pose-hg-train (data/mpii/annot)"


@dataclass(frozen=True, kw_only=True)
class MPII(People):
    """One person per sample. PCKh divides by `head_sizes`, and leaves out pelvis and thorax."""

    head_boxes: Float[Tensor, "N 4"] | None = field(default=None, repr=False)  # pixels, x0 y0 x1 y1; NaN: not annotated
    head_sizes: Float[Tensor, " N"] | None = field(default=None, repr=False)  # pixels, 0.6 of the rectangle's diagonal

    @staticmethod
    def release(
        path: Path | str,
        images: Path | str | None = None,
        split: Literal["train", "test"] = "train",
        separate: bool = False,
    ) -> "MPII":
        """The people with a position, in training photos with joints too; the test joints are withheld.

        separate: only those whom the set calls sufficiently separated from others (its `single_person`).
        """
        what = "release of MPII"
        content = read_mat(path, "RELEASE", what, _SOURCE)
        for key in ("annolist", "img_train", "single_person"):
            if not isinstance(content, dict) or key not in content:
                raise InputError(f"{path}: RELEASE has no {key!r}; {what} was expected, from {_SOURCE}")
        photos = _list(content["annolist"])
        flags, lonely = np.atleast_1d(content["img_train"]), np.atleast_1d(content["single_person"])
        if not len(photos) == len(flags) == len(lonely):
            lengths = f"{len(photos)}, {len(flags)} and {len(lonely)}"
            raise InputError(f"{path}: annolist, img_train and single_person of RELEASE are {lengths} long")
        files, ids, people = [], [], []
        for i, (photo, flag, alone) in enumerate(zip(photos, flags, lonely, strict=True), 1):
            if flag != (split == "train"):
                continue
            if not isinstance(photo.get("image"), dict) or "name" not in photo["image"]:
                raise InputError(f"{path}: annolist({i}) has no image.name; {what} was expected, from {_SOURCE}")
            for number, person in _with_position(photo, joints=split == "train"):
                if not separate or number in np.atleast_1d(alone):
                    files.append(photo["image"]["name"])
                    ids.append(f"{files[-1]}/{number}")
                    people.append(person)
        if not people:
            raise InputError(f"{path}: RELEASE has nobody in the {split} split; {what} is from {_SOURCE}")
        points = np.stack([_points(path, person) for person in people])
        centre = np.stack([stacked([p["objpos"] for p in people], key, (), path, "objpos") for key in "xy"], -1)
        scale = stacked(people, "scale", (), path, "annorect")
        heads = None
        if split == "train":
            corner = lambda person, key: person[key] if np.size(person.get(key, [])) else np.nan
            heads = np.array([[corner(person, key) for key in ("x1", "y1", "x2", "y2")] for person in people])
        return _people(files, points, centre, scale, images, ids=ids, heads=heads)

    @staticmethod
    def lists(path: Path | str, images: Path | str | None = None, heads: Path | str | None = None) -> "MPII":
        """A JSON list; `heads` is the gt_valid.mat that comes with valid.json and holds the head rectangles."""
        entries = read_json(path, "list of MPII's people", _LISTS)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path} is not a list of people; MPII's train.json, valid.json ... are from {_LISTS}")
        xy, seen = (
            stacked(entries, "joints", (16, 2), path, "list"),
            stacked(entries, "joints_vis", (16,), path, "list"),
        )
        points = np.concatenate([xy, 2 * seen[..., None]], -1)  # hidden joints are not told from visible ones
        if missing := [i for i, entry in enumerate(entries) if not isinstance(entry.get("image"), str)]:
            raise InputError(f"{path}: list[{missing[0]}] has no 'image'")
        corners = None
        if heads is not None:
            boxes = np.asarray(read_mat(heads, "headboxes_src", "gt_valid.mat of MPII", _LISTS))
            corners = finite(boxes, (2, 2, len(entries)), heads, "headboxes_src").numpy().reshape(4, -1).T
        centre, scale = stacked(entries, "center", (2,), path, "list"), stacked(entries, "scale", (), path, "list")
        return _people([entry["image"] for entry in entries], points, centre, scale, images, heads=corners)

    @staticmethod
    def h5(path: Path | str, images: Path | str | None = None) -> "MPII":
        """A joint at (0, 0) is not annotated; `normalize` is the head's size."""
        keys = ("imgname", "part", "visible", "center", "scale", "normalize", "person")
        a = read_h5(path, keys, "h5 of MPII", _H5)
        n = len(a["imgname"])
        xy, seen = finite(a["part"], (n, 16, 2), path, "part"), finite(a["visible"], (n, 16), path, "visible")
        labelled = (xy != 0).any(-1)
        points = torch.cat([xy, (labelled * (1 + seen))[..., None]], -1).numpy()
        scale = finite(a["scale"], (n,), path, "scale").numpy() / 1.25
        centre = finite(a["center"], (n, 2), path, "center").numpy() - np.stack([0 * scale, 15 * scale], -1)
        files = [name.decode() for name in a["imgname"]]
        ids = [f"{name}/{int(number) + 1}" for name, number in zip(files, a["person"], strict=True)]
        sizes = finite(a["normalize"], (n,), path, "normalize")
        return _people(files, points, centre, scale, images, ids=ids, sizes=sizes)


def _people(files, points, centre, scale, images, ids=None, heads=None, sizes=None) -> MPII:
    """From values that count pixels from 1; points are x, y, v (0 not annotated, 1 hidden, 2 visible)."""
    labelled = points[..., 2] > 0
    half = 100 * scale[:, None]
    boxes = np.concatenate([centre - 1 - half, centre - 1 + half], -1)
    head_boxes = None if heads is None else torch.from_numpy(heads - 1).float()
    return MPII(
        joints=MPII16,
        ids=tuple(ids or numbered(files)),
        files=tuple(files),
        xy=torch.from_numpy((points[..., :2] - 1) * labelled[..., None]).float(),
        labelled=torch.from_numpy(labelled),
        visible=torch.from_numpy(points[..., 2] == 2),
        boxes=torch.from_numpy(boxes).float(),
        images=photo_folder(images, _SOURCE),
        source=_SOURCE,
        head_boxes=head_boxes,
        head_sizes=sizes if head_boxes is None else head_size(head_boxes),
    )


def _list(value: Any) -> list:
    """MATLAB's empty, single and many structs."""
    return [value] if isinstance(value, dict) else list(value)


def _with_position(photo: dict, joints: bool) -> Iterator[tuple[int, dict]]:
    """The number, from 1, and the struct of each person of a photo that has a position (and joints)."""
    for number, person in enumerate(_list(photo.get("annorect", [])), 1):
        placed = isinstance(person.get("objpos"), dict) and np.size(person.get("scale", []))
        if placed and (_joints(person) or not joints):
            yield number, person


def _joints(person: dict) -> list[dict]:
    annotated = person.get("annopoints")
    return _list(annotated.get("point", [])) if isinstance(annotated, dict) else []


def _points(path: Path | str, person: dict) -> np.ndarray:
    """(16, 3): x, y, v of a person's struct; v is `is_visible` + 1, and 2 for the points of the head, which have none."""
    out = np.zeros((16, 3))
    for point in _joints(person):
        try:
            seen = point.get("is_visible", [])
            out[int(point["id"])] = point["x"], point["y"], 2 if np.size(seen) == 0 else 1 + int(seen)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"{path}: a point of annopoints has no or a wrong {error}") from error
    return out
