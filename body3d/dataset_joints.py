"""The joint sets of the pose data sets, each in the order of its own files.

A point that another set places elsewhere has a name of its own. `neck` and `thorax` are the foot of the neck, halfway between
the shoulders; `upper_neck` (LSP, MPII, AIC, CrowdPose) lies above it by 10-15 % of the torso, the medians of LSP's and MPII's
annotations, so it is never made from the shoulders. `head_top` is the crown, `head` the joint on which the skull turns,
`neck_nose` Human3.6M's point between them.
"""

from itertools import pairwise

from body3d.joint_set import both_sides, tree


def _limb(side: str, *chain: str) -> tuple[str, ...]:
    """Joints of one side, each hanging on the one before it; the first is the chain's start and not listed."""
    named = [chain[0], *(f"{side}_{joint}" for joint in chain[1:])]
    return tuple(f"{child}<{parent}" for parent, child in pairwise(named))


# ---- photos --------------------------------------------------------------------------------------------------------
_LEGS_OUT_AND_BACK = (
    "right_ankle<right_knee", "right_knee<right_hip", "right_hip<ROOT",
    "left_hip<ROOT", "left_knee<left_hip", "left_ankle<left_knee",
)  # fmt: skip
_ARMS_OUT_AND_BACK = (
    "right_wrist<right_elbow", "right_elbow<right_shoulder", "right_shoulder<NECK",
    "left_shoulder<NECK", "left_elbow<left_shoulder", "left_wrist<left_elbow",
)  # fmt: skip


def _joined(lines: tuple[str, ...], **ends: str) -> tuple[str, ...]:
    """Lines with the places ROOT and NECK filled in."""
    for place, joint in ends.items():
        lines = tuple(line.replace(f"<{place}", f"<{joint}") for line in lines)
    return lines


# No sigmas: MPII scores by PCKh; those in circulation are a toolbox's own.
MPII16 = tree(
    "mpii16",
    (
        *_joined(_LEGS_OUT_AND_BACK, ROOT="pelvis"), "pelvis", "thorax<pelvis", "upper_neck<thorax", "head_top<upper_neck",
        *_joined(_ARMS_OUT_AND_BACK, NECK="thorax"),
    ),
)  # fmt: skip
LSP14 = tree(
    "lsp14",
    (
        *_joined(_LEGS_OUT_AND_BACK, ROOT="upper_neck"), *_joined(_ARMS_OUT_AND_BACK, NECK="upper_neck"),
        "upper_neck", "head_top<upper_neck",
    ),
)  # fmt: skip
_FLIC_BODY = (
    "left_shoulder<nose", "left_elbow<left_shoulder", "left_wrist<left_elbow",
    "right_shoulder<nose", "right_elbow<right_shoulder", "right_wrist<right_elbow",
    "left_hip<left_shoulder", "right_hip<right_shoulder",
)  # fmt: skip
FLIC11 = tree("flic11", (*_FLIC_BODY, "left_eye<nose", "right_eye<nose", "nose"))
FLIC9 = tree("flic9", (*_FLIC_BODY, "nose"))  # without the eyes: eight limb joints and the head, as papers score it
# The order of the network that was released with Convolutional Pose Machines, for MPII and LSP.
CPM14 = tree(
    "cpm14",
    (
        "head_top<upper_neck", "upper_neck",
        "right_shoulder<upper_neck", "right_elbow<right_shoulder", "right_wrist<right_elbow",
        "left_shoulder<upper_neck", "left_elbow<left_shoulder", "left_wrist<left_elbow",
        "right_hip<upper_neck", "right_knee<right_hip", "right_ankle<right_knee",
        "left_hip<upper_neck", "left_knee<left_hip", "left_ankle<left_knee",
    ),
)  # fmt: skip

# AI Challenger, with the sigmas that mmpose derived from its annotations.
AIC14 = tree(
    "aic14",
    (
        *_limb("right", "upper_neck", "shoulder", "elbow", "wrist"),
        *_limb("left", "upper_neck", "shoulder", "elbow", "wrist"),
        *_limb("right", "upper_neck", "hip", "knee", "ankle"), *_limb("left", "upper_neck", "hip", "knee", "ankle"),
        "head_top<upper_neck", "upper_neck",
    ),
    (
        .01388152, .01515228, .01057665, .01417709, .01497891, .01402144,
        .03909642, .03686941, .01981803, .03843971, .03412318, .02415081, .01291456, .01236173,
    ),
)  # fmt: skip
CROWDPOSE14 = tree(
    "crowdpose14",
    (
        *both_sides("L_shoulder<upper_neck", "L_elbow<L_shoulder", "L_wrist<L_elbow"),
        *both_sides("L_hip<upper_neck", "L_knee<L_hip", "L_ankle<L_knee"), "head_top<upper_neck", "upper_neck",
    ),
    (.079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089, .079, .079),
)  # fmt: skip

# Fang et al., "AlphaPose", PAMI 2022: COCO's, the crown, neck and middle of the hips, and three points of each foot.
HALPE26 = tree(
    "halpe26",
    (
        "nose<neck", "left_eye<nose", "right_eye<nose", "left_ear<left_eye", "right_ear<right_eye",
        *both_sides("L_shoulder<neck"), *both_sides("L_elbow<L_shoulder"), *both_sides("L_wrist<L_elbow"),
        *both_sides("L_hip<mid_hip"), *both_sides("L_knee<L_hip"), *both_sides("L_ankle<L_knee"),
        "head_top<neck", "neck<mid_hip", "mid_hip",
        *both_sides("L_big_toe<L_ankle"), *both_sides("L_small_toe<L_ankle"), *both_sides("L_heel<L_ankle"),
    ),
)  # fmt: skip

# ---- Human3.6M -----------------------------------------------------------------------------------------------------
_LEG = ("pelvis", "hip", "knee", "ankle")
_ARM = ("thorax", "shoulder", "elbow", "wrist")


def _h36m_raw_arm(side: str) -> tuple[str, ...]:
    return (
        f"{side}_collar_base<spine", *_limb(side, f"{side}_collar_base", "shoulder", "elbow", "wrist"),
        f"{side}_hand_thumb<{side}_wrist", f"{side}_hand_thumb_end<{side}_hand_thumb",
        f"{side}_hand_end<{side}_wrist", f"{side}_hand_end_site<{side}_hand_end",
    )  # fmt: skip


# The rig of the raw files; several of its points lie on one another (0 and 11; 13, 16 and 24; 19 and 20; 27 and 28).
H36M32 = tree(
    "h36m32",
    (
        "pelvis", *_limb("right", *_LEG, "toe_base", "toe_end"), *_limb("left", *_LEG, "toe_base", "toe_end"),
        "spine_base<pelvis", "spine<spine_base", "thorax<spine", "neck_nose<thorax", "head_top<neck_nose",
        *_h36m_raw_arm("left"), *_h36m_raw_arm("right"),
    ),
)  # fmt: skip
_H36M17 = (
    "pelvis", *_limb("right", *_LEG), *_limb("left", *_LEG),
    "spine<pelvis", "thorax<spine", "neck_nose<thorax", "head_top<neck_nose",
    *_limb("left", *_ARM), *_limb("right", *_ARM),
)  # fmt: skip
H36M17 = tree("h36m17", _H36M17)
H36M16 = tree(
    "h36m16",
    tuple(line.replace("<neck_nose", "<thorax") for line in _H36M17 if not line.startswith("neck_nose")),
)
# Human3.6M's points in LSP's order, as human mesh recovery is scored on it. The index list that SPIN publishes for it belongs
# to a joint regressor whose legs come left first; on H36M17 it would swap them.
H36M14 = tree(
    "h36m14",
    (
        *_joined(_LEGS_OUT_AND_BACK, ROOT="thorax"), *_joined(_ARMS_OUT_AND_BACK, NECK="thorax"), "thorax",
        "head_top<thorax",
    ),
)  # fmt: skip
# 3DMPPE adds the mean of the shoulders (its "Thorax") to the seventeen, whose thorax it calls neck.
MPPE18 = tree("mppe18", (*_H36M17, "mid_shoulder<thorax"))

# ---- MPI-INF-3DHP, MuCo and MuPoTS ---------------------------------------------------------------------------------
# The files' spine, spine2, spine3, spine4 go up from the pelvis; spine2 and spine3 are not SMPL's and get other names.
MPI_INF_3DHP28 = tree(
    "mpi_inf_3dhp28",
    (
        "upper_spine<middle_spine", "top_spine<upper_spine", "middle_spine<spine", "spine<pelvis", "pelvis",
        "neck<top_spine", "head<neck", "head_top<head",
        *_limb("left", "neck", "collar", "shoulder", "elbow", "wrist", "hand"),
        *_limb("right", "neck", "collar", "shoulder", "elbow", "wrist", "hand"),
        *_limb("left", *_LEG, "foot", "toe"), *_limb("right", *_LEG, "foot", "toe"),
    ),
)  # fmt: skip
_MPI_INF_3DHP17 = (
    "head_top<head", "neck<spine",
    *_limb("right", "neck", "shoulder", "elbow", "wrist"), *_limb("left", "neck", "shoulder", "elbow", "wrist"),
    *_limb("right", *_LEG), *_limb("left", *_LEG), "pelvis", "spine<pelvis", "head<neck",
)  # fmt: skip
MPI_INF_3DHP17 = tree("mpi_inf_3dhp17", _MPI_INF_3DHP17)
MUPOTS17 = tree("mupots17", _MPI_INF_3DHP17)  # the same points; its files call the neck thorax
MUPOTS21 = tree(
    "mupots21",
    (
        *_MPI_INF_3DHP17,
        "right_hand<right_wrist",
        "left_hand<left_wrist",
        "right_toe<right_ankle",
        "left_toe<left_ankle",
    ),
)


# ---- CMU Panoptic --------------------------------------------------------------------------------------------------
def _panoptic15(second: str) -> tuple[str, ...]:
    return (
        "neck", f"{second}<neck", "mid_hip<neck",
        *_limb("left", "neck", "shoulder", "elbow", "wrist"), *_limb("left", "mid_hip", "hip", "knee", "ankle"),
        *_limb("right", "neck", "shoulder", "elbow", "wrist"), *_limb("right", "mid_hip", "hip", "knee", "ankle"),
    )  # fmt: skip


PANOPTIC19 = tree(
    "panoptic19", (*_panoptic15("nose"), "left_eye<nose", "left_ear<left_eye", "right_eye<nose", "right_ear<right_eye")
)
PANOPTIC15 = tree("panoptic15", _panoptic15("nose"))  # the first fifteen of the nineteen
PANOPTIC_MPI15 = tree("panoptic_mpi15", _panoptic15("head_top"))  # the older stage-1 files: crown instead of nose
