"""RLE: coordinates as numbers whose errors follow a learned density.

Li et al., "Human pose regression with residual log-likelihood estimation", ICCV 2021. Modules bear the names of the authors' code.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs.base import Places, Size, from_fraction, to_fraction

__all__ = ["RLE", "Likelihood", "RLEHead", "RealNVP"]


class RealNVP(nn.Module):
    """A density of two numbers: six affine couplings between it and a standard normal (Dinh et al., ICLR 2017)."""

    mask: Tensor

    def __init__(self, couplings: int = 6, width: int = 64):
        super().__init__()
        self.register_buffer("mask", torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(couplings // 2, 1))
        net = lambda: nn.Sequential(
            nn.Linear(2, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 2)
        )
        self.t = nn.ModuleList(net() for _ in range(couplings))
        self.s = nn.ModuleList(net().append(nn.Tanh()) for _ in range(couplings))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=0.01)  # nearly the normal density itself

    def from_latent(self, z: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
        for mask, s, t in zip(self.mask, self.s, self.t, strict=True):
            kept = mask * z
            z = kept + (1 - mask) * (z * s(kept).exp() + t(kept))
        return z

    def to_latent(self, x: Float[Tensor, "*B 2"]) -> tuple[Float[Tensor, "*B 2"], Float[Tensor, "*B"]]:
        """The latent point, and the logarithm of how much the map there magnifies areas."""
        log_det = torch.zeros_like(x[..., 0])
        for mask, s, t in reversed(list(zip(self.mask, self.s, self.t, strict=True))):
            kept = mask * x
            scale = (1 - mask) * s(kept)
            x = kept + (1 - mask) * (x - t(kept)) * torch.exp(-scale)
            log_det = log_det - scale.sum(-1)
        return x, log_det

    def log_prob(self, x: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B"]:
        z, log_det = self.to_latent(x)
        return log_det - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)


class Likelihood(NamedTuple):
    xy: Float[Tensor, "B J 2"]  # fractions of the crop, -0.5 to 0.5
    sigma: Float[Tensor, "B J 2"]  # of the error, 0 to 1, in the same unit
    flow: RealNVP  # its density; only the loss asks for it


class _DividedLinear(nn.Module):
    """Wx / |x| + b: the release's layer for coordinates."""

    def __init__(self, inputs: int, outputs: int, divided: bool):
        super().__init__()
        self.linear, self.divided = nn.Linear(inputs, outputs), divided
        nn.init.xavier_uniform_(self.linear.weight, gain=0.01)

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        if not self.divided:
            return self.linear(x)
        return F.linear(x, self.linear.weight) / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) + self.linear.bias


class RLEHead(nn.Module):
    """The mean over the feature map, a linear layer for coordinates and one for sigmas, and the flow."""

    def __init__(self, channels: int, joints: int):
        super().__init__()
        self.fc_coord = _DividedLinear(channels, 2 * joints, divided=True)
        self.fc_sigma = _DividedLinear(channels, 2 * joints, divided=False)
        self.flow = RealNVP()

    def forward(self, features: Float[Tensor, "B C h w"]) -> Likelihood:
        mean = features.mean((-1, -2))
        coordinates, sigma = (fc(mean).unflatten(-1, (-1, 2)) for fc in (self.fc_coord, self.fc_sigma))
        return Likelihood(coordinates, sigma.sigmoid(), self.flow)


@dataclass(frozen=True)
class RLE:
    """The negative logarithm of the likelihood of the error e / sigma, e = predicted - true: flow times Laplace density.

    Per axis log sigma - log phi(e / sigma) - log Q(e), summed over joints and axes, divided by the batch. phi is of both axes and
    so counts twice, as released. `density` is Q's form: "original" log(sigma sqrt(2 pi)) + |e| / (sqrt 2 sigma), "mmpose" (and the
    paper) log(2 sigma) + |e| / sigma. The sign of e matters to the flow. The confidence is 1 - the mean sigma.
    """

    density: Literal["original", "mmpose"] = "original"
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return RLEHead(channels, joints)

    def joint_losses(self, raw: Likelihood, target: Float[Tensor, "B J 2"]) -> Float[Tensor, "B J 2"]:
        """Per joint and axis, `target` in fractions from -0.5 to 0.5."""
        error, sigma = raw.xy - target, raw.sigma
        if self.density == "original":
            scaled = error / sigma
            q = (sigma * math.sqrt(2 * math.pi)).log() + error.abs() / (math.sqrt(2) * sigma + 1e-9)
        else:
            scaled = error / (sigma + 1e-9)
            q = (2 * sigma).log() + scaled.abs()
        return sigma.log() - raw.flow.log_prob(scaled).unsqueeze(-1) + q

    def loss(
        self, raw: Likelihood, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        losses = self.joint_losses(raw, to_fraction(xy, size, self.places) - 0.5)
        return (losses.sum(-1) * weight).sum() / len(weight)

    def decode(self, raw: Likelihood, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        return from_fraction(raw.xy + 0.5, size, self.places), 1 - raw.sigma.mean(-1)
