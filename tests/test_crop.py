import math

import pytest
import torch

from body3d.crop import apply, box_to_crop, crop_matrix, invert


def test_a_box_gets_the_proportions_of_the_crop():
    boxes = torch.tensor([[10.0, 20.0, 40.0, 100.0], [0.0, 0.0, 90.0, 40.0]])
    center, width = box_to_crop(boxes, (256, 192))
    torch.testing.assert_close(center, torch.tensor([[25.0, 60.0], [45.0, 20.0]]))
    torch.testing.assert_close(width, torch.tensor([80 * 0.75 * 1.25, 90 * 1.25]))


@pytest.mark.parametrize(
    ("places", "left", "right"),
    [
        # Where the outer edges (pixel, msra) or outer pixel centres (udp) of a crop of 20 image pixels around 100 come to lie.
        ("pixel", 90.0, 110.0),
        ("msra", 90.0, 110.0),
        ("udp", 90.0, 110.0),
    ],
)
def test_what_a_crop_shows(places, left, right):
    matrix = crop_matrix(torch.tensor([100.0, 50.0]), torch.tensor(20.0), torch.tensor(0.0), (64, 48), places)
    at = apply(matrix, torch.tensor([[left, 50.0], [100.0, 50.0], [right, 50.0]]))
    expected = {
        "pixel": [[-0.5, 31.5], [23.5, 31.5], [47.5, 31.5]],
        "msra": [[0.0, 32.0], [24.0, 32.0], [48.0, 32.0]],
        "udp": [[0.0, 31.5], [23.5, 31.5], [47.0, 31.5]],
    }
    torch.testing.assert_close(at, torch.tensor(expected[places]))


def test_turning_and_back():
    torch.manual_seed(0)
    center, width, angle = 100 * torch.rand(5, 2).double(), 20 + 50 * torch.rand(5).double(), torch.randn(5).double()
    matrix = crop_matrix(center, width, angle, (64, 48))
    xy = 100 * torch.rand(5, 7, 2).double()
    torch.testing.assert_close(apply(invert(matrix), apply(matrix, xy)), xy)
    # A similarity: all distances are scaled alike.
    length = lambda p: (p[:, 1:] - p[:, :-1]).norm(dim=-1)
    torch.testing.assert_close(length(apply(matrix, xy)), length(xy) * (48 / width)[:, None])
    # By a quarter turn what is above the centre comes to lie left of it.
    matrix = crop_matrix(torch.zeros(2), torch.tensor(48.0), torch.tensor(math.pi / 2), (64, 48))
    at = apply(matrix, torch.tensor([[0.0, -10.0]])) - torch.tensor([23.5, 31.5])
    torch.testing.assert_close(at, torch.tensor([[-10.0, 0.0]]))
