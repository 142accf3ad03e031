"""Joint sets: published orders, flips from names, and conversions that lose nothing both sets have."""

import itertools

import pytest
import torch

from body3d import skeletons
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, FACE68, HAND21, OPENPOSE137, SMPLX144, JointSet, convert_points

SETS = [v for v in vars(skeletons).values() if isinstance(v, JointSet)] + list(HAND21.values())


@pytest.mark.parametrize("joints", SETS, ids=lambda j: j.name)
def test_the_bones_form_trees(joints):
    for i in range(len(joints)):
        seen = set()
        while i >= 0:
            assert i not in seen
            seen.add(i)
            i = joints.parents[i]


@pytest.mark.parametrize("joints", [j for j in SETS if not j.name.endswith("hand21")], ids=lambda j: j.name)
def test_flip_is_its_own_inverse_and_keeps_bones(joints):
    flip = joints.flip
    assert [flip[i] for i in flip] == list(range(len(joints)))
    mirrored = {(flip[a], flip[b]) for a, b in joints.bones}
    middle = {b for b in joints.bones if joints.names[b[1]] in ("chin", "nose_base")}
    # The face's outline is an open path drawn from one side to the other, so only its own bones may differ.
    face = {i for i, n in enumerate(joints.names) if n in FACE68}
    differ = (mirrored ^ set(joints.bones)) - middle
    assert all(a in face and b in face for a, b in differ)


def test_published_positions():
    assert [COCO17.index(n) for n in ("left_hip", "right_ankle")] == [11, 16]
    assert [COCO_WHOLEBODY133.index(n) for n in ("left_big_toe", "right_heel", "right_jaw_0", "chin")] == [
        17,
        22,
        23,
        31,
    ]
    assert [COCO_WHOLEBODY133.index(n) for n in ("nose_bridge_3", "right_eye_outer", "left_eye_outer")] == [53, 59, 68]
    assert [COCO_WHOLEBODY133.index(n) for n in ("mouth_right", "mouth_left", "lips_lower_right")] == [71, 77, 90]
    assert [COCO_WHOLEBODY133.index(n) for n in ("left_hand_root", "left_index1", "right_pinky_tip")] == [91, 96, 132]
    assert [OPENPOSE137.index(n) for n in ("mid_hip", "left_ear", "right_heel", "left_hand_root")] == [8, 18, 24, 25]
    assert [SMPLX144.index(n) for n in ("right_wrist", "jaw", "left_index1", "right_thumb3")] == [21, 22, 25, 54]
    assert [SMPLX144.index(n) for n in ("nose", "left_big_toe", "right_pinky_tip", "right_brow_0", "right_jaw_0")] == [
        55, 60, 75, 76, 127,
    ]  # fmt: skip
    assert len(COCO_WHOLEBODY133.sigmas) == 133


@pytest.mark.parametrize(("a", "b"), list(itertools.permutations(SETS, 2)), ids=lambda j: j.name)
def test_there_and_back_keeps_what_both_have(a, b):
    torch.manual_seed(0)
    points, conf = torch.randn(2, len(a), 3), torch.rand(2, len(a)) + 0.1
    there, there_conf = convert_points(points, conf, a, b)
    back, back_conf = convert_points(there, there_conf, b, a)
    both = [i for i, n in enumerate(a.names) if n in b]
    assert torch.equal(back[:, both], points[:, both])
    assert torch.equal(back_conf[:, both], conf[:, both])


def test_synthetic_joints_and_unknown_ones():
    points = torch.arange(34.0).reshape(1, 17, 2)
    conf = torch.linspace(0.1, 0.9, 17)[None]
    out, out_conf = convert_points(points, conf, COCO17, skeletons.BODY25)
    neck = skeletons.BODY25.index("neck")
    torch.testing.assert_close(out[0, neck], (points[0, 5] + points[0, 6]) / 2)
    assert out_conf[0, neck] == conf[0, 5]
    assert out_conf[0, skeletons.BODY25.index("left_heel")] == 0


def test_an_unknown_joint_that_is_nan_does_not_spread():
    points = torch.ones(1, 17, 2)
    points[0, 3] = torch.nan
    out, _ = convert_points(points, torch.ones(1, 17), COCO17, skeletons.BODY25)
    assert out.isfinite().all()


def test_errors_name_the_choices():
    with pytest.raises(KeyError, match=r"coco17 has no joint 'tail'.*nose, left_eye"):
        COCO17.index("tail")
    with pytest.raises(ValueError, match="2 names but 1 parents"):
        JointSet("x", ("a", "b"), (-1,))
    with pytest.raises(ValueError, match="occurs twice"):
        JointSet("x", ("a", "a"), (-1, 0))


# Positions counted from 0 in the data sets' own documents; read off by hand, not from the code.
PUBLISHED = {
    "body18": "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear",
    "mpii16": "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax upper_neck head_top right_wrist "
    "right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    "lsp14": "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist upper_neck head_top",
    "flic11": "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist left_hip right_hip left_eye "
    "right_eye nose",
    "flic9": "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist left_hip right_hip nose",
    "aic14": "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee right_ankle "
    "left_hip left_knee left_ankle head_top upper_neck",
    "crowdpose14": "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip left_knee "
    "right_knee left_ankle right_ankle head_top upper_neck",
    "h36m17": "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax neck_nose head_top "
    "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist",
    "h36m14": "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist thorax head_top",
    "mpi_inf_3dhp28": "upper_spine top_spine middle_spine spine pelvis neck head head_top left_collar left_shoulder "
    "left_elbow left_wrist left_hand right_collar right_shoulder right_elbow right_wrist right_hand left_hip left_knee "
    "left_ankle left_foot left_toe right_hip right_knee right_ankle right_foot right_toe",
    "mupots21": "head_top neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip "
    "right_knee right_ankle left_hip left_knee left_ankle pelvis spine head right_hand left_hand right_toe left_toe",
    "panoptic19": "neck nose mid_hip left_shoulder left_elbow left_wrist left_hip left_knee left_ankle right_shoulder "
    "right_elbow right_wrist right_hip right_knee right_ankle left_eye left_ear right_eye right_ear",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_orders_of_the_data_sets(name):
    assert {j.name: j for j in SETS}[name].names == tuple(PUBLISHED[name].split())


def test_subsets_of_the_raw_rigs():
    """The index lists that the papers' code publishes, from the raw rig to the joints in use."""
    raw17 = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
    assert tuple(skeletons.H36M32.names[i] for i in raw17) == skeletons.H36M17.names
    assert skeletons.H36M32.parents == (
        -1, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 0, 11, 12, 13, 14, 12, 16, 17, 18, 19, 20, 19, 22, 12, 24, 25, 26, 27, 28, 27, 30,
    )  # fmt: skip
    raw3dhp = [7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6]
    assert tuple(skeletons.MPI_INF_3DHP28.names[i] for i in raw3dhp) == skeletons.MPI_INF_3DHP17.names
    official = [3, 1, 4, 5, 5, 2, 6, 7, 6, 9, 10, 11, 12, 6, 14, 15, 16, 17, 5, 19, 20, 21, 22, 5, 24, 25, 26, 27]
    parents = tuple(-1 if i == 4 else p - 1 for i, p in enumerate(official))  # from 1, the root its own parent
    assert skeletons.MPI_INF_3DHP28.parents == parents
    assert skeletons.MUPOTS21.names[:17] == skeletons.MPI_INF_3DHP17.names == skeletons.MUPOTS17.names
    assert skeletons.H36M16.names == tuple(n for i, n in enumerate(skeletons.H36M17.names) if i != 9)
    assert skeletons.PANOPTIC15.names == skeletons.PANOPTIC19.names[:15]
    assert skeletons.SMPL45.names[:24] == skeletons.SMPL24.names
    assert skeletons.SMPL45.names[24:] == skeletons.SMPLX144.names[55:76]


def test_flip_pairs_and_parents_of_h36m17():
    flip = skeletons.H36M17.flip
    assert [flip[i] for i in (4, 5, 6, 11, 12, 13)] == [1, 2, 3, 14, 15, 16]
    assert skeletons.H36M17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)


def test_published_sigmas():
    assert [round(s, 4) for s in skeletons.AIC14.sigmas] == [
        .0139, .0152, .0106, .0142, .0150, .0140, .0391, .0369, .0198, .0384, .0341, .0242, .0129, .0124,
    ]  # fmt: skip
    for name in ("left_shoulder", "right_wrist", "left_hip", "right_ankle"):
        assert skeletons.CROWDPOSE14.sigmas[skeletons.CROWDPOSE14.index(name)] == COCO17.sigmas[COCO17.index(name)]


def test_the_upper_neck_is_not_made_from_shoulders():
    _, conf = convert_points(torch.ones(17, 2), torch.ones(17), COCO17, skeletons.LSP14)
    assert conf[:12].all()
    assert not conf[12:].any()
    points = torch.zeros(17, 2)
    points[5], points[6] = torch.tensor([2.0, 4.0]), torch.tensor([6.0, 8.0])
    made, conf = convert_points(points, torch.ones(17), COCO17, skeletons.MPPE18)
    assert made[17].tolist() == [4.0, 6.0]
    assert conf[17] == 1
