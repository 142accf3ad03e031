"""People with true 3D, and the photos that show them: what direct regressors learn from.

A `Source3D` opens sets for training and one for validation. Rendered scenes are made once and kept in a cache of files beside the
poses; a rendering that was killed goes on. Human3.6M and MPI-INF-3DHP are read as their own loaders do; `Mixed` adds photos with
2D annotation alone, as published: half of each batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from body3d.atomic import atomic
from body3d.camera import GUESSED_FOCAL, Camera
from body3d.datasets.h36m import TEST_SUBJECTS, TRAIN_SUBJECTS, H36MImages
from body3d.datasets.mpi_inf_3dhp import MPIINF3DHP
from body3d.datasets.people import People
from body3d.datasets.reading import existing, read_npz
from body3d.datasets.synthetic import Synthetic
from body3d.errors import InputError
from body3d.images import image_size, read_image
from body3d.learn.crops import PhotoSet
from body3d.skeletons import H36M17, JointSet, convert_points
from body3d.tensors import Tensors

__all__ = ["H36MPhotos", "MPIINF3DHPPhotos", "Mixed", "People3D", "Photos", "RenderedScenes", "Source3D"]

CHUNK = 250  # scenes in a file of the cache


@runtime_checkable
class Photos(Protocol):
    """RGB, (H, W, 3) each; an array (N, H, W, 3) will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> UInt8[np.ndarray, "H W 3"]: ...


@dataclass(frozen=True)
class PhotoFiles:
    """Photos that are read when they are asked for."""

    paths: tuple[Path, ...]
    source: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        return read_image(existing(self.paths[i], "photo", self.source))


@dataclass(frozen=True)
class People3D(Tensors):
    """P people in photos, those of one photo next to each other."""

    photos: Photos
    joints: JointSet
    of: Int[Tensor, " P"]  # which photo
    xy: Float[Tensor, "P J 2"]  # pixels of the photo
    conf: Float[Tensor, "P J"]  # 0: not known, or outside the photo
    visible: Bool[Tensor, "P J"]  # known and not hidden
    xyz: Float[Tensor, "P J 3"]  # metres, in the camera's frame
    conf3d: Float[Tensor, "P J"]
    boxes: Float[Tensor, "P 4"]  # pixels, as `Boxes` has them
    K: Float[Tensor, "P 3 3"]
    size: Float[Tensor, "P 2"]  # height and width of the photo
    has_depth: Bool[Tensor, " P"]  # False: xyz means nothing

    def __len__(self) -> int:
        return len(self.of)

    def convert(self, joints: JointSet) -> "People3D":
        """In another joint set, by name; what it has besides is not known."""
        if joints == self.joints:
            return self
        xy, conf = convert_points(self.xy, self.conf, self.joints, joints)
        _, visible = convert_points(self.xy, self.visible.float(), self.joints, joints)
        xyz, conf3d = convert_points(self.xyz, self.conf3d, self.joints, joints)
        return replace(self, joints=joints, xy=xy, conf=conf, visible=visible > 0, xyz=xyz, conf3d=conf3d)


@runtime_checkable
class Source3D(Protocol):
    """Where people come from. Of several training sets each gives an equal share of every batch; the first is gone through once
    in an epoch."""

    @property
    def home(self) -> str:
        """Where the data lies if nobody says otherwise."""
        ...

    def training(self, path: Path) -> Sequence[People3D]: ...

    def validation(self, path: Path) -> People3D: ...


# ---- rendered ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RenderedScenes:
    """`count` synthetic scenes for training and `held_out` of people and poses that training never sees (`datasets.synthetic`).

    `home` is the file of `scripts/retarget_mocap.py`. The scenes go to `synthetic/` beside it. People of whom less than
    `least_seen` shows are left out; networks on whole images need 0 (`learn.pose3d_scenes`).
    """

    count: int = 4000
    held_out: int = 200
    people: tuple[int, int] = (1, 4)
    size: tuple[int, int] = (256, 256)
    joints: JointSet = H36M17
    seed: int = 0
    least_seen: float = 0.35
    home: str = "data/retargeted.npz"

    def training(self, path: Path) -> Sequence[People3D]:
        return (self._open(path, False, self.count),)

    def validation(self, path: Path) -> People3D:
        return self._open(path, True, self.held_out)

    def _open(self, path: Path, held_out: bool, count: int) -> People3D:
        poses = path / "retargeted.npz" if path.is_dir() else path
        if not poses.is_file():
            raise InputError(f"{poses} is missing: make it with scripts/retarget_mocap.py")
        scenes = Synthetic(poses, held_out, self.people, self.size, self.joints, seed=self.seed)
        least, most = self.people
        name = f"{self.joints.name}_{self.size[0]}x{self.size[1]}_{least}-{most}_{self.seed}_{poses.stat().st_size}"
        folder = poses.parent / "synthetic" / (f"held_out_{name}" if held_out else name)
        images, chunks = np.empty((count, *self.size, 3), np.uint8), []
        for first in tqdm(range(0, count, CHUNK), desc=f"scenes ({folder.name})", leave=False):
            chunk = _chunk(folder / f"{first:07d}.npz", scenes, first)
            part = images[first : first + CHUNK]
            part[:] = chunk.pop("image")[: len(part)]
            chunks.append(chunk)
        return self._kept(images, chunks)

    def _kept(self, images: UInt8[np.ndarray, "N H W 3"], chunks: Sequence[dict[str, np.ndarray]]) -> People3D:
        of = np.concatenate([chunk["of"] for chunk in chunks])
        rows = torch.from_numpy(np.flatnonzero(of < len(images)))
        joined = lambda name: torch.from_numpy(np.concatenate([chunk[name] for chunk in chunks]))[rows]
        conf3d = (joined("xyz") != 0).any(-1).float()  # what the body cannot give lies in the camera
        size = torch.tensor(self.size).float().expand(len(rows), 2)
        people = People3D(
            images, self.joints, torch.from_numpy(of)[rows], joined("xy"), joined("conf"), joined("visible"), joined("xyz"),
            conf3d, joined("boxes"), joined("K"), size, torch.ones(len(rows), dtype=torch.bool),
        )  # fmt: skip
        return people[(joined("seen") >= self.least_seen) & _shown(people)]


def _shown(people: People3D) -> Bool[Tensor, " P"]:
    """Of whose boxes more than a few pixels are in the photo."""
    corner = people.size.flip(-1) - 0.5
    inside = torch.minimum(people.boxes[:, 2:], corner) - people.boxes[:, :2].clamp_min(-0.5)
    return (inside > 8).all(-1)


def _chunk(path: Path, scenes: Synthetic, first: int) -> dict[str, np.ndarray]:
    """The scenes from `first` on: read, or drawn and written."""
    if not path.is_file():
        made: dict[str, list] = {}
        for i in tqdm(range(first, first + CHUNK), desc="drawing", leave=False, mininterval=1.0):
            scene = scenes.scene(i)
            n = len(scene.seen)
            values = {
                "image": scene.image[None], "of": torch.full((n,), i), "xy": scene.kp2d.xy, "conf": scene.kp2d.conf,
                "visible": scene.visible, "xyz": scene.kp3d.xyz, "boxes": scene.boxes.xyxy, "seen": scene.seen,
                "K": scene.camera.K.expand(n, 3, 3),
            }  # fmt: skip
            for name, value in values.items():
                made.setdefault(name, []).append(value.numpy())
        with atomic(path) as part:
            np.savez(part, **{name: np.concatenate(parts) for name, parts in made.items()})  # type: ignore[arg-type]
    names = ("image", "of", "xy", "conf", "visible", "xyz", "boxes", "seen", "K")
    return read_npz(path, names, "a file of rendered scenes", "an earlier rendering: delete it")


# ---- recorded ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class H36MPhotos:
    """Human3.6M as 3DMPPE lays it out: annotations/Human36M_subject*_{data,camera,joint_3d}.json and images/."""

    subjects: tuple[str, ...] = TRAIN_SUBJECTS
    test_subjects: tuple[str, ...] = TEST_SUBJECTS
    every: int = 5  # frames, of training
    every_test: int = 64
    home: str = "data/h36m"

    def training(self, path: Path) -> Sequence[People3D]:
        return (self._open(path, self.subjects, self.every),)

    def validation(self, path: Path) -> People3D:
        return self._open(path, self.test_subjects, self.every_test)

    def _open(self, path: Path, subjects: tuple[str, ...], every: int) -> People3D:
        source = "3DMPPE's README (github.com/mks0601/3DMPPE_POSENET_RELEASE)"
        found = H36MImages.moon(path / "annotations", subjects, every=every)
        images = existing(path / "images", "folder of photos", source)
        cameras = [found.cameras[key] for key in zip(found.subjects, found.views, strict=True)]
        files = PhotoFiles(tuple(images / name for name in found.ids), source)
        samples = [found[i].kp2d for i in range(len(found))]
        xy = torch.stack([kp.xy for kp in samples if kp is not None])
        return _one_each(files, H36M17, xy, found.xyz, found.boxes, cameras)


@dataclass(frozen=True)
class MPIINF3DHPPhotos:
    """MPI-INF-3DHP in metric scale, frames extracted: S1/Seq1/imageFrames/video_0/frame_000001.jpg beside annot.mat, and
    TS1/imageSequence/img_000001.jpg beside annot_data.mat; numbers count from 1. Boxes are those of the joints, a tenth larger."""

    subjects: tuple[str, ...] = tuple(f"S{i}" for i in range(1, 9))
    test_subjects: tuple[str, ...] = tuple(f"TS{i}" for i in range(1, 7))
    every: int = 5
    home: str = "data/mpi_inf_3dhp"

    def training(self, path: Path) -> Sequence[People3D]:
        def file(name: str, frame: int) -> Path:
            subject, sequence, camera = name.split("/")
            return path / subject / sequence / "imageFrames" / f"video_{camera}" / f"frame_{frame + 1:06d}.jpg"

        return (self._open(MPIINF3DHP.train(path, "annot3", self.subjects), file, self.every),)

    def validation(self, path: Path) -> People3D:
        file = lambda name, frame: path / name / "imageSequence" / f"img_{frame + 1:06d}.jpg"
        return self._open(MPIINF3DHP.test(path, "annot3", self.test_subjects), file, self.every)

    def _open(self, found: MPIINF3DHP, file: Callable[[str, int], Path], every: int) -> People3D:
        paths, xy, xyz, cameras = [], [], [], []
        for recording in found.recordings:
            assert recording.camera is not None  # both forms have them
            kept = range(0, len(recording.frames), every)
            paths += [file(recording.name, recording.frames[t]) for t in kept]
            xy.append(recording.xy[::every])
            xyz.append(recording.xyz[::every])
            cameras += [recording.camera] * len(kept)
        if not paths:
            raise InputError("MPI-INF-3DHP: none of the frames asked for is there")
        xy, xyz = torch.cat(xy), torch.cat(xyz)
        low, high = xy.amin(1), xy.amax(1)
        boxes = torch.cat([low - 0.1 * (high - low), high + 0.1 * (high - low)], -1)
        photos = PhotoFiles(tuple(paths), "vcai.mpi-inf.mpg.de/3dhp-dataset")
        return _one_each(photos, found.joints, xy, xyz, boxes, cameras)


def _one_each(
    photos: PhotoFiles,
    joints: JointSet,
    xy: Float[Tensor, "P J 2"],
    xyz: Float[Tensor, "P J 3"],
    boxes: Float[Tensor, "P 4"],
    cameras: Sequence[Camera],
) -> People3D:
    """One person in each photo, all joints known; those who are not in their photos are left out."""
    size = torch.tensor([camera.size for camera in cameras]).float()
    corner = size.flip(-1) - 0.5
    conf = ((xy >= -0.5) & (xy < corner[:, None])).all(-1).float()
    K = torch.stack([camera.K for camera in cameras])
    people = People3D(
        photos, joints, torch.arange(len(photos)), xy.float(), conf, conf > 0, xyz.float(), torch.ones_like(conf), boxes.float(), K,
        size, torch.ones(len(xy), dtype=torch.bool),
    )  # fmt: skip
    return people[_shown(people)]


# ---- 2D besides ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mixed:
    """Half of each batch from `source`, half from photos with 2D annotation alone (MPII, COCO), which lie in `photos.home`."""

    source: Source3D
    photos: PhotoSet
    joints: JointSet  # of the network
    photos_path: Path | None = None  # in place of `photos.home`

    @property
    def home(self) -> str:
        return self.source.home

    def training(self, path: Path) -> Sequence[People3D]:
        (people, rows), _ = self.photos.open(self.photos_path)
        flat = _flat(people, rows).convert(self.joints)
        return (*(part.convert(self.joints) for part in self.source.training(path)), flat)

    def validation(self, path: Path) -> People3D:
        return self.source.validation(path).convert(self.joints)


def _flat(people: People, rows: Sequence[int]) -> People3D:
    """People of whom nothing is known in 3D; their cameras are guesses."""
    if people.images is None:
        raise InputError(f"annotations without photos: a network that sees photos needs them; get {people.source}")
    extent = people.boxes[rows, 2:] - people.boxes[rows, :2]
    kept = torch.tensor(rows)[(extent > 8).all(-1) & people.labelled[rows].any(-1)]
    if not len(kept):
        raise InputError(f"nobody of {people.source} has annotated joints and a box")
    files = list(dict.fromkeys(people.files[i] for i in kept.tolist()))
    number = {file: n for n, file in enumerate(files)}
    paths = tuple(people.images / file for file in files)
    of = torch.tensor([number[people.files[i]] for i in kept.tolist()])
    of, order = of.sort(stable=True)
    kept = kept[order]
    xy, conf, boxes = people.xy[kept].float(), people.labelled[kept].float(), people.boxes[kept].float()
    sizes = [image_size(existing(path, "photo", people.source)) for path in tqdm(paths, desc="photos", leave=False)]
    size = torch.tensor(sizes).float()[of]
    K = torch.eye(3).repeat(len(kept), 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = GUESSED_FOCAL * size.amax(-1)
    K[:, 0, 2], K[:, 1, 2] = (size[:, 1] - 1) / 2, (size[:, 0] - 1) / 2
    flat = People3D(
        PhotoFiles(paths, people.source), people.joints, of, xy, conf, people.visible[kept], torch.zeros(*xy.shape[:2], 3),
        torch.zeros_like(conf), boxes, K, size, torch.zeros(len(kept), dtype=torch.bool),
    )  # fmt: skip
    return flat[_shown(flat)]
