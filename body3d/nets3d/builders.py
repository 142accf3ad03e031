"""The direct regressors by name: as published, and light ones that learn in an hour of one core.

The light ones stand on EfficientNet-Lite0 and are begun from ImageNet or from each other (`learn.begin`). They have no published
weights.
"""

from collections.abc import Callable

from body3d.codecs.base import Size
from body3d.codecs.locationmap import LocationMap, RedundantMap
from body3d.codecs.volume import CoarseToFine
from body3d.errors import InputError
from body3d.nets.efficientnet_lite import NORMALISE
from body3d.nets3d import dconvmp, mppe, orpm, vnect, volumetric
from body3d.nets3d.methods import ByCoarseToFine, ByIntegral, ByLocationMaps, ByWindows
from body3d.nets3d.regressors import Regressor, RootFinder, SceneRegressor, Whole
from body3d.posenet import PLAIN, Normalise
from body3d.skeletons import H36M17, MPPE18, MUPOTS17, MUPOTS21, JointSet

__all__ = [
    "BUILDERS", "build", "dconvmp_112", "dconvmp_lite", "orpm_320", "orpm_lite", "posenet_256", "posenet_lite", "rootnet_256",
    "rootnet_lite", "vnect_368", "vnect_lite", "volumetric_256", "volumetric_lite",
]  # fmt: skip


def vnect_368(joints: JointSet = MUPOTS21) -> Regressor:
    """As published: blue first, maps in units of 10 mm."""
    bgr = Normalise((0.4, 0.4, 0.4), (1.0, 1.0, 1.0), bgr=True)
    return Regressor(
        "vnect_368", vnect.VNect(len(joints)), ByLocationMaps(LocationMap(joints)), joints, (368, 368), bgr
    )


def vnect_lite(joints: JointSet = H36M17, side: int = 160) -> Regressor:
    """Maps in units of 0.1 m, with bumps of one cell of 8 pixels. `side` of the crop: a multiple of 32."""
    codec = LocationMap(joints, unit=0.1, sigma=1.0, location=0.1)
    net = vnect.vnect_lite(len(joints))
    return Regressor("vnect_lite", net, ByLocationMaps(codec), joints, _square(side), NORMALISE)


def volumetric_256(joints: JointSet = H36M17) -> Regressor:
    """The paper's best: four stacks."""
    net = volumetric.volumetric_4(len(joints))
    return Regressor("volumetric_256", net, ByCoarseToFine(CoarseToFine()), joints, (256, 256), PLAIN)


def volumetric_lite(joints: JointSet = H36M17) -> Regressor:
    net = volumetric.volumetric_lite(len(joints))
    codec = CoarseToFine((1, 16), sigma=1.5, teach="entropy")
    return Regressor("volumetric_lite", net, ByCoarseToFine(codec), joints, (128, 128), NORMALISE)


def posenet_256(joints: JointSet = MPPE18) -> Regressor:
    return Regressor("posenet_256", mppe.PoseNet(len(joints)), ByIntegral(), joints, (256, 256))


def posenet_lite(joints: JointSet = H36M17, side: int = 160) -> Regressor:
    """`side` of the crop: a multiple of 32."""
    net = mppe.posenet_lite(len(joints))
    return Regressor("posenet_lite", net, ByIntegral(), joints, _square(side), NORMALISE)


def rootnet_256(joints: JointSet = MPPE18) -> RootFinder:
    """Depth in millimetres, as published."""
    return RootFinder("rootnet_256", mppe.RootNet(), joints, (256, 256), unit=0.001)


def rootnet_lite(joints: JointSet = H36M17) -> RootFinder:
    return RootFinder("rootnet_lite", mppe.rootnet_lite(), joints, (128, 128), unit=0.1, normalise=NORMALISE)


def dconvmp_112(joints: JointSet = H36M17, phase: dconvmp.Phase = dconvmp.MULTITASK[0]) -> Regressor:
    method = ByWindows(dconvmp.PoseTarget(joints), phase=phase)
    return Regressor("dconvmp_112", dconvmp.DconvMP(len(joints)), method, joints, (112, 112))


def dconvmp_lite(joints: JointSet = H36M17, side: int = 160, phase: dconvmp.Phase = dconvmp.MULTITASK[0]) -> Regressor:
    """`side` of the crop: a multiple of 32. Windows are a quarter of it."""
    method = ByWindows(dconvmp.PoseTarget(joints), dconvmp.Windows(side=side / 4), phase)
    net = dconvmp.dconvmp_lite(len(joints), side)
    return Regressor("dconvmp_lite", net, method, joints, _square(side), NORMALISE)


def orpm_320(joints: JointSet = MUPOTS17) -> SceneRegressor:
    """A ResNet-50 on images of 320 x 320; the paper's training size is not stated."""
    return SceneRegressor("orpm_320", orpm.ORPM(joints), _redundant(joints, 0.1), (320, 320), 8, space=1.0)


def orpm_lite(joints: JointSet = H36M17) -> SceneRegressor:
    net = orpm.orpm_lite(joints)
    return SceneRegressor("orpm_lite", net, _redundant(joints, 0.1), (160, 160), 4, space=1.0, normalise=NORMALISE)


def _square(side: int) -> Size:
    if side < 32 or side % 32:
        raise InputError(f"crops of this network have a side that is a multiple of 32 pixels, got {side}")
    return side, side


def _redundant(joints: JointSet, unit: float) -> RedundantMap:
    """Human3.6M's joints: its thorax is the neck, and its neck/nose lies where others have the head."""
    if joints is not H36M17:
        return RedundantMap(joints, unit=unit)
    usual = RedundantMap()
    limbs = tuple(("neck_nose", "head_top") if "head" in limb else limb for limb in usual.limbs)
    return RedundantMap(joints, anchors=("thorax", "pelvis"), limbs=limbs, unit=unit)


BUILDERS: dict[str, Callable[..., Whole]] = {
    build.__name__: build
    for build in (
        vnect_368, vnect_lite, volumetric_256, volumetric_lite, posenet_256, posenet_lite, rootnet_256, rootnet_lite, dconvmp_112,
        dconvmp_lite, orpm_320, orpm_lite,
    )
}  # fmt: skip

SIZED = (vnect_lite, posenet_lite, dconvmp_lite)  # they come for crops of several sizes


def build(name: str, joints: JointSet, size: Size | None = None) -> Whole:
    """The network of that name, for crops of `size` if it comes for several."""
    builder = BUILDERS[name]
    return builder(joints, size[0]) if size is not None and builder in SIZED else builder(joints)
