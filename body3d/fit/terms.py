"""The terms of the body fit: each takes the state of a batch of rows and gives one cost per row.

Sources: SMPLify-X (Pavlakos et al., CVPR 2019) equations 1-6 and the weights its authors publish; SMPLify (Bogo et al., ECCV
2016) for the bending term and the mixture prior. Departures are named in the docstrings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.priors import gmof
from body3d.fit.given import Directions
from body3d.types import Tensors

__all__ = ["Target", "State", "bending", "data", "directions", "reprojection"]


@dataclass(frozen=True)
class Target(Tensors):
    """What the rows are fitted to; the first axis is the row."""

    xy: Float[Tensor, "B K 2"]  # pixels
    conf: Float[Tensor, "B K"]
    person_px: Float[Tensor, " B"]  # the height in pixels of a standing adult at the person's depth
    given: Directions  # unit vectors at a fixed length, or the fit would shrink the limbs


@dataclass(frozen=True)
class State:
    """Everything about the rows that terms share, computed once per evaluation."""

    part: Callable[[str], Float[Tensor, "B P"]]  # a named part of the rows
    xy: Float[Tensor, "B K 2"]  # the projected points, pixels
    bones: Float[Tensor, "B M 3"]  # unit directions of the body's bones, one for each given direction, camera space
    leans: Float[Tensor, " M"]  # 1 where the given direction is of a source that leans
    whitened: Float[Tensor, "B C P"]  # see `MaxMixturePrior.components`
    likelihood: Float[Tensor, "B C"]
    depth: Float[Tensor, "B N"]  # metres: how deep capsules are in each other; none where a stage does not ask
    target: Target


ROBUST_DIRECTIONS = 4.0  # the robustifier of given directions, in standard deviations


def scale(target: Target) -> Float[Tensor, "B 1 1"]:
    """From pixels to thousandths of 1.5 standing heights, so that a weight means the same in every photo.

    SMPLify-X scales by 1000 / image height instead: the same when the person fills two thirds of the image.
    """
    return (1000 / 1.5 / target.person_px)[:, None, None]


def reprojection(state: State) -> Float[Tensor, "B K 2"]:
    """How far the body's points are from the keypoints, in the unit of `scale`."""
    return (state.xy - state.target.xy) * scale(state.target)


def data(state: State, weight: Float[Tensor, " K"], sigma: float = 100.0) -> Float[Tensor, " B"]:
    """Sum of (w c)² rho²e²/(e²+rho²) over points and coordinates, e the scaled residual."""
    w = (weight * state.target.conf).square()
    return (w[..., None] * gmof(reprojection(state), sigma)).sum((-2, -1))


def leaning(state: State) -> Float[Tensor, "B M 3"]:
    """The given directions; those of a source that leans turned as a whole by the row's fitted lean about the camera's x axis."""
    lean = (state.part("lean") * state.leans).unsqueeze(-1)  # (B, M, 1)
    x, y, z = state.target.given.bones.split(1, -1)
    return torch.cat([x, lean.cos() * y - lean.sin() * z, lean.sin() * y + lean.cos() * z], -1)


def direction_residual(state: State) -> Float[Tensor, "B M 3"]:
    """How far the body's bones point from where the given directions do, in standard deviations."""
    return (state.bones - leaning(state)) / state.target.given.sigma.unsqueeze(-1)


def directions(state: State) -> Float[Tensor, " B"]:
    """The squares of `direction_residual`, robust, by the confidence of the bones."""
    e = direction_residual(state)
    return (state.target.given.conf * gmof(e.square().sum(-1).add(1e-12).sqrt(), ROBUST_DIRECTIONS)).sum(-1)


def bending(state: State, sign: Float[Tensor, " P"]) -> Float[Tensor, " B"]:
    """Elbows and knees do not bend backwards: sum of exp(s theta)², which is near 0 for every natural bend.

    `sign` is ±1 for the four numbers of the body's pose that are such angles, else 0 (`priors.BENDING`).
    """
    return (sign.abs() * (2 * sign * state.part("body")).exp()).sum(-1)
