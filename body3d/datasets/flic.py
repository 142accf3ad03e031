"""Frames Labeled in Cinema (Sapp & Taskar, CVPR 2013): actors from the front, eleven joints of the upper body.

    FLIC.open(examples.mat, images)   as distributed: 5003 people, 3987 to train and 1016 to test; FLIC-full has the same layout
    FLIC.h5(train.h5, images)         as the authors of the stacked hourglass prepare it: 3987 and 1016 people in two files

Papers score elbows and wrists by PCK, relative to left shoulder - right hip. Coordinates are as stored; some lie outside the photo.
examples.mat has boxes of torsos only: a sample's is what its joints span.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.datasets.people import People, joint_boxes, numbered, photo_folder, read_h5, read_mat, stacked
from body3d.datasets.reading import finite
from body3d.errors import InputError
from body3d.skeletons import FLIC11

__all__ = ["FLIC"]

_SOURCE = "bensapp.github.io/flic-dataset.html"
_H5 = "github.com/princeton-vl/pose-hg-train (data/flic)"
# The 29 columns of `coords`; those that nobody annotated are NaN, the last twelve are midpoints.
_COLUMNS = (
    "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
    "left_hip", "left_knee", "left_ankle", "right_hip", "right_knee", "right_ankle",
    "left_eye", "right_eye", "left_ear", "right_ear", "nose",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FLIC(People):
    movies: tuple[str, ...] | None = field(default=None, repr=False)  # of each person
    torso_boxes: Float[Tensor, "N 4"] | None = field(default=None, repr=False)  # pixels, found by a detector

    @staticmethod
    def open(
        path: Path | str, images: Path | str | None = None, split: Literal["train", "test", "all"] = "train"
    ) -> "FLIC":
        """examples.mat, a struct array. "all" also has what FLIC-full sets aside as bad or unchecked."""
        rows = read_mat(path, "examples", "examples.mat of FLIC", _SOURCE)
        rows = [rows] if isinstance(rows, dict) else list(rows)
        if split != "all":
            flags = stacked(rows, f"is{split}", (), path, "examples")
            rows = [row for row, flag in zip(rows, flags, strict=True) if flag]
        if not rows:
            raise InputError(f"{path}: examples has no one of the split {split!r}; it comes from {_SOURCE}")
        torsos = stacked(rows, "torsobox", (4,), path, "examples")
        for key in ("coords", "filepath", "moviename"):
            if missing := [i for i, row in enumerate(rows) if key not in row]:
                raise InputError(f"{path}: examples({missing[0] + 1}) has no {key!r}; it comes from {_SOURCE}")
        if wrong := [np.shape(row["coords"]) for row in rows if np.shape(row["coords"]) != (2, 29)]:
            raise InputError(f"{path}: coords of examples has the shape {wrong[0]}, where (2, 29) was expected")
        coords = np.stack([row["coords"] for row in rows]).transpose(0, 2, 1)
        coords = coords[:, [_COLUMNS.index(name) for name in FLIC11.names]]
        labelled = torch.from_numpy(np.isfinite(coords).all(-1))
        xy = torch.from_numpy(np.where(labelled[..., None], coords, 0)).float()
        files = tuple(str(row["filepath"]) for row in rows)
        return FLIC(
            joints=FLIC11,
            ids=numbered(files),
            files=files,
            xy=xy,
            labelled=labelled,
            visible=labelled,
            boxes=joint_boxes(xy, labelled),
            images=photo_folder(images, _SOURCE),
            source=_SOURCE,
            movies=tuple(str(row["moviename"]) for row in rows),
            torso_boxes=torch.from_numpy(torsos).float(),
        )

    @staticmethod
    def h5(path: Path | str, images: Path | str | None = None) -> "FLIC":
        """train.h5 or test.h5. The boxes are squares of side 200 `scale` (the same for all) around `center`."""
        a = read_h5(path, ("imgname", "part", "visible", "center", "scale"), "h5 of FLIC", _H5)
        n = len(a["imgname"])
        centre, scale = finite(a["center"], (n, 2), path, "center"), finite(a["scale"], (n,), path, "scale")[:, None]
        files = tuple(name.decode() for name in a["imgname"])
        labelled = finite(a["visible"], (n, 11), path, "visible") > 0
        return FLIC(
            joints=FLIC11,
            ids=numbered(files),
            files=files,
            xy=finite(a["part"], (n, 11, 2), path, "part") * labelled[..., None],
            labelled=labelled,
            visible=labelled,
            boxes=torch.cat([centre - 100 * scale, centre + 100 * scale], -1),
            images=photo_folder(images, _SOURCE),
            source=_SOURCE,
        )
