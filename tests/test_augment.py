import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from body3d.augment import COCO_TRAINING, MPII_TRAINING, Augmentation, Colours, Cutout, HalfBody, HideAndSeek, warp
from body3d.codecs import Heatmap
from body3d.crop import apply, crop_matrix
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

SIZE = (96, 72)
STILL = Augmentation(flip=0.0, scale=0.0, rotation=0.0, rotated=0.0, half_body=None)
# One per colour channel, so that each can be followed by its own.
SHOWN = ("left_wrist", "right_wrist", "nose")
SPREAD = 1.5  # of a spot, pixels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spots(n, joints=COCO17, size=SIZE, seed=0):
    """A person per image, upper body above lower, of whom three joints are seen as spots, one in each channel."""
    height, width = size
    xy = torch.rand(n, len(joints), 2, generator=seeded(seed)) * torch.tensor([width * 0.3, height * 0.2])
    lower = torch.tensor([any(part in name for part in ("hip", "knee", "ankle")) for name in joints.names])
    xy = xy + torch.tensor([width * 0.35, 0.0]) + torch.where(lower[:, None], 0.6, 0.25) * torch.tensor([0.0, height])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shown = xy[:, joints.indices(SHOWN)]
    image = torch.exp(-(torch.stack([x, y], -1) - shown[:, :, None, None]).square().sum(-1) / (2 * SPREAD**2))
    return image, Keypoints2D(xy, torch.ones(xy.shape[:2]), joints)


def centroids(image):
    """Where the spot of each channel is, and how bright all of it is."""
    mass = image.sum((-1, -2))
    x, y = torch.arange(image.shape[-1], dtype=image.dtype), torch.arange(image.shape[-2], dtype=image.dtype)
    return torch.stack([image.sum(-2) @ x, image.sum(-1) @ y], -1) / mass[..., None], mass


TURNED = replace(STILL, rotation=0.6, rotated=1.0)
CHANGES = {
    "still": STILL,
    "flip": replace(STILL, flip=1.0),
    "scale": replace(STILL, scale=0.35),
    "rotation": TURNED,
    "half body": replace(STILL, half_body=HalfBody(chance=1.0)),
    "all": replace(TURNED, flip=1.0, scale=0.25, half_body=HalfBody(chance=1.0)),
}


def _extent(xy):
    return (xy - xy.mean(1, keepdim=True)).norm(dim=(1, 2))


@pytest.mark.parametrize("name", CHANGES)
def test_spots_stay_under_their_keypoints(name):
    how = CHANGES[name]
    image, keypoints = spots(64)
    changed, moved = how(image, keypoints, seeded())
    # In a mirror, what was a person's left wrist is the right one of whom it shows.
    names = ("right_wrist", "left_wrist", "nose") if how.flip else SHOWN
    xy = moved.xy[:, COCO17.indices(names)]
    found, _ = centroids(changed)
    larger = _extent(moved.xy) / _extent(keypoints.xy)
    margin = (4.2 * SPREAD * larger)[:, None, None] + 1  # the whole spot
    inside = ((xy > margin) & (xy < torch.tensor(SIZE[::-1]) - 1 - margin)).all(-1)
    assert inside.sum() > 30
    assert (found - xy)[inside].norm(dim=-1).max() < 0.1
    moves = (moved.xy - keypoints.xy).norm(dim=-1).mean()
    assert moves < 1e-4 if name == "still" else moves > 1
    assert torch.equal(moved.conf, keypoints.conf) and moved.joints == COCO17


def test_nothing_to_do_changes_nothing():
    image = torch.rand(3, 3, *SIZE)
    _, keypoints = spots(3)
    same, unmoved = STILL(image, keypoints, seeded())
    torch.testing.assert_close(same, image, atol=1e-4, rtol=0)
    torch.testing.assert_close(unmoved.xy, keypoints.xy, atol=1e-4, rtol=0)


def test_a_mirror_image():
    image, keypoints = torch.rand(2, 3, *SIZE), spots(2)[1]
    keypoints = replace(keypoints, conf=torch.rand(2, 17))
    flip = replace(STILL, flip=1.0)
    mirrored, turned = flip(image, keypoints, seeded())
    torch.testing.assert_close(mirrored, image.flip(-1), atol=1e-4, rtol=0)
    left, right = COCO17.index("left_knee"), COCO17.index("right_knee")
    torch.testing.assert_close(turned.xy[:, left, 0], SIZE[1] - 1 - keypoints.xy[:, right, 0])
    torch.testing.assert_close(turned.xy[:, left, 1], keypoints.xy[:, right, 1])
    assert torch.equal(turned.conf[:, left], keypoints.conf[:, right])
    again, back = flip(mirrored, turned, seeded())
    torch.testing.assert_close(again, image, atol=1e-4, rtol=0)
    torch.testing.assert_close(back.xy, keypoints.xy, atol=1e-4, rtol=0)


def test_chance_is_the_generators():
    how = replace(COCO_TRAINING, colours=Colours(), drop=Cutout())
    image, keypoints = spots(4)
    first, second, third = (how(image, keypoints, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1].xy, second[1].xy)
    assert not torch.equal(first[0], third[0]) and not torch.equal(first[1].xy, third[1].xy)


def test_one_sample_and_more_dimensions():
    how = replace(COCO_TRAINING, colours=Colours(), drop=HideAndSeek())
    image, keypoints = spots(6)
    changed, moved = how(image, keypoints, seeded())
    grid, grid_moved = how(image.unflatten(0, (2, 3)), keypoints.map(lambda t: t.unflatten(0, (2, 3))), seeded())
    assert torch.equal(grid.flatten(0, 1), changed) and torch.equal(grid_moved.xy.flatten(0, 1), moved.xy)
    one, one_moved = how(image[0], keypoints[0], seeded())
    alone, alone_moved = how(image[:1], keypoints[:1], seeded())
    assert torch.equal(one, alone[0]) and torch.equal(one_moved.xy, alone_moved.xy[0])
    assert one.shape == (3, *SIZE) and one_moved.xy.shape == (17, 2)


@pytest.mark.parametrize("how", [COCO_TRAINING, MPII_TRAINING])
def test_how_far_crops_are_moved(how):
    n, size = 4000, (256, 192)
    xy, conf = torch.zeros(n, 17, 2), torch.zeros(n, 17)  # no known joints for half a body
    matrix, flipped = how.matrix(xy, conf, COCO17, size, seeded())
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.03)
    turn = matrix[..., :2].clone()
    turn[flipped, 0] *= -1
    scale = torch.linalg.det(turn).sqrt().reciprocal()
    angle = torch.atan2(turn[:, 0, 1], turn[:, 0, 0])
    assert (scale - 1).abs().max().item() == pytest.approx(how.scale, abs=1e-3)
    # A normal number cut at one standard deviation: 32 % lie at the ends.
    assert ((scale - 1).abs() > how.scale - 1e-3).float().mean().item() == pytest.approx(0.317, abs=0.03)
    assert (angle.abs() > 1e-6).float().mean().item() == pytest.approx(0.6, abs=0.03)
    assert angle.abs().max().item() == pytest.approx(2 * how.rotation, abs=1e-3)
    turned = angle[angle.abs() > 1e-6]
    assert turned.abs().median().item() == pytest.approx(0.6745 * how.rotation, rel=0.06)
    # The middle stays in the middle.
    middle = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
    torch.testing.assert_close(
        torch.einsum("nij,j->ni", matrix[..., :2], middle) + matrix[..., 2], middle.expand(n, 2), atol=1e-3, rtol=0
    )


def test_half_a_body_fills_the_crop():
    how = replace(STILL, half_body=HalfBody(chance=1.0))
    _, keypoints = spots(400)
    xy = apply(how.matrix(keypoints.xy, keypoints.conf, COCO17, SIZE, seeded())[0], keypoints.xy)
    lower = torch.tensor([name.endswith(("hip", "knee", "ankle")) for name in COCO17.names])
    middle = torch.tensor([(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2])
    off = {half: (xy[:, at].mean(1) - middle).norm(dim=-1) for half, at in (("lower", lower), ("upper", ~lower))}
    shown_lower = off["lower"] < off["upper"]
    assert torch.minimum(off["lower"], off["upper"]).max() < 1e-3
    assert shown_lower.float().mean().item() == pytest.approx(0.5, abs=0.08)
    # Its box is 1.5 times as large as what is shown of the joints, the other half is further away.
    box = xy[shown_lower][:, lower]
    extent = box.amax(1) - box.amin(1)
    fill = torch.maximum(extent[:, 0] / SIZE[1], extent[:, 1] / SIZE[0])
    torch.testing.assert_close(fill, torch.full_like(fill, 1 / 1.5))


def test_who_is_shown_in_halves():
    image, keypoints = torch.zeros(300, 3, 8, 6), spots(300)[1]
    share = lambda how, conf: (
        ((how(image, replace(keypoints, conf=conf), seeded())[1].xy - keypoints.xy).norm(dim=-1).amax(-1) > 1e-2)
        .float()
        .mean()
    )
    always, sometimes = (replace(STILL, half_body=HalfBody(chance)) for chance in (1.0, 0.3))
    all_known, few = torch.ones(300, 17), torch.ones(300, 17)
    few[:, 8:] = 0  # eight known joints are not more than eight
    assert share(always, all_known) == 1
    assert share(sometimes, all_known).item() == pytest.approx(0.3, abs=0.08)
    assert share(always, few) == 0
    # Nine joints, of which two are lower ones: always the upper half, whatever the chance says.
    no_legs = torch.ones(300, 17)
    no_legs[:, COCO17.indices(["left_hip", "right_hip", "left_knee", "right_knee"])] = 0
    moved = always(image, replace(keypoints, conf=no_legs), seeded())[1]
    upper = torch.tensor([not name.endswith(("hip", "knee", "ankle")) for name in COCO17.names])
    torch.testing.assert_close(
        moved.xy[:, upper].mean(1), torch.tensor([2.5, 3.5]).expand(300, 2), atol=1e-3, rtol=1e-3
    )


def test_warping_as_opencv_does():
    image = cv2.GaussianBlur(np.random.default_rng(0).random((64, 48, 3)).astype(np.float32), (5, 5), 0)
    matrix = crop_matrix(torch.tensor([[20.0, 35.0]]), torch.tensor([40.0]), torch.tensor([0.5]), (64, 48))
    ours = warp(torch.from_numpy(image).permute(2, 0, 1)[None], matrix)[0].permute(1, 2, 0).numpy()
    theirs = cv2.warpAffine(image, matrix[0].numpy(), (48, 64), flags=cv2.INTER_LINEAR)
    assert np.abs(ours - theirs).max() < 0.02  # it rounds places to 1/32 pixel
    assert np.abs(ours - theirs).mean() < 1e-3
    assert ours.std() > 0.1


def test_colours():
    image, random = torch.rand(8, 3, 16, 12, generator=seeded()), seeded(1)
    torch.testing.assert_close(Colours(0.0, 0.0, 0.0, 0.0)(image, random), image, atol=1e-6, rtol=0)
    grey = image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert (Colours(channel=0.0)(grey, random).std(1) < 1e-6).all()
    flat = torch.full((500, 3, 2, 2), 0.5)
    bright = Colours(0.4, 0.3, 0.3)(flat, random)[:, 0, 0, 0] / 0.5
    assert 0.6 <= bright.min() < 0.65 and 1.35 < bright.max() <= 1.4
    # Contrast moves values about their mean, saturation colours about their grey.
    spread = Colours(0.0, 0.5, 0.0)(0.4 + 0.2 * image, random).std((-1, -2)) / (0.2 * image).std((-1, -2))
    torch.testing.assert_close(spread, spread[:, :1].expand(-1, 3))
    gains = Colours(0.0, 0.0, 0.0, 0.3)(0.5 * image, random) / (0.5 * image)
    torch.testing.assert_close(gains, gains[..., :1, :1].expand_as(gains))
    assert gains[:, :, 0, 0].std(1).min() > 1e-3
    wild = Colours(1.0, 1.0, 1.0, 1.0)(image, random)
    assert wild.min() >= 0 and wild.max() <= 1


# ---- information dropping ------------------------------------------------------------------------------------------
def dropped(how, n=4000, size=SIZE, seed=0, part=500):
    random = seeded(seed)
    ones = torch.ones(part, 3, *size)
    return torch.cat([how(ones, random)[:, 0] == 0 for _ in range(n // part)])


@pytest.mark.parametrize("radius", [0.2, 0.1])
def test_ellipses_cover_what_is_expected(radius):
    """The area of an ellipse with half axes a, b, less what of it lies beyond the border, on average over all places.

    A point (x, y) off its centre is inside the image for the share (1 - |x|/W)(1 - |y|/H) of the centres, so the mean is the
    integral of that over the ellipse, pi a b - 4 a^2 b / (3 W) - 4 a b^2 / (3 H) + a^2 b^2 / (2 W H). With a = r W (1 + u), E a
    = 1.5 r W and E a^2 = 7/3 (r W)^2.
    """
    height, width = size = (48, 36)
    mean, square = 1.5 * radius * width, 7 / 3 * (radius * width) ** 2
    area = math.pi * mean**2 - 4 / 3 * square * mean * (1 / width + 1 / height) + square**2 / (2 * width * height)
    assert dropped(Cutout(radius), size=size).float().mean().item() == pytest.approx(area / (width * height), rel=0.02)


def test_ellipses():
    hidden = dropped(Cutout(), 500)
    columns, rows = hidden.any(1), hidden.any(2)
    for lines, length in ((columns, SIZE[1]), (rows, SIZE[0])):
        whole = ~(lines[:, 0] | lines[:, -1])
        extent = lines[whole].sum(-1) / 2  # half axes, in pixels
        assert 0.2 * SIZE[1] - 1 <= extent.min() and extent.max() <= 0.4 * SIZE[1] + 1
        assert extent.max() - extent.min() > 0.15 * SIZE[1] and length > extent.max()
    inside = ~(columns[:, 0] | columns[:, -1] | rows[:, 0] | rows[:, -1])
    boxes = columns.sum(-1) * rows.sum(-1)
    assert (hidden.sum((1, 2)) / boxes)[inside].mean().item() == pytest.approx(math.pi / 4, abs=0.02)
    assert 0.2 < (~dropped(Cutout(chance=0.7), 500).any(2).any(1)).float().mean() < 0.4


def test_hidden_squares():
    hidden = dropped(HideAndSeek(), 500, (128, 112))
    # A size of 0 hides nothing, the others half of the image.
    assert hidden.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (~hidden.any(2).any(1)).float().mean().item() == pytest.approx(0.2, abs=0.05)
    for grid in (16, 32, 44, 56):
        alone = dropped(HideAndSeek((grid,)), 500, (64, 112))[:, ::4, ::4]  # all sizes are multiples of 4
        step = grid // 4
        for y in range(0, 16, step):
            for x in range(0, 28, step):
                cell = alone[:, y : y + step, x : x + step].float().mean((1, 2))
                assert ((cell == 0) | (cell == 1)).all()
                assert 0.4 < cell.mean() < 0.6, (grid, x, y)
        # Neighbours do not go together.
        left, right = alone[:, 0, 0].float(), alone[:, 0, step].float()
        assert abs(((left - 0.5) * (right - 0.5)).mean()) < 0.06
    assert not dropped(HideAndSeek((0,)), 500).any()


@pytest.mark.parametrize("drop", [Cutout(), HideAndSeek((16,))])
def test_dropping_leaves_labels_alone(drop):
    image, keypoints = spots(8)
    image = 0.5 + 0.5 * image
    seen, same = replace(STILL, drop=drop)(image, keypoints, seeded())
    torch.testing.assert_close(same.xy, keypoints.xy, atol=1e-4, rtol=0)
    assert torch.equal(same.conf, keypoints.conf)
    kept = seen > 0
    torch.testing.assert_close(seen[kept], image[kept], atol=1e-3, rtol=0)
    assert (kept.all(1) | ~kept.any(1)).all() and 0.1 < (~kept).float().mean() < 0.8


def test_joints_off_the_crop_are_left_to_the_codec():
    """They keep their places and confidences; a heatmap gives them no weight."""
    image, keypoints = spots(20)
    _, moved = replace(STILL, half_body=HalfBody(chance=1.0))(image, keypoints, seeded())
    height, width = SIZE
    beside = ((moved.xy < -24) | (moved.xy > torch.tensor([width + 24, height + 24]))).any(-1)
    assert beside.sum() > 10 and torch.equal(moved.conf, keypoints.conf)
    shown = Heatmap(sigma=1.0).target(moved.xy, SIZE, (height // 4, width // 4))[1]
    assert not shown[beside].any() and shown.float().mean() > 0.4
