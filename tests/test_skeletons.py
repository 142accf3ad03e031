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
