"""What makes a residual or a pose likely: Geman and McClure's robustifier, bending of elbows and knees, a mixture of
Gaussians over poses.

Any number of batch dimensions throughout. Where a solver of least squares needs it, a prior is given as a residual too:
its value is then the sum of the residual's squares.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.files import read_arrays
from body3d.body.model import Constants
from body3d.errors import InputError
from body3d.skeletons import SMPL24

__all__ = ["MaxMixturePrior", "bending_prior", "bending_residual", "gmof"]


def gmof(residual: Float[Tensor, "*B"], sigma: float | Tensor) -> Float[Tensor, "*B"]:
    """Geman and McClure's robustifier as SMPLify uses it: r² near zero, at most sigma² (same unit as the residual)."""
    squared = residual.square()
    return sigma**2 * squared / (squared + sigma**2)


# Joint, axis of its rotation vector, and the sign with which bending backwards grows (SMPLify, ECCV 2016, E_a).
BENDING = (("left_elbow", 1, 1.0), ("right_elbow", 1, -1.0), ("left_knee", 0, -1.0), ("right_knee", 0, -1.0))


def bending_residual(pose: Float[Tensor, "*B J 3"], names: Sequence[str]) -> Float[Tensor, "*B 4"]:
    """exp(±angle) of both elbows and both knees: near 0 for every natural bend, large where they bend backwards.

    `names` are the joints of `pose`.
    """
    angles = [pose[..., list(names).index(joint), axis] * sign for joint, axis, sign in BENDING]
    return torch.stack(angles, -1).exp()


def bending_prior(pose: Float[Tensor, "*B J 3"], names: Sequence[str]) -> Float[Tensor, "*B 4"]:
    """SMPLify's penalty: the squares of `bending_residual`."""
    return bending_residual(pose, names).square()


@dataclass(frozen=True, eq=False)
class MaxMixturePrior(Constants):
    """Gaussians over rotation vectors of which the likeliest counts (Olson and Agarwal, RSS 2012; SMPLify)."""

    joints: tuple[str, ...]  # D = 3 per joint
    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"] = field(repr=False)
    covariances: Float[Tensor, "K D D"] = field(repr=False)
    # Made of these once: W with |W (x - mean)|² the Mahalanobis distance, log det of the covariances, and what each
    # component adds to half that distance. SMPLify divides the determinants by the smallest: a shift of the value.
    whitening: Float[Tensor, "K D D"] = field(repr=False)
    log_dets: Float[Tensor, " K"] = field(repr=False)
    constants: Float[Tensor, " K"] = field(repr=False)

    @staticmethod
    def of(
        joints: Sequence[str],
        weights: Float[Tensor, " K"],
        means: Float[Tensor, "K D"],
        covariances: Float[Tensor, "K D D"],
        dtype: torch.dtype = torch.float32,
    ) -> "MaxMixturePrior":
        """The prior of a mixture; raises ValueError where a covariance is not positive definite."""
        factors, failed = torch.linalg.cholesky_ex(covariances.double())
        if failed.any():
            raise ValueError("a covariance of the mixture is not positive definite")
        log_dets = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        D = means.shape[-1]
        constants = (D * math.log(2 * math.pi) + log_dets - log_dets.min()) / 2 - weights.double().log()
        identity = torch.eye(D).to(factors).expand_as(factors)
        whitening = torch.linalg.solve_triangular(factors, identity, upper=False)
        numbers = (weights, means, covariances, whitening, log_dets, constants)
        return MaxMixturePrior(tuple(joints), *(t.to(dtype) for t in numbers))

    @staticmethod
    def load(path: str | Path) -> "MaxMixturePrior":
        """From an .npz or .pkl with `weights` (K), `means` (K, D), `covars` (K, D, D) and maybe `joint_names` (D/3).

        Without names the joints are SMPL's after the root, as in SMPLify's `gmm_08.pkl` (D = 69). Raises InputError for
        a file that holds no such mixture.
        """
        keys = ("weights", "means", "covars")
        arrays = read_arrays(path, (*keys, "joint_names"), required=keys, what="mixture of Gaussians")
        weights, means, covars = (torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in keys)
        K, D = means.shape if means.ndim == 2 else (0, 0)
        joints = [str(name) for name in arrays.get("joint_names", SMPL24.below_root[: D // 3])]
        if K == 0 or weights.shape != (K,) or covars.shape != (K, D, D) or 3 * len(joints) != D:
            found = ", ".join(f"{key} {arrays[key].shape}" for key in keys)
            raise InputError(f"{path}: weights (K,), means (K, D) and covars (K, D, D) were expected; it has {found}")
        try:
            return MaxMixturePrior.of(joints, weights, means, covars)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error

    @staticmethod
    @cache
    def shipped() -> "MaxMixturePrior":
        """The mixture that comes with the package, learnt from free motion capture on the open body."""
        with resources.as_file(resources.files("body3d.body") / "pose_prior.npz") as path:
            return MaxMixturePrior.load(path)

    def over(self, names: Sequence[str]) -> "MaxMixturePrior":
        """The marginal of the named joints, in their order: the same mixture for a body that lacks the others."""
        if tuple(names) == self.joints:
            return self
        rows = [3 * self.joints.index(name) + axis for name in names for axis in range(3)]
        covariances = self.covariances[:, rows][:, :, rows]
        return MaxMixturePrior.of(names, self.weights, self.means[:, rows], covariances, self.means.dtype)

    def mean_pose(self, names: Sequence[str]) -> Float[Tensor, "J 3"]:
        """The mixture's mean of the named joints; zero for a joint that it does not know."""
        mean = (self.weights @ self.means).unflatten(-1, (-1, 3))
        known = dict(zip(self.joints, mean, strict=True))
        return torch.stack([known.get(name, torch.zeros_like(mean[0])) for name in names])

    def components(self, pose: Float[Tensor, "*B J 3"]) -> tuple[Float[Tensor, "*B K D"], Float[Tensor, "*B K"]]:
        """Whitened distances from every mean, and every component's negative log-likelihood."""
        offset = pose.flatten(-2).unsqueeze(-2) - self.means
        whitened = torch.einsum("kij,...kj->...ki", self.whitening, offset)
        return whitened, whitened.square().sum(-1) / 2 + self.constants

    def __call__(self, pose: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B"]:
        """The least of the components' negative log-likelihoods (the "merged" form of SMPLify and SMPLify-X)."""
        return self.components(pose)[1].amin(-1)

    def residual(self, pose: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B D"]:
        """Its squares add up to the value above less the constant of the component chosen."""
        whitened, values = self.components(pose)
        chosen = values.argmin(-1)[..., None, None]
        return whitened.take_along_dim(chosen, -2).squeeze(-2) * 0.5**0.5

    def unmerged(self, pose: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B"]:
        """SMPLify-X's other form, kept for comparison: the distance is not halved and the determinant counts twice.

        Its determinant has 1e-16 added, which for 69 numbers is often all that is left of it.
        """
        whitened, _ = self.components(pose)
        log_dets = torch.logaddexp(self.log_dets, torch.full_like(self.log_dets, math.log(1e-16)))
        values = whitened.square().sum(-1) + (log_dets + self.means.shape[-1] * math.log(2 * math.pi)) / 2
        chosen = values.argmin(-1, keepdim=True)
        return (values + self.constants).take_along_dim(chosen, -1).squeeze(-1)
