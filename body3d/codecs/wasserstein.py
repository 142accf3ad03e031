"""HDM: the cost of carrying a predicted heat map's mass to the joint.

Qu et al., "Heatmap distribution matching for human pose estimation", NeurIPS 2022. There is no public code; what the paper leaves
open is said where it is chosen.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs.base import Places, Size, from_grid, to_grid
from body3d.codecs.integral import expectation, flat_softmax, precise
from body3d.losses import weighted_mean

__all__ = ["HDM", "bilinear_demand", "flat_softplus", "sinkhorn", "transport_cost"]


def bilinear_demand(xy: Float[Tensor, "B J 2"], grid: Size) -> tuple[Float[Tensor, "B J 4 2"], Float[Tensor, "B J 4"]]:
    """The four cells around `xy` and their shares, so that the mean of the cells is `xy`; moved onto the map if beside it."""
    last = xy.new_tensor([grid[1] - 1, grid[0] - 1])
    xy = torch.minimum(xy.clamp_min(0), last)
    low = torch.minimum(xy.floor(), (last - 1).clamp_min(0))
    part = (xy - low).unsqueeze(-2)
    corner = xy.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    return low.unsqueeze(-2) + corner, (corner * part + (1 - corner) * (1 - part)).prod(-1)


@torch.no_grad()
def sinkhorn(
    log_p: Float[Tensor, "*B n"], log_q: Float[Tensor, "*B m"], cost: Float[Tensor, "*B n m"], eps: float, rounds: int
) -> tuple[Float[Tensor, "*B n"], Float[Tensor, "*B m"]]:
    """The potentials f, g of the transport between p and q with entropy `eps`, by Sinkhorn's rounds on logarithms.

    f.p + g.q is the transport's cost, and f its derivative by p. Entries of q may be 0 (log -inf).
    """
    g = torch.zeros_like(log_q)
    from_g = lambda g: -eps * torch.logsumexp(log_q.unsqueeze(-2) + (g.unsqueeze(-2) - cost) / eps, -1)
    f = from_g(g)
    for _ in range(rounds):
        g = -eps * torch.logsumexp(log_p.unsqueeze(-1) + (f.unsqueeze(-1) - cost) / eps, -2)
        f = from_g(g)
    return f, g


def transport_cost(
    p: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], eps: float = 0.02, rounds: int = 50
) -> Float[Tensor, "B J"]:
    """The mean distance in cells over which maps that sum to 1 are carried to `xy` (in cells).

    By the dual problem: its gradient is the potential alone, so Sinkhorn's rounds need none (envelope theorem).
    """
    grid = p.shape[-2], p.shape[-1]
    cells, share = bilinear_demand(xy, grid)
    y, x = torch.meshgrid(*(torch.arange(n, device=xy.device, dtype=xy.dtype) for n in grid), indexing="ij")
    at = torch.stack([x, y], -1).flatten(0, 1)
    cost = (at[:, None] - cells.unsqueeze(-3)).norm(dim=-1)
    p = p.flatten(-2)
    log_p = p.detach().clamp_min(torch.finfo(p.dtype).tiny).log()
    f, g = sinkhorn(log_p, share.log(), cost, eps, rounds)
    return (f * p).sum(-1) + (g * share).sum(-1)


def flat_softplus(logits: Float[Tensor, "*B h w"]) -> Float[Tensor, "*B h w"]:
    """Softplus of each cell over the sum of all cells of a map, in single precision at least."""
    positive = F.softplus(precise(logits))
    return positive / positive.sum((-2, -1), keepdim=True)


_SHARES = {"softplus": flat_softplus, "softmax": flat_softmax}


@dataclass(frozen=True)
class HDM:
    """(B, J, h, w): each cell's share of a map against the joint's mass, which lies bilinearly on the four cells around it.

    The loss is the earth mover's distance in cells, ground cost the Euclidean distance, by Sinkhorn with entropy `eps` (cells) in
    `rounds` rounds. Chosen here, since the paper does not say: how raw maps become `shares`, `eps`, `rounds`, and reading by
    expectation, which is exact for a map that costs nothing. A softmax learns badly: once nearly all of it lies in a wrong cell its
    gradient is gone there and everywhere else, and the joint is stuck. The confidence is the largest share of a cell.
    """

    eps: float = 0.02
    rounds: int = 50
    shares: Literal["softplus", "softmax"] = "softplus"
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        place = to_grid(xy, size, (raw.shape[-2], raw.shape[-1]), self.places)
        return weighted_mean(transport_cost(_SHARES[self.shares](raw), place, self.eps, self.rounds), weight)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        p = _SHARES[self.shares](raw)
        xy = from_grid(expectation(p), (raw.shape[-2], raw.shape[-1]), size, self.places)
        return xy, p.amax((-1, -2))
