import math

import pytest
import torch

from body3d.detect.pose_nms import (
    RELEASED_PROPOSALS,
    PaperRule,
    Proposals,
    ReleasedRule,
    atomic_poses,
    fit_proposals,
    merge_detections,
    pose_nms,
)
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.skeletons import COCO17
from body3d.types import Boxes, Detections, Keypoints2D

PAPER = PaperRule(delta1=1.0, delta2=50.0, mu=1.0, eta=8.0)


def people(*corners: tuple[float, float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses in boxes of 80 x 200 pixels at these corners, and the boxes."""
    random = torch.Generator().manual_seed(seed)
    xy = torch.stack(
        [torch.tensor(c) + torch.rand(17, 2, generator=random) * torch.tensor([80.0, 200]) for c in corners]
    )
    return xy, torch.tensor([[x, y, x + 80.0, y + 200.0] for x, y in corners])


@pytest.mark.parametrize("rule", [ReleasedRule(), PAPER])
def test_a_person_seen_often_is_one_and_two_stay_two(rule):
    random = torch.Generator().manual_seed(1)
    truth, boxes = people((10, 20), (70, 30))
    which = torch.tensor([0, 1, 0, 0, 1])
    xy = truth[which] + torch.randn(5, 17, 2, generator=random)
    conf = torch.tensor([0.7, 0.6, 0.9, 0.5, 0.8])[:, None] + 0.05 * torch.rand(5, 17, generator=random)
    kept = pose_nms(xy, conf, boxes[which], rule)
    assert kept.picked.tolist() == [2, 4]
    assert (kept.xy - truth).norm(dim=-1).max() < 5
    if isinstance(rule, PaperRule):
        torch.testing.assert_close(kept.xy, xy[[2, 4]])
        torch.testing.assert_close(kept.conf, conf[[2, 4]])
    else:  # the mean of three is nearer than the best alone
        assert (kept.xy[0] - truth[0]).norm() < (xy[2] - truth[0]).norm()


def test_poses_merge_by_confidence():
    """By hand: joints within a tenth of the box count, those beyond do not."""
    xy = torch.zeros(2, 6, 2)
    xy[0] = torch.arange(6)[:, None] * torch.tensor([20.0, 0])
    xy[1] = xy[0] + torch.tensor([3.0, 4])
    xy[1, 5] += 100
    conf = torch.tensor([[0.8], [0.4]]).expand(2, 6).clone()
    kept = pose_nms(xy, conf, torch.tensor([[0.0, 0, 100, 60], [0, 0, 100, 60]]))
    assert kept.picked.tolist() == [0]
    torch.testing.assert_close(kept.xy[0, :5], xy[0, :5] + torch.tensor([1.0, 4 / 3]))
    torch.testing.assert_close(kept.xy[0, 5], xy[0, 5])
    torch.testing.assert_close(kept.conf[0], torch.tensor([(0.64 + 0.16) / 1.2] * 5 + [0.8]))


def test_the_papers_similarity_by_hand():
    xy = torch.tensor([[[0.0, 0], [10, 0], [20, 0]], [[3, 0], [10, 8], [20, 0]]])
    conf, boxes = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]), torch.tensor([[0.0, 0, 80, 100]] * 2)
    agree = math.tanh(0.9 / 0.5) * math.tanh(0.6 / 0.5) + math.tanh(0.7 / 0.5) * math.tanh(
        0.4 / 0.5
    )  # 8 px is too far in y
    near = math.exp(-9 / 20) + math.exp(-64 / 20) + 1
    for eta, left in ((agree + 2 * near - 1e-4, 1), (agree + 2 * near + 1e-4, 2)):
        assert len(pose_nms(xy, conf, boxes, PaperRule(0.5, 20.0, 2.0, eta)).picked) == left


def test_nobody_and_those_who_are_nobody():
    none = pose_nms(torch.zeros(0, 17, 2), torch.zeros(0, 17), torch.zeros(0, 4))
    assert none.picked.shape == (0,) and none.xy.shape == (0, 17, 2) and none.conf.shape == (0, 17)
    xy, boxes = people((0, 0), (200, 0))
    assert len(pose_nms(xy, torch.tensor([0.2, 0.0])[:, None].expand(2, 17), boxes).picked) == 0
    kept = pose_nms(xy, torch.tensor([0.2, 0.5])[:, None].expand(2, 17), boxes)
    assert kept.picked.tolist() == [1]


def test_the_order_and_the_side_do_not_matter():
    random = torch.Generator().manual_seed(2)
    truth, boxes = people((10, 20), (70, 30), (40, 10))
    which = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    xy = truth[which] + 2 * torch.randn(7, 17, 2, generator=random)
    conf, boxes = 0.4 + 0.5 * torch.rand(7, 17, generator=random), boxes[which]
    kept = pose_nms(xy, conf, boxes)
    order = torch.randperm(7, generator=random)
    shuffled = pose_nms(xy[order], conf[order], boxes[order])
    torch.testing.assert_close(shuffled.xy, kept.xy)
    assert order[shuffled.picked].tolist() == kept.picked.tolist()
    mirror = torch.tensor([-1.0, 1])
    turned = pose_nms(xy * mirror, conf, boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]))
    torch.testing.assert_close(turned.xy * mirror, kept.xy)


def test_detections():
    xy, boxes = people((0, 0), (300, 0))
    found = Detections(
        Keypoints2D(torch.cat([xy, xy + 1]), torch.full((4, 17), 0.6), COCO17),
        Boxes(torch.cat([boxes, boxes + 1]), torch.tensor([0.9, 0.8, 0.7, 0.6])),
    )
    merged = merge_detections(found)
    assert len(merged) == 2
    torch.testing.assert_close(merged.boxes.xyxy, boxes)
    assert merged.keypoints.joints == COCO17
    torch.testing.assert_close(merged.keypoints.xy, xy + 0.5)
    assert len(merge_detections(found[:0])) == 0


# ---- proposals -----------------------------------------------------------------------------------------------------
TORSO = JointSet(
    "torso", ("left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_wrist"), (-1, 0, 0, 1, 0)
)  # fmt: skip


def standing(n: int, raised: bool, random: torch.Generator) -> torch.Tensor:
    hand = [0.4, -1.5] if raised else [0.4, 0.4]
    pose = torch.tensor([[0.3, -0.5], [-0.3, -0.5], [0.2, 0.5], [-0.2, 0.5], hand])
    size = 20 + 80 * torch.rand(n, 1, 1, generator=random)
    place = 300 * torch.rand(n, 1, 2, generator=random)
    return place + size * (pose + 0.05 * torch.randn(n, 5, 2, generator=random))


def test_offsets_are_learnt_by_pose():
    """Those who raise a hand have boxes that end below it; the others one of two kinds of error."""
    random = torch.Generator().manual_seed(0)
    n = 1500
    xy = torch.cat([standing(n, True, random), standing(n, False, random)])
    truth = torch.rand(2 * n, 4, generator=random) * 50 + torch.tensor([0.0, 0, 100, 150])
    sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    mean = torch.tensor([[0.0, 0.3, 0, 0]]).repeat(2 * n, 1)
    second = torch.rand(n, generator=random) < 0.25
    mean[n:] = torch.where(second[:, None], torch.tensor([0.2, -0.1, 0.0, 0.1]), torch.tensor([-0.2, 0.0, 0.1, 0.0]))
    detected = truth + sides * (mean + 0.03 * torch.randn(2 * n, 4, generator=random))
    fit = fit_proposals(Keypoints2D(xy, torch.ones(2 * n, 5), TORSO), truth, detected, atoms=2, components=2)
    shapes = atomic_poses(Keypoints2D(xy, torch.ones(2 * n, 5), TORSO))
    atom = fit.atom(shapes)
    raised, lowered = int(atom[0]), int(atom[-1])
    assert (atom[:n] == raised).all() and (atom[n:] == lowered).all() and raised != lowered
    torch.testing.assert_close((fit.weight[raised, :, None] * fit.mean[raised]).sum(0), mean[0], atol=0.005, rtol=0)
    first = fit.mean[lowered, :, 0].argsort()
    torch.testing.assert_close(fit.weight[lowered, first], torch.tensor([0.75, 0.25]), atol=0.03, rtol=0)
    torch.testing.assert_close(
        fit.mean[lowered, first], torch.tensor([[-0.2, 0.0, 0.1, 0.0], [0.2, -0.1, 0.0, 0.1]]), atol=0.01, rtol=0
    )
    assert (fit.deviation[lowered] - 0.03).abs().max() < 0.01
    # What is drawn has the moments of what was learnt from, within three standard errors.
    drawn = (fit.sample(truth, atom, random) - truth) / sides
    seen = (detected - truth) / sides
    for rows in (slice(n), slice(n, None)):
        error = seen[rows].std(0) / math.sqrt(n) * math.sqrt(2)
        assert ((drawn[rows].mean(0) - seen[rows].mean(0)).abs() < 3 * error + 1e-3).all()
        torch.testing.assert_close(drawn[rows].std(0), seen[rows].std(0), atol=0.01, rtol=0.05)


def test_the_released_offsets():
    random = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[10.0, 20, 110, 220]]).expand(20000, 4)
    offset = (RELEASED_PROPOSALS.sample(boxes, random=random) - boxes) / torch.tensor([100.0, 200, 100, 200])
    for column, (mean, deviation) in enumerate(
        ((-0.0142, 0.1158), (0.0043, 0.068), (0.0154, 0.1337), (-0.0013, 0.0711))
    ):
        assert abs(offset[:, column].mean() - mean) < 3 * deviation / math.sqrt(20000)
        assert offset[:, column].std().item() == pytest.approx(deviation, rel=0.03)
    assert RELEASED_PROPOSALS.sample(boxes[:0]).shape == (0, 4)


def test_poses_are_the_same_at_any_size_and_place():
    random = torch.Generator().manual_seed(3)
    xy, conf = standing(6, True, random), torch.ones(6, 5)
    shapes = atomic_poses(Keypoints2D(xy, conf, TORSO))
    torch.testing.assert_close(atomic_poses(Keypoints2D(3.5 * xy + 40, conf, TORSO)), shapes, atol=1e-4, rtol=0)
    conf[0, 4], xy[0, 4] = 0, 1e6
    hidden = atomic_poses(Keypoints2D(xy, conf, TORSO))
    torch.testing.assert_close(hidden[0, 8:], shapes[1:, 8:].mean(0))


def test_what_cannot_be_learnt_from():
    random = torch.Generator().manual_seed(4)
    xy, truth = standing(6, True, random), torch.tensor([[0.0, 0, 10, 20]]).repeat(6, 1)
    seen = Keypoints2D(xy, torch.ones(6, 5), TORSO)
    with pytest.raises(InputError, match="one of each for at least 7 people"):
        fit_proposals(seen, truth, truth, atoms=7)
    with pytest.raises(InputError, match="0 poses, 0 true and 0 detected boxes"):
        fit_proposals(seen[:0], truth[:0], truth[:0])
    with pytest.raises(InputError, match="got 6 poses, 6 true and 5 detected boxes"):
        fit_proposals(seen, truth, truth[:5], atoms=1)
    with pytest.raises(InputError, match="a true box is empty"):
        fit_proposals(seen, truth[:, [2, 1, 0, 3]], truth, atoms=1)
    conf = torch.ones(6, 5)
    conf[4, 2] = 0
    with pytest.raises(InputError, match="person 4 has no torso"):
        fit_proposals(Keypoints2D(xy, conf, TORSO), truth, truth, atoms=1)
    # Exact boxes are learnt as such.
    exact: Proposals = fit_proposals(seen, truth, truth, atoms=1, components=1)
    assert (exact.sample(truth, torch.zeros(6, dtype=torch.long)) - truth).abs().max() < 0.2
