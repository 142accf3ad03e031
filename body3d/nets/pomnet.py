"""POMNet: keypoints of any kind of thing, from a few photos of one of its kind on which they are marked.

Xu, Jin, Zeng, Liu, Qian, Ouyang, Luo & Wang, "Pose for everything: towards category-agnostic pose estimation", ECCV 2022. What is
under a marked keypoint becomes a token; tokens look at one another and at the photo in question (a DETR transformer); each is then
matched with every place of it. Modules bear the names of the authors' code. As there, only the last layer of the decoder is read.
Keypoints are matched side by side, the code matches one after the other: the same numbers in use, but in training a batch norm of
the matching head sees all keypoints of a batch at once.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.attention import sine_positions
from body3d.checkpoints import load_into, read_published
from body3d.codecs import Heatmap, Size, msra_heatmap
from body3d.layers import conv_bn, deconv_layers
from body3d.nets.resnet import resnet50
from body3d.posenet import IMAGENET, Normalise, Trunk, check_size
from body3d.tensors import Tensors

__all__ = ["POMNet", "Support", "pomnet_r50"]


@dataclass(frozen=True)
class Support(Tensors):
    """S marked photos ("shots") of the kind, for each of B photos in question."""

    image: Float[Tensor, "B S 3 H W"]  # RGB in 0..1
    maps: Float[Tensor, "B S K h w"]  # a bump at each keypoint
    known: Float[Tensor, "B S K"]  # 0: the keypoint is not marked on that photo


class POMNet(nn.Module):
    """A photo (B, 3, H, W) and its `Support` to maps (B, K, h, w), at a quarter of H and W. K and S are free.

    `deconvolutions` is how often the trunks' maps are doubled: three times for a ResNet's stride 32. A keypoint that is not marked
    on all shots (as released) tells the others nothing, and its map means nothing. Images are crops of `size`; marks and answers
    are pixels of them.
    """

    def __init__(
        self,
        sample: Trunk,
        query: Trunk,
        channels: int = 256,
        heads: int = 8,
        layers: int = 3,
        hidden: int = 2048,
        dropout: float = 0.1,
        deconvolutions: int = 3,
        codec: Heatmap = msra_heatmap(),
        size: Size = (256, 256),
        normalise: Normalise = IMAGENET,
    ):
        super().__init__()
        self.encoder_sample, self.encoder_query = sample, query
        self.keypoint_head = KeypointHead(
            sample.channels, channels, Transformer(channels, heads, layers, hidden, dropout), deconvolutions
        )
        self.codec, self.size, self.normalise = codec, size, normalise

    def forward(self, image: Float[Tensor, "B 3 H W"], support: Support) -> Float[Tensor, "B K h w"]:
        shots = support.image.shape[1]
        features = self.encoder_sample(self.normalise(support.image).flatten(0, 1))[-1].unflatten(0, (-1, shots))
        return self.keypoint_head(
            self.encoder_query(self.normalise(image))[-1], features, support.maps, support.known.prod(1)
        )

    def support(
        self, image: Float[Tensor, "B S 3 H W"], xy: Float[Tensor, "B S K 2"], known: Float[Tensor, "B S K"]
    ) -> Support:
        """Photos with keypoints marked at `xy` (pixels). InputError if they are not of this network's size."""
        check_size(image, self.size)
        grid = (self.size[0] // 4, self.size[1] // 4)
        maps, shown = self.codec.target(xy.flatten(0, 1), self.size, grid)
        shape = xy.shape[:2]
        return Support(image, maps.unflatten(0, shape), known * shown.unflatten(0, shape))

    @torch.no_grad()
    def predict(
        self, image: Float[Tensor, "B 3 H W"], support: Support
    ) -> tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]]:
        """Where each keypoint is (pixels), and how high its map is there; 0 for one that is not marked on all shots.

        InputError if the photos are not of this network's size.
        """
        check_size(image, self.size)
        xy, conf = self.codec.decode(self(image, support), self.size)
        return xy, conf * support.known.prod(1)


class KeypointHead(nn.Module):
    """Tokens from support features, interaction with the photo's, and matching."""

    def __init__(self, inputs: int, channels: int, transformer: "Transformer", deconvolutions: int):
        super().__init__()
        self.input_proj = nn.Conv2d(inputs, channels, 1)
        self.query_proj = nn.Linear(inputs, channels)
        self.transformer = transformer
        self.relation_model = RelationModel(2 * channels, channels)
        self.deconv_layers = deconv_layers(channels, (channels,) * deconvolutions)
        self.final_layer = nn.Conv2d(channels, 1, 1)

    def forward(
        self,
        query: Float[Tensor, "B I H W"],
        samples: Float[Tensor, "B S I _ _"],
        maps: Float[Tensor, "B S K h w"],
        known: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B K y x"]:
        tokens = self.query_proj(pooled(samples, maps).mean(1) * known[..., None])
        tokens, memory = self.transformer(self.input_proj(query), tokens, known == 0)
        batch, count = tokens.shape[:2]
        matched = self.relation_model(memory.repeat_interleave(count, 0), tokens.flatten(0, 1))
        return self.final_layer(self.deconv_layers(matched))[:, 0].unflatten(0, (batch, count))


def pooled(features: Float[Tensor, "B S I _ _"], maps: Float[Tensor, "B S K h w"]) -> Float[Tensor, "B S K I"]:
    """The mean of the features, enlarged to the maps' size, by each map's weights; 0 where a map is empty."""
    shape = maps.shape[:2]
    enlarged = F.interpolate(features.flatten(0, 1), maps.shape[-2:], mode="bilinear", align_corners=False)
    weights = maps.flatten(0, 1).flatten(2)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    return (weights @ enlarged.flatten(2).mT).unflatten(0, shape)


class RelationModel(nn.Module):
    """A token beside every place of the photo's features, and a convolution of both."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        conv, norm, active = conv_bn(inputs, outputs)
        self.conv = nn.Sequential()
        for name, layer in (("conv", conv), ("bn", norm), ("active", active)):
            self.conv.add_module(name, layer)

    def forward(self, memory: Float[Tensor, "N C h w"], token: Float[Tensor, "N C"]) -> Float[Tensor, "N C h w"]:
        return self.conv(torch.cat([memory, token[..., None, None].expand_as(memory)], 1))


# ---- the transformer, in the names of mmcv -------------------------------------------------------------------------
class Transformer(nn.Module):
    """The photo's features look at one another, then tokens at one another and at them (Carion et al., "DETR", ECCV 2020).

    Unlike DETR's, tokens have no positions; the photo's places have sines.
    """

    def __init__(self, channels: int, heads: int, layers: int, hidden: int, dropout: float):
        super().__init__()
        sizes = (channels, heads, hidden, dropout)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(*sizes, attentions=1) for _ in range(layers))
        self.decoder.layers = nn.ModuleList(_Layer(*sizes, attentions=2) for _ in range(layers))
        self.decoder.post_norm = nn.LayerNorm(channels)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Float[Tensor, "B C h w"], tokens: Float[Tensor, "B K C"], hidden: Bool[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B K C"], Float[Tensor, "B C h w"]]:
        """Refined tokens, and the features that they looked at. Nobody looks at `hidden` tokens, unless all are."""
        height, width = features.shape[-2:]
        places = sine_positions(height, width, features.shape[1], device=features.device).to(features.dtype)
        x = features.flatten(2).mT
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            x = layer(x, places)
        hidden = hidden & ~hidden.all(-1, keepdim=True)
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            tokens = layer.decode(tokens, x, places, hidden)
        return self.decoder.post_norm(tokens), x.mT.unflatten(2, (height, width))  # type: ignore[operator]


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, skip: Tensor, hidden: Tensor | None = None) -> Tensor:
        read, _ = self.attn(query, key, value, key_padding_mask=hidden, need_weights=False)
        return skip + self.dropout(read)


class _FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int, dropout: float):
        super().__init__()
        first = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout))
        self.layers = nn.Sequential(first, nn.Linear(hidden, channels), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        return x + self.layers(x)


class _Layer(nn.Module):
    """Self-attention, attention to the photo (of a decoder's) and an MLP, each followed by a norm."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float, attentions: int):
        super().__init__()
        self.attentions = nn.ModuleList(_Attention(channels, heads, dropout) for _ in range(attentions))
        self.ffns = nn.ModuleList([_FeedForward(channels, hidden, dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(attentions + 1))

    def forward(self, x: Float[Tensor, "B N C"], places: Float[Tensor, "N C"]) -> Float[Tensor, "B N C"]:
        placed = x + places
        x = self.norms[0](self.attentions[0](placed, placed, x, x))
        return self.norms[1](self.ffns[0](x))

    def decode(
        self,
        tokens: Float[Tensor, "B K C"],
        memory: Float[Tensor, "B N C"],
        places: Float[Tensor, "N C"],
        hidden: Bool[Tensor, "B K"],
    ) -> Float[Tensor, "B K C"]:
        x = self.norms[0](self.attentions[0](tokens, tokens, tokens, tokens, hidden))
        x = self.norms[1](self.attentions[1](x, memory + places, memory, x))
        return self.norms[2](self.ffns[0](x))


def pomnet_r50(size: Size = (256, 256), weights: Path | str | None = None) -> POMNet:
    """The paper's: 61.1 million weights. `weights`: a checkpoint of the authors or of this project."""
    net = POMNet(resnet50(), resnet50(), size=size)
    if weights is not None:
        load_into(net, read_published(weights), weights)
        net.eval()
    return net
