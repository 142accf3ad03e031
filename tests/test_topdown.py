"""Crops around boxes, a network that knows where things are in them, and the way back to the image."""

import json
import math
import sys
import urllib.error
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from body3d.cli import main
from body3d.codecs import Heatmap, udp_heatmap
from body3d.commands.detect import Detect, detect
from body3d.detect.boxes import _faster_rcnn, find_boxes, read_boxes
from body3d.detect.files import coco_results, read_keypoints
from body3d.detect.topdown import detect_topdown
from body3d.errors import InputError
from body3d.images import write_image
from body3d.nets.hourglass import hourglass_1
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


def test_images_may_be_smaller_than_the_crop():
    """24 x 18 pixels for a crop of 96 x 72: the spots are found all the same, in pixels of the image."""
    places = {0: (5.3, 6.7), 1: (12.2, 16.1)}
    found = detect_topdown(spots(), [photo(places, (24, 18), 1.5)], [boxes((0, 0, 18, 24))])[0]
    for j in (0, 1):
        assert math.dist(found.keypoints.xy[0, j].tolist(), places[j]) < 0.25


def test_nobody_in_some_or_all_images():
    image = photo({0: (80, 60), 1: (100, 90)})
    none, one, *_ = detect_topdown(spots(), [image, image], [boxes(), boxes((60, 30, 130, 120))])
    assert len(none) == 0 and none.keypoints.xy.shape == (0, 2, 2)
    assert math.dist(one.keypoints.xy[0, 0].tolist(), (80, 60)) < 0.7
    assert detect_topdown(spots(), [], []) == []


def test_a_network_in_training_goes_on_training():
    net = spots()
    net.train()
    detect_topdown(net, [photo({0: (80, 60)})], [boxes((60, 30, 130, 120))])
    assert net.training


# ---- the command ---------------------------------------------------------------------------------------------------
def said(capsys, *arguments) -> tuple[int, str]:
    """Exit code and complaint of `body3d detect`."""
    with pytest.raises(SystemExit) as stop:
        main(["detect", *map(str, arguments)])
    complaint = capsys.readouterr().err
    assert complaint.count("\n") <= 1
    return int(stop.value.code or 0), complaint


@pytest.fixture(scope="module")
def hourglass(tmp_path_factory):
    """A checkpoint for `--net hourglass_1`, and what is in it."""
    torch.manual_seed(0)
    state = hourglass_1().state_dict()
    path = tmp_path_factory.mktemp("weights") / "hourglass.pth"
    torch.save(state, path)
    return path, state


def test_the_command_on_a_small_image_and_a_box_beside_it(hourglass, tmp_path, capsys):
    write_image(tmp_path / "small.png", photo({0: (9, 9)}, (24, 18)))
    given = (tmp_path / "small.png", "--net", "hourglass_1", "--weights", hourglass[0], "--out", tmp_path / "out")
    given += ("--boxes", tmp_path / "boxes.json")
    for content, code, words in (
        ("[[0, 0, 18, 24]]", 0, ""),
        ("[[20, 0, 30, 24]]", 2, "box 0 is [20.0, 0.0, 30.0, 24.0]: x0 y0 x1 y1 in pixels"),
    ):
        (tmp_path / "boxes.json").write_text(content)
        got, complaint = said(capsys, *given)
        assert got == code and words in complaint
    person = json.loads((tmp_path / "out/small/keypoints.json").read_text())[0]
    assert len(person["keypoints"]) == 3 * 17 and len(person["points"]) == 3 * len(person["joint_names"]) == 3 * 16
    assert all(map(math.isfinite, person["keypoints"] + person["points"]))
    (tmp_path / "boxes.json").write_text("[[0, 0, 18, 24], [0, 0, 9, 12]]")
    for most, people in ((1, 1), (5, 2)):
        assert said(capsys, *given, "--max-people", most) == (0, "")
        assert len(json.loads((tmp_path / "out/small/keypoints.json").read_text())) == people


def test_a_bad_photo_does_not_keep_others_from_being_done(hourglass, tmp_path, capsys, monkeypatch):
    write_image(tmp_path / "a.png", photo({0: (9, 9)}, (24, 18)))
    (tmp_path / "b.png").write_text("no picture")
    monkeypatch.setattr("body3d.detect.boxes.find_boxes", lambda *_: boxes((0, 0, 18, 24)))
    net, out = ("--net", "hourglass_1", "--weights", hourglass[0]), tmp_path / "out"
    code, complaint = said(capsys, tmp_path / "b.png", tmp_path / "a.png", *net, "--out", out)
    assert code == 2 and "b.png" in complaint and (out / "a/keypoints.json").is_file()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--max-people", 0), "--max-people must be at least 1, got 0"),
        (("--max-people", -1), "--max-people must be at least 1, got -1"),
        (("--weights", "w.pth"), "--net embedded has its weights"),
        (("--flip",), "leave --flip out"),
        (("--finder", "torchvision"), "leave --finder torchvision out"),
        (("--net", "hourglass_1", "--boxes", "b.json", "--finder", "torchvision"), "in place of a finder"),
        (("--device", "meta"), "--device meta cannot be used here"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, capsys, more, words):
    code, complaint = said(capsys, tmp_path / "a.png", *more)
    assert code == 2 and words in complaint


def test_checkpoints_that_do_not_fit(hourglass, tmp_path, capsys):
    """Too few weights, too many, or of another number of joints: five names of each, and how many there are beside them."""
    state = hourglass[1]
    lacking = {key: value for key, value in state.items() if ".layer1." not in key}
    gone = [key.removeprefix("net.") for key in state if ".layer1." in key and not key.endswith("num_batches_tracked")]
    more = state | {f"net.more{i}": torch.zeros(1) for i in range(7)}
    coco = {key: value for key, value in state.items() if "score" not in key}
    coco |= {"net.score.0.weight": torch.zeros(17, 256, 1, 1), "net.score.0.bias": torch.zeros(17)}
    for content, words in (
        (lacking, f"missing: {', '.join(gone[:5])} and {len(gone) - 5} more)"),
        (more, "not known: more0, more1, more2, more3, more4 and 2 more)"),
        (coco, "of another size: score.0.weight is 17x256x1x1, not 16x256x1x1, score.0.bias is 17, not 16)"),
    ):
        torch.save(content, tmp_path / "bad.pth")
        code, complaint = said(capsys, tmp_path / "a.png", "--net", "hourglass_1", "--weights", tmp_path / "bad.pth")
        assert code == 2 and words in complaint


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
    with pytest.raises(InputError, match="no network 'pipnet_r18'"):  # without a mean shape there is none
        detect(Detect((picture,), net="pipnet_r18", weights=picture))
    with pytest.raises(InputError, match="--net hrnet_w32 needs --weights"):
        detect(Detect((picture,), net="hrnet_w32"))
    (tmp_path / "b.json").write_text("[[1, 2, 3]]")
    with pytest.raises(InputError, match=r"\[x0, y0, x1, y1\] was expected, got the shape \(1, 3\)"):
        read_boxes(tmp_path / "b.json")


@pytest.mark.parametrize("content", ["[[1" + "0" * 400 + ", 0, 5, 5]]", "[" * 100_000, '[["a", 1, 2, 3]]', "[[1", "3"])
def test_files_that_hold_no_boxes(tmp_path, content):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(InputError, match="a JSON list of boxes"):
        read_boxes(tmp_path / "b.json")


# ---- torchvision's finder ------------------------------------------------------------------------------------------
class Whole(nn.Module):
    """Finds a person who fills the image, and a cat."""

    def forward(self, images):
        height, width = images[0].shape[1:]
        box = torch.tensor([[0.0, 0, width, height]])
        return [{"labels": torch.tensor([1, 17]), "scores": torch.tensor([0.9, 0.8]), "boxes": box.repeat(2, 1)}]


def use_torchvision(monkeypatch, build) -> None:
    detection = ModuleType("torchvision.models.detection")
    detection.fasterrcnn_mobilenet_v3_large_fpn = build  # type: ignore[attr-defined]
    models = ModuleType("torchvision.models")
    models.detection = detection  # type: ignore[attr-defined]
    for name, module in (("torchvision", ModuleType("torchvision")), ("torchvision.models", models)):
        monkeypatch.setitem(sys.modules, name, module)
    _faster_rcnn.cache_clear()


def test_torchvisions_detector_is_built_once_and_counts_from_the_corner(monkeypatch):
    built = []
    use_torchvision(monkeypatch, lambda weights: built.append(weights) or Whole())
    for _ in range(3):
        found = find_boxes(np.zeros((20, 30, 3), np.uint8), "torchvision")
    _faster_rcnn.cache_clear()
    assert built == ["DEFAULT"] and found.xyxy.tolist() == [[-0.5, -0.5, 29.5, 19.5]]


def test_torchvisions_weights_that_cannot_be_fetched(monkeypatch):
    def offline(weights):
        raise urllib.error.URLError("Name or service not known")

    use_torchvision(monkeypatch, offline)
    with pytest.raises(InputError, match="cannot fetch its weights .*Name or service not known"):
        find_boxes(np.zeros((20, 30, 3), np.uint8), "torchvision")
