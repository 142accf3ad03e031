"""ST-GCN for a single frame: a lifter that convolves over the skeleton, over its limbs as wholes, and over all joints at once.

Cai, Ge, Liu, Cai, Cham, Yuan & Magnenat-Thalmann, "Exploiting spatial-temporal relationships for 3D pose estimation via graph
convolutional networks", ICCV 2019, in the form in which PoseAug trains it. The modules bear the published names.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from body3d.skeletons import H36M16, H36M17

__all__ = ["STGCN"]

# Left and right arm, left and right leg, trunk.
_PARTS = (
    *([f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")] for side in ("left", "right")),
    *([f"{side}_{joint}" for joint in ("hip", "knee", "ankle")] for side in ("left", "right")),
    ["pelvis", "spine", "thorax", "neck_nose", "head_top"],
)
PARTS = [H36M17.indices(part) for part in _PARTS]


class STGCN(nn.Module):
    """(B, 16, 2) of H36M16 in screen coordinates to (B, 16, 3).

    Inside there are Human3.6M's 17 joints, the missing one halfway between its neighbours. The published code gives the first
    batch norm 0.1 as its epsilon, where a momentum was meant, and the weights are used to it.
    """

    joint_graph: Tensor
    part_graph: Tensor

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("joint_graph", _joint_graph(), persistent=False)
        self.register_buffer("part_graph", _part_graph(), persistent=False)
        self.data_bn = nn.BatchNorm1d(2 * 17, eps=0.1)
        self.st_gcn_networks = nn.ModuleList(
            (_Block(2, 128, dropout, skip=False), _Block(128, 128, dropout), _Block(128, 256, dropout))
        )
        self.st_gcn_pool = nn.ModuleList((_Block(256, 512, dropout), _Block(512, 512, dropout)))
        layer = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout(dropout))
        self.conv4, self.conv2 = layer(512, 512), layer(1024, 256)
        self.non_local = _NonLocal(512)
        self.fcn = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(512, 3, 1))

    def forward(self, xy: Float[Tensor, "B 16 2"]) -> Float[Tensor, "B 16 3"]:
        at = H36M17.index("neck_nose")
        between = xy[:, H36M16.indices(("thorax", "head_top"))].mean(1, keepdim=True)
        xy = torch.cat([xy[:, :at], between, xy[:, at:]], 1)
        x = self.data_bn(xy.flatten(1)).unflatten(1, (17, 2)).mT[:, :, None]  # (B, features, 1, joints) from here on
        for block in self.st_gcn_networks:
            x = block(x, self.joint_graph)

        parts = torch.stack([x[..., part].amax(-1) for part in PARTS], -1)
        for block in self.st_gcn_pool:
            parts = block(parts, self.part_graph)
        whole = self.conv4(parts.amax(-1, keepdim=True))
        parts = self.conv2(torch.cat([whole.expand_as(parts), parts], 1))

        x = self.fcn(self.non_local(torch.cat([x, parts[..., _part_of_joint()]], 1)))[:, :, 0].mT
        return torch.cat([x[:, :at], x[:, at + 1 :]], 1)


class _Graph(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 1)

    def forward(self, x: Float[Tensor, "B I 1 V"], graph: Float[Tensor, "4 V V"]) -> Float[Tensor, "B O 1 V"]:
        return torch.einsum("bkcv,kvw->bcw", self.conv(x)[:, :, 0].unflatten(1, (4, -1)), graph)[:, :, None]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, dropout: float, skip: bool = True):
        super().__init__()
        self.skip = skip
        self.gcn = _Graph(inputs, outputs)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 1), nn.BatchNorm2d(outputs), nn.Dropout(dropout),
        )  # fmt: skip
        self.residual = nn.Sequential()
        if skip and inputs != outputs:
            self.residual = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "B I 1 V"], graph: Float[Tensor, "4 V V"]) -> Float[Tensor, "B O 1 V"]:
        y = self.tcn(self.gcn(x, graph))
        return (y + self.residual(x) if self.skip else y).relu()


class _NonLocal(nn.Module):
    """Every joint looks at every other (Wang et al., CVPR 2018); at first it adds nothing."""

    def __init__(self, width: int):
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(width, width // 2, 1) for _ in range(3))
        norm = nn.BatchNorm2d(width)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv2d(width // 2, width, 1), norm)

    def forward(self, x: Float[Tensor, "B C 1 V"]) -> Float[Tensor, "B C 1 V"]:
        theta, phi, g = (layer(x)[:, :, 0] for layer in (self.theta, self.phi, self.g))
        attention = (theta.mT @ phi).softmax(-1)
        return x + self.W((g @ attention.mT)[:, :, None])


# ---- graphs --------------------------------------------------------------------------------------------------------
def _joint_graph() -> Float[Tensor, "4 17 17"]:
    """Bones, and mirrored joints; distances are bones from the spine."""
    neighbours, mirrored = torch.zeros(2, 17, 17, dtype=torch.bool)
    for parent, child in H36M17.bones:
        neighbours[parent, child] = neighbours[child, parent] = True
    for joint, other in enumerate(H36M17.flip):
        mirrored[joint, other] = joint != other
    steps, distance = torch.eye(17, dtype=torch.bool)[H36M17.index("spine")], torch.zeros(17, dtype=torch.int64)
    while not steps.all():
        distance += ~steps
        steps = steps | neighbours[steps].any(0)
    return _by_kind(neighbours, mirrored, distance)


def _part_graph() -> Float[Tensor, "4 5 5"]:
    """Limbs hang on the trunk, and left and right are mirrored."""
    neighbours, mirrored = torch.zeros(2, 5, 5, dtype=torch.bool)
    neighbours[4, :4] = neighbours[:4, 4] = True
    for one, other in ((0, 1), (2, 3)):
        mirrored[one, other] = mirrored[other, one] = True
    return _by_kind(neighbours, mirrored, torch.tensor([1, 1, 1, 1, 0]))


def _by_kind(
    neighbours: Bool[Tensor, "V V"], mirrored: Bool[Tensor, "V V"], distance: Int[Tensor, " V"]
) -> Float[Tensor, "4 V V"]:
    """What reaches a node (a column, summing to 1) from itself, from outer, from inner neighbours and from its mirror image."""
    own = torch.eye(len(distance), dtype=torch.bool)
    outer = neighbours & (distance[:, None] > distance)
    kinds = torch.stack([own, outer, neighbours & ~outer, mirrored]).float()
    return kinds / kinds.sum((0, 1))


def _part_of_joint() -> list[int]:
    return [next(i for i, part in enumerate(PARTS) if joint in part) for joint in range(17)]
