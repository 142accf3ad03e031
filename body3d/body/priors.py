"""What makes a pose or a residual likely: the Geman-McClure robustifier, bending of elbows and knees, a mixture of Gaussians.

Each is a plain function of tensors with any batch dimensions. Where a solver of least squares needs it, the prior is given
as a residual too: the value is the sum of its squares.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.files import read_arrays
from body3d.body.model import Constants
from body3d.errors import InputError
from body3d.skeletons import JointSet

__all__ = ["MaxMixturePrior", "bending_residual", "gmof"]


def gmof(residual: Float[Tensor, "*B"], sigma: float | Tensor) -> Float[Tensor, "*B"]:
    """Geman and McClure's robustifier as SMPLify uses it: r² near zero, at most sigma² (same unit as the residual)."""
    squared = residual.square()
    return sigma**2 * squared / (squared + sigma**2)


# Joint, axis of its rotation vector, and the sign with which bending the wrong way grows (SMPLify, ECCV 2016, E_a).
BENDING = (("left_elbow", 1, 1.0), ("right_elbow", 1, -1.0), ("left_knee", 0, -1.0), ("right_knee", 0, -1.0))


def bending_residual(pose: Float[Tensor, "*B J 3"], joints: JointSet) -> Float[Tensor, "*B 4"]:
    """exp(±angle) of both elbows and both knees, which is large where they bend backwards; its square is the prior."""
    angles = torch.stack([pose[..., joints.index(name), axis] * sign for name, axis, sign in BENDING], -1)
    return angles.exp()


@dataclass(frozen=True, eq=False)
class MaxMixturePrior(Constants):
    """A mixture of Gaussians over D pose numbers of which the likeliest component counts (Olson and Agarwal, RSS 2012).

    SMPLify's `gmm_08.pkl` has eight components over the 69 numbers of SMPL's body pose.
    """

    means: Float[Tensor, "K D"] = field(repr=False)
    whitening: Float[Tensor, "K D D"] = field(repr=False)  # inverse Cholesky factor: |W (x - mean)|² is Mahalanobis'
    constants: Float[Tensor, "K"]  # what a component adds to half that: -log(weight) and its normaliser

    @staticmethod
    def of(
        means: Float[np.ndarray, "K D"], covars: Float[np.ndarray, "K D D"], weights: Float[np.ndarray, "K"]
    ) -> "MaxMixturePrior":
        """The prior with the given means, covariances and weights."""
        factors = np.linalg.cholesky(np.asarray(covars, np.float64))
        log_det = 2 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
        # SMPLify divides the determinants by the smallest of them: a shift of the value, no more.
        constants = -np.log(weights) + (means.shape[1] * np.log(2 * np.pi) + log_det - log_det.min()) / 2
        floats = lambda array: torch.from_numpy(np.ascontiguousarray(array, np.float32))
        return MaxMixturePrior(floats(means), floats(np.linalg.inv(factors)), floats(constants))

    @staticmethod
    def load(path: str | Path) -> "MaxMixturePrior":
        """From an .npz or .pkl file with `means`, `covars` and `weights`. Raises InputError where it is not one."""
        keys = ("means", "covars", "weights")
        arrays = read_arrays(path, keys, required=keys, what="mixture of Gaussians")
        means, covars, weights = (arrays[key] for key in keys)
        if means.ndim != 2 or covars.shape != (*means.shape, means.shape[1]) or weights.shape != means.shape[:1]:
            shapes = ", ".join(f"{key} {arrays[key].shape}" for key in keys)
            raise InputError(f"{path}: means (K, D), covars (K, D, D) and weights (K,) were expected, got {shapes}")
        try:
            return MaxMixturePrior.of(means, covars, weights)
        except np.linalg.LinAlgError as error:
            raise InputError(f"{path}: a covariance is not positive definite") from error

    def components(self, pose: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B K D"], Float[Tensor, "*B K"]]:
        """Whitened distances from every mean, and every component's negative logarithm."""
        whitened = torch.einsum("kij,...kj->...ki", self.whitening, pose.unsqueeze(-2) - self.means)
        return whitened, whitened.square().sum(-1) / 2 + self.constants

    def __call__(self, pose: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """The negative logarithm of the likeliest component (SMPLify-X's "merged" form)."""
        return self.components(pose)[1].amin(-1)

    def residual(self, pose: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Its squares add up to the value above, less the constant of the component chosen."""
        whitened, values = self.components(pose)
        chosen = values.argmin(-1)[..., None, None]
        return whitened.take_along_dim(chosen, -2).squeeze(-2) * 0.5**0.5
