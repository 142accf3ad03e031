"""Linear blend skinning as pure functions: rotations, blend shapes, the kinematic chain, skinning.

The equations are those of SMPL (Loper et al., SIGGRAPH Asia 2015, section 3), shared by SMPL-H and SMPL-X. Every
function takes any number of batch dimensions. Metres and radians; `T_a_b` takes points of frame b to frame a.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["blend", "chain_jumps", "rest_to_posed", "rotation_matrices", "skin", "world_transforms"]

# Keeps the root in |r| = sqrt(r.r + TINY) off zero, where its slope is infinite; sin|r|/|r| changes by less than TINY.
TINY = 1e-20

# [r]x = r @ SKEW, the nine numbers of the cross-product matrix row by row.
SKEW = torch.zeros(3, 9)
SKEW[[0, 0, 1, 1, 2, 2], [7, 5, 2, 6, 3, 1]] = torch.tensor([1.0, -1, 1, -1, 1, -1])


def rotation_matrices(rotvec: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Rodrigues' formula, R = cos(a) I + sin(a)/a [r]x + (1 - cos(a))/a² r rᵀ with a = |r|, smooth through r = 0.

    The same function as `roma.rotvec_to_rotmat` without the quaternion in between: half the time, forwards and
    backwards, in the innermost loop of every fit.
    """
    angle = (rotvec.square().sum(-1, keepdim=True) + TINY).sqrt().unsqueeze(-1)
    sine = torch.sinc(angle / math.pi)  # sin(a) / a
    versine = 0.5 * torch.sinc(angle / (2 * math.pi)).square()  # (1 - cos(a)) / a², without cancellation
    cross = (rotvec @ SKEW.to(rotvec)).unflatten(-1, (3, 3))
    outer = rotvec.unsqueeze(-1) * rotvec.unsqueeze(-2)
    return angle.cos() * torch.eye(3).to(rotvec) + sine * cross + versine * outer


def blend(coefficients: Float[Tensor, "*B S"], directions: Float[Tensor, "N V 3"]) -> Float[Tensor, "*B V 3"]:
    """Sum of blend shapes. Fewer coefficients than directions use the first ones; more are an error."""
    used, stored = coefficients.shape[-1], len(directions)
    if used > stored:
        raise ValueError(f"{used} blend-shape coefficients were given, the model has {stored} directions")
    return (coefficients @ directions[:used].flatten(1)).unflatten(-1, (-1, 3))


def chain_jumps(parents: Sequence[int]) -> Int[Tensor, "D K"]:
    """Row d holds every joint's 2^d-th ancestor; K = joints + 1, the last entry standing for "above the root".

    These are the gathers of `world_transforms`; a tree of depth 11 (the SMPL-X hand) needs four rows.
    """
    outside = len(parents)
    ancestor = torch.tensor([p if p >= 0 else outside for p in parents] + [outside])
    rows = [ancestor]
    while bool((ancestor != outside).any()):
        ancestor = ancestor[ancestor]
        rows.append(ancestor)
        if len(rows) > len(parents) + 1:
            raise ValueError("the joint tree has a cycle")
    return torch.stack(rows[:-1] or rows)


def world_transforms(
    rotations: Float[Tensor, "*B J 3 3"], joints: Float[Tensor, "*B J 3"], jumps: Int[Tensor, "D K"]
) -> Float[Tensor, "*B J 4 4"]:
    """T_world_joint of every joint of the posed tree, from its rotations (in the parent's frame) and rest positions.

    The chain T_0 T_1 … T_j is a prefix product, so it is formed by doubling: after step d an entry spans 2^d bones, and
    one batched product with the entry 2^d bones above doubles that. Four products for SMPL-X, not 54 in a row.
    """
    parent = jumps[0, :-1]
    offsets = joints - pad(joints, (0, 0, 0, 1)).index_select(-2, parent)
    local = torch.cat([rotations, offsets.unsqueeze(-1)], -1)
    # The last row of every matrix, and one identity more: the frame above the root.
    frame = torch.zeros(len(parent) + 1, 4, 4)
    frame[:, 3, 3] = 1
    frame[-1] = torch.eye(4)
    T = pad(local, (0, 0, 0, 1, 0, 1)) + frame.to(local)
    for ancestors in jumps:
        T = T.index_select(-3, ancestors) @ T
    return T[..., :-1, :, :]


def rest_to_posed(
    T_world_joint: Float[Tensor, "*B J 4 4"], joints: Float[Tensor, "*B J 3"]
) -> Float[Tensor, "*B J 3 4"]:
    """What each joint does to a point of the rest pose: T_world_joint, once the joint's rest position is the origin."""
    R, t = T_world_joint[..., :3, :3], T_world_joint[..., :3, 3:]
    return torch.cat([R, t - R @ joints.unsqueeze(-1)], -1)


def transform_points(T: Float[Tensor, "*B V 3 4"], points: Float[Tensor, "*B V 3"]) -> Float[Tensor, "*B V 3"]:
    """Each point by its own affine map."""
    return (T[..., :3] @ points.unsqueeze(-1)).squeeze(-1) + T[..., 3]


def skin(
    points: Float[Tensor, "*B V 3"], weights: Float[Tensor, "V J"], T_posed_rest: Float[Tensor, "*B J 3 4"]
) -> Float[Tensor, "*B V 3"]:
    """Linear blend skinning: every point moves by the weighted mean of the joints' maps."""
    T = (weights @ T_posed_rest.flatten(-2)).unflatten(-1, (3, 4))
    return transform_points(T, points)
