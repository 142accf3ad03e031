"""`body3d regress`: checkpoints of every kind, what is written, what is refused; and regressed poses in a fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from body3d.camera import Camera
from body3d.cli import main
from body3d.codecs.volume import IntegralVolume
from body3d.datasets.synthetic import Synthetic
from body3d.errors import InputError
from body3d.fit.given import Given3D
from body3d.images import write_image
from body3d.nets3d import builders, methods, mppe, regressors, vnect
from body3d.nets3d.inference import read_regressor, read_root_finder, regress_photo, usual_lengths
from body3d.nets3d.volumetric import depth_from_limbs, volumetric_2
from body3d.pipeline import _cat_given
from body3d.skeletons import H36M17, MPPE18, MUPOTS21
from body3d.types import Boxes, Keypoints3D

BOX = [60.0, 20.0, 140.0, 180.0]


def saved(folder: Path, name: str, joints=H36M17, size=None) -> Path:
    torch.manual_seed(0)
    net = builders.build(name, joints, size)
    if isinstance(net, regressors.Regressor):
        net.lengths.copy_(usual_lengths(H36M17))
    path = folder / f"{name}.pt"
    torch.save({"epoch": 1, "figures": {}, "model": net.state_dict()}, path)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    write_image(tmp_path / "photo.png", rng.integers(0, 255, (200, 240, 3)).astype(np.uint8))
    (tmp_path / "boxes.json").write_text(json.dumps([BOX, [100.0, 10.0, 200.0, 190.0]]))
    return tmp_path / "photo.png"


def regress(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["regress", *map(str, arguments)])
    return int(stop.value.code or 0)


# ---- results -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("net", "name"),
    [
        ("vnect", "vnect_lite"),
        ("volumetric", "volumetric_lite"),
        ("dconvmp", "dconvmp_112"),
        ("dconvmp", "dconvmp_lite"),
    ],
)
def test_every_network_writes_its_people(photo, tmp_path, net, name):
    weights, out = saved(tmp_path, name), tmp_path / "out"
    assert (
        regress(
            photo, "--net", net, "--weights", weights, "--boxes", tmp_path / "boxes.json", "--out", out, "--focal", 300
        )
        == 0
    )
    with np.load(out / "photo" / "regress.npz") as file:
        xyz, xy, K, root = (file[key] for key in ("joints3d", "keypoints2d", "K", "root"))
        assert xyz.shape == (2, 17, 3) and K[0, 0] == 300 and file["joint_names"].tolist() == list(H36M17.names)
    np.testing.assert_allclose(xyz[:, 0], root, atol=1e-4)
    if net == "volumetric":  # absolute points lie on the rays of their pixels
        uvw = xyz @ K.T
        np.testing.assert_allclose(uvw[..., :2] / uvw[..., 2:], xy, atol=0.05)
    report = json.loads((out / "photo" / "regress.json").read_text())
    assert report["joints"] == "h36m17" and len(report["people"]) == 2 and report["depth_source"]
    assert {"regress.png", "regress_0.png", "regress_1.png"} <= {p.name for p in (out / "photo").iterdir()}


def test_rootnet_says_how_far_away_people_are(photo, tmp_path):
    """An untrained small RootNet says k: roots stand where a box of 2 m would."""
    root = saved(tmp_path, "rootnet_lite")
    state = torch.load(root, weights_only=True)
    state["model"]["net.root.depth_layer.weight"].zero_()
    torch.save(state, root)
    out = tmp_path / "out"
    arguments = ("--boxes", tmp_path / "boxes.json", "--out", out, "--focal", 300, "--max-people", 1)
    assert regress(photo, "--weights", saved(tmp_path, "posenet_lite"), "--root-weights", root, *arguments) == 0
    with np.load(out / "photo" / "regress.npz") as file:
        depth = file["joints3d"][0, 0, 2]
    k = 300 * 2 / (1.25 * (BOX[3] - BOX[1]))
    assert depth == pytest.approx(k, abs=0.15)  # the root's own slice is near 0 in an untrained volume
    assert "RootNet" in json.loads((out / "photo" / "regress.json").read_text())["depth_source"]


def test_published_checkpoints_are_read(photo, tmp_path):
    torch.manual_seed(0)
    posenet = mppe.posenet_18()
    torch.save(
        {"network": {f"module.{k}": v for k, v in posenet.state_dict().items()}}, tmp_path / "snapshot_24.pth.tar"
    )
    net = read_regressor(tmp_path / "snapshot_24.pth.tar", "mppe")
    assert net.joints == MPPE18 and isinstance(net, regressors.Regressor)
    assert net.method == methods.ByIntegral(IntegralVolume(places="msra"))
    image, camera = np.full((200, 240, 3), 90, np.uint8), Camera.guess((200, 240), 300.0)
    boxes = Boxes(torch.tensor([BOX]), torch.ones(1))
    people = regress_photo(net, image, camera, boxes)
    # The same as 3DMPPE's own way with the depth that was found.
    x0, y0, x1, y1 = BOX
    own = mppe.absolute_poses(
        posenet.eval(),
        image,
        torch.tensor([[x0, y0, x1 - x0, y1 - y0]]),
        people.found.root[:, 2],
        camera.K,
        MPPE18,
        flip=False,
    )
    assert (own.xyz - people.keypoints3d.xyz).abs().max() < 0.2  # the root's slice moves its depth
    torch.save(vnect.VNect(21, folded=True).state_dict(), tmp_path / "vnect.pt")
    assert read_regressor(tmp_path / "vnect.pt", "vnect").joints == MUPOTS21
    torch.save(mppe.RootNet().state_dict(), tmp_path / "rootnet.pt")
    assert isinstance(read_root_finder(tmp_path / "rootnet.pt"), mppe.RootNet)


def test_usual_lengths_say_how_far_away_people_are():
    """Joints of MuPoTS-3D that Human3.6M's 17 do not have too: head, hands and toes."""
    scenes = Synthetic(None, people=(1, 4), size=(64, 64), joints=MUPOTS21, seed=5)
    seen = [scenes.scene(i) for i in range(8)]
    xyz = torch.cat([scene.kp3d.xyz for scene in seen])
    K = torch.cat([scene.camera.K.expand(len(scene.seen), 3, 3) for scene in seen])
    xy = torch.cat([scene.kp2d.xy for scene in seen])
    depth = xyz[:, MUPOTS21.index("pelvis"), 2]
    found = depth_from_limbs(xy, xyz[..., 2] - depth[:, None], K, usual_lengths(MUPOTS21), MUPOTS21)
    assert (found / depth - 1).abs().median() < 0.1
    with pytest.raises(InputError, match=r"the open body has no .*, so the bones of"):
        usual_lengths(replace(MUPOTS21, names=("crest", *MUPOTS21.names[1:])))


def test_usual_lengths_are_a_persons():
    lengths = dict(zip([H36M17.names[c] for _, c in H36M17.bones], usual_lengths(H36M17).tolist(), strict=True))
    assert 0.35 < lengths["left_knee"] < 0.5 and 0.2 < lengths["left_wrist"] < 0.3
    assert lengths["left_elbow"] == pytest.approx(lengths["right_elbow"], rel=0.02)


# ---- bad input -----------------------------------------------------------------------------------------------------
def complaint(capsys, *words: str) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines


def test_what_is_refused(photo, tmp_path, capsys):
    weights = saved(tmp_path, "vnect_lite")
    boxes = tmp_path / "boxes.json"
    common = ("--net", "vnect", "--weights", weights, "--boxes", boxes, "--out", tmp_path / "out")
    for arguments, words in [
        ((photo, "--net", "vnect"), ("--net vnect needs --weights",)),
        ((photo, *common, "--focal", -3), ("focal length", "-3")),
        ((photo, *common, "--root-weights", weights), ("--root-weights is for --net mppe",)),
        ((photo, "--net", "volumetric", "--weights", weights, "--boxes", boxes), ("holds vnect_lite, not volumetric",)),
        ((photo, "--net", "orpm", "--weights", weights, "--boxes", boxes), ("leave --boxes out",)),
        ((photo, "--net", "orpm", "--weights", weights, "--flip"), ("--flip", "orpm")),
        ((photo, "--net", "vnect", "--weights", tmp_path / "none.pt"), ("no such checkpoint",)),
        ((photo, "--weights", saved(tmp_path, "posenet_lite"), "--root-weights", weights, "--boxes", boxes), ("not RootNet",)),
        ((photo, "--weights", saved(tmp_path, "rootnet_lite"), "--boxes", boxes), ("--root-weights",)),
        ((photo, photo, *common), ("one by one",)),
    ]:  # fmt: skip
        assert regress(*arguments) == 2
        complaint(capsys, *words)
    for bad in ([[60, 20, 60, 180]], [[500, 20, 600, 180]]):
        boxes.write_text(json.dumps(bad))
        assert regress(photo, *common) == 2
        complaint(capsys, "photo.png", "box 0 is", "240 x 200")


@pytest.mark.parametrize("average", [False, True])
def test_the_last_of_a_training_is_read_as_the_best_is(tmp_path, average):
    best = saved(tmp_path, "dconvmp_112")
    state = torch.load(best, weights_only=True)["model"]
    other = {key: torch.zeros_like(value) if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    averaged = {"n_averaged": torch.tensor(1)} | {f"module.{key}": value for key, value in state.items()}
    content = (
        {"average": averaged, "modules": {"net": other}} if average else {"average": None, "modules": {"net": state}}
    )
    torch.save(content | {"log": []}, tmp_path / "last.pt")
    net = read_regressor(tmp_path / "last.pt", "dconvmp")
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize(
    ("kind", "name"), [("mppe", "posenet_lite"), ("vnect", "vnect_lite"), ("dconvmp", "dconvmp_lite")]
)
def test_a_network_trained_on_other_crops_is_read_for_those(tmp_path, kind, name):
    path = saved(tmp_path, name, size=(96, 96))
    net = read_regressor(path, kind)
    assert net.name == name and net.size == (96, 96)
    with pytest.raises(InputError, match=r"for crops of \[96, 96\], not of .* for crops of \[128, 128\]"):
        builders.build(name, H36M17, (128, 128)).load_state_dict(
            torch.load(path, weights_only=True)["model"], strict=False
        )
    with pytest.raises(InputError, match="a side that is a multiple of 32 pixels, got 144"):
        builders.build(name, H36M17, (144, 144))


def test_checkpoints_of_other_things(tmp_path):
    torch.save({"model": {"linear_stages.0.w1.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="SimpleBaseline-3D"):
        read_regressor(tmp_path / "other.pt", "vnect")
    path = saved(tmp_path, "dconvmp_112")
    content = torch.load(path, weights_only=True)
    content["model"]["_extra_state"]["joints"] = "martian9"
    torch.save(content, path)
    with pytest.raises(InputError, match="martian9, which this version does not know"):
        read_regressor(path, "dconvmp")
    content["model"]["_extra_state"]["joints"] = "mppe18"
    torch.save(content, path)
    with pytest.raises(InputError, match="other weights than dconvmp_112's"):
        read_regressor(path, "dconvmp")
    with torch.device("cpu"):
        torch.save(volumetric_2(16).state_dict(), tmp_path / "volumetric.pt")
    with pytest.raises(InputError, match=r"volumetric.pt holds"):
        read_regressor(tmp_path / "volumetric.pt", "volumetric")


# ---- in the fit ----------------------------------------------------------------------------------------------------
def test_poses_of_several_photos_are_one_source():
    one = lambda n, value: Given3D(
        Keypoints3D(torch.full((n, 17, 3), value), torch.ones(n, 17), H36M17, "camera"), None, "mppe's 3D"
    )
    both = _cat_given([one(2, 1.0), one(1, 2.0)])
    assert both.name == "mppe's 3D" and both.keypoints.xyz[:, 0, 0].tolist() == [1, 1, 2]


def test_a_fit_needs_the_network_and_its_weights(photo, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", str(photo), "--net", "mppe", "--out", str(tmp_path / "out")])
    complaint(capsys, "--net-weights")
