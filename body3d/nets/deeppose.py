"""DeepPose: regress all joints, then look again at each of them, closer, in a crop around the estimate.

Toshev & Szegedy, "DeepPose: human pose estimation via deep neural networks", CVPR 2014. There is no published PyTorch code of the
cascade; its first stage alone, on a ResNet, is what later codes call DeepPose (`deeppose_r50`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Regression, Size
from body3d.codecs.base import to_fraction
from body3d.codecs.regression import RegressionHead
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.nets.resnet import ResNet
from body3d.posenet import Headed, PoseNet, loaded
from body3d.skeletons import LSP14
from body3d.tensors import Tensors

__all__ = ["AlexNet", "Cascade", "Displacements", "crop", "deeppose", "from_box", "to_box"]


class Cascade(nn.Module):
    """(B, 3, H, W) to the joints after each stage, one (B, J, 2) per stage, in fractions of that image's width and height.

    Each of `stages` maps crops, (N, 3, size, size), to a list whose last entry says where all joints are in them: (N, J, 2),
    relative to the crop's centre in units of its sides. The first sees the whole image. Stage s > 1 sees, for each joint, a
    square crop around the estimate of stage s - 1 with a side of `sigma` torso diameters, and moves that joint only; what it says
    of the others is not used (eq. 6 to 8). All crops are cut from the same image: make it larger than `size`, else there is no
    more to see.

    `torso` is the pair of joints whose distance is the diameter: left shoulder and right hip. A diameter below the fraction
    `least` of the image's longer side counts as that much, so that an estimate that collapses still gives a crop. Published:
    three stages, size 220, sigma 1 (FLIC) or 2 (LSP).
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        torso: tuple[int, int],
        size: int = 220,
        sigma: float = 1.0,
        least: float = 0.1,
    ):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.torso, self.size, self.sigma, self.least = torso, size, sigma, least

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The stages learn separately: no gradient goes from one to the one before."""
        size, xy, estimates = (image.shape[-2], image.shape[-1]), None, []
        for stage in range(len(self.stages)):
            xy = self.refine(stage, image, None if xy is None else xy.detach())
            estimates.append(to_fraction(xy, size))
        return estimates

    def refine(
        self, stage: int, image: Float[Tensor, "B 3 H W"], xy: Float[Tensor, "B J 2"] | None
    ) -> Float[Tensor, "B J 2"]:
        """The estimate of `stage` (counted from 0), in pixels, given that of the one before, which the first has none of."""
        if xy is None:
            centre, sides = _whole(image)
            return from_box(self._see(stage, _shrink(image, self.size)), centre[:, None], sides[:, None])
        side = self.sigma * self.diameter(image, xy)[:, None, None].expand_as(xy)
        seen = crop(image, xy, side, self.size).flatten(0, 1)
        # Joint j of the crop on joint j.
        own = self._see(stage, seen).unflatten(0, xy.shape[:2]).diagonal(dim1=1, dim2=2).mT
        return from_box(own, xy, side)

    def diameter(self, image: Float[Tensor, "B 3 H W"], xy: Float[Tensor, "B J 2"]) -> Float[Tensor, " B"]:
        """Of the torso, in pixels."""
        a, b = self.torso
        return (xy[:, a] - xy[:, b]).norm(dim=-1).clamp_min(self.least * max(image.shape[-2:]))

    def loss(
        self,
        stage: int,
        image: Float[Tensor, "B 3 H W"],
        xy: Float[Tensor, "B J 2"],
        weight: Float[Tensor, "B J"],
        errors: "Displacements | None" = None,
        crops: int = 40,
        random: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The squared distance in units of the box, over the joints with `weight`.

        Stages after the first are trained on estimates simulated from the `errors` that the stage before makes (eq. 9, 10): `crops`
        of each image, each around a joint drawn among those with weight. Of every image the torso's two joints must be known.
        """
        if errors is None:
            centre, sides = _whole(image)
            off = self._see(stage, _shrink(image, self.size)) - to_box(xy, centre[:, None], sides[:, None])
            return (weight * off.square().sum(-1)).sum() / weight.sum().clamp_min(1e-6)
        diameter = self.diameter(image, xy)
        joint = torch.multinomial(weight, crops, replacement=True, generator=random)
        truth = xy.gather(1, joint[..., None].expand(-1, -1, 2))
        centre = truth + errors.sample(joint, diameter, random)
        side = self.sigma * diameter[:, None, None].expand_as(centre)
        seen = self._see(stage, crop(image, centre, side, self.size).flatten(0, 1))
        own = seen.gather(1, joint.reshape(-1, 1, 1).expand(-1, 1, 2)).reshape(centre.shape)
        return (own - to_box(truth, centre, side)).square().sum(-1).mean()

    def _see(self, stage: int, seen: Tensor) -> Tensor:
        return self.stages[stage](seen)[-1]


@dataclass(frozen=True)
class Displacements(Tensors):
    """How far a stage's estimates are off the truth, per joint: a normal distribution along x and y, in torso diameters.

    The paper does not say in which unit it takes them over people of different sizes.
    """

    mean: Float[Tensor, "J 2"]
    deviation: Float[Tensor, "J 2"]

    @classmethod
    def of(
        cls,
        estimate: Float[Tensor, "N J 2"],
        xy: Float[Tensor, "N J 2"],
        weight: Float[Tensor, "N J"],
        diameter: Float[Tensor, " N"],
    ) -> "Displacements":
        off = (estimate - xy) / diameter[:, None, None]
        share = (weight / weight.sum(0).clamp_min(1e-6))[..., None]
        mean = (share * off).sum(0)
        return cls(mean, (share * (off - mean).square()).sum(0).sqrt())

    def sample(
        self, joint: Int[Tensor, "B N"], diameter: Float[Tensor, " B"], random: torch.Generator | None = None
    ) -> Float[Tensor, "B N 2"]:
        """A displacement in pixels for each of these joints."""
        normal = torch.randn((*joint.shape, 2), generator=random, device=joint.device, dtype=self.mean.dtype)
        return diameter[:, None, None] * (self.mean[joint] + self.deviation[joint] * normal)


# ---- boxes ---------------------------------------------------------------------------------------------------------
def to_box(
    xy: Float[Tensor, "*#B 2"], centre: Float[Tensor, "*#B 2"], sides: Float[Tensor, "*#B 2"]
) -> Float[Tensor, "*#B 2"]:
    """Pixels relative to a box's centre, in units of its width and height (eq. 1): -0.5 to 0.5 inside."""
    return (xy - centre) / sides


def from_box(
    relative: Float[Tensor, "*#B 2"], centre: Float[Tensor, "*#B 2"], sides: Float[Tensor, "*#B 2"]
) -> Float[Tensor, "*#B 2"]:
    """What `to_box` undoes."""
    return centre + sides * relative


def crop(
    image: Float[Tensor, "B C H W"], centre: Float[Tensor, "B N 2"], sides: Float[Tensor, "B N 2"], size: int
) -> Float[Tensor, "B N C {size} {size}"]:
    """Boxes of an image at `size` x `size` pixels, bilinear, 0 outside of the image.

    A box is a centre and two sides in pixels; its edges are the outer edges of the crop's outermost pixels.
    """
    height, width = image.shape[-2:]
    place = (torch.arange(size, device=image.device, dtype=image.dtype) + 0.5) / size - 0.5
    x, y = (centre[..., i, None] + sides[..., i, None] * place for i in (0, 1))  # (B, N, size) each
    grid = torch.stack(
        [
            ((2 * x + 1) / width - 1)[..., None, :].expand(-1, -1, size, -1),
            ((2 * y + 1) / height - 1)[..., None].expand(-1, -1, -1, size),
        ],
        -1,
    )
    seen = F.grid_sample(image, grid.flatten(1, 2), align_corners=False)
    return seen.unflatten(2, (-1, size)).transpose(1, 2)


def _whole(image: Tensor) -> tuple[Tensor, Tensor]:
    sides = image.new_tensor([image.shape[-1], image.shape[-2]]).expand(len(image), 2)
    return (sides - 1) / 2, sides


def _shrink(image: Tensor, size: int) -> Tensor:
    """The whole image as a crop, without aliasing."""
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=True)


# ---- the paper's network -------------------------------------------------------------------------------------------
class AlexNet(nn.Module):
    """The trunk of each stage in the paper, (B, 3, 220, 220) to [(B, 4096, 1, 1)]: Krizhevsky et al., NIPS 2012, in one group."""

    channels = 4096

    def __init__(self, dropout: float = 0.6):
        super().__init__()
        norm = lambda: nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
        pool = lambda: nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4, 5), nn.ReLU(inplace=True), norm(), pool(),
            nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(inplace=True), norm(), pool(),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), pool(),
        )  # fmt: skip
        self.connected = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, image: Float[Tensor, "B 3 220 220"]) -> list[Tensor]:
        return [self.connected(self.features(image).flatten(1))[..., None, None]]


def deeppose(
    joints: JointSet = LSP14,
    codec: Codec = Regression(norm=2),
    size: Size = (440, 440),
    sigma: float = 2.0,
    trunk: Callable[[], AlexNet | ResNet] = AlexNet,
    weights: Path | str | None = None,
) -> PoseNet:
    """The paper's three stages for LSP; for FLIC `sigma` is 1. `trunk` makes each stage's own, for crops of 220 pixels.

    The later stages crop from an image of `size`, where the paper takes the photo itself. `weights`: of this project. Train stage
    by stage with `Cascade.loss`; the codec's loss, which a general loop uses, trains each stage on the real estimates of the one
    before.
    """
    if not isinstance(codec, Regression):
        raise InputError(f"DeepPose gives coordinates, which {type(codec).__name__} does not read: Regression does")
    trunks = [trunk() for _ in range(3)]
    stages = [Headed(stage, RegressionHead(stage.channels, len(joints))) for stage in trunks]
    torso = joints.index("left_shoulder"), joints.index("right_hip")
    return loaded(PoseNet(Cascade(stages, torso, 220, sigma), codec, joints, size), weights)
