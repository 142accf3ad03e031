"""The shipped lifter: what it makes of points that are not known, files that are none, and `body3d lift`."""

import json
import zipfile

import numpy as np
import pytest
import torch

from body3d.camera import Camera
from body3d.cli import main
from body3d.errors import InputError
from body3d.lift.embedded import embedded_lifter, lift, load_lifter
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D


def standing() -> Keypoints2D:
    xy = 300 + 100 * torch.randn(1, 17, 2, generator=torch.Generator().manual_seed(0))
    return Keypoints2D(xy, torch.full((1, 17), 0.9), COCO17)


def test_a_point_that_is_not_a_number_is_not_known():
    camera, points = Camera.guess((600, 600), 700.0), standing()
    wrist = COCO17.index("left_wrist")
    xy, conf = points.xy.clone(), points.conf.clone()
    xy[:, wrist], conf[:, wrist] = torch.nan, 0
    unknown = lift(embedded_lifter(), Keypoints2D(points.xy, conf, COCO17), camera)
    broken = lift(embedded_lifter(), Keypoints2D(xy, points.conf, COCO17), camera)
    torch.testing.assert_close(broken.body.xyz, unknown.body.xyz)
    assert (broken.body.xyz - lift(embedded_lifter(), points, camera).body.xyz).abs().max() > 1e-3


def test_files_that_hold_no_lifter(tmp_path):
    torch.save({"model": {"a": torch.zeros(3)}}, tmp_path / "best.pt")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    for name in ("best.pt", "other.npz", "cut.npz", "empty.npz"):
        with pytest.raises(InputError, match=f"{name} holds no lifter.*ship_lifter"):
            load_lifter(tmp_path / name)


def test_the_command(tmp_path, capsys):
    numbers = torch.cat([standing().xy, standing().conf[..., None]], -1).flatten().tolist()
    people = [{"image_id": 1, "keypoints": numbers, "bbox": [0, 0, n, n]} for n in (400, 500)]
    (tmp_path / "k.json").write_text(json.dumps(people))

    def run(*more) -> int:
        with pytest.raises(SystemExit) as stop:
            main(["lift", str(tmp_path / "k.json"), "--out", str(tmp_path), "--size", "600", "600", *map(str, more)])
        return int(stop.value.code or 0)

    assert run("--max-people", 1) == 0
    with np.load(tmp_path / "k/lift.npz") as file:
        assert file["joints3d"].shape == (1, 34, 3)
    for most in (0, -1):
        assert run("--max-people", most) == 2
        assert f"--max-people must be at least 1, got {most}" in capsys.readouterr().err
