"""MPI-INF-3DHP and CMU Panoptic, in files that this test writes by their published layouts."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from body3d.datasets.catalogue import SETS
from body3d.datasets.mpi_inf_3dhp import MPIINF3DHP, read_calibration
from body3d.datasets.panoptic import Panoptic
from body3d.errors import InputError
from body3d.skeletons import MPI_INF_3DHP17, MPI_INF_3DHP28, PANOPTIC19

RNG = np.random.default_rng(0)
K = np.array([[1500.0, 0, 1024], [0, 1500, 1000], [0, 0, 1]])


def image_of(xyz: np.ndarray) -> np.ndarray:
    uvw = xyz @ K.T
    return uvw[..., :2] / uvw[..., 2:]


def calibration(cameras=(0, 1, 2)) -> str:
    blocks = ["Skeletool Camera Calibration File V1.0"]
    for c in cameras:
        intrinsic = np.eye(4)
        intrinsic[:3, :3] = K + np.diag([c, c, 0])
        blocks.append(
            f"name          {c}\n  sensor      10 10\n  size        2048 2048\n  animated    0\n"
            f"  intrinsic   {' '.join(map(str, intrinsic.ravel()))}\n  extrinsic   {' '.join(map(str, np.eye(4).ravel()))}\n"
            "  radial      0"
        )
    return "\n".join(blocks) + "\n"


def train_files(folder: Path, frames: int = 3) -> dict[str, np.ndarray]:
    """annot.mat of S1/Seq1 and Seq2 with three cameras: (T, 28 * 3) millimetres, (T, 28 * 2) pixels in cells."""
    made = {}
    for sequence in ("Seq1", "Seq2"):
        xyz = RNG.normal(0, 400, (3, frames, 28, 3)) + [0, 0, 4000]
        cell = lambda arrays: np.array([a.reshape(frames, -1) for a in arrays] + [None], dtype=object)[:-1].reshape(
            -1, 1
        )
        path = folder / "S1" / sequence
        path.mkdir(parents=True)
        savemat(path / "annot.mat", {
            "annot2": cell(image_of(xyz)), "annot3": cell(xyz), "univ_annot3": cell(0.9 * xyz),
            "cameras": np.arange(3), "frames": np.arange(frames),
        })  # fmt: skip
        (path / "camera.calibration").write_text(calibration())
        made[sequence] = xyz
    return made


def test_training_files(tmp_path):
    made = train_files(tmp_path)
    data = MPIINF3DHP.train(tmp_path, "annot3", ("S1",), cameras=(0, 2))
    assert len(data) == 2 * 2 * 3
    sample = data[3 + 1]  # Seq1, camera 2, second frame
    np.testing.assert_allclose(sample.kp3d.xyz.numpy(), made["Seq1"][2, 1] / 1000, atol=1e-5)
    np.testing.assert_allclose(sample.kp2d.xy.numpy(), image_of(made["Seq1"])[2, 1], rtol=1e-5)
    assert sample.kp3d.joints is MPI_INF_3DHP28
    assert sample.camera.K[0, 0] == 1502  # camera 2's own
    univ = MPIINF3DHP.train(tmp_path, "univ_annot3", ("S1",), cameras=(0, 2))[4]
    np.testing.assert_allclose(univ.kp3d.xyz.numpy(), 0.9 * made["Seq1"][2, 1] / 1000, atol=1e-5)
    assert "univ_annot3" in univ.id
    assert "univ_annot3" not in sample.id
    assert univ.camera is None  # a rescaled pose is not where the person stood


def test_bad_training_files(tmp_path):
    train_files(tmp_path)
    read = lambda **k: MPIINF3DHP.train(tmp_path, "annot3", ("S1",), **k)
    with pytest.raises(InputError, match="has no camera 7"):
        read(cameras=(7,))
    with pytest.raises(InputError, match="S2.*annot.mat: there is no such"):
        MPIINF3DHP.train(tmp_path, "annot3", ("S2",))
    path = tmp_path / "S1" / "Seq1" / "annot.mat"
    savemat(path, {"annot2": np.array([np.zeros((3, 56))] + [None], dtype=object)[:1].reshape(-1, 1)})
    with pytest.raises(InputError, match="annot.mat has no annot3; it comes from"):
        read(cameras=(0,))
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(InputError, match="is not a whole MATLAB file"):
        read(cameras=(0,))
    (tmp_path / "S1" / "Seq1" / "camera.calibration").write_text("nothing")
    with pytest.raises(InputError, match="is not a calibration"):
        read_calibration(tmp_path / "S1" / "Seq1" / "camera.calibration")


def test_file(folder: Path, name: str, frames: int = 6, change=lambda arrays: None) -> np.ndarray:
    """annot_data.mat as MATLAB v7.3 stores it: axes in reverse, (frames, 1, 17, 3)."""
    xyz = RNG.normal(0, 400, (frames, 1, 17, 3)) + [0, 0, 4000]
    arrays = {
        "annot2": image_of(xyz), "annot3": xyz, "univ_annot3": 0.9 * xyz,
        "valid_frame": np.array([[1], [0], [1], [1], [0], [1]][:frames]),
        "activity_annotation": np.full((frames, 1), 3.0), "bb_crop": np.zeros((frames, 4)),
    }  # fmt: skip
    change(arrays)
    (folder / name).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name / "annot_data.mat", "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return xyz


test_file.__test__ = False


def test_test_files(tmp_path):
    xyz = test_file(tmp_path, "TS2")
    data = MPIINF3DHP.test(tmp_path, "annot3", ("TS2",))
    assert len(data) == 4  # valid frames only
    sample = data[1]
    np.testing.assert_allclose(sample.kp3d.xyz.numpy(), xyz[2, 0] / 1000, atol=1e-5)
    assert sample.kp3d.joints is MPI_INF_3DHP17
    # The file has no camera: the one fitted to its points images them.
    np.testing.assert_allclose(sample.camera.K.numpy(), K, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(sample.camera.project(sample.kp3d.xyz).numpy(), sample.kp2d.xy.numpy(), atol=0.1)
    univ = MPIINF3DHP.test(tmp_path, "univ_annot3", ("TS2",))
    np.testing.assert_allclose(univ[1].kp3d.xyz.numpy(), 0.9 * xyz[2, 0] / 1000, atol=1e-5)


def put(key, value):
    def change(arrays):
        arrays[key] = value(arrays[key])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("univ_annot3"), "annot_data.mat has no univ_annot3"),
        (
            put("annot3", lambda x: np.where(np.arange(6).reshape(6, 1, 1, 1) == 2, np.nan, x)),
            "annot3 has 51 entries that are NaN",
        ),
        (put("annot2", lambda x: x[:5]), "annot2 has 5 frames, where 6 were expected"),
        (put("activity_annotation", lambda x: x + 7), "activity_annotation runs from 10 to 10"),
    ],
)
def test_bad_test_files(tmp_path, change, message):
    test_file(tmp_path, "TS1", change=change)
    with pytest.raises(InputError, match=message):
        MPIINF3DHP.test(tmp_path, "annot3", ("TS1",))


def test_a_test_file_cut_short(tmp_path):
    test_file(tmp_path, "TS1")
    path = tmp_path / "TS1" / "annot_data.mat"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="is not a whole MATLAB v7.3 file"):
        MPIINF3DHP.test(tmp_path, "annot3", ("TS1",))
    with pytest.raises(InputError, match="no such .*vcai.mpi-inf.mpg.de"):
        MPIINF3DHP.test(tmp_path / "nowhere", "annot3")


def test_pstmo_files(tmp_path):
    xyz = RNG.normal(0, 400, (4, 17, 3)) + [0, 0, 4000]
    train = {
        "S1 Seq1": [
            {"0": {"data_2d": image_of(xyz), "data_3d": xyz}, "4": {"data_2d": image_of(xyz) + 1, "data_3d": xyz}},
            25,
        ]
    }
    np.savez(tmp_path / "train.npz", data=np.array(train, dtype=object))
    data = MPIINF3DHP.pstmo(tmp_path / "train.npz", "annot3")
    assert len(data) == 8
    np.testing.assert_allclose(data[5].kp3d.xyz.numpy(), xyz[1] / 1000, atol=1e-5)
    np.testing.assert_allclose(data[5].kp2d.xy.numpy(), image_of(xyz)[1] + 1, rtol=1e-5)
    valid = np.array([1, 0, 1, 1])
    np.savez(
        tmp_path / "test.npz",
        data=np.array({"TS1": {"data_2d": image_of(xyz), "data_3d": xyz, "valid": valid}}, dtype=object),
    )
    data = MPIINF3DHP.pstmo(tmp_path / "test.npz", "univ_annot3")
    assert len(data) == 3
    np.testing.assert_allclose(data[1].kp3d.xyz.numpy(), xyz[2] / 1000, atol=1e-5)
    # What is not annotated may be anything: of use only as a neighbour in time.
    hidden = np.where(valid[:, None, None] > 0, xyz, np.nan)
    test = {"TS1": {"data_2d": image_of(xyz), "data_3d": hidden, "valid": valid}}
    np.savez(tmp_path / "test.npz", data=np.array(test, dtype=object))
    assert len(MPIINF3DHP.pstmo(tmp_path / "test.npz", "univ_annot3")) == 3
    (whole,) = MPIINF3DHP.pstmo(tmp_path / "test.npz", "univ_annot3", all_frames=True).recordings
    assert whole.valid.tolist() == [True, False, True, True] and whole.frames == (0, 1, 2, 3)
    np.testing.assert_allclose(whole.xy.numpy(), image_of(xyz), rtol=1e-5)
    assert (whole.xyz[1] == 0).all()
    np.savez(
        tmp_path / "bad.npz",
        data=np.array({"TS1": {"data_2d": image_of(xyz), "data_3d": xyz[:3], "valid": valid}}, dtype=object),
    )
    with pytest.raises(InputError, match="TS1 data_3d has 3 frames, where 4"):
        MPIINF3DHP.pstmo(tmp_path / "bad.npz", "univ_annot3")
    np.savez(tmp_path / "bad.npz", data=np.array({"TS1": {"data_2d": image_of(xyz)}}, dtype=object))
    with pytest.raises(InputError, match="not laid out as P-STMO's file"):
        MPIINF3DHP.pstmo(tmp_path / "bad.npz", "univ_annot3")


def test_the_catalogue_knows_that_pstmos_poses_are_universal(tmp_path):
    arrays = {"data_2d": np.ones((2, 17, 2)), "data_3d": np.ones((2, 17, 3))}
    np.savez(tmp_path / "data_train_3dhp.npz", data=np.array({"S1 Seq1": [{"0": arrays}, 25]}, dtype=object))
    np.savez(tmp_path / "data_test_3dhp.npz", data=np.array({"TS1": arrays | {"valid": np.ones(2)}}, dtype=object))
    forms = [form for form in SETS["mpi_inf_3dhp"].forms if "P-STMO" in form.name]
    assert [form.open(tmp_path).scale for form in forms] == ["univ_annot3"] * 2


# ---- CMU Panoptic --------------------------------------------------------------------------------------------------
def panoptic_files(folder: Path) -> np.ndarray:
    """A sequence of two frames, two people in the first and nobody in the second; centimetres, y down."""
    name = "171204_pose1"
    poses = folder / name / "hdPose3d_stage1_coco19" / "hd"
    poses.mkdir(parents=True)
    a = np.radians(30)
    R = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    lens = lambda c: {"name": c, "type": "hd", "resolution": [1920, 1080], "panel": 0, "node": 3,
                      "K": [[1400, 0, 960], [0, 1400, 540], [0, 0, 1]],
                      "distCoef": [0, 0, 0, 0, 0], "R": R.tolist(), "t": [[10.0], [20.0], [300.0]]}  # fmt: skip
    (folder / name / f"calibration_{name}.json").write_text(json.dumps({"cameras": [lens("00_03"), lens("00_06")]}))
    joints = np.concatenate([RNG.normal(0, 40, (2, 19, 3)), RNG.uniform(0.3, 1, (2, 19, 1))], -1)
    joints[1, 4] = [0, 0, 0, -1]  # missing
    bodies = [{"id": i, "joints19": j.ravel().tolist()} for i, j in enumerate(joints)]
    for frame, people in ((100, bodies), (101, [])):
        text = json.dumps({"version": 0.7, "univTime": 1.5, "fpsType": "hd_29_97", "bodies": people})
        (poses / f"body3DScene_{frame:08d}.json").write_text(text)
    return joints


def test_panoptic(tmp_path):
    joints = panoptic_files(tmp_path)
    data = Panoptic.open(tmp_path, cameras=("00_03", "00_06"))
    assert len(data) == 4
    sample = data[1]
    a = np.radians(30)
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    expected = np.stack([np.cos(a) * x + np.sin(a) * z + 10, y + 20, -np.sin(a) * x + np.cos(a) * z + 300], -1) / 100
    seen = np.ones((2, 19), bool)
    seen[1, 4] = False
    np.testing.assert_allclose(sample.kp3d.xyz.numpy()[seen], expected[seen], atol=1e-5)
    assert sample.kp3d.conf[1, 4] == 0
    assert sample.kp2d.conf[1, 4] == 0
    assert sample.kp3d.joints is PANOPTIC19
    uv = expected[..., :2] / expected[..., 2:] * 1400 + [960, 540]
    np.testing.assert_allclose(sample.kp2d.xy.numpy()[seen], uv[seen], rtol=1e-4)
    assert "171204_pose1/00_06/00000100" in sample.id
    assert data[2].kp3d.xyz.shape == (0, 19, 3)


def test_bad_panoptic_files(tmp_path):
    panoptic_files(tmp_path)
    with pytest.raises(InputError, match="has no camera 00_12"):
        Panoptic.open(tmp_path, cameras=("00_12",))
    path = next(tmp_path.rglob("body3DScene_00000100.json"))
    text = path.read_text()
    data = Panoptic.open(tmp_path, cameras=("00_03",))
    for changed, message in (
        (text[:80], "is not JSON, or only the beginning"),
        (text.replace("joints19", "joints15"), "has no 'joints19'"),
        (text.replace("bodies", "people"), "has no list 'bodies'"),
    ):
        path.write_text(changed)
        with pytest.raises(InputError, match=message):
            data[0]
    with pytest.raises(InputError, match="holds no <sequence>/calibration"):
        Panoptic.open(next(tmp_path.rglob("hd")), cameras=("00_03",))
