"""Human3.6M, from the files as distributed and from the three forms in which the community passes it on.

    H36M.videopose(folder)   data_3d_h36m.npz and data_2d_h36m_{gt,cpn_ft_h36m_dbb,...}.npz, as VideoPose3D prepares them
    H36M.original(folder)    S1/MyPoseFeatures/D3_Positions/*.cdf, as vision.imar.ro/human3.6m distributes them (needs cdflib)
    H36MImages.moon(folder)  Human36M_subject{n}_{data,camera,joint_3d}.json, as 3DMPPE publishes them
    H36MImages.mmpose(...)   h36m_{train,test}.npz and cameras.pkl, as mmpose prepares them

A sample's joints are in the camera's frame and metres, H36M17; its `camera` stands at the origin of that frame, so
`sample.camera.project(sample.kp3d.xyz)` is where they are in the image.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.files import read_pickle
from body3d.camera import Camera
from body3d.datasets.h36m_cameras import CAMERAS, SUBJECTS, h36m_camera
from body3d.datasets.reading import existing, finite, locate, read_npz, read_object
from body3d.errors import InputError, MissingExtra
from body3d.skeletons import H36M17
from body3d.types import Boxes, Keypoints2D, Keypoints3D, Sample

__all__ = ["ACTIONS", "H36M", "H36MImages", "TEST_SUBJECTS", "TRAIN_SUBJECTS", "Take", "canonical_action"]

TRAIN_SUBJECTS = ("S1", "S5", "S6", "S7", "S8")
TEST_SUBJECTS = ("S9", "S11")
ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases", "Sitting", "SittingDown",
    "Smoking", "Photo", "Waiting", "Walking", "WalkDog", "WalkTogether",
)  # fmt: skip  # in the order of 3DMPPE's action_idx, which starts at 2
# The recordings' 32 joints hold each of these once; the others are ends and copies.
KEPT = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
FPS = 50.0
_DROPPED = {("S11", "Directions")}  # its video is corrupt; everybody leaves it out
_VIDEOPOSE = "VideoPose3D's DATASETS.md (github.com/facebookresearch/VideoPose3D)"
_OFFICIAL = "vision.imar.ro/human3.6m (registration)"


def canonical_action(take: str) -> str:
    """The action of a take, of the 15: "TakingPhoto 1" is Photo, "WalkingDog" is WalkDog, "Sitting 2" is Sitting."""
    action = take.rsplit(" ", 1)[0] if take[-1:].isdigit() else take
    return {"TakingPhoto": "Photo", "WalkingDog": "WalkDog"}.get(action, action)


@dataclass(frozen=True)
class Take:
    """One recording seen by one camera."""

    subject: str
    name: str  # as the file names it: "Directions 1"
    camera: str
    frames: int

    @property
    def action(self) -> str:
        return canonical_action(self.name)


@dataclass(frozen=True)
class H36M:
    """Whole recordings at 50 Hz, each seen by four cameras; a sample is one frame of one take. No images."""

    takes: tuple[Take, ...]
    world: Mapping[tuple[str, str], np.ndarray] = field(repr=False)  # (subject, take) -> (T, 32, 3) m
    detected: Mapping[tuple[str, str], Sequence[np.ndarray]] | None = field(default=None, repr=False)  # (T, 17, 2) px
    source: str = "memory"

    @staticmethod
    def videopose(
        folder: Path | str,
        keypoints: str | None = "gt",
        subjects: Collection[str] = SUBJECTS,
        actions: Collection[str] = ACTIONS,
        cameras: Collection[str] = CAMERAS,
    ) -> "H36M":
        """VideoPose3D's files; `keypoints` is the last part of the 2D file's name ("gt", "cpn_ft_h36m_dbb") or None.

        Detections that run on beyond the 3D frames are cut off; where they are shorter, or a take is missing, InputError.
        """
        folder = existing(folder, "folder with data_3d_h36m.npz", _VIDEOPOSE)
        path = folder / "data_3d_h36m.npz"
        world = _by_take(path, read_object(path, "positions_3d", "Human3.6M's 3D positions", _VIDEOPOSE))
        detected = None
        if keypoints is not None:
            path2d = folder / f"data_2d_h36m_{keypoints}.npz"
            detected = _by_take(path2d, read_object(path2d, "positions_2d", "Human3.6M's 2D keypoints", _VIDEOPOSE))
        return H36M._select(path, world, detected, subjects, actions, cameras)

    @staticmethod
    def original(
        folder: Path | str,
        subjects: Collection[str] = SUBJECTS,
        actions: Collection[str] = ACTIONS,
        cameras: Collection[str] = CAMERAS,
    ) -> "H36M":
        """The D3_Positions of the data set itself, variable Pose (1, T, 96) in millimetres; needs the package cdflib."""
        try:
            import cdflib
        except ImportError as error:
            raise MissingExtra("cdflib", "cdf", "Human3.6M's own files") from error
        folder = existing(folder, "folder with S1, S5, ...", _OFFICIAL)
        world: dict[tuple[str, str], np.ndarray] = {}
        for subject in subjects:
            part = existing(folder / subject / "MyPoseFeatures" / "D3_Positions", "folder of .cdf files", _OFFICIAL)
            for path in sorted(part.glob("*.cdf")):
                if canonical_action(path.stem) not in actions:
                    continue
                try:
                    pose = np.asarray(cdflib.CDF(path).varget("Pose"))
                except Exception as error:  # cdflib raises whatever it meets in a broken file
                    raise InputError(
                        f"{path}: 'Pose' cannot be read ({error}); the file is from {_OFFICIAL}"
                    ) from error
                world[subject, path.stem] = finite(pose, (1, None, 96), path, "Pose").view(-1, 32, 3).numpy() / 1000
        return H36M._select(folder, world, None, subjects, actions, cameras)

    @staticmethod
    def _select(path: Path, world, detected, subjects, actions, cameras) -> "H36M":
        for given, known in ((subjects, SUBJECTS), (actions, ACTIONS), (cameras, CAMERAS)):
            if unknown := [name for name in given if name not in known]:
                raise InputError(f"Human3.6M has no {', '.join(unknown)}; it has {', '.join(known)}")
        takes = []
        for (subject, name), positions in world.items():
            if subject not in subjects or canonical_action(name) not in actions or (subject, name) in _DROPPED:
                continue
            key = f"positions_3d[{subject}][{name}]"
            if not isinstance(positions, np.ndarray) or positions.shape[1:] != (32, 3) or not len(positions):
                raise InputError(f"{path}: {key} is {_described(positions)}, where (frames, 32, 3) was expected")
            if detected is not None:
                _check_detected(path, detected.get((subject, name)), key.replace("3d", "2d"), len(positions))
            takes += [Take(subject, name, camera, len(positions)) for camera in CAMERAS if camera in cameras]
        if not takes:
            raise InputError(f"{path} has no take of the subjects {', '.join(subjects)} and the actions asked for")
        return H36M(tuple(takes), world, detected, str(path))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(take.frames for take in self.takes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        k, frame = locate(self._ends, i)
        sample = self.sequence(k, slice(frame, frame + 1))[0]
        return replace(sample, id=f"{sample.id}/{frame}")

    def sequence(self, k: int, frames: slice = slice(None)) -> Sample:
        """Frames of take `k` as one batch: kp3d (T, 17, 3), kp2d (T, 17, 2) or None, one camera per frame."""
        take = self.takes[k]
        camera = h36m_camera(take.subject, take.camera)
        key = f"positions_3d[{take.subject}][{take.name}]"
        world = finite(self.world[take.subject, take.name][frames][:, KEPT], (None, 17, 3), self.source, key)
        kp2d = None
        if self.detected is not None:
            part = self.detected[take.subject, take.name][CAMERAS.index(take.camera)][: take.frames][frames]
            xy = finite(part[..., :2], (None, 17, 2), self.source, key.replace("3d", "2d"))
            kp2d = Keypoints2D(xy, torch.ones(xy.shape[:-1]), H36M17)
        kp3d = _in_camera(camera.to_camera(world))
        return Sample(
            f"{take.subject}/{take.name}/{take.camera}", kp2d=kp2d, kp3d=kp3d, camera=_alone(camera, len(world))
        )


@dataclass(frozen=True)
class H36MImages:
    """Single images with their boxes. The picture itself is not read: `id` is its path below the folder of images."""

    ids: tuple[str, ...]
    subjects: tuple[str, ...]  # of each image
    actions: tuple[str, ...]
    boxes: Float[Tensor, "N 4"]  # pixels, x0 y0 x1 y1
    xyz: Float[Tensor, "N 17 3"]  # metres, in the camera's frame
    cameras: Mapping[tuple[str, str], Camera] = field(repr=False)  # (subject, camera), at the origin
    views: tuple[str, ...] = field(repr=False)  # the camera of each image
    xy: Float[Tensor, "N 17 2"] | None = None  # pixels; None: projected

    @staticmethod
    def moon(
        folder: Path | str,
        subjects: Collection[str] = SUBJECTS,
        actions: Collection[str] = ACTIONS,
        every: int = 1,
    ) -> "H36MImages":
        """3DMPPE's annotations; `every` is its sampling ratio: 5 for training, 64 for test."""
        source = "3DMPPE's README (github.com/mks0601/3DMPPE_POSENET_RELEASE)"
        folder = existing(folder, "folder with Human36M_subject*_data.json", source)
        ids, owners, acts, boxes, xyz, views = [], [], [], [], [], []
        cameras: dict[tuple[str, str], Camera] = {}
        for subject in subjects:
            stem = f"Human36M_subject{subject.removeprefix('S')}"
            path = folder / f"{stem}_data.json"
            data, lenses, joints = (
                _json(folder / f"{stem}_{part}.json", source) for part in ("data", "camera", "joint_3d")
            )
            try:
                world: dict[str, Camera] = {}
                images = {image["id"]: image for image in data["images"]}
                for annotation in data["annotations"]:
                    image = images[annotation["image_id"]]
                    action = ACTIONS[image["action_idx"] - 2]
                    if image["frame_idx"] % every or action not in actions:
                        continue
                    view = str(image["cam_idx"])
                    if view not in world:
                        world[view] = _moon_camera(lenses[view], (image["height"], image["width"]))
                        cameras[subject, view] = replace(world[view], R=torch.eye(3), t=torch.zeros(3))
                    take = joints[str(image["action_idx"])][str(image["subaction_idx"])]
                    points = np.asarray(take[str(image["frame_idx"])])
                    key = f"joint_3d of {image['file_name']}"
                    xyz.append(world[view].to_camera(finite(points, (17, 3), path, key) / 1000))
                    x, y, w, h = annotation["bbox"]
                    boxes.append([x - 0.5, y - 0.5, x + w - 0.5, y + h - 0.5])
                    ids.append(image["file_name"])
                    owners.append(subject)
                    acts.append(action)
                    views.append(view)
            except (KeyError, TypeError, IndexError) as error:
                raise InputError(
                    f"{path} or its camera or joint_3d file lacks {error}; they come from {source}"
                ) from error
        if not ids:
            raise InputError(f"{folder} has no image of the subjects {', '.join(subjects)} and the actions asked for")
        edges = torch.tensor(boxes, dtype=torch.float32)
        return H36MImages(tuple(ids), tuple(owners), tuple(acts), edges, torch.stack(xyz), cameras, tuple(views))

    @staticmethod
    def mmpose(path: Path | str, cameras: Path | str, actions: Collection[str] = ACTIONS) -> "H36MImages":
        """mmpose's h36m_train.npz or h36m_test.npz: imgname, center, scale (of 200 px), part, S; and its cameras.pkl."""
        source = "mmpose's script preprocess_h36m.py"
        a = read_npz(path, ("imgname", "center", "scale", "part", "S"), "Human3.6M as mmpose prepares it", source)
        n = len(a["imgname"])
        S = finite(a["S"], (n, 17, 4), path, "S")
        part = finite(a["part"], (n, 17, 3), path, "part")
        centre, scale = finite(a["center"], (n, 2), path, "center"), finite(a["scale"], (n,), path, "scale")
        names = [str(name) for name in a["imgname"]]
        try:  # S1/S1_Directions_1.54138969/S1_Directions_1.54138969_00001.jpg
            parts = [name.rsplit("/", 1)[-1].split(".")[:2] for name in names]
            takes, views = zip(*((take, view.split("_")[0]) for take, view in parts), strict=True)
            owners, acts = zip(*((t.split("_")[0], canonical_action(t.split("_")[1])) for t in takes), strict=True)
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: imgname is not like S1_Directions_1.54138969_00001.jpg ({names[:1]})") from error
        keep = [i for i, action in enumerate(acts) if action in actions]
        known = {key: _mmpose_camera(cameras, key) for key in sorted({(owners[i], views[i]) for i in keep})}
        pick = lambda values: tuple(values[i] for i in keep)
        half = 100 * scale[keep, None]
        boxes = torch.cat([centre[keep] - half, centre[keep] + half], -1)
        return H36MImages(
            pick(names), pick(owners), pick(acts), boxes, S[keep, :, :3], known, pick(views), part[keep, :, :2]
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        camera = self.cameras[self.subjects[i], self.views[i]]
        xyz = self.xyz[i]
        kp2d = Keypoints2D(camera.project(xyz) if self.xy is None else self.xy[i], torch.ones(17), H36M17)
        return Sample(
            self.ids[i], box=Boxes(self.boxes[i], torch.tensor(1.0)), kp2d=kp2d, kp3d=_in_camera(xyz), camera=camera
        )


def _in_camera(xyz: Float[Tensor, "*B 17 3"]) -> Keypoints3D:
    return Keypoints3D(xyz, torch.ones(xyz.shape[:-1]), H36M17, "camera")


def _alone(camera: Camera, n: int) -> Camera:
    """n copies of the camera at the origin of its own frame."""
    return replace(camera, R=torch.eye(3), t=torch.zeros(3)).map(lambda part: part.expand(n, *part.shape))


def _by_take(path: Path, content: object) -> dict[tuple[str, str], object]:
    if not isinstance(content, dict) or not all(isinstance(takes, dict) for takes in content.values()):
        raise InputError(f"{path} does not hold a dictionary of subjects, each a dictionary of takes; see {_VIDEOPOSE}")
    return {(subject, name): value for subject, takes in content.items() for name, value in takes.items()}


def _check_detected(path: Path, views: Sequence[np.ndarray] | None, key: str, frames: int) -> None:
    """Raises InputError unless there are four views, each of at least as many frames as the 3D."""
    where = f"{path.parent}: {key} of the 2D file"
    if views is None or len(views) != 4:
        raise InputError(f"{where} has {0 if views is None else len(views)} views, where four were expected")
    for camera, view in zip(CAMERAS, views, strict=True):
        if view.ndim != 3 or view.shape[1] != 17:
            raise InputError(
                f"{where}, camera {camera}, has the shape {view.shape}, where (frames, 17, 2) was expected"
            )
        if len(view) < frames:
            raise InputError(f"{where}, camera {camera}, has {len(view)} frames, the 3D file {frames}")


def _json(path: Path, source: str) -> dict:
    try:
        return json.loads(existing(path, "annotation file", source).read_text())
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not JSON, or only the beginning of it ({error}); it comes from {source}"
        ) from error


def _moon_camera(lens: dict, size: tuple[int, int]) -> Camera:
    (fx, fy), (cx, cy) = lens["f"], lens["c"]
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)
    t = torch.tensor(lens["t"], dtype=torch.float32).flatten() / 1000
    return Camera(K, torch.tensor(lens["R"], dtype=torch.float32), t, size)


def _mmpose_camera(path: Path | str, key: tuple[str, str]) -> Camera:
    content = read_pickle(path)
    lens = content.get(key) if isinstance(content, dict) else None
    if not isinstance(lens, dict) or not {"K", "w", "h"} <= set(lens):
        raise InputError(f"{path} has no entry {key} with K, w and h; it is mmpose's cameras.pkl that was expected")
    K = torch.cat([finite(lens["K"], (2, 3), path, f"{key}['K']"), torch.tensor([[0.0, 0, 1]])])
    distortion = None
    if {"k", "p"} <= set(lens):
        k1, k2, k3 = finite(np.ravel(lens["k"]), (3,), path, "k")
        p = finite(np.ravel(lens["p"]), (2,), path, "p")
        distortion = torch.stack([k1, k2, p[1], p[0], k3])  # Human3.6M's p is OpenCV's in reverse
    return Camera(K, torch.eye(3), torch.zeros(3), (int(lens["h"]), int(lens["w"])), distortion)


def _described(value: object) -> str:
    return f"an array {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
