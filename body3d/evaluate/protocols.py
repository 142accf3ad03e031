"""The protocols by name. "Protocol 1" means one thing to Martinez and VideoPose3D and another to 3DMPPE: here both have names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.errors import InputError
from body3d.evaluate.poses import Poses, same_people
from body3d.evaluate.result import Figure, Result, averaged
from body3d.geometry import align
from body3d.metrics import pck
from body3d.metrics.mpjpe import joint_errors, masked_mean, root_relative
from body3d.metrics.pck3d import COUNTED14, correct_people, root_ap
from body3d.skeletons import H36M17, LSP14, MPI_INF_3DHP17, MPII16, MUPOTS17, JointSet

__all__ = ["PROTOCOLS", "Protocol", "evaluate"]

MM = 1000.0
REACH = 0.150  # metres, of 3DPCK
STEPS = [REACH * i / 30 for i in range(31)]  # the official thresholds, 0 among them
LSP15 = JointSet("lsp15", (*LSP14.names, "mid_hip"), (*LSP14.parents, -1))
_LSP_LIMBS = {name: tuple(end.replace("neck", "upper_neck") for end in ends) for name, ends in pck.LIMBS.items()}


@dataclass(frozen=True)
class Protocol:
    about: str
    key: str  # which arrays of the files are compared: xyz, xy, vertices; coco: two files of COCO's JSON
    joints: JointSet | None  # both are brought into this set; None: they must be in one already
    figures: Callable[[Poses, Poses], tuple[Figure, ...]]
    paired: bool = True  # every prediction belongs to one pose of the truth
    counted: Callable[[JointSet], Sequence[str]] | None = None  # the joints that predictions must have; None: all
    shares: bool = False  # of correct joints: one that was not found in a pose is wrong there


def evaluate(name: str, predicted: Poses, truth: Poses) -> Result:
    """Score poses by a protocol. InputError if it does not exist or the poses do not fit it or each other."""
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if protocol.paired:
        predicted = same_people(predicted, truth)
    if truth.joints is not None:
        joints = protocol.joints or truth.joints
        truth, predicted = truth.convert(joints), predicted.convert(joints)
    if predicted.points.shape[1:] != truth.points.shape[1:]:
        raise InputError(
            f"{predicted.source} has {predicted.points.shape[1]} points a pose, {truth.source} {truth.points.shape[1]}"
        )
    if not (truth.conf > 0).any():
        raise InputError(f"{truth.source} has no point with a conf above 0: there is nothing to compare with")
    wanted = (truth.conf > 0) if protocol.paired else (truth.conf > 0).any(0)
    if protocol.counted is not None and truth.joints is not None:
        names = protocol.counted(truth.joints)
        wanted = wanted & torch.tensor([name in names for name in truth.joints.names])
    found = predicted.conf > 0
    lost = wanted & ~found
    if protocol.shares:
        predicted = replace(predicted, points=torch.where(found.unsqueeze(-1), predicted.points, torch.inf))
        lost = lost & ~found.any(0)  # what no pose has, a set of other joints does not have
    if lost.any():
        lacking = lost.any(0).nonzero()[:, 0].tolist()
        names = f"points {lacking[:5]}" if truth.joints is None else ", ".join(truth.joints.names[j] for j in lacking)
        rows = lost.any(1).nonzero()[:, 0].tolist()
        where = (
            "" if len(rows) == len(predicted) else f" in {len(rows)} poses (conf is 0), the first is number {rows[0]}"
        )
        raise InputError(f"{predicted.source} has no {names}, which {name} counts{where}")
    return Result(name, protocol.about, protocol.figures(predicted, truth))


# ---- 3D poses ------------------------------------------------------------------------------------------------------
def _position_errors(
    name: str, root: str | None, alignment: str, counted: Sequence[str] | None = None
) -> Callable[[Poses, Poses], Figure]:
    """Millimetres per joint, after the root is put in place and the alignment done."""

    def figure(predicted: Poses, truth: Poses) -> Figure:
        p, t = _rooted(predicted, root), _rooted(truth, root)
        if alignment != "none":
            p = align(p, t, truth.conf, scale=alignment == "similarity")
        return _summary(name, "mm", MM * joint_errors(p, t), truth, counted, root or "none", alignment)

    return figure


def _pck3d(joints: Sequence[str]) -> Callable[[Poses, Poses], tuple[Figure, ...]]:
    """3DPCK at 150 mm (strictly nearer) and its mean over 31 thresholds, root-relative."""

    def figures(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
        error = joint_errors(_rooted(predicted, "pelvis"), _rooted(truth, "pelvis"))
        share = torch.stack([(error < t).to(error) for t in STEPS])
        at150 = _summary("3DPCK@150mm", "%", 100 * share[-1], truth, joints, "pelvis", "none", by_pose=False)
        curve = [_summary("", "%", 100 * s, truth, joints, "pelvis", "none", by_pose=False).total for s in share]
        auc = _summary("AUC 0-150mm", "%", 100 * share.mean(0), truth, joints, "pelvis", "none", by_pose=False)
        return at150, _with_curve(auc, [MM * t for t in STEPS], curve)

    return figures


def _root_of(joints: JointSet) -> str:
    root = joints.parents.index(-1)
    return "pelvis" if "pelvis" in joints else joints.names[root]


def _root_position(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
    name = _root_of(_set(truth))
    row = _set(truth).index(name)
    difference = MM * (predicted.points[:, row] - truth.points[:, row])
    conf = truth.conf[:, row, None]
    values = {"MRPE": difference.norm(dim=-1), **{f"MRPE {a}": difference[:, i].abs() for i, a in enumerate("xyz")}}
    return tuple(
        _summary(key, "mm", value[:, None], truth, None, "none", "none", columns=(name,), conf=conf)
        for key, value in values.items()
    )


def _several_people(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
    """MuPoTS-3D: people of an image are matched by their roots, joints count over all people."""
    for poses, needs in ((predicted, "images"), (truth, "images")):
        if needs not in poses.text:
            raise InputError(f"{poses.source} has no `images`: which image each person stands in")
    truth = truth.pick((truth.conf > 0).any(1).nonzero()[:, 0].tolist())  # of the others nothing is known
    scores = predicted.extra.get("scores", torch.ones(len(predicted), dtype=torch.float64))
    root = _set(truth).index("pelvis")
    for poses in (predicted, truth):
        _rooted(poses, "pelvis")  # people are matched by it: raises if one's is unknown
    groups = {image: ([], []) for image in dict.fromkeys(truth.text["images"])}
    for which, poses in enumerate((predicted, truth)):
        for i, image in enumerate(poses.text["images"]):
            if image in groups:
                groups[image][which].append(i)
    right = [correct_people(predicted.points[p], truth.points[t], root, REACH) for p, t in groups.values()]
    absolute, relative, matched = (torch.cat(parts) for parts in zip(*right, strict=True))
    truth = truth.pick([i for _, t in groups.values() for i in t])  # in the order of the images
    share = lambda name, values, of: _summary(
        name, "%", 100 * values.double(), of, COUNTED14, "none" if "abs" in name else "pelvis", "none", by_pose=False
    )
    found = matched.nonzero()[:, 0].tolist()
    shares = (
        share("3DPCK_abs@150mm", absolute, truth),
        share("3DPCK_rel@150mm", relative, truth),
        share("3DPCK_rel@150mm of matched people", relative[found], truth.pick(found)),
    )
    ap = root_ap(
        [predicted.points[p, root] for p, _ in groups.values()],
        [scores[p] for p, _ in groups.values()],
        [points[:, root] for points in truth.points.split([len(t) for _, t in groups.values()])],
    )
    return *shares, Figure("root AP@25cm", "%", "pelvis", "none", "none", 100 * ap, len(groups))


def _mesh(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
    columns = tuple(f"vertex {v}" for v in range(truth.points.shape[1]))
    about = f"{len(columns)} vertices"

    def figure(name: str, p: Tensor, t: Tensor, root: str, alignment: str) -> Figure:
        values = MM * masked_mean(joint_errors(p, t), truth.conf)[:, None]
        return _summary(name, "mm", values, truth, None, root, alignment, columns=(about,))

    figures = [figure("PVE, camera space", predicted.points, truth.points, "none", "none")]
    if "root" in predicted.extra and "root" in truth.extra:
        p, t = (poses.points - poses.extra["root"][:, None] for poses in (predicted, truth))
        figures.append(figure("PVE", p, t, "given root", "none"))
    aligned = align(predicted.points, truth.points, truth.conf, True)
    return *figures, figure("PA-PVE", aligned, truth.points, "none", "similarity")


def _motion(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
    """Errors of first and second differences of the root-relative poses, within each recording."""
    takes = truth.text.get("takes", ("",) * len(truth))
    p, t = _rooted(predicted, "pelvis"), _rooted(truth, "pelvis")
    figures = []
    for name, order in (("MPJVE", 1), ("acceleration error", 2)):
        values = torch.full(t.shape[:2], torch.nan, dtype=t.dtype)
        for take in dict.fromkeys(takes):
            rows = torch.tensor([i for i, other in enumerate(takes) if other == take])
            if len(rows) <= order:
                continue
            error = (p[rows].diff(n=order, dim=0) - t[rows].diff(n=order, dim=0)).norm(dim=-1)
            whole = (truth.conf[rows] > 0).unfold(0, order + 1, 1).all(-1)
            values[rows[order:]] = torch.where(whole, MM * error, torch.nan)
        unit = "mm/frame" if order == 1 else "mm/frame²"
        if "fps" in truth.extra:
            fps = truth.extra["fps"].item()
            if fps <= 0:
                raise InputError(f"{truth.source}: fps must be above 0, got {fps:g}")
            values, unit = values * fps**order, unit.replace("frame", "s")
        figures.append(_summary(name, unit, values, truth, None, "pelvis", "none"))
    return tuple(figures)


# ---- 2D poses ------------------------------------------------------------------------------------------------------
def _pck2d(
    name: str, size: Callable[[Poses], Float[Tensor, " N"]], about_size: str, threshold: float,
    left_out: Sequence[str] = (),
) -> Callable[[Poses, Poses], tuple[Figure, ...]]:  # fmt: skip
    def figures(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
        counted = [n for n in _set(truth).names if n not in left_out]
        relative = (predicted.points - truth.points).norm(dim=-1) / size(truth)[:, None]
        steps = [threshold * i / 20 for i in range(21)]
        figure = lambda label, values: _summary(
            label, "%", 100 * values, truth, counted, "none", f"in units of {about_size}", by_pose=False
        )
        curve = [figure("", (relative <= s).double()).total for s in steps]
        area = torch.stack([(relative <= s).double() for s in steps])
        return (
            _with_curve(figure(f"{name}@{threshold:g}", (relative <= threshold).double()), steps, curve),
            figure(f"{name} AUC 0-{threshold:g}", torch.trapezoid(area, dx=1 / 20, dim=0)),
        )

    return figures


def _torso(truth: Poses) -> Float[Tensor, " N"]:
    joints = _set(truth)
    names = ("left_shoulder", "right_hip")
    ends = joints.indices(names) if all(name in joints for name in names) else []
    if not ends or not (truth.conf[:, ends] > 0).all():
        raise InputError(f"{truth.source}: PCK by the torso needs left_shoulder and right_hip of everybody")
    return pck.torso_size(truth.points, joints)


def _head(truth: Poses) -> Float[Tensor, " N"]:
    if "head_boxes" not in truth.extra:
        raise InputError(f"{truth.source} has no `head_boxes` (N, 4), which PCKh is relative to")
    return pck.head_size(truth.extra["head_boxes"])


def _parts(predicted: Poses, truth: Poses) -> tuple[Figure, ...]:
    figures = []
    for strict in (True, False):
        share = pck.pcp(predicted.points, truth.points, truth.conf > 0, _set(truth), strict, _LSP_LIMBS)
        share = {name: 100 * value for name, value in share.items()}
        name = f"PCP {'strict: both ends' if strict else 'loose: their mean'} within half the limb"
        figures.append(Figure(name, "%", "limbs", "none", "none", share.pop("mean"), len(truth), by_joint=share))
    return tuple(figures)


# ---- what they share -----------------------------------------------------------------------------------------------
def _set(poses: Poses) -> JointSet:
    if poses.joints is None:
        raise InputError(f"{poses.source} holds meshes, where poses were expected")
    return poses.joints


def _rooted(poses: Poses, root: str | None) -> Float[Tensor, "N J 3"]:
    """From that joint (None: as they stand). InputError if the set lacks it, or a pose that has other joints does."""
    if root is None:
        return poses.points
    joints = _set(poses)
    if root not in joints:
        raise InputError(f"{poses.source}: {joints.name} has no {root}, from which the errors are measured")
    row = joints.index(root)
    known = poses.conf > 0
    if lost := (known.any(1) & ~known[:, row]).nonzero()[:, 0].tolist():
        raise InputError(
            f"{poses.source} has no {root} in {len(lost)} poses (conf is 0), the first is number {lost[0]}: "
            "errors are measured from it; leave such poses out"
        )
    return root_relative(poses.points, row)


def _summary(
    name: str, unit: str, values: Float[Tensor, "N C"], truth: Poses, counted: Sequence[str] | None, root: str,
    alignment: str, by_pose: bool = True, columns: tuple[str, ...] | None = None, conf: Tensor | None = None,
) -> Figure:  # fmt: skip
    about = columns[0] if columns else ""
    if columns is None:
        joints = _set(truth)
        columns = tuple(counted or joints.names)
        rows = joints.indices(columns)
        values, conf = values[:, rows], truth.conf[:, rows]
        about = f"{joints.name} ({len(columns)}{'' if len(columns) == len(joints) else f' of {len(joints)}'})"
    known: Bool[Tensor, "N C"] = torch.ones_like(values, dtype=torch.bool) if conf is None else conf > 0
    values = torch.where(known, values, torch.nan)
    total, by_action, by_column, poses = averaged(values, columns, truth.text.get("actions"), by_pose)
    return Figure(name, unit, about, root, alignment, total, poses, by_action, by_column)


def _with_curve(figure: Figure, thresholds: Sequence[float], values: Sequence[float]) -> Figure:
    return replace(figure, curve=(tuple(thresholds), tuple(values)))


def _all(*makers: Callable[[Poses, Poses], Figure]) -> Callable[[Poses, Poses], tuple[Figure, ...]]:
    return lambda predicted, truth: tuple(make(predicted, truth) for make in makers)


_MPJPE = _position_errors("MPJPE", "pelvis", "none")
_PA = _position_errors("PA-MPJPE", "pelvis", "similarity")
_PA_RIGID = _position_errors("PA-MPJPE without scale", "pelvis", "rotation and translation")


def _3dhp(joints: Sequence[str]) -> Callable[[Poses, Poses], tuple[Figure, ...]]:
    return lambda predicted, truth: (*_pck3d(joints)(predicted, truth), _MPJPE(predicted, truth))


_TORSO = _pck2d("PCK", _torso, "left shoulder to right hip", 0.2)
_NOT_IN_PCKH = ("pelvis", "thorax")
_PCKH = _pck2d("PCKh", _head, "0.6 of the head's diagonal", 0.5, _NOT_IN_PCKH)

PROTOCOLS: dict[str, Protocol] = {
    "h36m-1": Protocol("Human3.6M, protocol 1 of Martinez and VideoPose3D (S9 and S11)", "xyz", H36M17, _all(_MPJPE)),
    "h36m-2": Protocol("Human3.6M, protocol 2 of Martinez and VideoPose3D (S9 and S11)", "xyz", H36M17, _all(_PA)),
    "3dmppe-1": Protocol("Human3.6M, protocol 1 of 3DMPPE (S11, every 64th frame)", "xyz", H36M17, _all(_PA_RIGID)),
    "3dmppe-2": Protocol("Human3.6M, protocol 2 of 3DMPPE (S9, S11, every 64th frame)", "xyz", H36M17, _all(_MPJPE)),
    "3dhp-14": Protocol(
        "MPI-INF-3DHP by its official rule: 3DPCK and AUC over 14 joints, MPJPE over 17", "xyz", MPI_INF_3DHP17, _3dhp(COUNTED14)
    ),
    "3dhp-17": Protocol(
        "MPI-INF-3DHP with all 17 joints, as many papers count", "xyz", MPI_INF_3DHP17, _3dhp(MPI_INF_3DHP17.names)
    ),
    "mupots": Protocol(
        "MuPoTS-3D: 3DPCK over 14 joints and all people (give each one's sequence as `actions` for the mean of sequences). Unlike "
        "the official script it matches people by roots in space, not by joints in the image, and keeps predicted limb lengths, "
        "which that script makes the true ones",
        "xyz", MUPOTS17, _several_people, paired=False, counted=lambda _: COUNTED14, shares=True,
    ),
    "mrpe": Protocol("the root's absolute position", "xyz", None, _root_position, counted=lambda joints: (_root_of(joints),)),
    "motion": Protocol("errors of velocity and acceleration, root-relative", "xyz", None, _motion),
    "mesh": Protocol("per-vertex errors of meshes of one topology", "vertices", None, _mesh),
    "lsp-pck": Protocol("LSP: PCK@0.2 of left shoulder to right hip", "xy", LSP14, _TORSO, shares=True),
    "lsp-pcp": Protocol("LSP: correct parts", "xy", LSP15, _parts, shares=True),
    "flic-pck": Protocol("FLIC: PCK@0.2 of left shoulder to right hip", "xy", None, _TORSO, shares=True),
    "mpii-pckh": Protocol(
        "MPII: PCKh@0.5 over 14 joints (no pelvis, no thorax)", "xy", MPII16, _PCKH,
        counted=lambda joints: [name for name in joints.names if name not in _NOT_IN_PCKH], shares=True,
    ),
}  # fmt: skip
