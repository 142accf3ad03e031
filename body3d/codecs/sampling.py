"""Sampling-Argmax: the expected error of places sampled from the map, not the error of the expected place.

Li et al., "Localization with Sampling-Argmax", NeurIPS 2021. Two bumps with the joint halfway between them have no error for IPR,
and a large one here.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from body3d.codecs.base import Places, Size, from_grid, to_fraction
from body3d.codecs.integral import expectation, flat_softmax, precise, symmetric_expectation
from body3d.losses import weighted_mean

__all__ = ["SamplingArgmax", "gumbel", "interpolate", "temperature", "triangular"]


def temperature(epoch: float) -> float:
    """The published course: from 2 down to 0.5 at epoch 25."""
    return max(0.5, 2 - 3 * epoch / 50)


def gumbel(uniform: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    return -(-uniform.log()).log()


def triangular(uniform: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """From uniform in 0..1 to the density 1 - |x| on -1..1: what linear interpolation between cells is the density of."""
    return torch.where(uniform < 0.5, (2 * uniform).sqrt() - 1, 1 - (2 - 2 * uniform).clamp_min(0).sqrt())


def interpolate(p: Float[Tensor, "*B n"], place: Float[Tensor, "*B n"]) -> Float[Tensor, "*B n"]:
    """`p` between its cells, falling to 0 one cell beyond the ends; places are at most one cell outside."""
    padded = nn.functional.pad(p, (1, 1))
    left = place.floor()
    at = lambda i: padded.gather(-1, _index(i, p.shape[-1]))
    return at(left) + (at(left + 1) - at(left)) * (place - left)


def _index(cell: Tensor, n: int) -> Int[Tensor, "..."]:
    return (cell.long() + 1).clamp(0, n + 1)


@dataclass(frozen=True)
class SamplingArgmax:
    """(B, J, h, w). In training `samples` soft choices of a cell (Gumbel-softmax), each cell jittered by `triangular`.

    The default is the paper's: softmax((logits + gumbel) / tau). The `released` code scales the noise alone, softmax(logits +
    gumbel / tau), reads the marginals again at the jittered places, and uses `symmetric_expectation`'s gradient. `tau` is to fall
    in the course of training (`at`), else what is read differs from what was drawn. Reading is the expectation of the softmax; the
    confidence its largest cell. Noise comes from torch's own generator.
    """

    samples: int = 30
    tau: float = 2.0
    released: bool = False
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def at(self, epoch: int) -> "SamplingArgmax":
        """As it teaches in that epoch: `tau` is that of the published course (`temperature`), or its own if that is lower."""
        return replace(self, tau=min(self.tau, temperature(float(epoch))))

    def draw(self, raw: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J S 2"]:
        """Places in cells."""
        flat = precise(raw).flatten(-2).unsqueeze(-2)
        noise = gumbel(torch.rand(*flat.shape[:2], self.samples, flat.shape[-1], device=flat.device, dtype=flat.dtype))
        logits = flat + noise / self.tau if self.released else (flat + noise) / self.tau
        maps = logits.softmax(-1).unflatten(-1, raw.shape[-2:])
        along = []
        for m in (maps.sum(-2), maps.sum(-1)):
            place = torch.arange(m.shape[-1], device=m.device, dtype=m.dtype) + triangular(torch.rand_like(m))
            if self.released:
                m = interpolate(m, place)
                along.append(symmetric_expectation(m / m.sum(-1, keepdim=True).clamp_min(1e-12), place))
            else:
                along.append((m * place).sum(-1))
        return torch.stack(along, -1)

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        place = from_grid(self.draw(raw), (raw.shape[-2], raw.shape[-1]), size, self.places)
        error = to_fraction(place, size, self.places) - to_fraction(xy, size, self.places).unsqueeze(-2)
        return weighted_mean(error.abs().sum(-1).mean(-1), weight)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        p = flat_softmax(raw)
        xy = from_grid(expectation(p), (raw.shape[-2], raw.shape[-1]), size, self.places)
        return xy, p.amax((-1, -2))
