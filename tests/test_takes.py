"""2D-3D pairs: which frames count, windows, where they come from, and what trains lifters on them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from body3d.commands.train import Train, run_training
from body3d.datasets.h36m import KEPT
from body3d.datasets.h36m_cameras import CAMERAS, h36m_camera
from body3d.errors import InputError
from body3d.learn.configs import read_config
from body3d.learn.lifting import H36MFiles, LifterRun, LiftTask
from body3d.lift.baseline import SimpleBaseline3D
from body3d.lift.lifter import Lifter, mirrored
from body3d.lift.takes import MocapScene, Takes, h36m_takes, mpi_inf_3dhp_takes, studio_cameras
from body3d.lift.temporal import VideoPose3D
from body3d.skeletons import H36M16, H36M17
from body3d.train import Linear, Plan, Task
from body3d.types import Keypoints2D, Keypoints3D, Sample

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "configs"


def scene(places: list[float]) -> MocapScene:
    """One clip of a figure of a person's size so many metres above the floor: whichever way a clip is turned, z stays."""
    torch.manual_seed(0)
    figure = torch.rand(17, 3) * torch.tensor([1.0, 0.3, 1.7]) - torch.tensor([0.5, 0.15, 0.0])
    xyz = figure + torch.tensor([[[0.0, 0.0, z]] for z in places])
    zero = torch.zeros(len(places), dtype=torch.int64)
    return MocapScene(xyz, zero, torch.tensor([0]), torch.tensor([len(places)]), torch.tensor([0]), ("somebody",))


def test_people_whom_the_image_cuts_do_not_count():
    """Four metres up nobody is whole in a view of 4 m from 5 m away."""
    takes = scene([0.0, 4.0, 0.2, 30.0]).takes([studio_cameras("54138969", 1)], torch.Generator().manual_seed(1))
    assert takes.counted.tolist() == [True, False, True, False]
    assert takes.index.tolist() == [0, 2]
    assert takes.xy[takes.index].abs().max() <= 1
    assert takes.xy.abs().max() < 4  # a lens model is not asked about what it cannot know
    # Neighbours in a window are there all the same.
    assert torch.equal(takes.windows(takes.index, 3)[0, 2], takes.xy[1])


def test_only_frames_that_count_are_trained_and_scored():
    places = [0.0, 4.0, 0.2, 30.0, -0.1, 0.1]
    data = scene(places).takes([studio_cameras("54138969", 1)], torch.Generator().manual_seed(1))
    task = LiftTask(Lifter(SimpleBaseline3D(34, 51, width=8), H36M17), lambda random: data, data, batch=2)
    assert task.steps() == 2
    xy = torch.cat([batch[0] for batch in task.batches(0, torch.Generator().manual_seed(0))])
    assert len(xy) == 4 and xy.abs().max() <= 1
    assert len(data.index) == 4


def test_no_batch_is_a_single_frame():
    """Batch norm has no deviation of one. How many frames count may change from epoch to epoch."""
    data = scene([0.01 * i for i in range(9)]).takes([studio_cameras("54138969", 1)], torch.Generator().manual_seed(1))
    task = LiftTask(Lifter(SimpleBaseline3D(34, 51, width=8), H36M17), lambda random: data, data, batch=4)
    assert task.steps() == 2
    for counted, sizes in ((9, [4, 4]), (8, [4, 4]), (7, [4, 3]), (5, [4])):
        task.training = lambda random, n=counted: replace(data, counted=torch.arange(9) < n)
        batches = list(task.batches(0, torch.Generator().manual_seed(0)))
        assert [len(xy) for xy, _ in batches] == sizes
        assert all(loss.isfinite() for batch in batches for loss in task.losses(batch).values())
    with pytest.raises(InputError, match="1 frames to train on"):
        LiftTask(task.modules["lifter"], lambda random: replace(data, counted=torch.arange(9) < 1), data, batch=4)


# ---- files of others -----------------------------------------------------------------------------------------------
def videopose_folder(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """VideoPose3D's two files, detections three frames longer; the people of the 3D one, (T, 32, 3) in the studio."""
    takes = {"S1": {"Walking 1": 6, "Sitting": 4}, "S9": {"Eating 2": 5}, "S11": {"Directions": 3, "Photo": 2}}
    rng = np.random.default_rng(0)
    place = lambda n: (rng.normal(0, 0.4, (n, 32, 3)) + [0.2, 0.1, 1.0]).astype(np.float32)
    world = {s: {name: place(n) for name, n in own.items()} for s, own in takes.items()}
    found = {
        s: {name: [rng.uniform(0, 1000, (n + 3, 17, 2)).astype(np.float32) for _ in CAMERAS] for name, n in own.items()}
        for s, own in takes.items()
    }
    np.savez(folder / "data_3d_h36m.npz", positions_3d=np.array(world))
    np.savez(folder / "data_2d_h36m_cpn.npz", positions_2d=np.array(found))
    return world | {"found": found}


def test_takes_of_human36m(tmp_path):
    files = videopose_folder(tmp_path)
    data = h36m_takes(tmp_path, "gt", test=True)
    # S11's Directions is left out, as everybody does; each take is seen by four cameras.
    assert (data.actions, data.action.tolist()) == (("Eating", "Photo"), [0] * 4 + [1] * 4)
    assert data.start.tolist() == [0, 5, 10, 15, 20, 22, 24, 26] and data.stop.tolist() == [
        5,
        10,
        15,
        20,
        22,
        24,
        26,
        28,
    ]
    assert data.counted.all() and len(data) == 28
    for take, name in enumerate(CAMERAS):
        camera, rows = h36m_camera("S9", name), slice(5 * take, 5 * take + 5)
        world = files["S9"]["Eating 2"][:, list(KEPT)].astype(np.float64)
        xyz = world @ camera.R.double().numpy().T + camera.t.double().numpy()
        np.testing.assert_allclose(data.xyz[rows].numpy(), xyz, atol=1e-5)
        K, lens = camera.K.double().numpy(), camera.distortion.double().numpy()
        pixels = cv2.projectPoints(xyz.reshape(-1, 3), np.zeros(3), np.zeros(3), K, lens)[0].reshape(5, 17, 2)
        height, width = camera.size
        np.testing.assert_allclose(data.xy[rows].numpy(), pixels / width * 2 - [1, height / width], atol=2e-4)
        np.testing.assert_allclose(data.focal[rows].numpy(), np.tile(np.diag(K)[:2] * 2 / width, (5, 1)), rtol=1e-5)
    detected = h36m_takes(tmp_path, "cpn", test=False)
    assert len(detected) == 4 * (6 + 4)
    xy = files["found"]["S1"]["Walking 1"][1][:6]
    np.testing.assert_allclose(detected.xy[6:12].numpy(), xy / 1000 * 2 - 1, atol=1e-6)  # a camera of 1000 by 1000


def pstmo_folder(folder: Path) -> np.ndarray:
    """P-STMO's two files of a person who walks by, one frame of ten of the test sequence valid; (60, 17, 3) millimetres."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 300, (17, 3)) + [0, 0, 4000] + np.arange(60)[:, None, None] * [10.0, 0, 0]
    xy = xyz[..., :2] / xyz[..., 2:] * 1500 + 1024
    valid = (np.arange(60) % 10 == 5).astype(float)
    hidden = np.where(valid[:, None, None] > 0, xyz, np.nan)
    arrays = {"data_2d": xy, "data_3d": xyz}
    np.savez(folder / "data_train_3dhp.npz", data=np.array({"S1 Seq1": [{"0": arrays}, 25]}, dtype=object))
    test = {"TS1": {"data_2d": xy, "data_3d": hidden, "valid": valid}}
    np.savez(folder / "data_test_3dhp.npz", data=np.array(test, dtype=object))
    return xyz


def test_windows_of_3dhps_test_set_have_their_true_neighbours(tmp_path):
    xyz = pstmo_folder(tmp_path)
    data = mpi_inf_3dhp_takes(tmp_path / "data_test_3dhp.npz")
    assert data.index.tolist() == [5, 15, 25, 35, 45, 55]
    x = xyz[24:27, :, 0] / xyz[24:27, :, 2] * 1500 / 1024  # (1500 x/z + 1024) of 2048 pixels, from -1 to 1
    np.testing.assert_allclose(data.windows(data.index[2:3], 3)[0, ..., 0].numpy(), x, atol=1e-5)
    # The camera is fitted to what is annotated.
    torch.testing.assert_close(data.focal, torch.full((60, 2), 1500 / 1024), rtol=1e-4, atol=0)
    assert mpi_inf_3dhp_takes(tmp_path / "data_train_3dhp.npz").counted.all()


def test_recordings_that_cannot_be_stacked():
    xy, xyz = Keypoints2D(torch.rand(2, 17, 2), torch.ones(2, 17), H36M17), torch.rand(2, 17, 3)
    whole = Sample(
        "one", kp2d=xy, kp3d=Keypoints3D(xyz, torch.ones(2, 17), H36M17, "camera"), camera=h36m_camera("S1", CAMERAS[0])
    )
    other = Keypoints3D(xyz[:, :16], torch.ones(2, 16), H36M16, "camera")
    for samples, message in (
        ([], "somewhere has no recording"),
        ([whole, replace(whole, id="two", camera=None)], "two lacks 2D keypoints, 3D keypoints or the camera"),
        ([whole, replace(whole, id="two", kp3d=other)], "two is in h36m16, where h36m17 was expected"),
    ):
        with pytest.raises(InputError, match=message):
            Takes.stack([("action", sample) for sample in samples], "somewhere")


# ---- training ------------------------------------------------------------------------------------------------------
def test_a_flipped_mean_is_symmetric():
    torch.manual_seed(0)
    lifter, xy = Lifter(SimpleBaseline3D(34, 51, width=16).eval(), H36M17), torch.randn(3, 1, 17, 2)
    mean = lifter.flipped_mean(xy)
    torch.testing.assert_close(lifter.flipped_mean(mirrored(xy, H36M17)), mirrored(mean, H36M17))
    torch.testing.assert_close(
        mean[:, 9], (lifter(xy)[:, 9] + lifter(mirrored(xy, H36M17))[:, 9] * torch.tensor([-1.0, 1, 1])) / 2
    )
    assert not torch.allclose(mean, lifter(xy), atol=1e-2)


def test_a_run_on_human36m(tmp_path):
    videopose_folder(tmp_path)
    run = LifterRun(
        H36MFiles("gt"), lambda joints: VideoPose3D(len(joints), widths=(3,), channels=8), Plan(epochs=4, lr=1e-3),
        batch=16, frames=3, flip=True, momentum=(0.1, 0.001),
    )  # fmt: skip
    task = run.task(tmp_path, CPU)
    data, lifter = h36m_takes(tmp_path, "gt", test=False), task.modules["lifter"]
    assert task.steps() == 3
    batches = list(task.batches(2, torch.Generator().manual_seed(0)))
    assert lifter.net.expand_bn.momentum == pytest.approx(0.01)  # half of the way from 0.1 to 0.001
    # Every frame once, either all of a batch mirrored or none.
    seen = [False, False]
    windows, poses = data.windows(torch.arange(40), 3), data.relative(torch.arange(40))
    rows = []
    for xy, xyz in batches:
        distance = [(xyz[:, None] - p).flatten(2).norm(dim=-1) for p in (poses, mirrored(poses, H36M17))]
        side = int(distance[1].amin() < distance[0].amin())
        seen[side] = True
        rows += distance[side].argmin(1).tolist()
        torch.testing.assert_close(xy, (windows, mirrored(windows, H36M17))[side][rows[-len(xy) :]])
    assert sorted(rows) == list(range(40))
    # A lifter that puts all joints on the root is off by their distance from it.
    for parameter in lifter.net.shrink.parameters():
        torch.nn.init.zeros_(parameter)
    test = h36m_takes(tmp_path, "gt", test=True)
    distance = test.relative(test.index).norm(dim=-1).mean(1) * 1000
    with torch.no_grad():
        figures = task.validate(lifter.eval())
    assert figures["MPJPE mm"] == pytest.approx(distance.mean().item(), rel=1e-4)
    assert figures["MPJPE mm by action"] == pytest.approx(
        (distance[:20].mean() + distance[20:].mean()).item() / 2, rel=1e-4
    )


@pytest.mark.parametrize(("name", "files"), [("h36m", videopose_folder), ("mpi_inf_3dhp", pstmo_folder)])
def test_poseaug_goes_on_from_the_lifter_that_its_config_names(name, files: Callable, tmp_path):
    files(tmp_path)
    before = read_config(CONFIGS / f"{name}_simple_baseline_16.py").task(tmp_path, CPU).modules["lifter"].state_dict()
    torch.save({"model": before}, tmp_path / "best.pt")
    assert f"configs/{name}_simple_baseline_16.py" in (CONFIGS / f"{name}_poseaug.py").read_text()
    run = replace(read_config(CONFIGS / f"{name}_poseaug.py"), start=tmp_path / "best.pt")
    after = run.task(tmp_path, CPU).modules["lifter"].state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@dataclass(frozen=True)
class Noted:
    """A run that keeps the plan that its task was made by."""

    plan: Plan
    plans: list[Plan] = field(default_factory=list)

    def task(self, path: Path | None, device: torch.device) -> Task:
        self.plans.append(self.plan)
        data = scene([0.0, 0.1, 0.2, 0.3]).takes([studio_cameras("54138969", 1)], torch.Generator().manual_seed(1))
        return LiftTask(Lifter(SimpleBaseline3D(34, 51, width=8), H36M17), lambda random: data, data, batch=4)


def test_stopping_early_leaves_the_configs_plan(tmp_path):
    run = Noted(Plan(epochs=4, lr=1e-3, schedule=Linear(4)))
    args = Train(Path("noted.py"), out=tmp_path / "run", epochs=2, seed=7)
    run_training(args, run)
    assert run.plans == [replace(run.plan, seed=7)]
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 1 + 2
    for epochs in (0, -1):
        with pytest.raises(InputError, match=f"--epochs is a number from 1, got {epochs}"):
            run_training(replace(args, epochs=epochs, out=tmp_path / "other"), run)
    assert not (tmp_path / "other").exists()


def test_a_config_that_is_not_python(tmp_path):
    (tmp_path / "README.md").write_text("# How to train\n\nFirst of all ...\n")
    with pytest.raises(InputError, match="README.md is not a config, which is a Python file"):
        read_config(tmp_path / "README.md")
