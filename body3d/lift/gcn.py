"""SemGCN: a lifter that convolves over the skeleton's graph.

Zhao, Peng, Tian, Kapadia & Metaxas, "Semantic graph convolutional networks for 3D human pose regression", CVPR 2019, without its
non-local layers: the form in which PoseAug trains it. The modules bear the published names.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.joint_set import JointSet
from body3d.lift.dropout import ReLUDropout

__all__ = ["SemGCN"]


class SemGCN(nn.Module):
    """(B, J, 2) in screen coordinates to (B, J, 3)."""

    def __init__(self, joints: JointSet, width: int = 128, blocks: int = 4, dropout: float = 0.0):
        super().__init__()
        self.gconv_input = nn.Sequential(_Layer(joints, 2, width, dropout))
        self.gconv_layers = nn.Sequential(*(_Block(joints, width, dropout) for _ in range(blocks)))
        self.gconv_output = _Convolution(joints, width, 3)

    def forward(self, xy: Float[Tensor, "B J 2"]) -> Float[Tensor, "B J 3"]:
        return self.gconv_output(self.gconv_layers(self.gconv_input(xy)))


class _Convolution(nn.Module):
    """A joint's own features go through one matrix, its neighbours' through another; a softmax weighs the edges to a joint."""

    near: Tensor

    def __init__(self, joints: JointSet, inputs: int, outputs: int):
        super().__init__()
        near = torch.eye(len(joints), dtype=torch.bool)
        for parent, child in joints.bones:
            near[parent, child] = near[child, parent] = True
        self.register_buffer("near", near, persistent=False)
        self.W = nn.Parameter(torch.empty(2, inputs, outputs))
        self.e = nn.Parameter(torch.ones(1, int(near.sum())))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-(outputs**-0.5), outputs**-0.5))
        nn.init.xavier_uniform_(self.W, gain=2**0.5)

    def forward(self, x: Float[Tensor, "B J I"]) -> Float[Tensor, "B J O"]:
        edges = x.new_full(self.near.shape, -torch.inf).masked_scatter(self.near, self.e.to(x)).softmax(1)
        own = edges.diagonal()
        return own[:, None] * (x @ self.W[0]) + (edges - own.diag()) @ (x @ self.W[1]) + self.bias


class _Layer(nn.Module):
    def __init__(self, joints: JointSet, inputs: int, outputs: int, dropout: float):
        super().__init__()
        self.gconv, self.bn = _Convolution(joints, inputs, outputs), nn.BatchNorm1d(outputs)
        self.active = ReLUDropout(dropout)

    def forward(self, x: Float[Tensor, "B J I"]) -> Float[Tensor, "B J O"]:
        return self.active(self.bn(self.gconv(x).mT)).mT


class _Block(nn.Module):
    def __init__(self, joints: JointSet, width: int, dropout: float):
        super().__init__()
        self.gconv1, self.gconv2 = _Layer(joints, width, width, dropout), _Layer(joints, width, width, dropout)

    def forward(self, x: Float[Tensor, "B J W"]) -> Float[Tensor, "B J W"]:
        return x + self.gconv2(self.gconv1(x))
