"""The terms of the body fit: each takes the state of a batch of rows and gives one cost per row.

Sources: SMPLify-X (Pavlakos et al., CVPR 2019) equations 1-6 and the weights its authors publish; SMPLify (Bogo et al., ECCV
2016) for the bending term and the mixture prior. Departures are named in the docstrings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.priors import bending_prior, gmof
from body3d.skeletons import JointSet
from body3d.types import BodyParams, Tensors

__all__ = ["Target", "State", "bending", "data", "directions", "reprojection"]


@dataclass(frozen=True)
class Target(Tensors):
    """What the rows are fitted to; the first axis is the row."""

    xy: Float[Tensor, "B K 2"]  # pixels
    conf: Float[Tensor, "B K"]
    person_px: Float[Tensor, "B"]  # the height in pixels of a standing adult at the person's depth
    bones: Float[Tensor, "B M 3"]  # unit directions in camera space, from the detector's or a lifter's 3D joints
    bone_conf: Float[Tensor, "B M"]
    bone_length: Float[Tensor, "M"]  # metres, of the mean body: fixed, or the fit would shrink the limbs


@dataclass(frozen=True)
class State:
    """Everything about the rows that terms share, computed once per evaluation."""

    part: Callable[[str], Float[Tensor, "B P"]]  # a named part of the rows
    params: BodyParams
    xy: Float[Tensor, "B K 2"]  # the projected points, pixels
    bones: Float[Tensor, "B M 3"]  # unit directions of the body's bones, camera space
    target: Target


def reprojection(state: State) -> Float[Tensor, "B K 2"]:
    """Residuals in thousandths of 1.5 standing heights, so that a weight means the same in every photo.

    SMPLify-X scales by 1000 / image height instead: the same when the person fills two thirds of the image.
    """
    return (state.xy - state.target.xy) * (1000 / 1.5 / state.target.person_px)[:, None, None]


def data(state: State, weight: Float[Tensor, "K"], sigma: float = 100.0) -> Float[Tensor, "B"]:
    """Sum of (w c)² rho²e²/(e²+rho²) over points and coordinates, e the scaled residual."""
    w = (weight * state.target.conf).square()
    return (w[..., None] * gmof(reprojection(state), sigma)).sum((-2, -1))


def directions(state: State, sigma: float = 0.04) -> Float[Tensor, "B"]:
    """How far the bones' ends would lie from where given 3D directions put them (metres over `sigma`), robust at 4 sigma.

    The given pose may lean as a whole, by a fitted angle about the camera's x axis: BlazePose's people lean towards the camera.
    """
    t = state.target
    lean = state.part("lean").unsqueeze(-1)  # (B, 1, 1)
    x, y, z = t.bones.split(1, -1)
    given = torch.cat([x, lean.cos() * y - lean.sin() * z, lean.sin() * y + lean.cos() * z], -1)
    e = (state.bones - given) * t.bone_length[:, None] / sigma
    return (t.bone_conf * gmof(e.square().sum(-1).add(1e-12).sqrt(), 4.0)).sum(-1)


def bending(state: State, joints: JointSet) -> Float[Tensor, "B"]:
    """Elbows and knees do not bend backwards: sum of exp(s theta)², which is near 0 for every natural bend."""
    return bending_prior(state.params.pose, joints.names).sum(-1)
