"""The direct regressors as wholes: a network, how it is taught and read (`nets3d.methods`), its joints and its crop.

Training (`learn.pose3d`), `body3d regress` and the benchmark know them by these types alone.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from body3d.codecs.base import Size, from_grid, swap_joints, to_grid
from body3d.codecs.locationmap import RedundantMap
from body3d.crop import apply, invert
from body3d.errors import InputError
from body3d.nets3d import mppe, orpm
from body3d.nets3d.methods import Method
from body3d.nets3d.views import NEAREST, Decoded, Regressed, Target, View, placed, projected
from body3d.nets3d.volumetric import back_project, depth_from_limbs
from body3d.posenet import IMAGENET, Normalise
from body3d.skeletons import JointSet

__all__ = ["Regressor", "RootFinder", "SceneRegressor", "Whole"]


class _Whole(nn.Module):
    """A network with its joints and its size; a state_dict holds which it is, so that `read_regressor` can build it again."""

    def __init__(self, name: str, net: nn.Module, joints: JointSet, size: Size, normalise: Normalise):
        super().__init__()
        self.name, self.net, self.joints, self.size, self.normalise = name, net, joints, size, normalise

    @property
    def root(self) -> int:
        return self.joints.parents.index(-1)

    def get_extra_state(self) -> dict[str, Any]:
        return {"name": self.name, "joints": self.joints.name, "size": list(self.size)}

    def set_extra_state(self, state: Any) -> None:
        if state != self.get_extra_state():
            raise InputError(f"these weights are of {_words(state)}, not of {_words(self.get_extra_state())}")


def _words(state: Any) -> str:
    if not isinstance(state, dict):
        return "another network"
    return f"{state.get('name')} with the joints {state.get('joints')} for crops of {state.get('size')}"


class Regressor(_Whole):
    """Crops (B, 3, h, w), RGB in 0..1, to the raw output that `method` reads.

    `lengths` are the mean lengths (m) of the bones of `joints`, by which those that see no root depth find it.
    """

    lengths: Tensor

    def __init__(
        self, name: str, net: nn.Module, method: Method, joints: JointSet, size: Size, normalise: Normalise = IMAGENET
    ):
        super().__init__(name, net, joints, size, normalise)
        self.method = method
        self.register_buffer("lengths", torch.zeros(len(joints.bones)))

    def forward(self, image: Float[Tensor, "B 3 h w"], k: Float[Tensor, " B"] | None = None) -> Any:
        return self.net(self.normalise(image))

    def loss(self, raw: Any, target: Target) -> Float[Tensor, ""]:
        return self.method.loss(raw, target, self.size)

    @torch.no_grad()
    def regress(
        self, image: Float[Tensor, "B 3 h w"], view: View, depth: Float[Tensor, " B"] | None = None, flip: bool = False
    ) -> Regressed:
        """The people in crops. `depth`: their roots', where it is known; else it is found from the size of the limbs in the image,
        or (by a network that says nothing of the image) taken to be k. `flip`: averaged with the mirrored crop.
        """
        said = self.method.decode(self(image), self.size)
        if flip:
            said = self._averaged(said, self.method.decode(self(image.flip(-1)), self.size))
        xy = None if said.xy is None else apply(invert(view.to_crop), said.xy)
        if said.z is not None:
            assert xy is not None
            if depth is None:
                depth = depth_from_limbs(xy, said.z, view.K, self.lengths, self.joints)
            xyz = back_project(xy, (said.z + depth[:, None]).clamp_min(0.1), view.K)
            root = xyz[:, self.root]
            return Regressed(xyz - root[:, None], root, xy, said.conf)
        assert said.xyz is not None
        if xy is None:
            middle = said.xyz.new_tensor([[(self.size[1] - 1) / 2, (self.size[0] - 1) / 2]])
            at = apply(invert(view.to_crop), middle.expand(len(image), 1, 2))
            depth = view.k if depth is None else depth
            root = back_project(at, depth[:, None], view.K)[:, 0] - _middle(said.xyz) * said.xyz.new_tensor([1, 1, 0])
            return Regressed(said.xyz, root, projected(said.xyz + root[:, None], view.K), said.conf)
        root = placed(said.xyz, xy, said.conf, view.K)
        if depth is not None:
            root = root * (depth / root[:, 2])[:, None]
        return Regressed(said.xyz, root, xy, said.conf)

    def _averaged(self, said: Decoded, mirrored: Decoded) -> Decoded:
        flip = self.joints.flip
        other = lambda x: None if x is None else swap_joints(x, flip)
        xy, xyz = other(mirrored.xy), other(mirrored.xyz)
        if xy is not None:
            xy = torch.stack([self.size[1] - 1 - xy[..., 0], xy[..., 1]], -1)
        if xyz is not None:
            xyz = xyz * xyz.new_tensor([-1.0, 1.0, 1.0])
        mean = lambda a, b: None if a is None else (a + b) / 2
        conf = (said.conf + swap_joints(mirrored.conf, flip)) / 2
        return Decoded(conf, mean(said.xy, xy), mean(said.z, other(mirrored.z)), mean(said.xyz, xyz))


def _middle(xyz: Float[Tensor, "B J 3"]) -> Float[Tensor, "B 3"]:
    """Of the box around a pose."""
    return (xyz.amin(1) + xyz.amax(1)) / 2


class RootFinder(_Whole):
    """RootNet: crops and their k to the root's place. Depth counts in the loss in units of `unit` metres, x and y in cells."""

    def __init__(
        self, name: str, net: mppe.RootNet, joints: JointSet, size: Size, unit: float, normalise: Normalise = IMAGENET
    ):
        super().__init__(name, net, joints, size, normalise)
        self.unit = unit
        self.grid = (size[0] // 4, size[1] // 4)

    def forward(self, image: Float[Tensor, "B 3 h w"], k: Float[Tensor, " B"]) -> Float[Tensor, "B 3"]:
        return self.net(self.normalise(image), k)

    def loss(self, raw: Float[Tensor, "B 3"], target: Target) -> Float[Tensor, ""]:
        """A third of the absolute errors in x, y and (where there is depth) z."""
        cells = to_grid(target.xy[:, self.root], self.size, self.grid)
        xy = (raw[:, :2] - cells).abs().sum(1) * target.weight[:, self.root]
        z = (raw[:, 2] - target.depth).abs() / self.unit * target.has_depth
        return (xy + z).mean() / 3

    @torch.no_grad()
    def find(self, image: Float[Tensor, "B 3 h w"], view: View) -> Float[Tensor, "B 3"]:
        """The roots in the camera's frame, metres."""
        out = self(image, view.k)
        xy = apply(invert(view.to_crop), from_grid(out[:, None, :2], self.grid, self.size))
        return back_project(xy, out[:, 2:].clamp_min(NEAREST), view.K)[:, 0]


class SceneRegressor(_Whole):
    """ORPM: whole images (B, 3, h, w), RGB in 0..1, to the maps of everybody.

    `sigma` in cells; `space` is the weight of the location maps against heat maps and fields.
    """

    def __init__(
        self, name: str, net: orpm.ORPM, codec: RedundantMap, size: Size, stride: int, space: float, sigma: float = 1.0,
        normalise: Normalise = IMAGENET,
    ):  # fmt: skip
        super().__init__(name, net, codec.joints, size, normalise)
        self.codec, self.space, self.sigma = codec, space, sigma
        self.grid = (size[0] // stride, size[1] // stride)

    def forward(self, image: Float[Tensor, "B 3 h w"]) -> orpm.ORPMMaps:
        return self.net(self.normalise(image))

    def maps(
        self, xy: Float[Tensor, "N J 2"], visible: Bool[Tensor, "N J"], xyz: Float[Tensor, "N J 3"]
    ) -> tuple[orpm.ORPMMaps, Bool[Tensor, "J h w"]]:
        """What the network should say of one image with N people (crop pixels; metres in the camera's frame), and where the
        location maps are written."""
        heat = orpm.heat_of_all(xy, visible, self.size, self.grid, self.sigma)
        fields = orpm.affinity_fields(xy, visible, self.size, self.joints, self.grid)
        location, written = self.codec.target(xy, xyz, self.size, self.grid)
        return orpm.ORPMMaps(heat, fields, location), written

    def loss(
        self, raw: orpm.ORPMMaps, target: orpm.ORPMMaps, written: Bool[Tensor, "B J h w"], has_depth: Bool[Tensor, " B"],
        known: Bool[Tensor, "B J"],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Of images by the maps of `maps`; the squares are summed over cells. `known` False: the set that an image is of does not
        have that joint, so nothing is said of where it is, nor of the bones that end at it."""

        def squares(a: Tensor, b: Tensor, counted: Bool[Tensor, "B N"]) -> Tensor:
            return ((a - b).square().flatten(2).sum(2) * counted).sum(1).mean() / len(self.joints)

        start, end = torch.tensor(self.joints.bones, device=known.device).mT
        written = written & (known & has_depth[:, None])[..., None, None]
        return {
            "heat": squares(raw.heat, target.heat, known),
            "fields": squares(raw.fields, target.fields, known[:, start] & known[:, end]),
            "space": self.space * self.codec.loss(raw.location, target.location, written),
        }

    @torch.no_grad()
    def regress(self, image: Float[Tensor, "B 3 h w"], views: View) -> list[Regressed]:
        """Everybody in each image, surest first; those of whom nothing could be read are left out. `views`: as of crops.

        A joint that was not found in the image has a confidence of 0 and lies where its 3D joint is seen.
        """
        out = []
        for i, (seen, space) in enumerate(orpm.people(self(image), self.size, self.codec)):
            legible = space.conf.amax(-1) > 0
            n = int(legible.sum())
            xy = apply(invert(views.to_crop[i]).expand(n, 2, 3), seen.xy[legible])
            K = views.K[i].expand(n, 3, 3)
            xyz, conf = space.xyz[legible], seen.conf[legible]
            root = placed(xyz, xy, conf, K)
            xy = torch.where(conf[..., None] > 0, xy, projected(xyz + root[:, None], K))
            out.append(Regressed(xyz, root, xy, conf))
        return out


Whole = Regressor | RootFinder | SceneRegressor
