"""Leeds Sports Pose (Johnson & Everingham, BMVC 2010) and its extension (CVPR 2011): one athlete per photo, 14 joints.

    LSP.original(joints.mat, images)   2000 people: the first 1000 to train, the others to test
    LSP.extended(joints.mat, images)   10 000 people, all to train, annotated by the crowd: noisier
    LSP.packed([a.npz, ...], images)   the extension, or parts of it, as arrays `image` (N,) and `joints` (N, 14, 3)

The third number of a joint means one thing in each: in the original 1 is *blocked* and every joint is annotated, in the extension
1 is visible and 0 is not annotated. Coordinates are as stored, left and right are the athlete's; the photos are scaled so that the
person is about 150 pixels long. The files have no boxes: a sample's is what its annotated joints span.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from body3d.datasets.people import People, joint_boxes, photo_folder, read_mat
from body3d.datasets.reading import finite, read_npz
from body3d.errors import InputError
from body3d.skeletons import LSP14

__all__ = ["LSP"]

_ORIGINAL = "sam.johnson.io/research/lsp.html (lsp_dataset.zip)"
_EXTENDED = "sam.johnson.io/research/lspet.html (lspet_dataset.zip)"
TRAINING = 1000  # people of the original


class LSP(People):
    @staticmethod
    def original(
        path: Path | str, images: Path | str | None = None, split: Literal["train", "test", "all"] = "train"
    ) -> "LSP":
        """joints.mat, (3, 14, N); photos im0001.jpg ..."""
        people = _joints(path, (3, 14, None), "joints.mat of LSP", _ORIGINAL).transpose(2, 1, 0)
        chosen = {"train": slice(TRAINING), "test": slice(TRAINING, None), "all": slice(None)}[split]
        numbers = range(1, len(people) + 1)[chosen]
        if not numbers:
            raise InputError(
                f"{path}: joints has {len(people)} people, of whom the test split are those after {TRAINING}"
            )
        files = [f"im{n:04d}.jpg" for n in numbers]
        points = people[chosen]
        return _people(path, files, points, np.ones(points.shape[:2], bool), points[..., 2] == 0, images, _ORIGINAL)

    @staticmethod
    def extended(path: Path | str, images: Path | str | None = None) -> "LSP":
        """joints.mat, (14, 3, N); photos im00001.jpg ..."""
        points = _joints(path, (14, 3, None), "joints.mat of LSPET", _EXTENDED).transpose(2, 0, 1)
        files = [f"im{n:05d}.jpg" for n in range(1, len(points) + 1)]
        return _people(path, files, points, points[..., 2] == 1, points[..., 2] == 1, images, _EXTENDED)

    @staticmethod
    def packed(paths: Sequence[Path | str], images: Path | str | None = None) -> "LSP":
        """Arrays `image` (N,) of names and `joints` (N, 14, 3) of each file, one file after the other."""
        files, points = [], []
        for path in paths:
            arrays = read_npz(path, ("image", "joints"), ".npz of LSPET's joints", _EXTENDED)
            files += [str(name) for name in arrays["image"]]
            points.append(finite(arrays["joints"], (len(arrays["image"]), 14, 3), path, "joints").numpy())
        joined = np.concatenate(points)
        seen = joined[..., 2] == 1
        return _people(", ".join(map(str, paths)), files, joined, seen, seen, images, _EXTENDED)


def _joints(path: Path | str, shape: tuple[int | None, ...], what: str, source: str) -> np.ndarray:
    array = np.asarray(read_mat(path, "joints", what, source))
    if array.shape[:2] in ((3, 14), (14, 3)) and array.shape[:2] != shape[:2]:
        raise InputError(f"{path}: joints is {array.shape}: the original LSP has (3, 14, N), the extension (14, 3, N)")
    return finite(array, shape, path, "joints").numpy()


def _people(path, files, points, labelled, visible, images, source) -> LSP:
    if not np.isin(points[..., 2], (0, 1)).all():
        raise InputError(
            f"{path}: the third numbers of joints are flags 0 or 1, not {np.unique(points[..., 2])[:4]} ..."
        )
    xy, known = torch.from_numpy(points[..., :2] * labelled[..., None]), torch.from_numpy(labelled)
    return LSP(
        joints=LSP14,
        ids=tuple(files),
        files=tuple(files),
        xy=xy,
        labelled=known,
        visible=torch.from_numpy(visible),
        boxes=joint_boxes(xy, known),
        images=photo_folder(images, source),
        source=source,
    )
