"""RMPE: a spatial transformer before a network for one person, and its inverse behind, so that poor boxes do no harm.

Fang et al., "RMPE: Regional multi-person pose estimation", ICCV 2017 (AlphaPose). Its other two parts, pose NMS and the generator
of proposals, are `detect.pose_nms`. The authors' PyTorch code has no transformer; what it has in its place is `FastPose`.
"""

from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Size, msra_heatmap
from body3d.codecs.base import from_fraction, to_fraction
from body3d.crop import apply, box_to_crop, crop_matrix
from body3d.joint_set import JointSet
from body3d.nets.hourglass import PAPER_MAPS, StackedHourglass
from body3d.nets.resnet import ALPHAPOSE, ResNet, resnet18, resnet50
from body3d.posenet import PLAIN, PoseNet, loaded, of_maps
from body3d.skeletons import COCO17, MPII16
from body3d.types import Keypoints2D

__all__ = [
    "DUC", "FastPose", "SymmetricNet", "SymmetricPoseNet", "centred", "fastpose_r50", "inverse", "rmpe_hourglass_4", "sample",
    "transform",
]  # fmt: skip


# ---- the released network ------------------------------------------------------------------------------------------
class FastPose(nn.Module):
    """(B, 3, H, W) to [(B, `maps`, H/4, W/4)]; H and W must be multiples of 32. Modules bear AlphaPose's names.

    A ResNet with squeeze-excites (`ResNet(squeeze=True)`) whose features are shuffled from channels to pixels three times, twice
    with a convolution before (dense upsampling convolution, Wang et al., WACV 2018).
    """

    def __init__(self, trunk: ResNet, maps: int):
        super().__init__()
        self.preact = trunk
        width = trunk.channels // 4
        self.shuffle = nn.PixelShuffle(2)
        self.duc1, self.duc2 = DUC(width, 2 * width), DUC(width // 2, width)
        self.conv_out = nn.Conv2d(width // 4, maps, 3, padding=1)
        nn.init.normal_(self.conv_out.weight, std=0.001)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = self.shuffle(self.preact(image)[-1])
        return [self.conv_out(self.duc2(self.duc1(x)))]


class DUC(nn.Module):
    """A 3x3 convolution to `width` channels, then pixels of twice the resolution and a quarter of the channels."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O H W"]:
        return self.shuffle(F.relu(self.bn(self.conv(x)), inplace=True))


# ---- the symmetric transformer -------------------------------------------------------------------------------------
# A transformation `theta` takes places on what the transformer shows to places on what it was given, both in -1..1 from edge to
# edge: (x, y) of the input = theta (x, y, 1) of the output.
Theta = Float[Tensor, "B 2 3"]


def sample(maps: Float[Tensor, "B C h w"], theta: Theta, size: Size | None = None) -> Float[Tensor, "B C H W"]:
    """What `theta` shows of images or maps, bilinear, 0 beyond the edges; `size` is that of the output (None: the input's)."""
    height, width = size or (maps.shape[-2], maps.shape[-1])
    grid = F.affine_grid(theta, [maps.shape[0], maps.shape[1], height, width], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)


def inverse(theta: Theta) -> Theta:
    """gamma: [g1 g2] = [t1 t2]^-1, g3 = -[g1 g2] t3. Undoes `theta` on points and on maps."""
    turn = torch.linalg.inv(theta[..., :2])
    return torch.cat([turn, -turn @ theta[..., 2:]], -1)


def transform(xy: Float[Tensor, "B J 2"], theta: Theta, size: Size) -> Float[Tensor, "B J 2"]:
    """Pixels of the output of a transformer, as pixels of its input; both are of `size`."""
    return from_fraction((apply(theta, 2 * to_fraction(xy, size) - 1) + 1) / 2, size)


class SymmetricNet(nn.Module):
    """STN, network for one person, SDTN: (B, 3, H, W) to the network's maps, each back in the frame of the image given.

    `locate` is a trunk whose mean features give theta by one layer, which begins as the identity. `parallel` is the branch beside:
    a copy of `pose` whose weights are frozen, read without SDTN; what it says teaches `locate` alone, in training alone.
    """

    def __init__(self, locate: ResNet, pose: nn.Module):
        super().__init__()
        self.locate, self.pose = locate, pose
        self.theta = nn.Linear(locate.channels, 6)
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.parallel = deepcopy(pose).requires_grad_(False)

    def follow(self) -> None:
        """The parallel branch takes over the weights of `pose` as they are now: to be called once `pose` sees single people."""
        self.parallel.load_state_dict(self.pose.state_dict())

    def train(self, mode: bool = True) -> "SymmetricNet":
        super().train(mode)
        self.parallel.eval()  # frozen: running statistics too
        return self

    def located(self, image: Float[Tensor, "B 3 H W"]) -> Theta:
        return self.theta(self.locate(image)[-1].mean((-1, -2))).unflatten(-1, (2, 3))

    def both(self, image: Float[Tensor, "B 3 H W"]) -> tuple[list[Tensor], list[Tensor], Theta]:
        """The maps in the frame of the image; those of the parallel branch, in the frame of what STN shows; theta."""
        theta = self.located(image)
        shown = sample(image, theta)
        gamma = inverse(theta)
        return [sample(maps, gamma) for maps in self.pose(shown)], list(self.parallel(shown)), theta

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        theta = self.located(image)
        gamma = inverse(theta)
        return [sample(maps, gamma) for maps in self.pose(sample(image, theta))]


class SymmetricPoseNet(PoseNet):
    """`PoseNet` of a `SymmetricNet`, whose loss adds the parallel branch's: how far what STN shows is from a centred person."""

    net: SymmetricNet

    def forward(self, image: Float[Tensor, "B 3 H W"], teacher: Keypoints2D | None = None) -> list[Tensor]:
        """With a `teacher`, the parallel branch's answer comes after the others."""
        if teacher is None:
            return super().forward(image)
        maps, parallel, _ = self.net.both(self._prepared(image))
        return [*maps, parallel[-1]]

    def loss_of(self, raws: list[Tensor], target: Keypoints2D) -> Float[Tensor, ""]:
        *maps, parallel = raws
        middle = self.codec.loss(parallel, centred(target, self.size).xy, target.conf, self.size)
        return super().loss_of(maps, target) + middle


def centred(target: Keypoints2D, size: Size, padding: float = 1.25) -> Keypoints2D:
    """The people as a crop of `size` would show them: in the middle, the box of their known joints enlarged by `padding`."""
    known = (target.conf > 0).unsqueeze(-1)
    low = torch.where(known, target.xy, torch.inf).amin(-2)
    high = torch.where(known, target.xy, -torch.inf).amax(-2)
    some = known.any(-2)
    low, high = torch.where(some, low, 0), torch.where(some, high, 1)
    box = torch.cat([low, torch.maximum(high, low + 1)], -1)
    centre, width = box_to_crop(box, size, padding)
    matrix = crop_matrix(centre, width, torch.zeros_like(width), size)
    return Keypoints2D(apply(matrix, target.xy), target.conf, target.joints)


# ---- published sizes -----------------------------------------------------------------------------------------------
def fastpose_r50(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """40.6 million weights for 17 joints. `weights`: a checkpoint of AlphaPose (without deformable convolutions)."""
    net = FastPose(resnet50(squeeze=True), len(joints))
    return loaded(of_maps(net, codec, joints, size, ALPHAPOSE), weights)


def rmpe_hourglass_4(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """The paper's: a ResNet-18 finds the transformation, four stacked hourglasses the joints.

    `weights`: a checkpoint of this project; the paper's were never released for PyTorch. The paper enlarges detected boxes by 30
    per cent of their height and width, so `detect_topdown` is to be called with a padding of 1.3.
    """
    return _symmetric(SymmetricNet(resnet18(), StackedHourglass(4, len(joints))), codec, joints, size, weights)


def _symmetric(net: SymmetricNet, codec: Codec, joints: JointSet, size: Size, weights: Path | str | None) -> PoseNet:
    of_maps(net, codec, joints, size, PLAIN)  # says so where the codec reads no maps
    return loaded(SymmetricPoseNet(net, codec, joints, size, PLAIN), weights)
