"""Metrics: perfect predictions, offsets whose result is worked out by hand, and what each measure must not notice.

Equality with published implementations is in test_known_answers.py.
"""

import math

import numpy as np
import pytest
import roma
import torch

from body3d.metrics import mpjpe as m
from body3d.metrics import oks as o
from body3d.metrics import pck as p
from body3d.metrics import pck3d as p3
from body3d.skeletons import COCO17

G = lambda seed=0: torch.Generator().manual_seed(seed)


def poses(*batch, joints=17, seed=0):
    return torch.randn(*batch, joints, 3, generator=G(seed), dtype=torch.float64) * 0.3


def test_perfect_is_zero_everywhere():
    x = poses(5)
    for measure in (m.mpjpe, m.pa_mpjpe, m.n_mpjpe, m.pve, m.pa_pve):
        assert measure(x, x).max() < 1e-9
    assert m.mpjve(x, x) == 0
    assert m.acceleration_error(x, x) == 0
    assert (p3.pck3d(x, x) == 1).all()
    # The threshold 0 is one of the 31 and nothing lies strictly within it.
    torch.testing.assert_close(p3.auc3d(x, x), torch.full((5,), 30 / 31, dtype=torch.float64))
    assert (p3.mrpe(x[:, 0], x[:, 0]) == 0).all()


def test_a_constant_offset_of_ten_millimetres():
    x = poses(5)
    off = x + torch.tensor([0.006, 0.0, 0.008], dtype=torch.float64)
    torch.testing.assert_close(m.mpjpe(off, x), torch.full((5,), 0.010, dtype=torch.float64))
    # It vanishes with the root, with an alignment, and in every difference of frames.
    assert m.mpjpe(m.root_relative(off, 0), m.root_relative(x, 0)).max() < 1e-12
    assert m.pa_mpjpe(off, x).max() < 1e-9
    assert m.pa_mpjpe(off, x, scale=False).max() < 1e-9
    assert m.mpjve(off, x) < 1e-12
    # Of eleven millimetres, thresholds 0, 5 and 10 are passed, the 28 from 15 to 150 mm are not.
    torch.testing.assert_close(p3.auc3d(x + 1.1 * (off - x), x), torch.full((5,), 28 / 31, dtype=torch.float64))
    torch.testing.assert_close(p3.mrpe(off[0, 0], x[0, 0]), torch.tensor([0.010, 0.006, 0, 0.008], dtype=torch.float64))


def test_pa_does_not_see_similarities_and_rigid_pa_sees_the_scale():
    x = poses(4)
    R = roma.rotvec_to_rotmat(torch.tensor([0.4, 1.0, -2.0], dtype=torch.float64))
    moved = 1.25 * x @ R.T + 3
    assert m.pa_mpjpe(moved, x).max() < 1e-9
    # Best rigid fit of a 1.25 times larger pose: a quarter of each joint's distance from the middle remains.
    spread = (x - x.mean(1, keepdim=True)).norm(dim=-1).mean(1)
    torch.testing.assert_close(m.pa_mpjpe(moved, x, scale=False), 0.25 * spread)
    assert m.pa_mpjpe(x * torch.tensor([-1.0, 1, 1], dtype=torch.float64), x).min() > 0.05


def test_n_mpjpe_sees_no_scale_but_rotation():
    x = poses(4)
    assert m.n_mpjpe(0.7 * x, x).max() < 1e-12
    turned = x @ roma.rotvec_to_rotmat(torch.tensor([0, 0, 0.5], dtype=torch.float64)).T
    assert m.n_mpjpe(turned, x).min() > 0.01


def test_joints_without_confidence_do_not_count_even_if_nan():
    x, conf = poses(3), torch.ones(3, 17, dtype=torch.float64)
    bad = x.clone()
    bad[:, 4] = torch.nan
    conf[:, 4] = 0
    bad[:, 5] += torch.tensor([0.016, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(
        m.mpjpe(bad, x, conf), torch.full((3,), 0.001, dtype=torch.float64)
    )  # 16 mm over 16 joints
    assert m.n_mpjpe(bad, x, conf).isfinite().all()
    others = [j for j in range(17) if j != 4]
    for a, b in ((bad, x), (x, bad)):
        torch.testing.assert_close(m.pa_mpjpe(a, b, conf), m.pa_mpjpe(a[:, others], b[:, others]))


def test_velocity_and_acceleration_by_hand():
    t = torch.arange(6, dtype=torch.float64)[:, None, None]
    still = torch.zeros(6, 2, 3, dtype=torch.float64)
    moving = still + torch.tensor([0.01, 0, 0], dtype=torch.float64) * t
    falling = still + torch.tensor([0, 0.02, 0], dtype=torch.float64) * t**2
    assert m.mpjve(moving, still).item() == pytest.approx(0.01)
    assert m.acceleration_error(moving, still).item() == pytest.approx(0, abs=1e-12)
    assert m.acceleration_error(falling, still).item() == pytest.approx(0.04)
    assert m.acceleration_error(falling, still, fps=50.0).item() == pytest.approx(0.04 * 2500)
    with pytest.raises(ValueError, match=r"positive, got 0\.0"):
        m.acceleration_error(falling, still, fps=0.0)


def test_root_average_precision_by_hand():
    truth = [torch.tensor([[0.0, 0, 3], [1, 0, 4]]), torch.tensor([[0.0, 0, 2]])]
    predicted = [torch.tensor([[0.1, 0, 3.1], [5.0, 0, 4], [1, 0.2, 4]]), torch.tensor([[0.0, 0, 2.3]])]
    scores = [torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.6])]
    # Right at rank 1, wrong at 2, right at 3, too far (30 cm) at 4; three people: (1/1 + 2/3) / 3.
    assert p3.root_ap(predicted, scores, truth) == pytest.approx((1 + 2 / 3) / 3)
    with pytest.raises(ValueError, match="nobody in the truth"):
        p3.root_ap([torch.zeros(0, 3)], [torch.zeros(0)], [torch.zeros(0, 3)])


def test_a_person_not_found_counts_as_wrong():
    truth = poses(2).float() + torch.tensor([[[0.0, 0, 3]], [[2, 0, 4]]])
    absolute, relative, matched = p3.correct_people(truth[1:] + torch.tensor([0, 0, 0.2]), truth, root=0)
    # One of two found, all its joints 20 cm too deep: right relative to the root, wrong in space.
    assert not absolute.any()
    assert relative.all(1).tolist() == matched.tolist() == [False, True] and not relative[0].any()
    assert not any(x.any() for x in p3.correct_people(truth[:0], truth, root=0))


def test_pck_and_pcp_by_hand():
    truth = torch.zeros(1, 17, 2)
    at = COCO17.index
    truth[0, at("left_shoulder")], truth[0, at("right_hip")] = (
        torch.tensor([0.0, 0]),
        torch.tensor([30.0, 40]),
    )  # torso 50
    truth[0, at("left_elbow")], truth[0, at("left_wrist")] = torch.tensor([0.0, 20]), torch.tensor([0.0, 40])
    predicted = truth.clone()
    predicted[0, at("left_wrist"), 0] += 10.0  # exactly 0.2 torso, exactly half of the forearm's 20
    predicted[0, at("left_elbow"), 0] += 10.5
    counted = torch.zeros(1, 17, dtype=torch.bool)
    counted[0, COCO17.indices(["left_shoulder", "left_elbow", "left_wrist"])] = True
    size = p.torso_size(truth, COCO17)
    assert size.item() == 50
    per_joint, mean = p.pck(predicted, truth, counted, size, 0.2)
    assert per_joint[at("left_wrist")] == 1
    assert per_joint[at("left_elbow")] == 0
    assert math.isnan(per_joint[at("nose")])
    assert mean.item() == pytest.approx(2 / 3)
    strict, loose = (p.pcp(predicted, truth, counted, COCO17, strict) for strict in (True, False))
    assert strict["left upper arm"] == 0  # the elbow is 10.5 off, half of the limb is 10
    assert loose["left upper arm"] == 1  # the mean of 0 and 10.5
    assert (strict["left forearm"], loose["left forearm"]) == (0, 0)  # the mean is 10.25
    assert math.isnan(strict["right shin"])
    assert loose["mean"] == 0.5
    curve = p.pck_curve(predicted, truth, counted, size, [0.0, 0.2, 0.21])
    torch.testing.assert_close(curve, torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64))


def test_head_size_is_six_tenths_of_the_diagonal():
    assert p.head_size(torch.tensor([[10.0, 10, 13, 14]])).item() == pytest.approx(0.6 * 5)


def test_oks_of_one_joint_by_hand():
    """A nose (sigma 0.026) 5.2 px off in an area of 100²: exp(-5.2² / (2 · 10000 · 0.052²)) = exp(-0.5)."""
    truth = torch.zeros(1, 17, 2, dtype=torch.float64)
    visible = torch.zeros(1, 17, dtype=torch.bool)
    visible[0, 0] = True
    predicted = truth + torch.tensor([3.12, 4.16], dtype=torch.float64)
    similarity = o.oks(predicted, truth, visible, torch.tensor([10000.0], dtype=torch.float64))
    assert similarity.item() == pytest.approx(math.exp(-0.5))


def test_survey_map_is_not_coco_ap():
    assert o.survey_map(torch.tensor([1.0, 0.76])) == pytest.approx((10 + 6) / 20)


def person(x=0.0, area=100.0**2, **extra):
    keypoints = torch.rand(17, 2, generator=G(), dtype=torch.float64).numpy() * 100 + x
    visible = torch.full((17, 1), 2.0, dtype=torch.float64).numpy()
    return o.Person(np.concatenate([keypoints, visible], 1), area, (x, 0.0, 100.0, 100.0), **extra)


def test_coco_ap_of_perfect_and_ghostly_predictions():
    truth = [[person()], [person(50.0)]]
    perfect = [[o.Found(q.keypoints[:, :2], 0.9) for q in people] for people in truth]
    ap = o.coco_ap(truth, perfect)
    assert (ap["AP"], ap["AR"], ap["APL"]) == pytest.approx((1, 1, 1))
    assert ap["APM"] == -1  # nobody of medium size
    ghost = [[*perfect[0], o.Found(truth[0][0].keypoints[:, :2] + 500, 0.95)], perfect[1]]
    # The ghost ranks first, so precision is at most 2/3 at every recall; recall does not suffer.
    ap = o.coco_ap(truth, ghost)
    assert ap["AP"] == pytest.approx(2 / 3)
    assert ap["AR"] == 1
    crowd = [[person(iscrowd=True)], [person(50.0)]]
    assert o.coco_ap(crowd, perfect)["AP"] == pytest.approx(1)  # a crowd counts neither way
    with pytest.raises(ValueError, match="2 images, the predictions 1"):
        o.coco_ap(truth, perfect[:1])


def test_coco_ap_equals_pycocotools_on_random_detections(tmp_path):
    """Against the reference itself, where it is installed (the known answer is one such run)."""
    pytest.importorskip("pycocotools")
    import json

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(3)
    truth, found, annotations, results = [], [], [], []
    for image in range(30):
        people = []
        for _ in range(rng.integers(0, 4)):
            kp = np.concatenate([rng.uniform(0, 300, (17, 2)), rng.integers(0, 3, (17, 1))], 1)
            box, area = (
                tuple(map(float, (*rng.uniform(0, 50, 2), *rng.uniform(20, 200, 2)))),
                float(rng.uniform(500, 30000)),
            )
            people.append(o.Person(kp, area, box, bool(rng.random() < 0.1)))
        guesses = [
            o.Found(q.keypoints[:, :2] + rng.normal(0, 8, (17, 2)), float(rng.random())) for q in people for _ in (0, 1)
        ]
        truth.append(people)
        found.append(guesses)
        annotations += [
            {"id": len(annotations) + k + 1, "image_id": image, "category_id": 1, "keypoints": q.keypoints.ravel().tolist(),
             "num_keypoints": int((q.keypoints[:, 2] > 0).sum()), "area": q.area, "bbox": list(q.bbox), "iscrowd": int(q.iscrowd)}
            for k, q in enumerate(people)
        ]  # fmt: skip
        three = lambda g: np.concatenate([g.keypoints, np.ones((17, 1))], 1).ravel().tolist()
        results += [{"image_id": image, "category_id": 1, "keypoints": three(g), "score": g.score} for g in guesses]
    content = {"images": [{"id": n} for n in range(30)], "categories": [{"id": 1}], "annotations": annotations}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    coco = COCO(str(tmp_path / "gt.json"))
    evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert list(o.coco_ap(truth, found).values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-9)
