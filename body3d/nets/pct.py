"""PCT: a pose as 34 tokens out of a codebook, and a classifier that reads the tokens off an image.

Geng, Wang, Wei, Liu, Li & Wang, "Human pose as compositional tokens", CVPR 2023. First a `PoseTokenizer` is trained on poses alone
(a vector-quantised autoencoder); then, with its weights fixed, a `TokenClassifier` on images. At test time the classifier's
probabilities mix the codes softly; nothing is looked up. The authors' trunks, Swin transformers, are not here: `pct_on_trunk` takes
any.

Coordinates are pixels of the crop, as in the authors' code and its checkpoints. Their scale matters: it weighs the joints' loss
against the commitment to the codes.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.attention import MixerBlock
from body3d.checkpoints import load_into, read_published, what_network
from body3d.codecs import Size
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock, conv_bn
from body3d.posenet import Headed, PoseNet, Trunk
from body3d.skeletons import COCO17

__all__ = [
    "PCTHead",
    "PCTOutput",
    "PoseTokenizer",
    "TokenClassifier",
    "Tokenized",
    "Tokens",
    "classifier_losses",
    "from_published",
    "load_tokenizer",
    "pct_on_trunk",
    "smooth_l1",
    "tokenizer_losses",
]


@dataclass(frozen=True)
class Tokenized:
    """A pose through the tokenizer: what the encoder made of it, the nearest codes, and the pose that comes back."""

    features: Float[Tensor, "B M D"]
    codes: Int[Tensor, "B M"]
    xy: Float[Tensor, "B J 2"]


class PoseTokenizer(nn.Module):
    """Poses (B, J, 2) to `tokens` codes each, of `codes` that there are, and back.

    In training, `mask` of the joints are hidden at random, gradients pass the choice of codes as if it were not there
    (straight-through), and the codebook follows the features by exponential averages (van den Oord et al., NeurIPS 2017,
    appendix A.1) once per call of `update`.
    """

    codebook: Tensor
    ema_w: Tensor
    ema_cluster_size: Tensor

    def __init__(
        self,
        joints: int = 17,
        tokens: int = 34,
        codes: int = 2048,
        code_channels: int = 512,
        channels: int = 512,
        blocks: int = 4,
        hidden: tuple[int, int] = (64, 512),
        decoder_channels: int = 32,
        decoder_blocks: int = 1,
        decoder_hidden: tuple[int, int] = (64, 64),
        mask: float = 0.2,
        decay: float = 0.9,
        guide_channels: int = 0,
    ):
        super().__init__()
        self.mask, self.decay = mask, decay
        self.invisible_token = nn.Parameter(torch.zeros(1, 1, channels))
        nn.init.trunc_normal_(self.invisible_token, std=0.02, a=-0.02, b=0.02)
        guided = channels // 2 if guide_channels else 0
        self.start_img_embed = nn.Linear(guide_channels, guided) if guide_channels else None
        self.start_embed = nn.Linear(2, channels - guided)
        self.encoder = nn.Sequential(*(MixerBlock(joints, channels, *hidden) for _ in range(blocks)))
        self.encoder_layer_norm = nn.LayerNorm(channels)
        self.token_mlp = nn.Linear(joints, tokens)
        self.feature_embed = nn.Linear(channels, code_channels)
        self.register_buffer("codebook", torch.randn(codes, code_channels))
        self.register_buffer("ema_cluster_size", torch.zeros(codes))
        self.register_buffer("ema_w", torch.randn(codes, code_channels))
        self.decoder_token_mlp = nn.Linear(tokens, joints)
        self.decoder_start = nn.Linear(code_channels, decoder_channels)
        self.decoder = nn.Sequential(
            *(MixerBlock(joints, decoder_channels, *decoder_hidden) for _ in range(decoder_blocks))
        )
        self.decoder_layer_norm = nn.LayerNorm(decoder_channels)
        self.recover_embed = nn.Linear(decoder_channels, 2)

    def forward(
        self, xy: Float[Tensor, "B J 2"], visible: Bool[Tensor, "B J"], guide: Float[Tensor, "B J G"] | None = None
    ) -> Tokenized:
        if self.training:
            visible = visible & (torch.rand(visible.shape, device=xy.device) > self.mask)
        features = self.encode(xy, visible, guide)
        codes = self.nearest(features)
        chosen = self.codebook[codes]
        straight_through = features + (chosen - features).detach() if self.training else chosen
        return Tokenized(features, codes, self.decode(straight_through))

    def encode(
        self, xy: Float[Tensor, "B J 2"], visible: Bool[Tensor, "B J"], guide: Float[Tensor, "B J G"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """The features that the codes are chosen by; of joints that are not visible, nothing but that is known.

        `guide` are the image's features at the joints, for a tokenizer that was made with them.
        """
        x = self.start_embed(xy)
        if self.start_img_embed is not None:
            if guide is None:
                raise InputError("this tokenizer needs the image's features at the joints")
            x = torch.cat([x, self.start_img_embed(guide)], -1)
        x = self.encoder_layer_norm(self.encoder(torch.where(visible[..., None], x, self.invisible_token)))
        return self.feature_embed(self.token_mlp(x.mT).mT)

    def nearest(self, features: Float[Tensor, "B M D"]) -> Int[Tensor, "B M"]:
        flat = features.detach().flatten(0, 1)
        distance = flat.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        return distance.argmin(1).unflatten(0, features.shape[:2])

    def decode(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B J 2"]:
        x = self.decoder_start(self.decoder_token_mlp(tokens.mT).mT)
        return self.recover_embed(self.decoder_layer_norm(self.decoder(x)))

    @torch.no_grad()
    def update(self, features: Float[Tensor, "B M D"], codes: Int[Tensor, "B M"]) -> None:
        """Move each code to the exponential average of the features that chose it.

        Counts are smoothed by 1e-5 and kept so, as in the authors' code: that of a code that is never chosen settles at 1e-4. Each
        process moves its own codebook: where there are several, gather features and codes first.
        """
        flat, chosen = features.flatten(0, 1), codes.flatten()
        count = torch.bincount(chosen, minlength=len(self.codebook)).to(flat.dtype)
        total = torch.zeros_like(self.codebook).index_add_(0, chosen, flat)
        self.ema_cluster_size.lerp_(count, 1 - self.decay)
        self.ema_w.lerp_(total, 1 - self.decay)
        n = self.ema_cluster_size.sum()
        self.ema_cluster_size.add_(1e-5).mul_(n / (n + len(count) * 1e-5))
        self.codebook.copy_(self.ema_w / self.ema_cluster_size[:, None])


class TokenClassifier(nn.Module):
    """A map (B, C, h, w) of the size `grid` to the logits (B, tokens, codes) of a pose's tokens."""

    def __init__(
        self,
        inputs: int,
        grid: tuple[int, int] = (8, 8),
        tokens: int = 34,
        codes: int = 2048,
        conv_channels: int = 256,
        channels: int = 64,
        blocks: int = 4,
        hidden: tuple[int, int] = (64, 256),
    ):
        super().__init__()
        self.tokens, self.grid = tokens, grid
        self.conv_trans = conv_bn(inputs, conv_channels, 1)
        self.conv_head = nn.Sequential(*(BasicBlock(conv_channels, conv_channels) for _ in range(2)))
        self.mixer_trans = _linear_norm(conv_channels * grid[0] * grid[1], tokens * channels)
        self.mixer_head = nn.Sequential(*(MixerBlock(tokens, channels, *hidden) for _ in range(blocks)))
        self.mixer_norm_layer = _linear_norm(channels, channels)
        self.cls_pred_layer = nn.Linear(channels, codes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.001)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B M V"]:
        if tuple(features.shape[2:]) != self.grid:
            raise InputError(
                f"PCT's classifier was built for feature maps of {self.grid[0]} x {self.grid[1]} cells, got "
                f"{features.shape[2]} x {features.shape[3]}: put it on a trunk of stride 32"
            )
        x = self.conv_head(self.conv_trans(features)).flatten(2).mT.flatten(1)
        x = self.mixer_trans(x).unflatten(1, (self.tokens, -1))
        return self.cls_pred_layer(self.mixer_norm_layer(self.mixer_head(x)))


def _linear_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


class PCTOutput(NamedTuple):
    logits: Float[Tensor, "B M V"]
    xy: Float[Tensor, "B J 2"]
    tokenizer: PoseTokenizer


class PCTHead(nn.Module):
    """A map to the logits that `classifier` gives the tokens, and the pose that their probabilities stand for.

    The tokenizer does not learn any more.
    """

    def __init__(self, classifier: nn.Module, tokenizer: PoseTokenizer):
        super().__init__()
        self.classifier = classifier
        self.tokenizer = tokenizer.requires_grad_(False)

    def forward(self, features: Float[Tensor, "B C h w"]) -> PCTOutput:
        logits = self.classifier(features)
        xy = self.tokenizer.decode(logits.softmax(-1) @ self.tokenizer.codebook)
        return PCTOutput(logits, xy, self.tokenizer)

    def train(self, mode: bool = True) -> "PCTHead":
        super().train(mode)
        self.tokenizer.eval()
        return self


@dataclass(frozen=True)
class Tokens:
    """The codec of the second stage: what is classified are the tokens that the tokenizer gives the true pose.

    A tokenizer that was trained with image features needs them here too, and this has none: train with one without.
    The confidence is the mean over the tokens of the likeliest code's probability, the same for all joints. (The authors' score is
    the mean of the largest logits.)
    """

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        grid = (size[0] // 32, size[1] // 32)
        return PCTHead(TokenClassifier(channels, grid), PoseTokenizer(joints))

    def loss(
        self, raw: PCTOutput, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        return sum(classifier_losses(raw, xy, weight).values(), start=xy.new_zeros(()))

    def decode(self, raw: PCTOutput, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        sure = raw.logits.softmax(-1).amax(-1).mean(-1, keepdim=True)
        return raw.xy, sure.expand(raw.xy.shape[:2])


# ---- losses --------------------------------------------------------------------------------------------------------
def smooth_l1(
    predicted: Float[Tensor, "B J 2"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], beta: float = 0.05
) -> Float[Tensor, ""]:
    """The mean over all coordinates, with weight or not."""
    return (F.smooth_l1_loss(predicted, xy, beta=beta, reduction="none") * weight[..., None]).mean()


def tokenizer_losses(
    tokenizer: PoseTokenizer, tokenized: Tokenized, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"]
) -> dict[str, Tensor]:
    """Of the first stage, weighted; `tokenizer.update` belongs to the same step.

    The commitment, 15 times the mean square, draws the features to their codes; the codes follow by averages, not gradients.
    """
    commitment = F.mse_loss(tokenized.features, tokenizer.codebook[tokenized.codes].detach())
    return {"joints": smooth_l1(tokenized.xy, xy, weight), "commitment": 15 * commitment}


def classifier_losses(raw: PCTOutput, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"]) -> dict[str, Tensor]:
    """Of the second stage: cross-entropy against the tokens of the true pose, and the distance of the pose that comes out."""
    with torch.no_grad():
        codes = raw.tokenizer.nearest(raw.tokenizer.encode(xy, weight > 0))
    return {
        "tokens": F.cross_entropy(raw.logits.flatten(0, 1), codes.flatten()),
        "joints": smooth_l1(raw.xy, xy, weight),
    }


def pct_on_trunk(
    trunk: nn.Module, tokenizer: PoseTokenizer, joints: JointSet = COCO17, size: Size = (256, 256)
) -> PoseNet:
    """The second stage on a trunk of stride 32, whose last map is read. The tokenizer should be trained.

    InputError for a tokenizer of another number of joints, or of one that needs the image's features (see `Tokens`).
    """
    if not isinstance(trunk, Trunk):
        raise InputError(f"{type(trunk).__name__} is no trunk: it has no `channels`")
    if (count := tokenizer.token_mlp.in_features) != len(joints):
        raise InputError(f"the tokenizer is of poses of {count} joints, {joints.name} has {len(joints)}")
    if tokenizer.start_img_embed is not None:
        raise InputError("this tokenizer needs the image's features at the joints: train one with guide_channels=0")
    tokens, codes = tokenizer.token_mlp.out_features, len(tokenizer.codebook)
    classifier = TokenClassifier(trunk.channels, (size[0] // 32, size[1] // 32), tokens, codes)
    return PoseNet(Headed(trunk, PCTHead(classifier, tokenizer)), Tokens(), joints, size)


# ---- published checkpoints -----------------------------------------------------------------------------------------
def load_tokenizer(path: Path | str) -> PoseTokenizer:
    """The tokenizer in a published checkpoint of either stage, in eval mode. InputError if there is none of the published size."""
    published = from_published(read_published(path))
    state = {key.removeprefix("tokenizer."): value for key, value in published.items() if key.startswith("tokenizer.")}
    if "token_mlp.weight" not in state or "codebook" not in state:
        raise InputError(f"{path} holds {what_network(published)}, not PCT's tokenizer")
    guide = state.get("start_img_embed.weight")
    tokenizer = PoseTokenizer(state["token_mlp.weight"].shape[1], guide_channels=0 if guide is None else guide.shape[1])
    load_into(tokenizer, state, path)
    return tokenizer.eval()


_RENAMED = (
    (r"(mixer_trans|mixer_norm_layer)\.ff\.", r"\1."),
    (r"conv_head\.0\.", "conv_head."),
    (r"layernorm([12])\.", r"norm\1."),
    (r"MLP_(token|channel)\.ff\.0\.", r"\1s.fc1."),
    (r"MLP_(token|channel)\.ff\.3\.", r"\1s.fc2."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names of a head's (`keypoint_head.`) or a tokenizer's weights as those of `PCTHead`."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("keypoint_head.")
        for pattern, ours in _RENAMED:
            key = re.sub(pattern, ours, key)
        renamed[key if key.startswith("tokenizer.") else f"classifier.{key}"] = value
    return renamed
