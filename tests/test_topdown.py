"""Crops around boxes, a network that knows where things are in them, and the way back to the image."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from body3d.codecs import Heatmap, udp_heatmap
from body3d.commands.detect import Detect, detect
from body3d.detect.files import coco_results, read_keypoints
from body3d.detect.topdown import detect_topdown
from body3d.errors import InputError
from body3d.posenet import PLAIN, PoseNet
from body3d.skeletons import COCO17, JointSet
from body3d.types import Boxes, Detections, Keypoints2D

POINT = JointSet("two", ("nose", "neck"), (1, -1))  # no sides: a mirrored red spot is red
SIZE = (96, 72)


class Spots(nn.Module):
    """Maps of the red and of the green in the crop, a quarter of its size: a network that finds coloured spots.

    Its cells tile the crop or, `udp`, have their first and last centres on the first and last pixels.
    """

    def __init__(self, udp: bool):
        super().__init__()
        self.udp, self.anything = udp, nn.Parameter(torch.zeros(1))

    def forward(self, image):
        if self.udp:
            return [nn.functional.interpolate(image[:, :2], (24, 18), mode="bilinear", align_corners=True)]
        return [nn.functional.avg_pool2d(image[:, :2], 4)]


def spots(codec=Heatmap()) -> PoseNet:
    return PoseNet(Spots(codec.places == "udp"), codec, POINT, SIZE, PLAIN)


def photo(points: dict[int, tuple[float, float]], size=(200, 300), sigma=5.0) -> np.ndarray:
    """Gaussian spots of the colour channels (0 red, 1 green) at exact places."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3))
    for channel, (u, v) in points.items():
        image[..., channel] += np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    return np.round(255 * image.clip(0, 1)).astype(np.uint8)


def boxes(*xyxy) -> Boxes:
    return Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4), torch.full((len(xyxy),), 0.5))


@pytest.mark.parametrize("codec", [Heatmap(), udp_heatmap()], ids=["pixel", "udp"])
@pytest.mark.parametrize("flip", [False, True])
def test_spots_are_found_where_they_are(codec, flip):
    """Several people in several images in one batch; also across the image's edge."""
    places = [
        {0: (80.3, 60.7), 1: (110.2, 90.1)},
        {0: (20.5, 40.0), 1: (18.0, 65.5)},
        {0: (250.0, 170.0), 1: (215.4, 150.9)},
    ]
    images = [photo(places[0]), photo(places[1]), photo(places[2])]
    found = detect_topdown(
        spots(codec), images,
        [boxes((60, 30, 130, 120), (70, 45, 120, 110)), boxes((-15, 10, 50, 90)), boxes((190, 110, 290, 199))],
        flip, batch=3,
    )  # fmt: skip
    for seen, image, people in zip(found, places, (2, 1, 1), strict=True):
        assert len(seen) == people
        for n in range(people):
            for j in (0, 1):
                assert math.dist(seen.keypoints.xy[n, j].tolist(), image[j]) < 0.7


def test_a_score_is_the_boxs_times_the_keypoints():
    found = detect_topdown(spots(), [photo({0: (80, 60), 1: (100, 90)})], [boxes((60, 30, 130, 120))])[0]
    assert found.boxes.score[0] == pytest.approx(0.5 * found.keypoints.conf.mean().item())


def test_no_boxes_and_bad_boxes():
    image = photo({0: (80, 60)})
    assert len(detect_topdown(spots(), [image], [boxes()])[0]) == 0
    for bad in ((10, 10, 10, 40), (300, 10, 340, 40), (float("nan"), 0, 5, 5), (50, 40, 20, 60)):
        with pytest.raises(InputError, match="box 1 is .* inside the image of 300 x 200"):
            detect_topdown(spots(), [image], [boxes((0, 0, 50, 50), bad)])


def test_results_are_read_back(tmp_path):
    torch.manual_seed(0)
    xy = 100 * torch.rand(2, 17, 2)
    found = Detections(Keypoints2D(xy, torch.rand(2, 17), COCO17), boxes((1, 2, 30, 40), (5, 6, 70, 80)))
    path = tmp_path / "k.json"
    path.write_text(json.dumps(coco_results(found, "photo.jpg")))
    back = read_keypoints(path, "photo.png")
    order = [int((back.keypoints.xy[n] - xy).norm(dim=-1).mean(-1).argmin()) for n in range(2)]
    torch.testing.assert_close(back.keypoints.xy, xy[order], atol=1e-3, rtol=0)
    torch.testing.assert_close(back.boxes.xyxy, found.boxes.xyxy[order], atol=0.02, rtol=0)


def test_wrong_networks_and_boxes_are_said(tmp_path):
    picture = tmp_path / "a.png"
    with pytest.raises(InputError, match="no network 'resnet'; there are embedded, .*hrnet_w32"):
        detect(Detect((picture,), net="resnet"))
    with pytest.raises(InputError, match="--net hrnet_w32 needs --weights"):
        detect(Detect((picture,), net="hrnet_w32"))
    (tmp_path / "b.json").write_text("[[1, 2, 3]]")
    from body3d.detect.boxes import read_boxes

    with pytest.raises(InputError, match=r"\[x0, y0, x1, y1\] was expected, got the shape \(1, 3\)"):
        read_boxes(tmp_path / "b.json")
