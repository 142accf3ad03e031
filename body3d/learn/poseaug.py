"""PoseAug's networks and losses: 3D poses made harder for a lifter, within what a body can do.

Gong, Zhang & Feng, "PoseAug: A differentiable pose augmentation framework for 3D human pose estimation", CVPR 2021. Poses are
H36M16 in metres, camera frame. Three generators bend the bones of a pose, stretch them, and turn and place the whole before the
camera; discriminators tell whether the bent pose (by parts) and its projection still look like people. `poseaug_training` lets
them play against the lifter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.joint_set import mirrored
from body3d.skeletons import H36M16

__all__ = [
    "Adversary", "Augmented", "Augmentor", "Discriminator2D", "Discriminator3D", "ReplayPool", "bones_of", "difficulty",
    "from_published", "in_view", "joints_of", "outside", "swap_lengths",
]  # fmt: skip

NOISE = 48
BONES = H36M16.below_root  # a bone is named after its outer joint, and joint 0 is the root
PARENTS = [parent for parent in H36M16.parents if parent >= 0]


def _bones(*names: str) -> list[int]:
    return [BONES.index(name) for name in names]


def bones_of(xyz: Float[Tensor, "B 16 D"]) -> Float[Tensor, "B 15 D"]:
    """Each bone from its outer joint to its parent: the sign that the published weights expect."""
    return xyz[:, PARENTS] - xyz[:, 1:]


def joints_of(bones: Float[Tensor, "B 15 D"]) -> Float[Tensor, "B 16 D"]:
    """The inverse of `bones_of`, the root at the origin."""
    joints = [torch.zeros_like(bones[:, 0])]
    for bone, parent in enumerate(PARENTS):
        joints.append(joints[parent] - bones[:, bone])
    return torch.stack(joints, 1)


def swap_lengths(xyz: Float[Tensor, "B 16 3"]) -> Float[Tensor, "B 16 3"]:
    """Every pose with the bone lengths of another pose of the batch: real poses of more people, which steadies the adversaries."""
    bones = bones_of(xyz)
    lengths = bones.norm(dim=-1, keepdim=True)
    return xyz[:, :1] + joints_of(bones / lengths * lengths[torch.randperm(len(xyz), device=xyz.device)])


# ---- generators ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Augmented:
    """A pose after each generator in turn, and what they did."""

    bent: Float[Tensor, "B 16 3"]
    stretched: Float[Tensor, "B 16 3"]
    placed: Float[Tensor, "B 16 3"]
    angles: Float[Tensor, "B 15"]  # 1 - cos of the angle by which each bone was bent
    ratios: Float[Tensor, "B 9"]  # by how much of its length each pair of bones grew
    rotation: Float[Tensor, "B 3"]  # rotation vector
    translation: Float[Tensor, "B 1 3"]


# Bending the trunk would turn all that hangs on it; a body that grew as a whole would look the same from further away.
RIGID = _bones("spine", "thorax")
# Left and right share a ratio.
PAIRS = [min(i, BONES.index(mirrored(bone))) for i, bone in enumerate(BONES)]
RATIOS = sorted(set(PAIRS))
FIXED_RATIO = RATIOS.index(BONES.index("thorax"))


class Augmentor(nn.Module):
    """Bone angle, bone length, rotation and translation. All four networks see the original pose.

    The paper turns by up to pi; the released code, and so its weights, by 3.1415.
    """

    moving: Tensor
    growing: Tensor

    def __init__(self, most_stretched: float = 0.2):
        super().__init__()
        self.most_stretched = most_stretched
        self.angles = _Generator(48, 45)
        self.lengths = _Generator(48 + 15, 9)
        self.rotation = _Generator(48, 3)
        self.translation = _Generator(48, 3)
        moving, growing = torch.ones(15, 1), torch.ones(9)
        moving[RIGID], growing[FIXED_RATIO] = 0, 0
        self.register_buffer("moving", moving, persistent=False)
        self.register_buffer("growing", growing, persistent=False)

    def forward(self, xyz: Float[Tensor, "B 16 3"], noise: Sequence[Float[Tensor, "B 48"]] | None = None) -> Augmented:
        """`noise`: one draw for each of the four networks."""
        noise = noise or torch.randn(4, len(xyz), NOISE, device=xyz.device).unbind()
        root, bones = xyz[:, :1], bones_of(xyz)
        pose, lengths = (xyz - root).flatten(1), bones.norm(dim=-1, keepdim=True)
        unit = bones / lengths

        changed = F.normalize(unit + self.moving * self.angles(pose, noise[0]).unflatten(1, (15, 3)), dim=-1)
        bent = root + joints_of(changed * lengths)

        ratios = (
            self.most_stretched * (self.growing * self.lengths(torch.cat([pose, lengths[..., 0]], 1), noise[1])).tanh()
        )
        grown = lengths * (1 + ratios[:, [RATIOS.index(pair) for pair in PAIRS], None])
        stretched = joints_of(changed * grown)

        rotation = 3.1415 * self.rotation(pose, noise[2]).tanh()
        x, y, z = self.translation(pose, noise[3]).unbind(-1)
        translation = torch.stack([x, y, z.square()], -1)[:, None]
        placed = stretched @ roma.rotvec_to_rotmat(rotation).mT + translation
        return Augmented(bent, root + stretched, placed, 1 - (changed * unit).sum(-1), ratios, rotation, translation)


class _Generator(nn.Module):
    """Numbers of a pose and noise to numbers: linear layers of 256, no skips."""

    def __init__(self, inputs: int, outputs: int, width: int = 256):
        super().__init__()
        self.w1, self.batch_norm1 = nn.Linear(inputs + NOISE, width), nn.BatchNorm1d(width)
        self.linear_stages = nn.ModuleList(_Stage(width) for _ in range(2))
        self.w2 = nn.Linear(width, outputs)
        _initialise(self)

    def forward(self, pose: Float[Tensor, "B I"], noise: Float[Tensor, "B 48"]) -> Float[Tensor, "B O"]:
        x = F.leaky_relu(self.batch_norm1(self.w1(torch.cat([pose, noise], 1))))
        for stage in self.linear_stages:
            x = stage(x)
        return self.w2(x)


class _Stage(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, width), nn.Linear(width, width)
        self.batch_norm1, self.batch_norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        return F.leaky_relu(self.batch_norm2(self.w2(F.leaky_relu(self.batch_norm1(self.w1(x))))))


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)


# ---- discriminators ------------------------------------------------------------------------------------------------
_ARM = ("shoulder", "elbow", "wrist")
_LEG = ("hip", "knee", "ankle")
# In the order of the published networks, whose code calls the right leg left and the left leg right.
PARTS = (
    _bones("thorax", *(f"left_{joint}" for joint in _ARM)),
    _bones("thorax", *(f"right_{joint}" for joint in _ARM)),
    _bones(*(f"right_{joint}" for joint in _LEG), "left_hip", "spine"),
    _bones("right_hip", *(f"left_{joint}" for joint in _LEG), "spine"),
    _bones("right_hip", "left_hip", "spine", "thorax", "head_top", "left_shoulder", "right_shoulder"),
)


class Discriminator3D(nn.Module):
    """One score for each of five parts, of the angles between its bones alone (Wandt and Rosenhahn's kinematic chain space)."""

    masks: Tensor

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(_Part() for _ in PARTS)
        masks = torch.zeros(len(PARTS), 15)
        for mask, part in zip(masks, PARTS, strict=True):
            mask[part] = 1
        self.register_buffer("masks", masks[:, :, None] * masks[:, None], persistent=False)
        _initialise(self)

    def forward(self, xyz: Float[Tensor, "B 16 3"]) -> Float[Tensor, "B 5"]:
        unit = F.normalize(bones_of(xyz), dim=-1)
        cosines = unit @ unit.mT
        return torch.cat(
            [part((cosines * mask).flatten(1)) for part, mask in zip(self.parts, self.masks, strict=True)], 1
        )


class _Part(nn.Module):
    def __init__(self, width: int = 256):
        super().__init__()
        self.kcs_layer_1, self.kcs_layer_2 = nn.Linear(15 * 15, width), nn.Linear(width, width)
        self.kcs_layer_3, self.layer_last = nn.Linear(width, width), nn.Linear(width, 100)
        self.layer_pred = nn.Linear(100, 1)

    def forward(self, x: Float[Tensor, "B 225"]) -> Float[Tensor, "B 1"]:
        first = F.leaky_relu(self.kcs_layer_1(x))
        x = first + self.kcs_layer_3(F.leaky_relu(self.kcs_layer_2(first)))
        return self.layer_pred(F.leaky_relu(self.layer_last(x)))


class Discriminator2D(nn.Module):
    """A score of a whole pose in screen coordinates."""

    def __init__(self):
        super().__init__()
        self.pose_layer_1 = nn.Linear(32, 100)
        self.pose_layer_2, self.pose_layer_3 = nn.Linear(100, 100), nn.Linear(100, 100)
        self.pose_layer_4, self.layer_last = nn.Linear(100, 100), nn.Linear(100, 100)
        self.layer_pred = nn.Linear(100, 1)
        _initialise(self)

    def forward(self, xy: Float[Tensor, "B 16 2"]) -> Float[Tensor, "B 1"]:
        first = F.leaky_relu(self.pose_layer_1(xy.flatten(1)))
        x = F.leaky_relu(first + self.pose_layer_3(F.leaky_relu(self.pose_layer_2(first))))
        return self.layer_pred(F.leaky_relu(self.layer_last(self.pose_layer_4(x))))


class ReplayPool(nn.Module):
    """Fakes of the past (Shrivastava et al., CVPR 2017): about half of a batch goes into a full pool, in exchange for what it
    displaces. Part of a checkpoint.
    """

    items: Tensor
    count: Tensor

    def __init__(self, *shape: int, size: int = 4096):
        super().__init__()
        self.register_buffer("items", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, fakes: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        size = len(self.items)
        count = int(self.count)
        new = min(len(fakes), size - count)
        self.items[count : count + new] = fakes[:new]
        self.count += new
        out = fakes.clone()
        swapped = (torch.rand(len(fakes) - new, device=fakes.device) > 0.5).nonzero()[:, 0] + new
        place = torch.randperm(size, device=fakes.device)[: len(swapped)]
        out[swapped[: len(place)]] = self.items[place]
        self.items[place] = fakes[swapped[: len(place)]]
        return out


class Adversary(nn.Module):
    """A discriminator with its pool, and both sides of the least-squares game: real is 1, fake is 0."""

    def __init__(self, discriminator: nn.Module, *shape: int):
        super().__init__()
        self.discriminator, self.pool = discriminator, ReplayPool(*shape)

    def forward(self, real: Float[Tensor, "B ..."], fake: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The discriminator's own loss."""
        real_score, fake_score = self.discriminator(real), self.discriminator(self.pool(fake.detach()))
        return ((real_score - 1).square().mean() + fake_score.square().mean()) / 2

    def deceived(self, fake: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The generators' loss: fakes should be taken for real."""
        return (self.discriminator(fake) - 1).square().mean() / 2


# ---- losses --------------------------------------------------------------------------------------------------------
def outside(values: Float[Tensor, "..."], middle: float, reach: float) -> Float[Tensor, ""]:
    """The mean squared distance from `middle` of those further than `reach` from it; the others are free."""
    distance = values - middle
    return (distance.square() * (distance.abs() > reach)).mean()


# Joints near the trunk, halfway out and at the ends, with the weight of each.
_GROUPS = (
    {f"{side}_{joint}": 5.0 for side in ("left", "right") for joint in ("hip", "shoulder")},
    {f"{side}_{joint}": 2.0 for side in ("left", "right") for joint in ("knee", "elbow")} | {"head_top": 1.0},
    {f"{side}_{joint}": 1.0 for side in ("left", "right") for joint in ("ankle", "wrist")},
)


def difficulty(predicted: Float[Tensor, "B 16 3"], xyz: Float[Tensor, "B 16 3"]) -> Float[Tensor, "B 3"]:
    """A lifter's error at the inner, middle and outer joints, both poses from the root."""
    errors = (predicted - xyz + xyz[:, :1]).norm(dim=-1)
    groups = ((H36M16.indices(tuple(group)), errors.new_tensor(list(group.values()))) for group in _GROUPS)
    return torch.stack([(errors[:, joints] * weights).mean(-1) for joints, weights in groups], -1)


def in_view(xyz: Float[Tensor, "B 16 3"], xy: Float[Tensor, "B 16 2"]) -> Bool[Tensor, " B"]:
    """Poses wholly before the camera and in the picture. The released code looks at x, y > 1 alone."""
    return (xyz[..., 2] > 0).all(-1) & (xy.abs() <= 1).flatten(1).all(-1)


# ---- published weights ---------------------------------------------------------------------------------------------
_RENAMED = (
    (r"BAprocess\.", "angles."),
    (r"BLprocess\.(\w+)_BL\.", r"lengths.\1."),
    (r"RTprocess\.(\w+)_R\.", r"rotation.\1."),
    (r"RTprocess\.(\w+)_T\.", r"translation.\1."),
    (r"(\w+)\.batch_norm\.", r"\1.batch_norm1."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released names of the generators' or the 3D discriminator's weights as ours."""
    renamed = {}
    for key, value in state.items():
        for pattern, ours in _RENAMED:
            key = re.sub(rf"^{pattern}", ours, key)
        renamed[re.sub(r"^kcs_path_(\d)\.", lambda path: f"parts.{int(path[1]) - 1}.", key)] = value
    return renamed
