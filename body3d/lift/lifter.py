"""A lifting network with what it needs to be used: its joints, its window of frames, the scale of its numbers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.lift.takes import Takes
from body3d.skeletons import JointSet

__all__ = ["Lifter", "mirrored"]


class Lifter(nn.Module):
    """2D in screen coordinates to 3D from the root in metres, camera axes.

    `net` maps (B, 2 J) to (B, 3 J) for single frames, (B, T, J, 2) to (B, 1, J, 3) for windows of T frames. A standardised
    lifter gives its network inputs, and expects outputs, of mean 0 and deviation 1 in every coordinate (Martinez et al.);
    the others work on screen coordinates and metres as they are (Pavllo et al.).
    """

    mean2d: Tensor
    std2d: Tensor
    mean3d: Tensor
    std3d: Tensor

    def __init__(self, net: nn.Module, joints: JointSet, frames: int = 1, causal: bool = False):
        super().__init__()
        self.net, self.joints, self.frames, self.causal = net, joints, frames, causal
        self.root = joints.parents.index(-1)
        for name, d in (("2d", 2), ("3d", 3)):
            self.register_buffer(f"mean{name}", torch.zeros(len(joints), d))
            self.register_buffer(f"std{name}", torch.ones(len(joints), d))

    def standardise(self, takes: Takes) -> "Lifter":
        """Take the means and deviations from training data; a coordinate that never changes keeps the deviation 1."""
        for name, points in (("2d", takes.xy[takes.index]), ("3d", takes.relative(takes.index))):
            std = points.std(0)
            self.get_buffer(f"mean{name}").copy_(points.mean(0))
            self.get_buffer(f"std{name}").copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
        return self

    def forward(self, xy: Float[Tensor, "B T J 2"]) -> Float[Tensor, "B J 3"]:
        x = (xy - self.mean2d) / self.std2d
        raw = self.net(x.flatten(1)) if self.frames == 1 else self.net(x)
        xyz = raw.view(-1, len(self.joints), 3) * self.std3d + self.mean3d
        return xyz - xyz[:, self.root : self.root + 1]

    def flipped_mean(self, xy: Float[Tensor, "B T J 2"]) -> Float[Tensor, "B J 3"]:
        """The mean of the prediction and of the mirrored prediction for the mirrored input."""
        return (self(xy) + mirrored(self(mirrored(xy, self.joints)), self.joints)) / 2


def mirrored(points: Float[Tensor, "*B J D"], joints: JointSet) -> Float[Tensor, "*B J D"]:
    """2D about the middle of the image, or 3D about the camera's vertical plane: x changes its sign, left and right swap."""
    return points[..., list(joints.flip), :] * points.new_tensor([-1.0] + [1.0] * (points.shape[-1] - 1))
