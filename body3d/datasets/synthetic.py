"""Rendered people of whom everything is known: the open body in poses of motion capture, on one floor, seen by random cameras.

    Synthetic("data/retargeted.npz")                    scenes of training subjects
    Synthetic("data/retargeted.npz", held_out=True)     of subjects that nothing is trained on
    Synthetic()                                         poses of the shipped prior: needs no data

Scenes are drawn when they are asked for and depend on nothing but `seed` and their index. Everybody's lowest point stands on
the floor: jumps are lost. Nobody's outline on the floor reaches into somebody else's, so bodies never meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from body3d.body.definitions import NAMED_ON_BODY, mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.datasets.mocap import is_held_out
from body3d.datasets.reading import read_npz
from body3d.datasets.synthetic_draw import IN_FRONT, Canvas, Person
from body3d.datasets.synthetic_look import Light, Outfit, backdrop, photo, tile
from body3d.datasets.synthetic_mesh import coarse_faces
from body3d.datasets.synthetic_stage import Stage, about_y, stand, viewpoint
from body3d.datasets.synthetic_things import boxes_around, finish, put_in_front, shadow
from body3d.errors import InputError
from body3d.skeletons import MUPOTS17, SMPL22, SMPLX55, JointSet
from body3d.types import BodyParams, Boxes, Keypoints2D, Keypoints3D, Sample

__all__ = ["Scene", "Synthetic"]

PICTURES = ("*.jpg", "*.jpeg", "*.png", "*.webp")
MIN_SIZE = 32  # pixels
ON_SKIN = 0.006  # m from the skin: a point of the surface, hidden by whatever of the body is before it
BODY_JOINTS = len(SMPL22)  # of the tree, without jaw, eyes and hands


@dataclass(frozen=True)
class Scene:
    """One rendered image and everything that is true of it; people are in the order of their root's depth, nearest first."""

    image: UInt8[Tensor, "H W 3"]  # RGB
    camera: Camera  # R = 1, t = 0
    params: BodyParams  # (N, ...) of the open body, camera space
    kp2d: Keypoints2D  # (N, J) pixels; conf 1 in the image (hidden or not), 0 outside it
    kp3d: Keypoints3D  # (N, J) metres, frame "camera", conf 1; conf 0 for a joint that the body cannot give
    visible: Bool[Tensor, "N J"]  # in the image and not hidden by a body (its own included) or an occluder
    boxes: Boxes  # (N,) of each person's whole projected surface (may reach outside the image); score 1
    seen: Float[Tensor, " N"]  # share of the person's surface towards the camera that is seen


class Synthetic:
    """A data set of scenes. It is the same for the same arguments in any order and any process.

    `poses` is the file of `scripts/retarget_mocap.py`; None draws them from the shipped mixture of Gaussians. `people` is the range
    of their number, `size` the images' (height, width), `backgrounds` a folder of pictures (without people on them) in place of
    procedural surroundings. Shapes, colours and cameras of held-out scenes come from another random stream too. Raises InputError
    for a file or folder that is not there or not such, and for ranges and sizes that make no scene.
    """

    def __init__(
        self,
        poses: Path | None = None,
        held_out: bool = False,
        people: tuple[int, int] = (1, 4),
        size: tuple[int, int] = (256, 256),
        joints: JointSet = MUPOTS17,
        backgrounds: Path | None = None,
        seed: int = 0,
        count: int = 1_000_000,
    ):
        if not 1 <= people[0] <= people[1]:
            raise InputError(f"a scene has from 1 person on, fewest first; got {people[0]} to {people[1]} people")
        if min(size) < MIN_SIZE:
            raise InputError(f"a scene of {size[1]}x{size[0]} pixels is too small: from {MIN_SIZE} on")
        if count < 1 or seed < 0:
            raise InputError(f"count must be 1 or more and seed 0 or more; got {count} and {seed}")
        self.held_out, self.people, self.size, self.joints = held_out, people, size, joints
        self.seed, self.count = seed, count
        self.pool = None if poses is None else read_poses(Path(poses), held_out)
        self.pictures = () if backgrounds is None else _pictures(Path(backgrounds))
        _points_of(joints)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """The scene with the people in the tensors' first dimension."""
        scene = self.scene(index)
        name = f"{'held-out' if self.held_out else 'synthetic'}/{self.seed}/{index}"
        return Sample(name, scene.image, scene.boxes, scene.kp2d, scene.kp3d, scene.params, scene.camera)

    def scene(self, index: int) -> Scene:
        """Scene number `index`; IndexError outside 0 <= index < count."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return self._drawn(index)[0]

    def _drawn(self, index: int) -> tuple[Scene, Canvas]:
        rng = np.random.default_rng([self.seed, int(self.held_out), index])
        camera, stage, target = viewpoint(rng, self.size)
        K = camera.K.double().numpy()
        wanted = int(rng.integers(self.people[0], self.people[1] + 1))
        params, verts, points = self._people(rng, wanted, stage, target, K)

        skin = _skin()
        skins = verts[:, skin.vertices]
        light = Light.draw(rng, stage.up)
        image = self._surroundings(rng, stage, skins, light, K)
        canvas = Canvas(image, K, light)
        for sides, colour in boxes_around(rng, stage, skins, target):
            for side in sides:
                canvas.polygon(side, colour)
        shown = canvas.people([Person(points, skin.rest, skin.faces, Outfit.draw(rng)) for points in skins])
        put_in_front(rng, canvas)

        special = _points_of(self.joints)
        xyz = special.matrix @ points.numpy()
        visible, inside = _visibility(canvas, xyz, _girth(params.shape)[:, None] * special.reach)
        known = np.repeat(special.known[None], len(xyz), 0)
        floats = lambda array: torch.from_numpy(array).float()
        xyz = floats(xyz)
        scene = Scene(
            image=torch.from_numpy(finish(rng, canvas.image())),
            camera=camera,
            params=params,
            kp2d=Keypoints2D(camera.project(xyz), floats(inside & known), self.joints),
            kp3d=Keypoints3D(xyz, floats(known), self.joints, "camera"),
            visible=torch.from_numpy(visible & known),
            boxes=Boxes(_boxes(verts, K), torch.ones(len(verts))),
            seen=floats(_seen(canvas, shown, len(verts))),
        )
        return scene, canvas

    # ---- people ----------------------------------------------------------------------------------------------------
    def _people(self, rng, count: int, stage: Stage, target: np.ndarray, K: np.ndarray):
        """Parameters, vertices (N, V, 3) and named points (N, P, 3) of people on the floor, nearest first."""
        model = BodyModel.open()
        down = np.stack([stage.right, stage.up, -stage.ahead], -1)  # from axes with y up to the camera's
        params = model.zero_params(count)
        pose = params.pose.numpy()
        for person in pose:
            person[:BODY_JOINTS] = self._pose(rng)
            turn = about_y(rng.uniform(-np.pi, np.pi))
            person[0] = cv2.Rodrigues(down @ turn @ cv2.Rodrigues(person[0].astype(np.float64))[0])[0][:, 0]
        for side in ("left", "right"):
            bend = rng.normal(0, [0.9, 0.5, 0.4, 0.3, 0.3, 0.3], (count, 6)).astype(np.float32)
            params.pose[:, _hand_rows(side)] = model.hand_pose_from_pca(torch.from_numpy(bend), side)
        shape = rng.normal(0, 1, params.shape.shape).clip(-2, 2).astype(np.float32)
        params = BodyParams(params.pose, torch.from_numpy(shape), params.transl, params.expression)

        with torch.no_grad():
            body = model(params)
        verts = body.mesh.verts.numpy()
        root = body.joints.xyz[:, 0].numpy()
        around = verts - root[:, None]
        shift = stand(rng, around, around[:, _skin().vertices], stage, target, K) - root
        order = np.argsort((root + shift)[:, 2], kind="stable")
        moved = torch.from_numpy(shift).float()
        # What the parameters give in single precision is what is drawn.
        params = BodyParams(params.pose, params.shape, params.transl + moved, params.expression)[
            torch.from_numpy(order)
        ]
        verts = (body.mesh.verts + moved[:, None])[torch.from_numpy(order)].numpy()
        return params, verts, (body.joints.xyz + moved[:, None])[torch.from_numpy(order)].double()

    def _pose(self, rng) -> Float[np.ndarray, "22 3"]:
        """Rotation vectors in axes with y up."""
        if self.pool is not None:
            pose = self.pool[rng.integers(len(self.pool))].astype(np.float32)
        else:
            names, means, factors, weights = _prior()
            k = rng.choice(len(weights), p=weights)
            pose = np.zeros((BODY_JOINTS, 3), np.float32)
            pose[names] = (means[k] + factors[k] @ rng.normal(size=means.shape[1]) * 0.9).reshape(-1, 3)
        if rng.random() < 0.5:  # the body and its rest pose are symmetric
            pose = pose[list(_FLIP)] * np.array([1, -1, -1], np.float32)
        return pose

    # ---- surroundings ----------------------------------------------------------------------------------------------
    def _surroundings(
        self, rng, stage: Stage, skins: np.ndarray, light: Light, K: np.ndarray
    ) -> UInt8[np.ndarray, "H W 3"]:
        if self.pictures:
            return photo(rng, self.pictures, self.size)
        height, width = self.size
        if rng.random() < 0.15:  # no space at all: flat shapes
            return cv2.resize(tile(rng, int(rng.integers(0, 40))), (width, height), interpolation=cv2.INTER_AREA)
        x = ((np.arange(width) - K[0, 2]) / K[0, 0]).astype(np.float32)
        y = ((np.arange(height) - K[1, 2]) / K[1, 1]).astype(np.float32)
        image = backdrop(rng, stage, x, y, float((skins @ stage.ahead).max()) + 0.3)
        return shadow(image, skins, stage, light, K)


# ---- what is seen --------------------------------------------------------------------------------------------------
def _visibility(
    canvas: Canvas, xyz: Float[np.ndarray, "N J 3"], reach: Float[np.ndarray, "N J"]
) -> tuple[Bool[np.ndarray, "N J"], Bool[np.ndarray, "N J"]]:
    """Which joints are seen and which are in the image. Joints lie in the flesh: their own body hides them only where its surface
    is further in front of them than `reach` (m); anything else hides them wherever it is in front. What the body cannot give lies
    in the camera, and in no image."""
    with np.errstate(invalid="ignore"):
        at = np.nan_to_num(canvas.project(xyz), nan=-1e6)
    inside = (at > -0.5).all(-1) & (at[..., 0] < canvas.size[1] - 0.5) & (at[..., 1] < canvas.size[0] - 0.5)
    column, row = (np.rint(at[..., axis]).clip(0, canvas.size[1 - axis] - 1).astype(int) for axis in (0, 1))
    owner, inverse = canvas.owner[row, column], canvas.inverse[row, column]
    own = owner == np.arange(len(xyz))[:, None]
    depth = xyz[..., 2] - own * reach
    return inside & (inverse * depth <= 1) & (owner != IN_FRONT), inside


def _boxes(verts: Float[np.ndarray, "N V 3"], K: Float[np.ndarray, "3 3"]) -> Float[Tensor, "N 4"]:
    """What the vertices span in the image, in pixels."""
    far = verts[..., 2]
    x, y = (K[k, k] * (verts[..., k] / far) + K[k, 2] for k in (0, 1))
    return torch.from_numpy(np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], -1)).float()


def _seen(canvas: Canvas, shown: Float[np.ndarray, "F 4"], people: int) -> Float[np.ndarray, " N"]:
    """Share, by area in the image's plane, of the triangles towards the camera at whose middle the person is what is seen.

    Where a limb lies before its own body both count. `shown` is what `Canvas.people` returns.
    """
    column, row = np.rint(shown[:, :2]).astype(int).T
    area, owner = shown[:, 2], shown[:, 3].astype(int)
    inside = (column >= 0) & (row >= 0) & (column < canvas.size[1]) & (row < canvas.size[0])
    whose = canvas.owner[row.clip(0, canvas.size[0] - 1), column.clip(0, canvas.size[1] - 1)]
    mine = inside & (whose == owner)
    return np.bincount(owner, area * mine, people) / np.maximum(np.bincount(owner, area, people), 1e-9)


# ---- what is made once ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Skin:
    vertices: Int[np.ndarray, " V"]  # those of the body that the coarse skin uses
    faces: Int[np.ndarray, "F 3"]  # by their places in `vertices`
    rest: Float[np.ndarray, "V 3"]


@cache
def _skin() -> _Skin:
    vertices, faces = np.unique(coarse_faces(), return_inverse=True)
    return _Skin(vertices, faces.reshape(-1, 3), BodyModel.open().template.numpy()[vertices])


@dataclass(frozen=True)
class _Points:
    matrix: Float[np.ndarray, "J P"]  # from the body's named points
    known: Bool[np.ndarray, " J"]
    reach: Float[np.ndarray, " J"]  # m, see `_visibility`


@cache
def _points_of(joints: JointSet) -> _Points:
    """How the joints come from the body's points; raises InputError for a set of which none do."""
    model = BodyModel.open()
    found = mixtures(model.keypoints, joints, {} if joints is SMPLX55 else NAMED_ON_BODY)
    if not found:
        raise InputError(f"the open body has none of the points of {joints.name}")
    matrix = np.zeros((len(joints), len(model.keypoints)))
    rows = joints.indices(tuple(found))
    matrix[rows] = mixing_matrix(found, model.keypoints.names).numpy()
    known = np.isin(np.arange(len(joints)), rows)
    rest = model(model.zero_params())
    points = matrix @ rest.joints.xyz.double().numpy()
    nearest = np.linalg.norm(points[:, None] - rest.mesh.verts.double().numpy(), axis=-1).min(-1)
    reach = np.where(nearest < ON_SKIN, 0.0, np.maximum(2 * nearest, 1.4 * _thickness(points)))
    return _Points(matrix, known, 0.02 + reach)


def _thickness(points: Float[np.ndarray, "J 3"]) -> Float[np.ndarray, " J"]:
    """Half of how thick the body at rest is around each point: along each axis to the skin on both sides; the middle one of the
    three, as one runs along the limb."""
    skin = _skin()
    corners = skin.rest[skin.faces].astype(np.float64)
    halves = np.zeros((len(points), 3))
    for axis in range(3):
        flat = np.delete(corners, axis, -1)
        ab, ac = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
        area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
        area = np.where(np.abs(area) < 1e-12, np.inf, area)
        for j, point in enumerate(points):
            ap = np.delete(point, axis) - flat[:, 0]
            b = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
            c = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
            hit = np.flatnonzero((b >= 0) & (c >= 0) & (b + c <= 1))
            depth = corners[hit, :, axis]
            off = (
                depth[:, 0] + b[hit] * (depth[:, 1] - depth[:, 0]) + c[hit] * (depth[:, 2] - depth[:, 0]) - point[axis]
            )
            sides = [side.min(initial=np.inf) for side in (off[off > 0], -off[off < 0])]
            halves[j, axis] = np.mean([side for side in sides if np.isfinite(side)] or [0.0])
    return np.sort(halves, -1)[:, 1]


def _girth(shape: Float[Tensor, "N S"]) -> Float[np.ndarray, " N"]:
    """How much thicker people are than the mean body: the root of the ratio of volumes."""
    skin, directions = _skin(), BodyModel.open().shape_dirs[: shape.shape[-1], _skin().vertices].numpy()
    rest = np.concatenate([skin.rest[None], skin.rest + np.einsum("ns,svd->nvd", shape.numpy(), directions)])
    a, b, c = np.moveaxis(rest[:, skin.faces], 2, 0)
    volume = (a * np.cross(b, c)).sum((1, 2))
    return np.sqrt(volume[1:] / volume[0])


def _hand_rows(side: str) -> list[int]:
    return [i for i, name in enumerate(SMPLX55.names) if name.startswith(f"{side}_") and name[-1].isdigit()]


_FLIP = SMPL22.flip


@cache
def _prior() -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    prior = MaxMixturePrior.shipped()
    weights = prior.weights.double().numpy()
    factors = np.linalg.cholesky(prior.covariances.double().numpy())
    return SMPLX55.indices(prior.joints), prior.means.double().numpy(), factors, weights / weights.sum()


def read_poses(path: Path, held_out: bool) -> np.ndarray:
    """Plausible poses (M, 22, 3) of the held-out subjects of the file, or of the others; rotation vectors, y up, half precision."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing: make it with scripts/retarget_mocap.py, or go without for poses of the prior"
        )
    file = read_npz(
        path, ("subject", "clip", "pose", "plausible"), "a file of retargeted poses", "scripts/retarget_mocap.py"
    )
    try:
        subject = np.array([is_held_out(str(s)) for s in file["subject"]])
        pose = file["pose"][(subject[file["clip"]] == held_out) & file["plausible"]]
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is not a file of scripts/retarget_mocap.py: {error}") from error
    if pose.ndim != 3 or pose.shape[1:] != (BODY_JOINTS, 3) or not len(pose):
        raise InputError(f"{path}: poses of {BODY_JOINTS} joints were expected, found {pose.shape}")
    return pose.astype(np.float16)


def _pictures(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of background pictures")
    files = tuple(sorted(path for pattern in PICTURES for path in folder.rglob(pattern)))
    if not files:
        raise InputError(f"{folder} holds no picture ({', '.join(PICTURES)})")
    return files
