"""Motion on a skeleton of its own: what the motion file readers (BVH, ASF/AMC) return."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.skeletons import JointSet
from body3d.types import Keypoints3D, Sample

__all__ = ["Motion", "axis_rotations"]


@dataclass(frozen=True)
class Motion:
    """Local rotations and translations over time. World axes and joint frames are the file's own; metres.

    The joints are the file's, ends of chains included, and every parent stands before its children.
    """

    joints: JointSet
    rotations: Float[Tensor, "T J 3 3"]  # from the joint's frame to its parent's
    translations: Float[Tensor, "T J 3"]  # of the joint in its parent's frame; of a root in the world
    fps: float

    def __len__(self) -> int:
        return len(self.rotations)

    def __getitem__(self, i: int) -> Sample:
        """One frame: the joints' positions in the world."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.joints.name} has {len(self)} frames; number {i} is not among them")
        frame = Motion(self.joints, self.rotations[i].unsqueeze(0), self.translations[i].unsqueeze(0), self.fps)
        xyz = frame.forward()[1][0]
        points = Keypoints3D(xyz, torch.ones(len(self.joints)), self.joints, "world")
        return Sample(f"{self.joints.name}/{i % len(self)}", kp3d=points)

    def forward(self) -> tuple[Float[Tensor, "T J 3 3"], Float[Tensor, "T J 3"]]:
        """World rotations and positions of all joints, all frames and all joints of one depth at a time."""
        parents = torch.tensor(self.joints.parents)
        depth: list[int] = []
        for p in self.joints.parents:
            depth.append(0 if p < 0 else depth[p] + 1)
        rotations, positions = self.rotations.clone(), self.translations.clone()
        for level in range(1, max(depth) + 1):
            these = torch.tensor([j for j, d in enumerate(depth) if d == level])
            up = rotations[:, parents[these]]
            positions[:, these] = positions[:, parents[these]] + (up @ self.translations[:, these, :, None])[..., 0]
            rotations[:, these] = up @ self.rotations[:, these]
        return rotations, positions


def axis_rotations(degrees: Float[Tensor, "*B"], axis: str) -> Float[Tensor, "*B 3 3"]:
    """Rotations about one coordinate axis, "x", "y" or "z"."""
    a = torch.deg2rad(degrees)
    c, s, one, zero = a.cos(), a.sin(), torch.ones_like(a), torch.zeros_like(a)
    rows = {
        "x": (one, zero, zero, zero, c, -s, zero, s, c),
        "y": (c, zero, s, zero, one, zero, -s, zero, c),
        "z": (c, -s, zero, s, c, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
