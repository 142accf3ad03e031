"""Networks that need no boxes, by name: every one runs on any image, and `body3d detect` takes them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from body3d.bottomup.everybody import FINDERS, as_detections
from body3d.cli import main
from body3d.images import write_image
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

SMALL = ("lightweight_openpose", "litepose_xs", "movenet")


@torch.no_grad()
def credulous(name: str):
    """An untrained network that sees people in noise."""
    torch.manual_seed(0)
    net = FINDERS[name].build(weights=None).eval()
    if name == "litepose_xs":
        net.reading = replace(net.reading, threshold=0.05)
    if name == "lightweight_openpose":
        last = net.refinement_stages[-1]
        last.heatmaps[1][0].weight *= 5
        last.heatmaps[1][0].bias += 0.07
        last.pafs[1][0].bias += 0.5
    return net


@pytest.mark.parametrize("name", SMALL)
def test_any_image_will_do(name):
    """Places are finite, and confidences between 0 and 1."""
    image = np.random.default_rng(0).integers(0, 255, (90, 61, 3), np.uint8)
    people = FINDERS[name].find(credulous(name), image)
    assert len(people.xy) and people.xy.shape[1:] == (len(people.joints), 2)
    assert people.xy.isfinite().all() and (people.conf >= 0).all() and (people.conf <= 1).all()
    assert (people.conf > 0).any(1).all()


@torch.no_grad()
def test_movenet_finds_nobody_where_it_sees_nobody():
    net = credulous("movenet")
    last = net.net.header["header_heatmaps"][-1]
    last.weight.zero_()
    last.bias.fill_(-12.0)
    people = FINDERS["movenet"].find(net, np.full((64, 64, 3), 127, np.uint8))
    assert people.xy.shape == (0, 17, 2) and len(as_detections(people)) == 0


def test_boxes_are_those_of_the_joints_that_were_found():
    xy, conf = torch.rand(3, 17, 2) * 50 + 100, torch.full((3, 17), 0.5)
    conf[0, 3:], conf[1] = 0, 0
    xy[0, 3:] = 0
    found = as_detections(Keypoints2D(xy, conf, COCO17))
    assert len(found) == 2
    torch.testing.assert_close(found.boxes.xyxy[0], torch.cat([xy[0, :3].amin(0), xy[0, :3].amax(0)]))
    torch.testing.assert_close(found.boxes.score, torch.tensor([1.5 / 17, 0.5]))


def test_the_command_takes_them(tmp_path, capsys):
    torch.manual_seed(0)
    net = FINDERS["movenet"].build(weights=None)
    torch.save(net.net.state_dict(), tmp_path / "movenet.pth")
    write_image(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8))

    def run(*more) -> int:
        with pytest.raises(SystemExit) as stop:
            main(["detect", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out"), *map(str, more)])
        return int(stop.value.code or 0)

    assert run("--net", "movenet", "--weights", tmp_path / "movenet.pth", "--flip") == 0
    (person,) = json.loads((tmp_path / "out/photo/keypoints.json").read_text())
    assert len(person["keypoints"]) == 51 and (tmp_path / "out/photo/keypoints.png").is_file()
    for more, words in (
        (("--net", "movenet"), "needs --weights"),
        (("--net", "openpose_body", "--flip"), "leave --flip out"),
        (("--net", "openpose_body", "--boxes", "b.json"), "finds everybody by itself"),
        (("--net", "movenet", "--finder", "torchvision"), "leave --finder torchvision out"),
        (("--net", "movnet"), "there is no network 'movnet'"),
        (("--net", "openpose_body", "--weights", tmp_path / "movenet.pth"), "not what was asked for"),
    ):
        assert run(*more) == 2
        assert words in capsys.readouterr().err
