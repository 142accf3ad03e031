"""VNect's last step: a skeleton of fixed bones, in the camera's frame, fitted to 2D and root-relative 3D joints frame by frame.

Mehta et al., "VNect: real-time 3D human pose estimation with a single RGB camera", SIGGRAPH 2017, section 5. Of each frame the
joint angles and the root's place minimise E_IK + 44 E_proj + 0.07 E_smooth + 0.11 E_depth. Only frames before it are used, so it
can run along with a video. Turns of a bone about itself that move no joint are not determined and stay as they are.
"""

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from body3d.body import lbs
from body3d.camera import Camera
from body3d.codecs.locationmap import from_parents, to_parents
from body3d.errors import InputError
from body3d.fit.checks import check_camera
from body3d.fit.jacobian import left_jacobian
from body3d.fit.lm import Quadratic, levenberg_marquardt
from body3d.fit.residuals import projection_jacobian
from body3d.skeletons import JointSet
from body3d.types import Keypoints2D, Keypoints3D

__all__ = ["Skeleton", "Weights", "fit_skeleton"]

MILLIMETRES = 1000.0  # per metre


@dataclass(frozen=True)
class Weights:
    """Of the four energies: sums over the joints of squared millimetres and pixels (the paper gives the weights, not the units).

    `pose`: the joints from the root against the given 3D, brought to the skeleton's bone lengths. `projection`: against the given
    2D. `smoothness`: acceleration per frame². `depth`: velocity along the camera's axis per frame, the direction seen worst; it
    holds back real motion too: somebody who comes nearer by 0.3 m/s is put some 3 cm too far away.
    """

    pose: float = 1.0
    projection: float = 44.0
    smoothness: float = 0.07
    depth: float = 0.11


class Skeleton:
    """Bones of fixed lengths: a rest pose (J, 3) in metres. Every joint with children can turn, and the root can move."""

    def __init__(self, rest: Float[Tensor, "J 3"], joints: JointSet):
        self.rest, self.joints = rest, joints
        self.root = joints.parents.index(-1)
        self.jumps = lbs.chain_jumps(joints.parents).to(rest.device)
        self.turning = sorted({p for p in joints.parents if p >= 0})
        below = torch.eye(len(joints) + 1, dtype=torch.bool, device=rest.device)
        for ancestors in self.jumps:
            below = below | below[ancestors]
        self.below = (below[:-1, :-1] & ~torch.eye(len(joints), dtype=torch.bool, device=rest.device)).to(rest)

    @staticmethod
    def of(poses: Float[Tensor, "T J 3"], joints: JointSet, conf: Float[Tensor, "T J"] | None = None) -> "Skeleton":
        """The skeleton that moves in the poses of a video (m): bones as long as in their median, pointing as in the first frame.

        A bone counts in the frames in which both of its ends are known (finite, and `conf` above 0); InputError if there are none.

        Noise makes every bone longer, and so the person larger and further away; the product of the same bone in two frames is free
        of what is independent between them. Bones that one joint turns together keep the angles between them: those are averaged
        over the frames, turned onto each other.
        """
        known = poses.isfinite().all(-1) & (True if conf is None else conf > 0)
        both = known & known[:, [i if p < 0 else p for i, p in enumerate(joints.parents)]]
        if not both.any(0).all():
            never = [n for n, k in zip(joints.names, both.any(0).tolist(), strict=True) if not k]
            raise InputError(
                f"bones that are not known in any frame have no length; give a skeleton: {', '.join(never)}"
            )
        bones = torch.where(both.unsqueeze(-1), to_parents(poses, joints), 0.0)

        def square(a: slice, b: slice) -> Float[Tensor, " J"]:
            return torch.where(both[a] & both[b], (bones[a] * bones[b]).sum(-1), torch.nan).nanmedian(0).values

        length = square(slice(None), slice(None))
        if len(poses) > 1:
            following = square(slice(0, -1), slice(1, None))
            length = torch.where(following.isnan(), length, following)
        length = length.clamp_min(0).sqrt()
        directions = normalize(bones, dim=-1)
        mean = directions[both.int().argmax(0), torch.arange(len(joints), device=poses.device)]
        for parent in set(joints.parents) - {-1}:
            children = [i for i, p in enumerate(joints.parents) if p == parent]
            for _ in range(5):
                onto = roma.special_procrustes(torch.einsum("ci,tcj->tij", mean[children], directions[:, children]))
                turned = torch.einsum("tij,tcj->ci", onto, directions[:, children])
                mean[children] = normalize(turned, dim=-1)
        return Skeleton(from_parents(mean * length.unsqueeze(-1), joints), joints)

    def __len__(self) -> int:
        """Unknowns: a rotation vector for each turning joint, then the root's place."""
        return 3 * len(self.turning) + 3

    def with_these_bones(self, poses: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B J 3"]:
        """Poses with their bones' directions and this skeleton's lengths, the root at 0."""
        bones, ours = to_parents(poses, self.joints), to_parents(self.rest, self.joints)
        length = bones.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        return from_parents(bones / length * ours.norm(dim=-1, keepdim=True), self.joints)

    def pose(self, x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B J 3"], Float[Tensor, "B J 3 D"]]:
        """Joints (m), and how each unknown moves them."""
        B, J = len(x), len(self.joints)
        rotvec = x.new_zeros(B, J, 3)
        rotvec[:, self.turning] = x[:, :-3].unflatten(1, (-1, 3))
        centred = (self.rest - self.rest[self.root]).expand(B, J, 3)
        T = lbs.world_transforms(lbs.rotation_matrices(rotvec), centred, self.jumps)
        R, place = T[..., :3, :3], T[..., :3, 3]
        world = torch.eye(3).to(x).expand(B, 1, 3, 3)
        parents = torch.cat([R, world], 1)[:, self.jumps[0, :-1]]
        # A change of a rotation vector turns all that is below the joint about these axes (rows).
        axes = (parents @ left_jacobian(rotvec)).mT[:, self.turning]
        lever = (place[:, :, None] - place[:, None, self.turning]) * self.below[:, self.turning, None]
        turned = torch.linalg.cross(axes[:, None], lever[:, :, :, None].expand(-1, -1, -1, 3, -1))  # (B, J, Q, 3, xyz)
        moved = torch.eye(3).to(x).expand(B, J, 3, 3)
        return place + x[:, None, -3:], torch.cat([turned.flatten(2, 3).mT, moved], -1)


def fit_skeleton(
    local: Keypoints3D,
    image: Keypoints2D,
    camera: Camera,
    skeleton: Skeleton | None = None,
    weights: Weights = Weights(),
    iterations: int = 20,
) -> Keypoints3D:
    """The person of a video in the camera's frame: (T, J, 3), with bones of one length throughout.

    `local`: joints (T, J, 3) from the root, along the camera's axes; `image`: the same joints in pixels; a confidence of 0 takes
    a joint of a frame out, one between 0 and 1 lets it count less. `camera` must not be turned or moved (R = 1, t = 0), which is
    what "the camera's frame" says. `skeleton` None: bones as long as the median of `local`, whose scale is the scale of all. What
    is not finite is unknown. In 3D a joint counts where all joints on its way from the root are known: it is brought to the
    skeleton's lengths bone by bone; the root itself is the origin, whatever its confidence. Before the first frame with two joints
    that are known in 3D and in 2D the person is as in it. InputError for joints that are not the same, a camera that is turned or
    moved, a bone of which `local` does not tell the length, no such frame, and one that puts the person behind the camera.
    """
    if local.joints is not image.joints or local.xyz.shape[:-1] != image.xy.shape[:-1] or local.xyz.ndim != 3:
        raise InputError(
            f"the same joints of the same frames are needed in 3D and in 2D: got {local.joints.name} "
            f"{tuple(local.xyz.shape)} and {image.joints.name} {tuple(image.xy.shape)}"
        )
    check_camera(camera)
    camera = camera.to(local.xyz)
    known = local.xyz.isfinite().all(-1) & (local.conf > 0)
    conf = torch.where(known, local.conf, 0.0)
    if not len(conf):
        return Keypoints3D(local.xyz, conf, local.joints, "camera")
    skeleton = skeleton or Skeleton.of(local.xyz, local.joints, conf)
    target = skeleton.with_these_bones(local.xyz.nan_to_num(0.0, 0.0, 0.0))
    rooted = known.clone()
    rooted[:, skeleton.root] |= local.xyz[:, skeleton.root].isfinite().all(-1)
    counted = torch.where((~rooted).to(target) @ skeleton.below.mT > 0, 0.0, conf)
    counted_2d = torch.where(image.xy.isfinite().all(-1) & (image.conf > 0), image.conf, 0.0)
    enough = ((counted > 0) & (counted_2d > 0)).sum(1) >= 2
    if not enough.any():
        raise InputError("no frame has two joints that are known in 3D and in 2D: nothing says where the person stands")
    first = int(enough.int().argmax())
    xy = image.xy.nan_to_num(0.0, 0.0, 0.0)
    x = target.new_zeros(1, len(skeleton))
    # Until a frame is known, all that is known of the rest pose is how it points: the first fit turns it.
    x[0, -3:] = _first_place(target[first], xy[first], counted_2d[first] * (counted[first] > 0), camera)
    places: list[Tensor] = []
    for frame in range(first, len(target)):
        energy = _Energy(
            skeleton, target[frame], xy[frame], counted[frame], counted_2d[frame], camera, weights, places[-2:]
        )
        x = levenberg_marquardt(energy, x, iterations if places else 5 * iterations, tolerance=1e-5).x
        x = torch.cat([_short(x[:, :-3]), x[:, -3:]], 1)
        places.append(skeleton.pose(x)[0][0])
    return Keypoints3D(torch.stack(places[:1] * first + places), conf, local.joints, "camera")


def _short(x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Rotation vectors of at most half a turn: somebody who spins would reach a full one, where they say nothing."""
    return roma.rotmat_to_rotvec(lbs.rotation_matrices(x.unflatten(1, (-1, 3)))).flatten(1)


def _first_place(
    local: Float[Tensor, "J 3"], xy: Float[Tensor, "J 2"], conf: Float[Tensor, " J"], camera: Camera
) -> Float[Tensor, "3"]:
    """Where the root must be for the joints to be seen at `xy`: linear least squares of f (X + t) = (xy - c) (Z + t_z)."""
    ray = camera.unproject(xy, torch.ones_like(conf))[:, :2]
    rows = torch.cat([torch.eye(2).to(xy).expand(len(xy), 2, 2), -ray.unsqueeze(-1)], -1)
    right = ray * local[:, 2:] - local[:, :2]
    weight = conf.sqrt()[:, None]
    place = torch.linalg.lstsq(
        (rows * weight.unsqueeze(-1)).flatten(0, 1), (right * weight).flatten()[:, None]
    ).solution
    if place[2] <= 0:
        raise InputError(
            "2D and 3D joints of the first known frame do not fit: the person would stand behind the camera"
        )
    return place[:, 0]


@dataclass(frozen=True)
class _Energy:
    """The quadratic model of one frame's energies."""

    skeleton: Skeleton
    local: Float[Tensor, "J 3"]
    xy: Float[Tensor, "J 2"]
    conf: Float[Tensor, " J"]
    conf2d: Float[Tensor, " J"]
    camera: Camera
    weights: Weights
    before: list[Tensor]  # the joints of up to two frames before, the last one last

    def __call__(self, x: Float[Tensor, "B D"], rows: Int[Tensor, " B"]) -> Quadratic:
        place, J = self.skeleton.pose(x)
        w, mm = self.weights, MILLIMETRES
        from_root = place - x[:, None, -3:] - self.local
        J_from_root = torch.cat([J[..., :-3], torch.zeros_like(J[..., -3:])], -1)
        off = self.camera.project(place) - self.xy
        J_off = projection_jacobian(self.camera, place) @ J
        terms = [
            (w.pose * self.conf, mm * from_root, mm * J_from_root),
            (w.projection * self.conf2d, off, J_off),
        ]
        every = torch.ones_like(self.conf)
        if len(self.before) == 2:
            acceleration = place - 2 * self.before[1] + self.before[0]
            terms.append((w.smoothness * every, mm * acceleration, mm * J))
        if self.before:
            terms.append((w.depth * every, mm * (place - self.before[-1])[..., 2:], mm * J[..., 2:, :]))

        cost, gradient, curvature = (
            x.new_zeros(len(x)),
            torch.zeros_like(x),
            x.new_zeros(len(x), x.shape[1], x.shape[1]),
        )
        for weight, residual, by in terms:
            r, by = residual.flatten(1), by.flatten(1, 2)
            weighted = weight.repeat_interleave(residual.shape[-1]) * r
            cost = cost + (weighted * r).sum(-1)
            gradient = gradient + 2 * (weighted.unsqueeze(1) @ by).squeeze(1)
            scaled = by * weight.repeat_interleave(residual.shape[-1])[:, None]
            curvature = curvature + 2 * by.mT @ scaled
        return Quadratic(cost, gradient, curvature)
