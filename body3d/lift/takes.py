"""2D-3D pairs on one device: what lifters are trained and scored on.

All frames of all recordings, each seen by one camera, lie end to end in a few tensors, and a batch is gathered by index: no
loader, no workers, no copies from host to device. A window of frames for a temporal network is a gather too.

2D is in VideoPose3D's screen coordinates (x from -1 to 1 across the image, y by the same factor), 3D in the camera's frame and
metres.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from body3d.camera import distort
from body3d.camera_conventions import to_screen
from body3d.datasets.h36m import H36M, TEST_SUBJECTS, TRAIN_SUBJECTS
from body3d.datasets.h36m_cameras import h36m_camera
from body3d.datasets.mocap import clip_index, is_held_out, read_clip
from body3d.datasets.motion import axis_rotations
from body3d.datasets.mpi_inf_3dhp import MPIINF3DHP, Scale, camera_from_points
from body3d.errors import InputError
from body3d.skeletons import H36M17, JointSet, convert_points
from body3d.tensors import Tensors
from body3d.types import Keypoints2D, Keypoints3D, Sample

__all__ = ["Cameras", "MocapScene", "Takes", "Wide", "h36m_takes", "mpi_inf_3dhp_takes", "studio_cameras"]


@dataclass(frozen=True)
class Takes(Tensors):
    """F frames of K takes."""

    joints: JointSet
    xy: Float[Tensor, "F J 2"]  # screen coordinates
    conf: Float[Tensor, "F J"]
    xyz: Float[Tensor, "F J 3"]  # metres, camera frame
    focal: Float[Tensor, "F 2"]  # the camera in screen coordinates: x_screen = focal x/z + centre (distortion left out)
    centre: Float[Tensor, "F 2"]
    counted: Bool[Tensor, " F"]  # whether a frame is trained and scored on; the others are only neighbours in windows
    take: Int[Tensor, " F"]  # which take a frame belongs to
    start: Int[Tensor, " K"]  # its first frame
    stop: Int[Tensor, " K"]  # and the one after its last
    action: Int[Tensor, " K"]  # an index into `actions`
    actions: tuple[str, ...]

    @staticmethod
    def stack(samples: Iterable[tuple[str, Sample]], source: str) -> "Takes":
        """From recordings, each an action and one batched sample (T frames, one camera for all or one each).

        InputError if a sample has no keypoints, no camera, or another joint set than the first.
        """
        parts: dict[str, list[Tensor]] = {key: [] for key in ("xy", "conf", "xyz", "focal", "centre")}
        lengths, actions, joints = [], [], None
        for action, sample in samples:
            if sample.kp2d is None or sample.kp3d is None or sample.camera is None:
                raise InputError(
                    f"{source}: {sample.id} lacks 2D keypoints, 3D keypoints or the camera; lifting needs all"
                )
            joints = joints or sample.kp3d.joints
            if sample.kp3d.joints is not joints or sample.kp2d.joints is not joints:
                raise InputError(
                    f"{source}: {sample.id} is in {sample.kp3d.joints.name}, where {joints.name} was expected"
                )
            frames, (height, width) = len(sample.kp3d.xyz), sample.camera.size
            K = sample.camera.K.expand(frames, 3, 3)
            parts["xy"].append(to_screen(sample.kp2d.xy, width, height))
            parts["conf"].append(sample.kp2d.conf)
            parts["xyz"].append(sample.kp3d.xyz)
            parts["focal"].append(K[:, [0, 1], [0, 1]] * 2 / width)
            parts["centre"].append(to_screen(K[:, :2, 2], width, height))
            lengths.append(frames)
            actions.append(action)
        if joints is None:
            raise InputError(f"{source} has no recording")
        names = tuple(dict.fromkeys(actions))
        stop = torch.tensor(lengths).cumsum(0)
        return Takes(
            joints=joints,
            **{key: torch.cat(value) for key, value in parts.items()},
            counted=torch.ones(sum(lengths), dtype=torch.bool),
            take=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
            start=stop - torch.tensor(lengths),
            stop=stop,
            action=torch.tensor([names.index(a) for a in actions]),
            actions=names,
        )

    def __len__(self) -> int:
        return len(self.take)

    @property
    def index(self) -> Int[Tensor, " N"]:
        """The frames that count."""
        return self.counted.nonzero()[:, 0]

    def relative(self, index: Int[Tensor, "*B"]) -> Float[Tensor, "*B J 3"]:
        """3D from the root, metres."""
        xyz = self.xyz[index]
        root = self.joints.parents.index(-1)
        return xyz - xyz[..., root : root + 1, :]

    def windows(self, index: Int[Tensor, " B"], frames: int, causal: bool = False) -> Float[Tensor, "B T J 2"]:
        """2D of `frames` frames around each index (or up to it); beyond a take's ends its end frames are repeated."""
        back = frames - 1 if causal else frames // 2
        at = index[:, None] + torch.arange(-back, frames - back, device=index.device)
        take = self.take[index][:, None]
        return self.xy[at.clamp(self.start[take], self.stop[take] - 1)]

    def convert(self, joints: JointSet) -> "Takes":
        """The same frames in another joint set. InputError if it has joints that cannot be made."""
        xy, conf = convert_points(self.xy, self.conf, self.joints, joints)
        xyz, known = convert_points(self.xyz, torch.ones_like(self.conf), self.joints, joints)
        if not known.all():
            missing = [name for name, k in zip(joints.names, known[0], strict=True) if not k]
            raise InputError(f"{joints.name} cannot be made of {self.joints.name}, which has no {', '.join(missing)}")
        return replace(self, joints=joints, xy=xy, conf=conf, xyz=xyz)


def h36m_takes(folder: Path | str, keypoints: str, test: bool) -> Takes:
    """Human3.6M as VideoPose3D prepares it, protocol 1's subjects; `keypoints` is "gt", "cpn_ft_h36m_dbb" ..."""
    data = H36M.videopose(folder, None if keypoints == "gt" else keypoints, TEST_SUBJECTS if test else TRAIN_SUBJECTS)

    def samples():
        for k, take in enumerate(data.takes):
            sample = data.sequence(k)
            if sample.kp2d is None and sample.kp3d is not None and sample.camera is not None:
                # "gt" is the projection. data_2d_h36m_gt.npz need not be there: it differs by less than a pixel (h36m_cameras)
                xy = sample.camera.project(sample.kp3d.xyz)
                sample = replace(sample, kp2d=Keypoints2D(xy, torch.ones_like(xy[..., 0]), sample.kp3d.joints))
            yield take.action, sample

    return Takes.stack(samples(), str(folder))


def mpi_inf_3dhp_takes(path: Path | str, scale: Scale = "univ_annot3") -> Takes:
    """MPI-INF-3DHP as P-STMO prepares it (one file for training, one for test); the cameras are fitted to its 2D and 3D.

    Its poses are universal (on a skeleton of one height), and so are errors against them. All frames of a test sequence are there;
    those that are valid count.
    """
    data = MPIINF3DHP.pstmo(path, scale, all_frames=True)
    valid = [torch.ones(len(r.xy), dtype=torch.bool) if r.valid is None else r.valid for r in data.recordings]

    def samples():
        for r, v in zip(data.recordings, valid, strict=True):
            size = (1080, 1920) if r.name in ("TS5", "TS6") else (2048, 2048)
            ones = torch.ones_like(r.xy[..., 0])
            kp2d, kp3d = Keypoints2D(r.xy, ones, data.joints), Keypoints3D(r.xyz, ones, data.joints, "camera")
            yield r.name, Sample(r.name, kp2d=kp2d, kp3d=kp3d, camera=camera_from_points(r.xyz[v], r.xy[v], size))

    takes = Takes.stack(samples(), str(path))
    return replace(takes, counted=torch.cat(valid))


# ---- free motion capture, seen by cameras of one's choice ----------------------------------------------------------
@dataclass(frozen=True)
class Cameras(Tensors):
    """One camera per clip in a world that is z up, metres; the image is what x_screen and y_screen of -1..1 show."""

    R: Float[Tensor, "K 3 3"]
    t: Float[Tensor, "K 3"]
    focal: Float[Tensor, "K 2"]
    centre: Float[Tensor, "K 2"]
    distortion: Float[Tensor, "K 5"]


def studio_cameras(name: str, clips: int, subject: str = "S1") -> Cameras:
    """One of Human3.6M's four, the same for all clips."""
    camera = h36m_camera(subject, name)
    height, width = camera.size
    assert camera.distortion is not None, "Human3.6M's cameras have one"
    focal = camera.K[[0, 1], [0, 1]] * 2 / width
    centre = to_screen(camera.K[:2, 2], width, height)
    each = (x.expand(clips, *x.shape) for x in (camera.R, camera.t, focal, centre, camera.distortion))
    return Cameras(*each)


@dataclass(frozen=True)
class Wide:
    """The range that random cameras are drawn from: any azimuth, and uniformly between these."""

    elevation: tuple[float, float] = (-15.0, 50.0)  # degrees above the horizon of the line from person to camera
    distance: tuple[float, float] = (2.5, 7.0)  # metres
    focal: tuple[float, float] = (1.4, 3.4)  # in half widths of the image: 71 to 33 degrees wide
    roll: tuple[float, float] = (-8.0, 8.0)  # degrees

    def draw(self, clips: int, random: torch.Generator) -> Cameras:
        """Each looks at a point 0.9 m above the origin, give or take 0.2 m."""
        device = random.device
        uniform = lambda low, high: low + (high - low) * torch.rand(clips, generator=random, device=device)
        azimuth, elevation, roll = uniform(-180, 180), uniform(*self.elevation), uniform(*self.roll)
        distance, focal = uniform(*self.distance), uniform(*self.focal)
        target = 0.2 * torch.randn(clips, 3, generator=random, device=device)
        target[:, 2] += 0.9
        # The camera's axes in the world at azimuth, elevation and roll 0: x right, y down, z forward.
        level = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], device=device)
        R = (
            axis_rotations(roll, "z") @ axis_rotations(elevation, "x") @ level @ axis_rotations(azimuth, "z")
        )  # y down: a positive turn about x lifts the scene, so the camera looks down on it
        t = -(R @ target[..., None])[..., 0] + torch.stack([torch.zeros_like(distance)] * 2 + [distance], -1)
        zero = torch.zeros(clips, 5, device=device)
        return Cameras(R, t, focal[:, None].expand(-1, 2), zero[:, :2], zero)


@dataclass(frozen=True)
class MocapScene(Tensors):
    """Clips of motion capture on one floor: z up, metres, each clip's middle over the origin."""

    xyz: Float[Tensor, "F 17 3"]
    clip: Int[Tensor, " F"]
    start: Int[Tensor, " K"]
    stop: Int[Tensor, " K"]
    action: Int[Tensor, " K"]
    subjects: tuple[str, ...]

    @staticmethod
    def open(folder: Path | str, held_out: bool, every: int = 1) -> "MocapScene":
        """The clips whose subjects are held out, or all others; `every` takes one frame of so many."""
        infos = [info for info in clip_index(folder) if is_held_out(info.subject) == held_out]
        if not infos:
            raise InputError(
                f"{folder} has no clip of the subjects that are {'held out' if held_out else 'trained on'}"
            )
        points = []
        for info in infos:
            x, y, z = read_clip(info).h36m17[::every].unbind(-1)
            xyz = torch.stack([x, -z, y], -1)
            points.append(xyz - xyz[:, :1].mean(0) * torch.tensor([1.0, 1.0, 0.0]))
        lengths = torch.tensor([len(p) for p in points])
        subjects = tuple(dict.fromkeys(info.subject for info in infos))
        stop = lengths.cumsum(0)
        return MocapScene(
            torch.cat(points), torch.repeat_interleave(torch.arange(len(infos)), lengths), stop - lengths, stop,
            torch.tensor([subjects.index(info.subject) for info in infos]), subjects,
        )  # fmt: skip

    def takes(self, views: Iterable[Cameras], random: torch.Generator, mirror: bool = False) -> Takes:
        """The scene once per view, every clip turned about the vertical and put down within half a metre of the middle at
        random, half of the clips mirrored if asked for. A take is a clip seen by one camera; frames of people whom the image
        cuts do not count."""
        return _join([self._seen(cameras, random, mirror) for cameras in views])

    def _seen(self, cameras: Cameras, random: torch.Generator, mirror: bool) -> Takes:
        device, clips = self.xyz.device, len(self.start)
        rand = lambda *shape: torch.rand(*shape, generator=random, device=device)
        turn = axis_rotations(360 * rand(clips), "z")
        place = torch.cat([rand(clips, 2) - 0.5, torch.zeros(clips, 1, device=device)], -1)
        world = self.xyz
        if mirror:
            swapped = world[:, list(H36M17.flip)] * world.new_tensor([-1.0, 1, 1])
            world = torch.where((rand(clips) < 0.5)[self.clip][:, None, None], swapped, world)
        R, t = cameras.R @ turn, cameras.t + (cameras.R @ place[..., None])[..., 0]
        xyz = world @ R[self.clip].mT + t[self.clip][:, None]
        # Lens models hold near the axis only: further out than 45 degrees is put there, as VideoPose3D does.
        flat = (xyz[..., :2] / xyz[..., 2:].clamp_min(0.1)).clamp(-1, 1)
        xy = distort(flat, cameras.distortion[self.clip][:, None])
        focal, centre = cameras.focal[self.clip], cameras.centre[self.clip]
        xy = xy * focal[:, None] + centre[:, None]
        whole = (xy.abs() <= 1).all(-1).all(-1) & (xyz[..., 2] > 0.1).all(-1)
        return Takes(
            H36M17, xy, torch.ones_like(xy[..., 0]), xyz, focal, centre, whole,
            self.clip, self.start, self.stop, self.action, self.subjects,
        )  # fmt: skip


def _join(parts: list[Takes]) -> Takes:
    """The same clips seen by several cameras, one after the other."""
    one = parts[0]
    cat = lambda name: torch.cat([getattr(p, name) for p in parts])
    shifted = lambda name, step: torch.cat([getattr(p, name) + k * step for k, p in enumerate(parts)])
    return Takes(
        one.joints, cat("xy"), cat("conf"), cat("xyz"), cat("focal"), cat("centre"), cat("counted"),
        shifted("take", len(one.start)),
        shifted("start", len(one)), shifted("stop", len(one)), cat("action"), one.actions,
    )  # fmt: skip
