"""ONNX files as networks: models, built here, whose answer is known because it is the place of a coloured spot."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from body3d.cli import main
from body3d.codecs import Heatmap
from body3d.detect.onnx import RTMBins, read_onnx
from body3d.detect.topdown import detect_topdown
from body3d.errors import InputError, MissingExtra
from body3d.images import write_image
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, HALPE26, MPII16
from body3d.types import Boxes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SIZE = (256, 192)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RTMPose, 0..255


def constant(name, values, kind=np.float32):
    return numpy_helper.from_array(np.asarray(values, kind), name)


def seen(joints: int) -> tuple[list, list]:
    """Nodes that undo the normalisation and give each joint one colour in 0..1, the even ones red, the odd ones green."""
    weight, bias = np.zeros((joints, 3, 1, 1)), np.zeros(joints)
    for j in range(joints):
        weight[j, j % 2], bias[j] = STD[j % 2] / 255, MEAN[j % 2] / 255
    nodes = [helper.make_node("Conv", ["input", "weight", "bias"], ["seen"])]
    return nodes, [constant("weight", weight), constant("bias", bias)]


def save(path, nodes, constants, outputs, batch="batch", size=SIZE):
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "net", [value("input", (batch, 3, *size))], [value(*o) for o in outputs], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def heatmaps(path, joints=17, batch="batch"):
    """Maps whose outer cells lie on the outer pixels, as UDP has them: the colours, a quarter of the size."""
    nodes, constants = seen(joints)
    resize = helper.make_node(
        "Resize", ["seen", "", "scales"], ["maps"], mode="linear", coordinate_transformation_mode="align_corners"
    )
    scales = constant("scales", [1, 1, 0.25, 0.25])
    return save(path, [*nodes, resize], [*constants, scales], [("maps", (batch, joints, 64, 48))], batch)


def simcc(path, joints=17, batch="batch"):
    """Bin i of an axis is the brightest of the pixels at i / 2, as RTMPose has it."""
    nodes, constants = seen(joints)
    outputs = []
    for axis, other, n in (("x", 2, SIZE[1]), ("y", 3, SIZE[0])):
        nodes += [
            helper.make_node("ReduceMax", ["seen"], [f"line_{axis}"], axes=[other], keepdims=0),
            helper.make_node(
                "Resize", [f"line_{axis}", "", "scales"], [f"simcc_{axis}"],
                mode="linear", coordinate_transformation_mode="asymmetric",
            ),
        ]  # fmt: skip
        outputs.append((f"simcc_{axis}", (batch, joints, 2 * n)))
    return save(path, nodes, [*constants, constant("scales", [1, 1, 2])], outputs, batch)


def photo(red, green, size=(200, 300), sigma=3.0, most=1.0) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3))
    for channel, (u, v) in enumerate((red, green)):
        image[..., channel] = most * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    return np.round(255 * image).astype(np.uint8)


PLACES = [((80.3, 60.7), (110.2, 90.1)), ((20.5, 40.0), (18.0, 65.5)), ((250.0, 170.0), (215.4, 150.9))]
# A crop that enlarges the photo is brightest at its whole pixels: what has no map to fit a bump to sees those alone.
ON_PIXELS = [tuple(tuple(map(round, xy)) for xy in places) for places in PLACES]
BOXES = [[60, 30, 130, 120], [-15, 10, 50, 90], [190, 110, 290, 199]]


@pytest.mark.parametrize("batch", ["batch", 1, 2])
@pytest.mark.parametrize(("kind", "people", "off"), [(heatmaps, PLACES, 0.2), (simcc, ON_PIXELS, 0.51)])
def test_spots_are_found_where_they_are(kind, people, off, batch, tmp_path):
    """Within so many pixels of the crop along x and y, in the photo; also where a model takes a fixed number of crops."""
    net = read_onnx(kind(tmp_path / "net.onnx", batch=batch))
    assert net.size == SIZE and net.joints is COCO17
    boxes = [Boxes(torch.tensor([box], dtype=torch.float32), torch.ones(1)) for box in BOXES]
    found = detect_topdown(net, [photo(*places) for places in people], boxes)
    for person, places, (x0, y0, x1, y1) in zip(found, people, BOXES, strict=True):
        pixel = 1.25 * max(x1 - x0, (y1 - y0) * 3 / 4) / 192
        for j in range(len(COCO17)):
            away = person.keypoints.xy[0, j] - torch.tensor(places[j % 2])
            assert away.abs().max() < off * pixel


@pytest.mark.parametrize(("kind", "off"), [(heatmaps, 0.02), (simcc, 0.25)])
def test_the_mirrored_crop_says_the_same(kind, off, tmp_path):
    """Where both colours are at one place; SimCC's published bins lie a quarter of a pixel of the crop off their mirror image."""
    net = read_onnx(kind(tmp_path / "net.onnx"))
    image, box = photo((80, 61), (80, 61)), Boxes(torch.tensor([[60.0, 30, 130, 120]]), torch.ones(1))
    once, twice = (detect_topdown(net, [image], [box], flip)[0].keypoints.xy for flip in (False, True))
    assert (once - twice).abs().max() < off
    assert (twice - torch.tensor([80.0, 61.0])).norm(dim=-1).max() < 0.25


def test_simccs_confidence_is_the_lower_of_its_tops(tmp_path):
    net = read_onnx(simcc(tmp_path / "net.onnx"))
    assert isinstance(net.codec, RTMBins) and net.codec.split == 2 and net.codec.places == "msra"
    box = Boxes(torch.tensor([[60.0, 30, 130, 120]]), torch.ones(1))
    for most in (0.3, 0.9):
        conf = detect_topdown(net, [photo((80, 60), (90, 70), most=most)], [box])[0].keypoints.conf
        assert conf.flatten().tolist() == pytest.approx([most] * 17, abs=0.02)


@pytest.mark.parametrize("joints", [MPII16, COCO17, HALPE26, COCO_WHOLEBODY133], ids=lambda j: j.name)
def test_the_number_of_joints_tells_which_they_are(joints, tmp_path):
    assert read_onnx(heatmaps(tmp_path / "net.onnx", len(joints))).joints is joints


def test_joints_and_codec_can_be_said(tmp_path):
    net = read_onnx(heatmaps(tmp_path / "net.onnx", 17), COCO17, Heatmap())
    assert net.codec == Heatmap()
    with pytest.raises(InputError, match=r"it speaks of 17 joints; expected are 16 \(mpii16\)"):
        read_onnx(tmp_path / "net.onnx", MPII16)


def test_halpes_joints():
    """The first 17 are COCO's; a foot of each side hangs on the ankle of that side."""
    assert HALPE26.names[:17] == COCO17.names
    for parent, child in HALPE26.bones:
        for side in ("left", "right"):
            if HALPE26.names[child].startswith(f"{side}_big") or HALPE26.names[child].startswith(f"{side}_heel"):
                assert HALPE26.names[parent] == f"{side}_ankle"
    assert [HALPE26.names[i] for i in HALPE26.flip][20:22] == ["right_big_toe", "left_big_toe"]


@pytest.mark.parametrize("kind", [heatmaps, simcc])
def test_the_command_reads_an_onnx_file(kind, tmp_path, capsys):
    model = kind(tmp_path / "rtmpose.onnx")
    red, green = ON_PIXELS[0]
    write_image(tmp_path / "photo.png", photo(red, green))
    (tmp_path / "boxes.json").write_text(json.dumps(BOXES[:1]))
    given = ["detect", str(tmp_path / "photo.png"), "--net", str(model), "--out", str(tmp_path), "--boxes"]
    with pytest.raises(SystemExit) as stop:
        main([*given, str(tmp_path / "boxes.json")])
    assert stop.value.code == 0
    numbers = json.loads((tmp_path / "photo/keypoints.json").read_text())[0]["keypoints"]
    assert math.dist(numbers[:2], red) < 0.25 and math.dist(numbers[3:5], green) < 0.25

    with pytest.raises(SystemExit) as stop:
        main([*given, str(tmp_path / "boxes.json"), "--weights", "w.pth"])
    assert stop.value.code == 2
    assert "has its weights in it; leave --weights w.pth out" in capsys.readouterr().err


# ---- bad files -----------------------------------------------------------------------------------------------------
def identity(path, given, outputs):
    """A model that hands its input on, under shapes that nobody checks."""
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    nodes = [helper.make_node("Identity", ["input"], [name]) for name in outputs]
    graph = helper.make_graph(nodes, "net", [value("input", given)], [value(o, None) for o in outputs])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_files_that_are_no_such_model_are_said_in_one_line(tmp_path, capsys):
    path = tmp_path / "a.onnx"
    wrong = {
        r"a\.onnx: there is no such file": lambda: None,
        r"a\.onnx is not an ONNX model, or is damaged": lambda: path.write_bytes(b"not a model"),
        r"one input \(N, 3, height, width\) of a fixed size .* got input \[1, 3, 'h', 'w'\]": lambda: identity(
            path, (1, 3, "h", "w"), ["a"]
        ),
        r"one input .* got input \[1, 4, 256, 192\]": lambda: identity(path, (1, 4, 256, 192), ["a"]),
        r"it speaks of 3 joints; expected are 17 \(coco17\), 26 .*, 133 .*, 16": lambda: identity(
            path, (1, 3, 256, 192), ["a"]
        ),
        r"heatmaps \(N, J, h, w\) were expected, got \(1, 3, 256, 192\) and \(1, 3, 256, 192\)": lambda: identity(
            path, (1, 3, 256, 192), ["a", "b"]
        ),
        r"were expected, got .* and .* and": lambda: identity(path, (1, 3, 256, 192), ["a", "b", "c"]),
    }
    for words, make in wrong.items():
        make()
        with pytest.raises(InputError, match=words) as error:
            read_onnx(path)
        assert "\n" not in str(error.value)
    whole = heatmaps(tmp_path / "b.onnx").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not an ONNX model, or is damaged"):
        read_onnx(path)


def test_bins_that_do_not_fit_the_crop(tmp_path):
    nodes, constants = seen(17)
    nodes += [
        helper.make_node("ReduceMax", ["seen"], [axis], axes=[other], keepdims=0)
        for axis, other in (("y", 3), ("x", 2))
    ]
    path = save(tmp_path / "a.onnx", nodes, constants, [("y", (1, 17, 256)), ("x", (1, 17, 192))], 1)
    with pytest.raises(InputError, match="256 bins of x and 192 of y do not fit crops of 256 x 192 pixels"):
        read_onnx(path)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"reading a\.onnx needs onnxruntime, .*'body3d\[onnx\]'"):
        read_onnx(tmp_path / "a.onnx")
