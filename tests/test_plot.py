"""Pictures of poses and samples: what lies where in them."""

import numpy as np
import pytest
import torch

from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.skeletons import COCO17
from body3d.types import Boxes, Keypoints2D, Sample
from body3d.view.draw import LEFT, RIGHT
from body3d.view.plot import _ticks, skeleton_views
from body3d.view.samples import TILE, _tile, nine_samples

WRISTS = JointSet("wrists", ("left_wrist", "right_wrist"), (-1, -1))


def middle(picture: np.ndarray, colour) -> np.ndarray:
    """x, y of the mean of the pixels of exactly this colour."""
    y, x = (picture == colour).all(-1).nonzero()
    return np.array([x.mean(), y.mean()])


def test_the_second_view_has_the_camera_on_the_right():
    """The left wrist is lower, to the right and nearer to the camera."""
    picture = skeleton_views(torch.tensor([[0.3, 0.2, 2.0], [-0.3, -0.2, 3.0]]), WRISTS)
    front, side = np.hsplit(picture[:, : picture.shape[1] // 2 * 2], 2)
    for tile in (front, side):
        left, right = middle(tile, LEFT), middle(tile, RIGHT)
        assert left[0] > right[0] and left[1] > right[1]
    apart = [middle(tile, LEFT)[0] - middle(tile, RIGHT)[0] for tile in (front, side)]
    assert apart[1] / apart[0] == pytest.approx(1.0 / 0.6, rel=0.05)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 17.9), (0.001, 0.0013), (5, 5), (0, 0), (-2e6, 1e6), (99.5, 100)]
)
def test_ticks_bracket_the_range(low, high):
    ticks = _ticks(float(low), float(high))
    assert ticks[0] <= low and ticks[-1] >= high and 4 <= len(ticks) <= 8
    assert np.ptp(np.diff(ticks)) < 1e-6 * (ticks[-1] - ticks[0])
    if high > low:
        step = ticks[1] - ticks[0]
        assert low - ticks[0] < step and ticks[-1] - high < step


def test_a_tile_is_centred_on_the_box():
    image = np.zeros((100, 120, 3), np.uint8)
    image[49:52, 39:42] = 255  # in the middle of the box
    xy = torch.tensor([[25.0, 15.0]]).repeat(17, 1)
    box = Boxes(torch.tensor([20.0, 10, 60, 90]), torch.ones(()))
    sample = Sample("a", torch.from_numpy(image), box, Keypoints2D(xy, torch.ones(17), COCO17))
    y, x = np.nonzero((_tile(sample) > 200).all(-1))
    assert (x.mean(), y.mean()) == pytest.approx(((TILE - 1) / 2, (TILE - 1) / 2), abs=0.6)


def test_a_set_without_samples_is_said():
    with pytest.raises(InputError, match="0 samples"):
        nine_samples([])
