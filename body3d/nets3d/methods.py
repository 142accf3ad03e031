"""How each direct regressor is taught and read: from what its network puts out to a loss, and to `Decoded`."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.codecs.base import Size
from body3d.codecs.locationmap import LocationMap
from body3d.codecs.volume import CoarseToFine, IntegralVolume
from body3d.nets3d import dconvmp
from body3d.nets3d.views import Decoded, Target

__all__ = ["ByCoarseToFine", "ByIntegral", "ByLocationMaps", "ByWindows", "Method"]


@runtime_checkable
class Method(Protocol):
    def loss(self, raw: Any, target: Target, size: Size) -> Float[Tensor, ""]: ...

    def decode(self, raw: Any, size: Size) -> Decoded: ...


@dataclass(frozen=True)
class ByLocationMaps:
    """VNect."""

    codec: LocationMap

    def loss(self, raw: Any, target: Target, size: Size) -> Float[Tensor, ""]:
        weight3d = target.weight3d * target.has_depth[:, None]
        return self.codec.loss(raw, target.xy, target.xyz, target.weight, weight3d, size)

    def decode(self, raw: Any, size: Size) -> Decoded:
        xy, xyz, conf = self.codec.decode(raw, size)
        return Decoded(conf, xy, xyz=xyz)


@dataclass(frozen=True)
class ByCoarseToFine:
    """Coarse to fine volumes: photos without depth teach nothing."""

    codec: CoarseToFine

    def loss(self, raw: Any, target: Target, size: Size) -> Float[Tensor, ""]:
        weight = target.weight * target.weight3d * target.has_depth[:, None]
        return self.codec.loss(raw, target.xy, target.xyz[..., 2], weight, size)

    def decode(self, raw: Any, size: Size) -> Decoded:
        xy, z, conf = self.codec.decode(raw, size)
        return Decoded(conf, xy, z)


@dataclass(frozen=True)
class ByIntegral:
    """3DMPPE's PoseNet, Integral 3D."""

    codec: IntegralVolume = field(default_factory=IntegralVolume)

    def loss(self, raw: Any, target: Target, size: Size) -> Float[Tensor, ""]:
        return self.codec.loss(raw, target.xy, target.xyz[..., 2], target.weight, target.has_depth, size)

    def decode(self, raw: Any, size: Size) -> Decoded:
        xy, z, conf = self.codec.decode(raw, size)
        return Decoded(conf, xy, z)


@dataclass(frozen=True)
class ByWindows:
    """DconvMP; `phase` is one of `dconvmp.MULTITASK` or `dconvmp.PRETRAINED` (each a training, the second from the first)."""

    target: dconvmp.PoseTarget
    windows: dconvmp.Windows = field(default_factory=dconvmp.Windows)
    phase: dconvmp.Phase = dconvmp.MULTITASK[0]

    def loss(self, raw: Any, target: Target, size: Size) -> Float[Tensor, ""]:
        pose, held = self.target.encode(target.xyz), self.windows.hold(target.xy, size)
        known = target.weight3d * target.has_depth[:, None]
        return dconvmp.loss(raw, pose, held, known, target.weight, self.phase)

    def decode(self, raw: Any, size: Size) -> Decoded:
        return Decoded(torch.ones_like(raw.pose[..., 0]), xyz=self.target.decode(raw.pose))
