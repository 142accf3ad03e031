"""Joint sets: which joints a tensor's `J` axis holds, in which order, joined by which bones.

One vocabulary of names runs through all sets, so `convert` needs no table of indices. "left" and "right" are the subject's.
Where a set's point is only near the vocabulary's (MediaPipe's `foot_index` is the tip of the foot, here `left_big_toe`; the
hip of each detector lies elsewhere in the pelvis), the comment beside the set says so.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.dataset_joints import (
    AIC14,
    CPM14,
    CROWDPOSE14,
    FLIC9,
    FLIC11,
    H36M14,
    H36M16,
    H36M17,
    H36M32,
    HALPE26,
    LSP14,
    MPI_INF_3DHP17,
    MPI_INF_3DHP28,
    MPII16,
    MPPE18,
    MUPOTS17,
    MUPOTS21,
    PANOPTIC15,
    PANOPTIC19,
    PANOPTIC_MPI15,
)  # fmt: skip
from body3d.joint_set import JointSet, both_sides, joint_names, mirrored, tree

__all__ = [
    "JointSet", "COCO17", "COCO_WHOLEBODY133", "BODY18", "BODY25", "OPENPOSE137", "MEDIAPIPE33", "HAND21",
    "MEDIAPIPE_FACE468", "FACE68", "MPII16", "LSP14", "CPM14", "FLIC11", "FLIC9", "AIC14", "CROWDPOSE14", "HALPE26",
    "H36M32", "H36M17", "H36M16", "H36M14", "MPPE18", "MPI_INF_3DHP28", "MPI_INF_3DHP17", "MUPOTS21", "MUPOTS17",
    "PANOPTIC19", "PANOPTIC15", "PANOPTIC_MPI15",
    "SMPL24", "SMPL45", "SMPLH52", "SMPLX55", "SMPLX127", "SMPLX144", "convert_points", "mirrored",
]  # fmt: skip


# ---- parts that several sets share ---------------------------------------------------------------------------------
FINGERS = ("thumb", "index", "middle", "ring", "pinky")


def _hand(side: str, root: str) -> tuple[str, ...]:
    """The 20 points of a hand after its root: three joints and the tip of each finger, thumb to little finger."""
    chain = lambda f: (f"{side}_{f}1", f"{side}_{f}2", f"{side}_{f}3", f"{side}_{f}_tip")
    return tuple(
        f"{joint}<{parent}" for f in FINGERS for parent, joint in zip((root, *chain(f)[:3]), chain(f), strict=True)
    )


_JAW = (
    *(f"right_jaw_{i}<right_jaw_{i + 1}" for i in range(7)),
    "right_jaw_7<chin",
    "chin<lips_lower",
    "left_jaw_7<chin",
    *(f"left_jaw_{i}<left_jaw_{i + 1}" for i in reversed(range(7))),
)
_INNER_FACE = (
    *(f"right_brow_{i}<right_brow_{i + 1}" for i in range(4)), "right_brow_4<nose_bridge_0",
    "left_brow_4<nose_bridge_0", *(f"left_brow_{i}<left_brow_{i + 1}" for i in reversed(range(4))),
    *(f"nose_bridge_{i}<nose_bridge_{i + 1}" for i in range(3)), "nose_bridge_3<nose_base",
    "right_nostril_0<right_nostril_1", "right_nostril_1<nose_base", "nose_base",
    "left_nostril_1<nose_base", "left_nostril_0<left_nostril_1",
    "right_eye_outer<right_eye_upper_outer", "right_eye_upper_outer<right_eye_upper_inner",
    "right_eye_upper_inner<right_eye_inner", "right_eye_inner<nose_bridge_0",
    "right_eye_lower_inner<right_eye_inner", "right_eye_lower_outer<right_eye_lower_inner",
    "left_eye_inner<nose_bridge_0", "left_eye_upper_inner<left_eye_inner",
    "left_eye_upper_outer<left_eye_upper_inner", "left_eye_outer<left_eye_upper_outer",
    "left_eye_lower_outer<left_eye_lower_inner", "left_eye_lower_inner<left_eye_inner",
    "mouth_right<mouth_upper_right_0", "mouth_upper_right_0<mouth_upper_right_1", "mouth_upper_right_1<mouth_upper",
    "mouth_upper<nose_base", "mouth_upper_left_1<mouth_upper", "mouth_upper_left_0<mouth_upper_left_1",
    "mouth_left<mouth_upper_left_0", "mouth_lower_left_0<mouth_left", "mouth_lower_left_1<mouth_lower_left_0",
    "mouth_lower<mouth_lower_left_1", "mouth_lower_right_1<mouth_lower", "mouth_lower_right_0<mouth_lower_right_1",
    "lips_right<lips_upper_right", "lips_upper_right<lips_upper", "lips_upper<mouth_upper", "lips_upper_left<lips_upper",
    "lips_left<lips_upper_left", "lips_lower_left<lips_lower", "lips_lower<mouth_lower", "lips_lower_right<lips_lower",
)  # fmt: skip


JAW17 = joint_names(_JAW)
INNER_FACE51 = joint_names(_INNER_FACE)
HAND_POINTS = {side: (f"{side}_hand_root", *joint_names(_hand(side, "root"))) for side in ("left", "right")}

# ---- two-dimensional sets ------------------------------------------------------------------------------------------
_COCO = (
    "nose", "left_eye<nose", "right_eye<nose", "left_ear<left_eye", "right_ear<right_eye",
    "left_shoulder<nose", "right_shoulder<nose", *both_sides("L_elbow<L_shoulder", "L_wrist<L_elbow"),
    *both_sides("L_hip<L_shoulder", "L_knee<L_hip", "L_ankle<L_knee"),
)  # fmt: skip
_COCO_SIGMAS = (.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089)  # fmt: skip
COCO17 = tree("coco17", _COCO, _COCO_SIGMAS)

# The sigmas of COCO-WholeBody (Jin et al., ECCV 2020), as its evaluation code publishes them.
_FOOT_SIGMAS = (0.068, 0.066, 0.066, 0.092, 0.094, 0.094)
_FACE_SIGMAS = (
    .042, .043, .044, .043, .040, .035, .031, .025, .020, .023, .029, .032, .037, .038, .043, .041, .045,
    .013, .012, .011, .011, .012, .012, .011, .011, .013, .015, .009, .007, .007, .007, .012, .009, .008,
    .016, .010, .017, .011, .009, .011, .009, .007, .013, .008, .011, .012, .010, .034, .008, .008, .009,
    .008, .008, .007, .010, .008, .009, .009, .009, .007, .007, .008, .011, .008, .008, .008, .010, .008,
)  # fmt: skip
_HAND_SIGMAS = (
    .029, .022, .035, .037, .047, .026, .025, .024, .035, .018, .024, .022, .026, .017, .021, .021, .032, .02, .019, .022, .031,
)  # fmt: skip
FACE68 = tree("face68", (*_JAW, *_INNER_FACE), _FACE_SIGMAS)
HAND21 = {
    side: tree(f"{side}_hand21", (f"{side}_hand_root", *_hand(side, f"{side}_hand_root"))) for side in HAND_POINTS
}
_TWO_HANDS = tuple(
    line for s in ("left", "right") for line in (f"{s}_hand_root<{s}_wrist", *_hand(s, f"{s}_hand_root"))
)
COCO_WHOLEBODY133 = tree(
    "coco_wholebody133",
    (
        *_COCO,
        *(f"{s}_{t}<{s}_ankle" for s in ("left", "right") for t in ("big_toe", "small_toe", "heel")),
        *_JAW, *("nose_base<nose" if line == "nose_base" else line for line in _INNER_FACE),
        *_TWO_HANDS,
    ),
    (*_COCO_SIGMAS, *_FOOT_SIGMAS, *_FACE_SIGMAS, *_HAND_SIGMAS, *_HAND_SIGMAS),
)  # fmt: skip
FEET23 = JointSet("body_feet23", COCO_WHOLEBODY133.names[:23], COCO_WHOLEBODY133.parents[:23])

_BODY25 = (
    "nose<neck", "neck", "right_shoulder<neck", "right_elbow<right_shoulder", "right_wrist<right_elbow",
    "left_shoulder<neck", "left_elbow<left_shoulder", "left_wrist<left_elbow", "mid_hip<neck",
    "right_hip<mid_hip", "right_knee<right_hip", "right_ankle<right_knee",
    "left_hip<mid_hip", "left_knee<left_hip", "left_ankle<left_knee",
    "right_eye<nose", "left_eye<nose", "right_ear<right_eye", "left_ear<left_eye",
    "left_big_toe<left_ankle", "left_small_toe<left_big_toe", "left_heel<left_ankle",
    "right_big_toe<right_ankle", "right_small_toe<right_big_toe", "right_heel<right_ankle",
)  # fmt: skip
BODY25 = tree("body25", _BODY25)
BODY18 = tree(
    "body18",
    (
        "nose<neck", "neck", *(f"{s}_{c}<{p}" for s in ("right", "left") for c, p in (
            ("shoulder", "neck"), ("elbow", f"{s}_shoulder"), ("wrist", f"{s}_elbow"))),
        *(f"{s}_{c}<{p}" for s in ("right", "left") for c, p in (
            ("hip", "neck"), ("knee", f"{s}_hip"), ("ankle", f"{s}_knee"))),
        "right_eye<nose", "left_eye<nose", "right_ear<right_eye", "left_ear<left_eye",
    ),
)  # fmt: skip
# OpenPose's BODY_25, left hand, right hand and the first 68 of its 70 face points (the last two are the pupils).
OPENPOSE137 = tree(
    "openpose137",
    (
        *_BODY25, *_TWO_HANDS, *_JAW, *("nose_base<nose" if line == "nose_base" else line for line in _INNER_FACE),
        "right_pupil<right_eye", "left_pupil<left_eye",
    ),
)  # fmt: skip

# BlazePose. Its `pinky`, `index` and `thumb` are knuckles; `foot_index` is the tip of the foot; its hips lie 10-14 % of the
# torso below Human3.6M's.
MEDIAPIPE33 = tree(
    "mediapipe33",
    (
        "nose", "left_eye_inner<nose", "left_eye<left_eye_inner", "left_eye_outer<left_eye",
        "right_eye_inner<nose", "right_eye<right_eye_inner", "right_eye_outer<right_eye",
        "left_ear<left_eye_outer", "right_ear<right_eye_outer", "mouth_left<nose", "mouth_right<nose",
        "left_shoulder<nose", "right_shoulder<nose", *both_sides("L_elbow<L_shoulder", "L_wrist<L_elbow"),
        *both_sides("L_pinky1<L_wrist", "L_index1<L_wrist", "L_thumb2<L_wrist"),
        *both_sides("L_hip<L_shoulder", "L_knee<L_hip", "L_ankle<L_knee", "L_heel<L_ankle", "L_big_toe<L_ankle"),
    ),
)  # fmt: skip
MEDIAPIPE_FACE468 = JointSet("mediapipe_face468", tuple(f"mesh_{i}" for i in range(468)), (-1,) * 468)

# ---- three-dimensional sets ----------------------------------------------------------------------------------------
_SMPL22 = (
    "pelvis", *both_sides("L_hip<pelvis"), "spine1<pelvis", *both_sides("L_knee<L_hip"), "spine2<spine1",
    *both_sides("L_ankle<L_knee"),
    "spine3<spine2", *both_sides("L_foot<L_ankle"), "neck<spine3", *both_sides("L_collar<spine3"), "head<neck",
    *both_sides("L_shoulder<L_collar", "L_elbow<L_shoulder", "L_wrist<L_elbow"),
)  # fmt: skip


def _mano(side: str) -> tuple[str, ...]:
    """The 15 hand joints in the order of the SMPL family: index, middle, little, ring finger, thumb."""
    return tuple(
        f"{side}_{f}{k}<{side}_{f}{k - 1}" if k > 1 else f"{side}_{f}1<{side}_wrist"
        for f in ("index", "middle", "pinky", "ring", "thumb") for k in (1, 2, 3)
    )  # fmt: skip


SMPL22 = tree("smpl22", _SMPL22)
BODY_JOINTS = SMPL22.below_root  # what the SMPL family's `body_pose` turns
SMPL24 = tree("smpl24", (*_SMPL22, *both_sides("L_hand<L_wrist")))
SMPLH52 = tree("smplh52", (*_SMPL22, *_mano("left"), *_mano("right")))
_SMPLX = (*_SMPL22, "jaw<head", *both_sides("L_eye_smplhf<head"), *_mano("left"), *_mano("right"))
SMPLX55 = tree("smplx55", _SMPLX)
# The 21 vertices that the smplx package appends to the joints, in its order.
PICKED_VERTICES21 = (
    "nose<head", "right_eye<nose", "left_eye<nose", "right_ear<right_eye", "left_ear<left_eye",
    *(f"{s}_{t}<{s}_ankle" for s in ("left", "right") for t in ("big_toe", "small_toe", "heel")),
    *(f"{s}_{f}_tip<{s}_{f}3" for s in ("left", "right") for f in FINGERS),
)  # fmt: skip
# SMPL's own joints know no fingers: the tips hang on the hands.
SMPL45 = tree(
    "smpl45",
    (
        *_SMPL22, *both_sides("L_hand<L_wrist"), *PICKED_VERTICES21[:11],
        *(f"{s}_{f}_tip<{s}_hand" for s in ("left", "right") for f in FINGERS),
    ),
)  # fmt: skip
_NO_EAR_FACE = tuple("nose_base<nose" if line == "nose_base" else line for line in _INNER_FACE)
SMPLX127 = tree("smplx127", (*_SMPLX, *PICKED_VERTICES21, *_NO_EAR_FACE))
SMPLX144 = tree("smplx144", (*_SMPLX, *PICKED_VERTICES21, *_NO_EAR_FACE, *_JAW))

# ---- conversion ----------------------------------------------------------------------------------------------------
# Joints that a set lacks but that are a mean of joints that it has. Each is tried in turn; all parts must be there.
SYNTHETIC: dict[str, tuple[tuple[str, ...], ...]] = {
    "mid_hip": (("pelvis",), ("left_hip", "right_hip")),
    "pelvis": (("mid_hip",), ("left_hip", "right_hip")),
    "neck": (("left_shoulder", "right_shoulder"),),
    "thorax": (("left_shoulder", "right_shoulder"),),
    "spine": (("pelvis", "thorax"), ("left_hip", "right_hip", "left_shoulder", "right_shoulder")),
    "left_hand_root": (("left_wrist",),),
    "right_hand_root": (("right_wrist",),),
    "left_wrist": (("left_hand_root",),),
    "right_wrist": (("right_hand_root",),),
    "nose": (("nose_bridge_3",),),
    "left_eye": (("left_eye_inner", "left_eye_outer"),),
    "right_eye": (("right_eye_inner", "right_eye_outer"),),
    # Near points of other rigs: Human3.6M and MPI-INF-3DHP end the foot at the toes, SMPL at the ball of the foot.
    "mid_shoulder": (("left_shoulder", "right_shoulder"),),
    "left_foot": (("left_toe_base",),),
    "right_foot": (("right_toe_base",),),
    "left_toe_base": (("left_foot",),),
    "right_toe_base": (("right_foot",),),
    "left_toe": (("left_big_toe",), ("left_toe_end",)),
    "right_toe": (("right_big_toe",), ("right_toe_end",)),
    "left_toe_end": (("left_toe",), ("left_big_toe",)),
    "right_toe_end": (("right_toe",), ("right_big_toe",)),
    "left_big_toe": (("left_toe",), ("left_toe_end",)),
    "right_big_toe": (("right_toe",), ("right_toe_end",)),
    # Human3.6M's raw rig repeats points: the root as the foot of the spine, the thorax as the start of both arms.
    "spine_base": (("pelvis",), ("mid_hip",), ("left_hip", "right_hip")),
    "left_collar_base": (("thorax",), ("left_shoulder", "right_shoulder")),
    "right_collar_base": (("thorax",), ("left_shoulder", "right_shoulder")),
}


def conversion_matrix(source: JointSet, target: JointSet) -> tuple[Float[Tensor, "K J"], Float[Tensor, "K J"]]:
    """(weights, parts): target = weights @ source; `parts` marks the source joints each target joint is made of.

    A row of zeros is a joint that cannot be made.
    """
    weights = torch.zeros(len(target), len(source))
    for k, name in enumerate(target.names):
        for recipe in ((name,), *SYNTHETIC.get(name, ())):
            if all(part in source for part in recipe):
                weights[k, source.indices(recipe)] = 1 / len(recipe)
                break
    return weights, (weights > 0).to(weights.dtype)


def convert_points(
    points: Float[Tensor, "*B J D"], conf: Float[Tensor, "*B J"], source: JointSet, target: JointSet
) -> tuple[Float[Tensor, "*B K D"], Float[Tensor, "*B K"]]:
    """Points of one joint set in the order of another, by name.

    A joint that both sets have is copied bit for bit; one in `SYNTHETIC` is the mean of its parts with the smallest of their
    confidences; any other has confidence 0 and stands at the origin.
    """
    weights, parts = (m.to(points) for m in conversion_matrix(source, target))
    known = torch.nan_to_num(points)  # an unknown joint (confidence 0) may hold NaN and must not spread it
    out = weights @ known
    out_conf = torch.where(parts > 0, conf.unsqueeze(-2), torch.inf).amin(-1)
    return out, torch.where(parts.sum(-1) > 0, out_conf, torch.zeros_like(out_conf))
