"""Human3.6M's forms, in files that this test writes itself: nothing here uses the readers to make what they read."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from body3d.datasets.h36m import ACTIONS, H36M, H36MImages, canonical_action
from body3d.datasets.h36m_cameras import CAMERAS, SUBJECTS, h36m_camera
from body3d.errors import InputError
from body3d.skeletons import H36M17

USED = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
# As many code bases print them: subject 1, camera 54138969, rotation as w x y z and translation in mm.
Q, T_MM = (
    (0.1407056450843811, -0.1500701755285263, -0.755240797996521, 0.6223280429840088),
    (1841.1070556640625, 4955.28466796875, 1563.4454345703125),
)


def people(frames: int, seed: int = 0) -> np.ndarray:
    """(frames, 32, 3): metres, standing in the studio, z up."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.4, (frames, 32, 3)) + [0.2, 0.1, 1.0]).astype(np.float32)


def rotation(w: float, x: float, y: float, z: float) -> np.ndarray:
    """Camera to world, from the quaternion that VideoPose3D stores; it turns vectors by its inverse."""
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


TAKES = {
    "S1": {"Directions 1": 5, "SittingDown 1": 4, "Sitting 1": 3, "Photo": 2, "WalkDog 1": 2},
    "S11": {"Directions": 6, "Directions 1": 7},
    "S9": {"Walking 1": 4},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    world = {s: {a: people(n, i + n) for i, (a, n) in enumerate(takes.items())} for s, takes in TAKES.items()}
    # Detections run on for three frames, as CPN's do.
    found = {
        s: {a: [np.full((n + 3, 17, 2), 100.0 * c + n, np.float32) for c in range(4)] for a, n in takes.items()}
        for s, takes in TAKES.items()
    }
    np.savez_compressed(tmp_path / "data_3d_h36m.npz", positions_3d=np.array(world))
    meta = {
        "layout_name": "h36m",
        "num_joints": 17,
        "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
    }
    np.savez_compressed(
        tmp_path / "data_2d_h36m_cpn_ft_h36m_dbb.npz", positions_2d=np.array(found), metadata=np.array(meta)
    )
    return tmp_path


def test_videopose_files(folder):
    data = H36M.videopose(folder, "cpn_ft_h36m_dbb", ("S1",))
    assert len(data) == 4 * (5 + 4 + 3 + 2 + 2)
    sample = data[6]  # the second frame of the first take, second camera
    assert sample.id.startswith("S1/Directions 1/55011271")
    assert sample.kp2d.xy.tolist() == [[105.0, 105.0]] * 17
    world = people(5, 5)[1, USED]
    sample = data[1]
    R = rotation(*Q).T
    expected = (world - np.array(T_MM) / 1000) @ R.T
    np.testing.assert_allclose(sample.kp3d.xyz.numpy(), expected, atol=2e-5)
    assert sample.kp3d.frame == "camera"
    assert sample.kp3d.joints is H36M17


def test_the_camera_projects_like_opencv(folder):
    sample = H36M.videopose(folder, None, ("S1",), cameras=("54138969",))[0]
    K = np.array([[1145.0494384765625, 0, 512.54150390625], [0, 1143.7811279296875, 515.4514770507812], [0, 0, 1]])
    lens = np.array([-0.20709891617298126, 0.24777518212795258, -0.0014244711, -0.0009756988, -0.0030751503072679043])
    pixels, _ = cv2.projectPoints(sample.kp3d.xyz.double().numpy(), np.zeros(3), np.zeros(3), K, lens)
    np.testing.assert_allclose(sample.camera.project(sample.kp3d.xyz).numpy(), pixels[:, 0], rtol=1e-4, atol=0.05)


def test_takes_and_actions(folder):
    assert len(ACTIONS) == 15
    assert [canonical_action(a) for a in ("TakingPhoto 1", "WalkingDog", "Sitting 2", "SittingDown 1", "Walking 1")] == [
        "Photo", "WalkDog", "Sitting", "SittingDown", "Walking",
    ]  # fmt: skip
    assert {t.name for t in H36M.videopose(folder, None, ("S1",), ("Sitting",)).takes} == {"Sitting 1"}
    # One take of S11 has a corrupt video and is left out by everybody.
    assert {t.name for t in H36M.videopose(folder, None, ("S11",)).takes} == {"Directions 1"}
    assert {t.action for t in H36M.videopose(folder, None, ("S1",)).takes} == {
        "Directions",
        "SittingDown",
        "Sitting",
        "Photo",
        "WalkDog",
    }
    for wrong, message in (
        ({"subjects": ("S2",)}, "no S2; it has S1"),
        ({"actions": ("Dancing",)}, "no Dancing"),
        ({"cameras": ("1",)}, "no 1"),
    ):
        with pytest.raises(InputError, match=message):
            H36M.videopose(folder, None, **wrong)


def test_every_camera_of_every_subject_stands_where_the_published_list_says(shared):
    published = json.loads((shared / "data/annotations/h36m_cameras/camera-parameters.json").read_text())
    for subject in SUBJECTS:
        for name in CAMERAS:
            ours = h36m_camera(subject, name)
            lens, place = published["intrinsics"][name], published["extrinsics"][subject][name]
            np.testing.assert_allclose(ours.K.numpy(), np.array(lens["calibration_matrix"]), rtol=1e-5)
            np.testing.assert_allclose(ours.distortion.numpy(), np.array(lens["distortion"]), rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(ours.R.numpy(), np.array(place["R"]), atol=1e-5)
            np.testing.assert_allclose(ours.t.numpy(), np.array(place["t"]).ravel() / 1000, atol=1e-4)


def moon_files(folder: Path) -> np.ndarray:
    """3DMPPE's three files of subject 9; the true positions in the world, millimetres."""
    world = 1000 * people(1)[0, USED]
    R, t = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([0.0, 1000, 5000])
    frames = [0, 5, 64]
    write = lambda part, content: (folder / f"Human36M_subject9_{part}.json").write_text(json.dumps(content))
    write("camera", {"2": {"R": R.tolist(), "t": t.tolist(), "f": [1150, 1149], "c": [510, 505]}})
    write("joint_3d", {"3": {"1": {str(f): (world + f).tolist() for f in frames}}})
    write("data", {
        "images": [{"id": f, "file_name": f"s_09_act_03_subact_01_ca_02/f{f:06d}.jpg", "width": 1000, "height": 1002,
                    "subject": 9, "action_name": "Discussion", "action_idx": 3, "subaction_idx": 1, "cam_idx": 2,
                    "frame_idx": f} for f in frames],
        "annotations": [{"id": f, "image_id": f, "bbox": [100, 120, 300, 500], "keypoints_vis": [True] * 17} for f in frames],
    })  # fmt: skip
    return world


def test_3dmppe_files(tmp_path):
    world = moon_files(tmp_path)
    data = H36MImages.moon(tmp_path, ("S9",))
    assert len(data) == 3
    assert len(H36MImages.moon(tmp_path, ("S9",), every=64)) == 2  # frames 0 and 64
    assert len(H36MImages.moon(tmp_path, ("S9",), every=5)) == 2  # frames 0 and 5
    sample = data[1]
    x, y, z = ((world + 5) / 1000).T
    np.testing.assert_allclose(sample.kp3d.xyz.numpy(), np.stack([x, 1 - z, 5 + y], -1), atol=1e-5)
    assert data.actions == ("Discussion",) * 3
    assert sample.id.endswith("f000005.jpg")
    assert sample.box.xyxy.tolist() == [99.5, 119.5, 399.5, 619.5]
    u = 1150 * x / (5 + y) + 510
    np.testing.assert_allclose(sample.kp2d.xy[:, 0].numpy(), u, rtol=1e-5)


def test_mmpose_files(tmp_path):
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 0.3, (2, 17, 3)) + [0, 0, 4]
    K = np.array([[1145.0, 0, 512], [0, 1144.0, 515]])
    uv = xyz[..., :2] / xyz[..., 2:] * [1145, 1144] + [512, 515]
    names = [
        "S9/S9_TakingPhoto_1.54138969/S9_TakingPhoto_1.54138969_00001.jpg",
        "S9/S9_Waiting.54138969/S9_Waiting.54138969_00002.jpg",
    ]
    ones = np.ones((2, 17, 1))
    np.savez(
        tmp_path / "h36m_test.npz", imgname=np.array(names), center=np.array([[500.0, 400]] * 2), scale=np.array([2.0, 3]),
        part=np.concatenate([uv, ones], -1), S=np.concatenate([xyz, ones], -1),
    )  # fmt: skip
    lens = {"R": np.eye(3), "T": np.zeros((3, 1)), "c": K[:, 2:], "f": np.array([[1145.0], [1144]]),
            "k": np.array([[0.1], [0.2], [0.3]]),
            "p": np.array([[0.01], [0.02]]), "w": 1000, "h": 1002, "name": "camera54138969", "id": "54138969", "K": K}  # fmt: skip
    (tmp_path / "cameras.pkl").write_bytes(pickle.dumps({("S9", "54138969"): lens}))
    data = H36MImages.mmpose(tmp_path / "h36m_test.npz", tmp_path / "cameras.pkl")
    np.testing.assert_allclose(data[1].kp3d.xyz.numpy(), xyz[1], atol=1e-5)
    np.testing.assert_allclose(data[1].kp2d.xy.numpy(), uv[1], rtol=1e-5)
    assert data.actions == ("Photo", "Waiting")
    assert data[1].box.xyxy.tolist() == [200, 100, 800, 700]
    assert data[0].camera.distortion.tolist() == pytest.approx([0.1, 0.2, 0.02, 0.01, 0.3])
    assert len(H36MImages.mmpose(tmp_path / "h36m_test.npz", tmp_path / "cameras.pkl", ("Waiting",))) == 1


def test_the_original_files(tmp_path):
    cdflib = pytest.importorskip("cdflib")
    pose = 1000 * people(4)
    path = tmp_path / "S9" / "MyPoseFeatures" / "D3_Positions" / "WalkingDog 1.cdf"
    path.parent.mkdir(parents=True)
    spec = {
        "Variable": "Pose",
        "Data_Type": 45,
        "Num_Elements": 1,
        "Rec_Vary": True,
        "Dim_Sizes": [4, 96],
        "Var_Type": "zVariable",
    }
    file = cdflib.cdfwrite.CDF(path, cdf_spec={"Compressed": 0})
    file.write_var(spec, var_attrs={}, var_data=pose.reshape(1, 4, 96))
    file.close()
    data = H36M.original(tmp_path, ("S9",))
    assert len(data) == 16
    assert {t.action for t in data.takes} == {"WalkDog"}
    np.testing.assert_allclose(data.world["S9", "WalkingDog 1"], pose / 1000, atol=1e-5)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="WalkingDog 1.cdf: 'Pose' cannot be read"):
        H36M.original(tmp_path, ("S9",))


def rewritten(folder: Path, change, name: str = "data_3d_h36m.npz", key: str = "positions_3d") -> None:
    with np.load(folder / name, allow_pickle=True) as file:
        content = file[key].item()
    change(content)
    np.savez_compressed(folder / name, **{key: np.array(content)})


def nan(content):
    content["S9"]["Walking 1"][2, 0, 1] = np.nan


def shape(content):
    content["S9"]["Walking 1"] = content["S9"]["Walking 1"][:, :17]


def short(content):
    content["S9"]["Walking 1"][3] = content["S9"]["Walking 1"][3][:2]


def three(content):
    content["S9"]["Walking 1"] = content["S9"]["Walking 1"][:3]


def test_bad_videopose_files(folder):
    read = lambda keypoints=None: H36M.videopose(folder, keypoints, ("S9",))
    rewritten(folder, nan)
    with pytest.raises(
        InputError, match=r"data_3d_h36m.npz: positions_3d\[S9\]\[Walking 1\] has 1 entries that are NaN"
    ):
        read()[2]
    rewritten(folder, shape)
    with pytest.raises(
        InputError, match=r"\[Walking 1\] is an array \(4, 17, 3\), where \(frames, 32, 3\) was expected"
    ):
        read()


def test_2d_that_does_not_fit_the_3d(folder):
    name = "data_2d_h36m_cpn_ft_h36m_dbb.npz"
    rewritten(folder, short, name, "positions_2d")
    with pytest.raises(InputError, match=r"positions_2d\[S9\]\[Walking 1\].* has 2 frames, the 3D file 4"):
        H36M.videopose(folder, "cpn_ft_h36m_dbb", ("S9",))
    rewritten(folder, three, name, "positions_2d")
    with pytest.raises(InputError, match="has 3 views, where four were expected"):
        H36M.videopose(folder, "cpn_ft_h36m_dbb", ("S9",))


def test_files_that_are_not_what_they_should_be(folder, tmp_path):
    with pytest.raises(InputError, match="no such .*VideoPose3D"):
        H36M.videopose(tmp_path / "nowhere", None)
    with pytest.raises(InputError, match="data_2d_h36m_gt.npz: there is no such"):
        H36M.videopose(folder, "gt")
    path = folder / "data_3d_h36m.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="positions_3d' cannot be read"):
        H36M.videopose(folder, None)
    np.savez(path, positions=np.zeros(3))
    with pytest.raises(InputError, match="has no 'positions_3d', only positions"):
        H36M.videopose(folder, None)
    np.savez(path, positions_3d=np.zeros((3, 32, 3)))
    with pytest.raises(InputError, match="not the dictionary"):
        H36M.videopose(folder, None)


class Evil:
    def __reduce__(self):
        return (print, ("this must never be run",))


def test_a_pickle_that_runs_code_is_refused(folder, capsys):
    np.savez(folder / "data_3d_h36m.npz", positions_3d=np.array({"S1": Evil()}, dtype=object))
    with pytest.raises(InputError, match="positions_3d"):
        H36M.videopose(folder, None)
    assert "never" not in capsys.readouterr().out


def test_bad_3dmppe_files(tmp_path):
    moon_files(tmp_path)
    path = tmp_path / "Human36M_subject9_joint_3d.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(InputError, match="joint_3d.json is not JSON, or only the beginning"):
        H36MImages.moon(tmp_path, ("S9",))
    path.write_text(whole.replace('"64"', '"65"'))
    with pytest.raises(InputError, match="lacks '64'"):
        H36MImages.moon(tmp_path, ("S9",))
    with pytest.raises(InputError, match="subject1_data.json"):
        H36MImages.moon(tmp_path, ("S1",))
