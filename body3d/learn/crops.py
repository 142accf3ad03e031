"""People cut out of photos for training: which sets, which of their people, and 8-bit crops by the batch."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from body3d.augment import Augmentation
from body3d.codecs import Places, Size
from body3d.crop import box_to_crop, crop_matrix, invert
from body3d.datasets.catalogue import SETS
from body3d.datasets.mpii import MPII
from body3d.datasets.people import People
from body3d.errors import InputError
from body3d.images import warp_crop
from body3d.learn.loading import load_crops
from body3d.skeletons import AIC14, COCO17, LSP14, MPII16, JointSet

__all__ = ["Crops", "PhotoSet", "aic", "coco", "compose", "lsp", "lspet", "mpii", "processes"]

FINER = 1.5  # photos in memory have so many pixels per pixel of the crop, as they may be shown enlarged
PROBED = 50  # photos whose size tells whether all fit in memory


# ---- sets ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PhotoSet:
    """Whose photos a network learns from and is scored on, and how a box becomes a crop (`crop.box_to_crop`)."""

    home: str  # where the set lies if nobody says otherwise
    joints: JointSet
    training: Callable[[Path], People]
    validation: Callable[[Path], People] | None = None  # None: every tenth photo of the training set is held out
    padding: float = 1.25
    down: float = 0.0  # the crop's middle lies below the box's, by this share of the box's height

    def open(self, path: Path | None) -> tuple[tuple[People, list[int]], tuple[People, list[int]]]:
        """People of training and validation, and which of them. InputError if something of the set is missing."""
        path = path or Path(self.home)
        training = self.training(path)
        if self.validation is None:
            number = {file: n for n, file in enumerate(dict.fromkeys(training.files))}
            held_out = [number[file] % 10 == 9 for file in training.files]
            learnt = [i for i, out in enumerate(held_out) if not out]
            if len(number) < 10:
                raise InputError(f"{len(number)} photos in {path}: a tenth is held out, so at least ten are needed")
            return (training, learnt), (training, [i for i, out in enumerate(held_out) if out])
        validation = self.validation(path)
        return (training, list(range(len(training)))), (validation, list(range(len(validation))))

    def reach(self, augment: Augmentation) -> float:
        """How many times a plain crop's width around its middle an augmented one may show (`Crops`).

        Half a body has its middle anywhere in the person's box, and a padding of its own.
        """
        half = augment.half_body
        if half is None:
            return 1 + augment.scale
        return (1 + augment.scale) * max(1.0, half.padding / self.padding) + (1 + 2 * self.down) / self.padding


def _form(name: str, *forms: str) -> Callable[[Path], People]:
    return partial(_open, name, forms)


def _open(name: str, names: tuple[str, ...], path: Path) -> People:
    """The first of the named forms of a set (`datasets.catalogue`) that lies in `path`."""
    forms = [form for form in SETS[name].forms if form.name in names]
    form = next((form for form in forms if any(path.glob(form.needs))), None)
    if form is None:
        needs = " or ".join(form.needs for form in forms)
        raise InputError(f"{path} holds no {SETS[name].title} ({needs}); get it from {SETS[name].source}")
    return form.open(path)


def _mpii_validation(path: Path) -> People:
    """The h5 file knows the heads' sizes; for the list they are in gt_valid.mat."""
    if (path / "valid.h5").is_file():
        return _open("mpii", ("valid, h5",), path)
    return MPII.lists(path / "valid.json", path / "images", path / "gt_valid.mat")


def lsp() -> PhotoSet:
    return PhotoSet("data/lsp", LSP14, _form("lsp", "train"), _form("lsp", "test"))


def lspet() -> PhotoSet:
    """All 10 000 are meant for training: a tenth is held out."""
    return PhotoSet("data/lspet", LSP14, _form("lspet", "as distributed", "as arrays"))


def mpii() -> PhotoSet:
    """HRNet's crops: 1.25 times the box, which is taken 15 of its 200 units lower."""
    return PhotoSet("data/mpii", MPII16, _form("mpii", "train, h5", "train, list"), _mpii_validation, down=15 / 200)


def coco() -> PhotoSet:
    """Annotated boxes, in validation too: papers' figures on val2017 are mostly of boxes that a detector found."""
    return PhotoSet("data/coco", COCO17, _form("coco", "train"), _form("coco", "val"))


def aic() -> PhotoSet:
    return PhotoSet("data/aic", AIC14, _form("aic", "train", "train, as COCO"))


# ---- crops ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Photo:
    image: UInt8[np.ndarray, "H W 3"]
    outward: Float[Tensor, "2 3"]  # from pixels of `image` to those of the file


class Crops(Dataset):
    """The people `rows` of a set as crops of `size`; those whose box is empty are left out.

    `base` is the affine map from pixels of a photo to those of a person's plain crop, `places` of which is that of the network's
    codec. What is asked for by `loader` is any map, such as that followed by an augmentation's. Where the photos take no more
    than `memory` GB they are read once and kept, cut down to what a crop shows that is turned and shows `reach` times as much.
    """

    def __init__(
        self, people: People, rows: list[int], photos: PhotoSet, size: Size, places: Places = "pixel",
        reach: float = 1.0, memory: float = 0.0,
    ):  # fmt: skip
        if people.images is None:
            raise InputError(f"annotations without photos: a network that sees photos needs them; get {people.source}")
        centre, width = box_to_crop(people.boxes[rows].float(), size, photos.padding)
        kept = people.labelled[rows].any(-1) & (width > 1)
        self.rows = torch.tensor(rows)[kept].tolist()
        if not self.rows:
            raise InputError(f"nobody of {people.source} has annotated joints and a box")
        self.people, self.size, self.joints, self.reach = people, size, people.joints, reach
        self.centre, self.width = centre[kept], width[kept]
        self.centre[:, 1] += photos.down * (people.boxes[self.rows, 3] - people.boxes[self.rows, 1])
        self.base = crop_matrix(self.centre, self.width, torch.zeros_like(self.width), size, places)
        self.xy = people.xy[self.rows].float()
        self.conf = people.labelled[self.rows].float()
        self._kept = self._read(memory)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, asked: tuple[int, Float[Tensor, "2 3"]]) -> UInt8[Tensor, "3 h w"]:
        i, matrix = asked
        photo = self._kept[i] if self._kept else Photo(self._decoded(i), torch.eye(2, 3, dtype=torch.double))
        image = warp_crop(photo.image, compose(matrix, photo.outward).numpy(), self.size)
        return torch.from_numpy(image).permute(2, 0, 1)

    def loader(
        self, index: Int[Tensor, " N"], matrix: Float[Tensor, "N 2 3"], batch: int, workers: int
    ) -> Iterator[UInt8[Tensor, "B 3 h w"]]:
        """Batches of crops in the order of `index`, cut by `matrix` (from pixels of the photo), by so many processes."""
        return load_crops(self, index, matrix, batch, workers)

    def _read(self, memory: float) -> list[Photo]:
        """All photos as they are kept, or none if they do not fit."""
        probes = sorted({round(k) for k in np.linspace(0, len(self) - 1, PROBED)}) if memory > 0 else []
        size = float(np.mean([self._cut(i).image.nbytes for i in probes])) if probes else math.inf
        if size * len(self) > 1e9 * memory:
            return []
        return [self._cut(i) for i in tqdm(range(len(self)), desc="photos", leave=False)]

    def _decoded(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        image = self.people[self.rows[i]].image
        assert image is not None  # there is a folder of photos
        return image.numpy()

    def _cut(self, i: int) -> Photo:
        image = self._decoded(i)
        centre, width = self.centre[i].numpy(), self.width[i].item()
        half = 0.5 * self.reach * width * math.hypot(1, self.size[0] / self.size[1])
        last = np.array(image.shape[1::-1]) - 1
        low = np.clip(np.floor(centre - half), 0, last).astype(int)
        high = np.clip(np.ceil(centre + half), low, last).astype(int) + 1
        scale = min(1.0, FINER * self.size[1] / width)
        x, y = low.tolist()
        outward = torch.tensor([[1 / scale, 0, x - 0.5 + 0.5 / scale], [0, 1 / scale, y - 0.5 + 0.5 / scale]]).double()
        if scale == 1:
            return Photo(image[y : high[1], x : high[0]].copy(), outward)
        columns, rows = np.ceil(scale * (high - low)).astype(int).tolist()
        return Photo(warp_crop(image, invert(outward).numpy(), (rows, columns)), outward)


def processes(workers: int | None) -> int:
    """How many processes make crops; None: as many as there are cores to spare, at most 8."""
    return min(8, (os.cpu_count() or 1) - 1) if workers is None else workers


def compose(after: Float[Tensor, "*B 2 3"], before: Float[Tensor, "*B 2 3"]) -> Float[Tensor, "*B 2 3"]:
    """The affine map that is `before`, then `after`."""
    return torch.cat([after[..., :2] @ before[..., :2], after[..., :2] @ before[..., 2:] + after[..., 2:]], -1)
