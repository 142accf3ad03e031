"""Attention blocks that several networks share: self-attention, mixers, sine positions, deformable attention.

Positions are given as fractions of the image, (x, y) from 0 at its left and upper edge to 1 at its right and lower one, so that
they hold on feature maps of every resolution.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "DeformableAttention",
    "DeformableDecoderLayer",
    "DeformableEncoderLayer",
    "MLP",
    "MixerBlock",
    "Pyramid",
    "SelfAttention",
    "TransformerBlock",
    "as_maps",
    "inverse_sigmoid",
    "pixel_centres",
    "refine",
    "sine_encoding",
    "sine_positions",
]


# ---- positions -----------------------------------------------------------------------------------------------------
def sine_encoding(x: Float[Tensor, "*B"], channels: int, temperature: float = 10000.0) -> Float[Tensor, "*B C"]:
    """A number as sines (even channels) and cosines (odd ones) of wavelengths from 1 to `temperature`, for 0 <= x <= 1.

    Vaswani et al., NeurIPS 2017, section 3.5, with the angle 2 pi x as DETR has it.
    """
    pair = torch.arange(channels, device=x.device) // 2
    angle = 2 * math.pi * x.unsqueeze(-1) / temperature ** (2 * pair / channels)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def sine_positions(
    height: int, width: int, channels: int, offset: float = 0.0, device: torch.device | str | None = None
) -> Float[Tensor, "N C"]:
    """The positions of a grid's cells row by row: half the channels say y, the other half x (DETR; Carion et al., ECCV 2020).

    Cell i of n is at (i + 1 + offset) / n: DETR has no offset; Deformable DETR's -0.5 means the cells' centres.
    """
    along = lambda n: sine_encoding((torch.arange(n, device=device) + 1 + offset) / (n + 1e-6), channels // 2)
    y, x = along(height), along(width)
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], -1).flatten(0, 1)


def pixel_centres(height: int, width: int, device: torch.device | str | None = None) -> Float[Tensor, "N 2"]:
    """The centres (x, y) of a grid's cells row by row, as fractions of the image."""
    y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def inverse_sigmoid(x: Float[Tensor, "*B"], eps: float = 1e-5) -> Float[Tensor, "*B"]:
    """The logit of x, which is first clamped to 0..1; at most -log(eps) in size."""
    x = x.clamp(0, 1)
    return (x.clamp_min(eps) / (1 - x).clamp_min(eps)).log()


def refine(reference: Float[Tensor, "*B 2"], step: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
    """A reference point moved by `step` in inverse-sigmoid space, so that it stays in the image."""
    return (inverse_sigmoid(reference) + step).sigmoid()


# ---- blocks --------------------------------------------------------------------------------------------------------
class SelfAttention(nn.Module):
    """Multi-head self-attention among N tokens (Vaswani et al., NeurIPS 2017), (B, N, C) to (B, N, C).

    The products of queries and keys are multiplied by `scale`, 1 / sqrt(C / heads) unless given. `position` is added to what
    queries and keys, but not values, are made of.
    """

    def __init__(self, channels: int, heads: int, bias: bool = True, scale: float | None = None, dropout: float = 0.0):
        super().__init__()
        self.heads, self.scale, self.dropout = heads, scale, dropout
        self.qkv = nn.Linear(channels, 3 * channels, bias)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "B N C"], position: Float[Tensor, "#B N C"] | None = None
    ) -> Float[Tensor, "B N C"]:
        if position is None:
            qkv = self.qkv(x)
        else:
            weight, bias, split = self.qkv.weight, self.qkv.bias, 2 * x.shape[-1]
            qk = F.linear(x + position, weight[:split], None if bias is None else bias[:split])
            qkv = torch.cat([qk, F.linear(x, weight[split:], None if bias is None else bias[split:])], -1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU (or another activation), linear, on the last axis."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0, active: type[nn.Module] = nn.GELU):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.active = active()
        self.fc2 = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        return self.dropout(self.fc2(self.dropout(self.active(self.fc1(x)))))


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each behind a layer norm and beside a skip (pre-norm; Dosovitskiy et al., ICLR 2021).

    With `drop_path` a sample leaves out either part with that probability in training (Huang et al., ECCV 2016).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        ratio: float = 4.0,
        bias: bool = True,
        scale: float | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels, eps)
        self.attn = SelfAttention(channels, heads, bias, scale)
        self.norm2 = nn.LayerNorm(channels, eps)
        self.mlp = MLP(channels, int(channels * ratio))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return y
        kept = torch.rand(len(y), 1, 1, device=y.device) >= self.drop_path
        return y * kept / (1 - self.drop_path)


class MixerBlock(nn.Module):
    """An MLP over the tokens, then one over the channels, each behind a layer norm and beside a skip, (B, N, C) to (B, N, C).

    Tolstikhin et al., "MLP-Mixer", NeurIPS 2021.
    """

    def __init__(self, tokens: int, channels: int, hidden_tokens: int, hidden_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.tokens = MLP(tokens, hidden_tokens, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.channels = MLP(channels, hidden_channels, dropout)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


# ---- deformable attention ------------------------------------------------------------------------------------------
@runtime_checkable
class Pyramid(Protocol):
    """A trunk that gives maps of several strides, finest first."""

    def pyramid(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]: ...


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, equation 3).

    Each head of each of Q queries reads `points` places on each feature map, bilinearly and with zeros outside, around the query's
    reference point; the query alone says where (in pixels of that map) and with which weights, which sum to 1 over all maps.

    `project_after` applies the heads' value projection to what was read, not to the maps (Poseur's "efficient" form, with a value
    matrix per head over all channels). Without its bias it is the same function of the same weights, as both are linear; the bias
    is not read as zero outside the map, and so differs there. Cheaper where there are fewer queries than pixels.
    """

    def __init__(
        self, channels: int = 256, heads: int = 8, levels: int = 4, points: int = 4, project_after: bool = False
    ):
        super().__init__()
        self.heads, self.levels, self.points, self.project_after = heads, levels, points, project_after
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform weights, and heads that look into `heads` directions, point i at i + 1 pixels (in the larger axis)."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = direction[:, None, None] * torch.arange(1, self.points + 1)[:, None]
        self.sampling_offsets.bias.copy_(steps.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self,
        query: Float[Tensor, "B Q C"],
        reference: Float[Tensor, "#B Q 2"],
        memory: Sequence[Float[Tensor, "B C _ _"]],
    ) -> Float[Tensor, "B Q C"]:
        split = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*split, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, split[1:])
        read = [
            self._read(features, reference, offsets[:, :, :, i], weights[:, :, :, i])
            for i, features in enumerate(memory)
        ]
        values = torch.stack(read).sum(0)
        if self.project_after:
            weight = self.value_proj.weight.unflatten(0, (self.heads, -1))
            values = torch.einsum("bqhc,hdc->bqhd", values, weight) + self.value_proj.bias.unflatten(
                0, (self.heads, -1)
            )
        return self.output_proj(values.flatten(2))

    def _read(
        self,
        features: Float[Tensor, "B C h w"],
        reference: Float[Tensor, "#B Q 2"],
        offsets: Float[Tensor, "B Q H P 2"],
        weights: Float[Tensor, "B Q H P"],
    ) -> Float[Tensor, "B Q H D"]:
        """What each head reads on one map."""
        size = torch.tensor(features.shape[:1:-1], device=features.device)
        # grid_sample has the image from -1 to 1.
        grid = 2 * (reference[:, :, None, None] + offsets / size) - 1
        if self.project_after:
            read = F.grid_sample(features, grid.flatten(2, 3).to(features.dtype), align_corners=False)
            read = read.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 4, 1)
        else:
            maps = F.linear(features.flatten(2).mT, self.value_proj.weight, self.value_proj.bias).mT
            maps = maps.reshape(-1, maps.shape[1] // self.heads, *features.shape[2:])
            read = F.grid_sample(maps, grid.transpose(1, 2).flatten(0, 1).to(maps.dtype), align_corners=False)
            read = read.unflatten(0, (-1, self.heads)).permute(0, 3, 1, 4, 2)
        return torch.einsum("bqhp,bqhpd->bqhd", weights, read)


class DeformableEncoderLayer(nn.Module):
    """The pixels of all maps look at one another by deformable attention, then an MLP with ReLU; norms after the skips.

    `tokens` are the pixels of the maps `shapes` ((height, width) each), one map after another.
    """

    def __init__(
        self, channels: int = 256, heads: int = 8, levels: int = 4, points: int = 4, hidden: int = 1024, dropout: float = 0.1
    ):  # fmt: skip
        super().__init__()
        self.attn = DeformableAttention(channels, heads, levels, points)
        self.mlp = MLP(channels, hidden, dropout, nn.ReLU)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B N C"],
        position: Float[Tensor, "#B N C"],
        shapes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "B N C"]:
        reference = torch.cat([pixel_centres(*shape, tokens.device) for shape in shapes])[None]
        read = self.attn(tokens + position, reference, as_maps(tokens, shapes))
        x = self.norm1(tokens + self.dropout(read))
        return self.norm2(x + self.mlp(x))


class DeformableDecoderLayer(nn.Module):
    """Queries look at one another, then by deformable attention at the maps, then an MLP with ReLU; norms after the skips.

    Zhu et al., ICLR 2021, appendix A.4. `position` is added to what decides (not to what is read), `reference` where to look.
    """

    def __init__(
        self,
        channels: int = 256,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        hidden: int = 1024,
        dropout: float = 0.1,
        project_after: bool = False,
    ):
        super().__init__()
        self.self_attn = SelfAttention(channels, heads, dropout=dropout)
        self.cross_attn = DeformableAttention(channels, heads, levels, points, project_after)
        self.mlp = MLP(channels, hidden, dropout, nn.ReLU)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "B Q C"],
        position: Float[Tensor, "#B Q C"],
        reference: Float[Tensor, "B Q 2"],
        memory: Sequence[Float[Tensor, "B C _ _"]],
    ) -> Float[Tensor, "B Q C"]:
        x = self.norm1(query + self.dropout(self.self_attn(query, position)))
        x = self.norm2(x + self.dropout(self.cross_attn(x + position, reference, memory)))
        return self.norm3(x + self.mlp(x))


def as_maps(tokens: Float[Tensor, "B N C"], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Tokens as the maps (B, C, height, width) that they are the pixels of."""
    parts = tokens.mT.split([height * width for height, width in shapes], -1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]
