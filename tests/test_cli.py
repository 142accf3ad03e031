"""The command line as a user meets it: the example photo end to end, and everything that can be wrong with the input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

REPO = Path(__file__).parents[1]
EXAMPLE = REPO / "data" / "example.jpg"


def run(*arguments, script: str = "fit_smplx.py") -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "scripts" / script), *map(str, arguments)]
    without_display = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, env=without_display)


def complains(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert all(w in lines[0] for w in words), lines[0]


@pytest.fixture(scope="module")
def results(embedded_models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results")
    done = run(EXAMPLE, "--out", out)
    assert done.returncode == 0, done.stderr
    return out / "example"


def test_the_example_gives_every_promised_file(results):
    assert {"person_0.npz", "person_0.glb", "person_0.obj", "overlay.png", "report.json"} <= {
        p.name for p in results.iterdir()
    }
    assert not [p for p in results.iterdir() if p.name.startswith(".")]
    with Image.open(results / "overlay.png") as overlay, Image.open(EXAMPLE) as photo:
        assert overlay.size == photo.size
        changed = np.abs(np.asarray(overlay.convert("L"), int) - np.asarray(photo.convert("L"), int)) > 12
    assert 0.05 < changed.mean() < 0.6


def test_parameters_hold_what_the_contract_says(results):
    shapes = {
        "betas": (10,), "expression": (10,), "global_orient": (3,), "body_pose": (63,), "left_hand_pose": (45,),
        "right_hand_pose": (45,), "jaw_pose": (3,), "leye_pose": (3,), "reye_pose": (3,), "transl": (3,), "K": (3, 3),
        "h36m17": (17, 3),
    }  # fmt: skip
    with np.load(results / "person_0.npz") as person:
        for name, shape in shapes.items():
            assert person[name].shape == shape, name
            assert np.isfinite(person[name]).all(), name
        joints, names = person["joints3d"], person["joint_names"].tolist()
        assert joints.shape == (len(names), 3)
        assert person["keypoints2d"].shape == (len(person["keypoint_names"]), 3)
        assert person["vertices"].shape[1] == 3
        assert person["faces"].max() < len(person["vertices"])
        # The projected joints are where the keypoints are: K, joints and keypoints speak of the same pixels.
        K, seen = person["K"], dict(zip(person["keypoint_names"].tolist(), person["keypoints2d"], strict=True))
        for joint in ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow"):
            if seen[joint][2] > 0.5:
                x, y, z = K @ joints[names.index(joint)]
                assert np.hypot(x / z - seen[joint][0], y / z - seen[joint][1]) < 40, joint
        assert str(person["model"]) == "open"


def test_meshes_stand_upright_in_viewers(results):
    with np.load(results / "person_0.npz") as person:
        verts = person["vertices"]
    for name in ("person_0.glb", "person_0.obj"):
        mesh = trimesh.load(results / name, force="mesh", process=False)
        np.testing.assert_allclose(np.sort(mesh.vertices[:, 1]), np.sort(-verts[:, 1]), atol=1e-4)


def test_the_report(results):
    report = json.loads((results / "report.json").read_text())
    assert set(report["seconds"]) == {"detect", "lift", "fit", "write"}
    person = report["people"][0]
    assert {"terms", "reprojection_px", "iterations", "converged", "ambiguity", "warnings"} <= set(person)
    assert person["terms"]["reprojection"] > 0
    assert person["reprojection_px"] < 20
    assert "guess" in report["focal_source"]
    assert {"body3d", "torch", "python", "numpy"} <= set(report["versions"])


def test_view_without_a_display_writes_pictures_from_four_sides(results):
    done = run(results, script="view.py")
    assert done.returncode == 0, done.stderr
    assert "no display" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    pictures = {
        name: np.asarray(Image.open(results / f"{name}.png").convert("L"), float)
        for name in ("front", "side", "back", "top")
    }
    # The bodies are in each picture: dark and light away from the background's smooth wall and floor.
    assert all(picture.std() > 5 for picture in pictures.values())


def test_view_of_something_else(tmp_path):
    complains(run(tmp_path, script="view.py"), 2, str(tmp_path))
    complains(run(tmp_path / "nowhere", script="view.py"), 2, "nowhere")


# ---- what can be wrong -----------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    complains(run(tmp_path / "nowhere.jpg", "--out", tmp_path / "out"), 2, "nowhere.jpg")
    assert not (tmp_path / "out").exists()


def test_text_named_jpg(tmp_path):
    (tmp_path / "photo.jpg").write_text("not a photo")
    complains(run(tmp_path / "photo.jpg", "--out", tmp_path / "out"), 2, "photo.jpg")


def test_truncated_jpeg(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(EXAMPLE.read_bytes()[:20000])
    complains(run(tmp_path / "cut.jpg", "--out", tmp_path / "out"), 2, "cut.jpg")


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    complains(run(tmp_path / "dot.png", "--out", tmp_path / "out"), 2, "dot.png", "1 x 1")


def test_animated_gif_and_folder(tmp_path):
    frames = [Image.new("L", (64, 64), k) for k in (0, 100, 200)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    complains(run(tmp_path / "moves.gif"), 2, "moves.gif", "3 frames")
    complains(run(tmp_path), 2, str(tmp_path))


def test_nobody_in_it(embedded_models, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(tmp_path / "empty.png")
    complains(run(tmp_path / "empty.png", "--out", tmp_path / "out"), 3, "empty.png", "no person found")
    assert not (tmp_path / "out" / "empty").exists()


def test_the_good_image_is_done_although_another_is_bad(embedded_models, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("x")
    done = run(bad, EXAMPLE, "--out", tmp_path, "--max-people", "1")
    complains(done, 2, "bad.jpg")
    assert (tmp_path / "example" / "person_0.npz").exists()
    assert not (tmp_path / "example" / "person_1.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--colour", "red"], ["--colour"]),
        (["--body", "smplxx"], ["smplxx", "smplx"]),
        (["--focal", "wide"], ["--focal", "wide"]),
        (["--focal", "-3"], ["-3"]),
        (["--fov", "190"], ["190"]),
        (["--focal", "800", "--fov", "60"], ["--focal", "--fov"]),
        (["--max-people", "0"], ["--max-people", "0"]),
        (["--body", "smplx"], ["--model-path"]),
        (["--device", "abacus"], ["abacus"]),
        (["--method", "smplify", "--height", "1.8"], ["--height", "smplify"]),
        (["--keypoints", "nowhere.json"], ["nowhere.json"]),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_wrong_options(arguments, words, tmp_path):
    complains(run(EXAMPLE, "--out", tmp_path / "out", *arguments), 2, *words)
    assert not (tmp_path / "out").exists()


def test_broken_model_file(tmp_path):
    (tmp_path / "SMPLX.npz").write_bytes(b"PK\x03\x04 nothing")
    complains(run(EXAMPLE, "--body", "smplx", "--model-path", tmp_path / "SMPLX.npz"), 2, "SMPLX.npz")


def test_output_that_cannot_be_written(embedded_models, tmp_path):
    (tmp_path / "file").write_text("in the way")
    complains(run(EXAMPLE, "--out", tmp_path / "file", "--max-people", "1"), 2, str(tmp_path / "file"))
