"""What is written is read back by other people's readers, and a failure leaves nothing behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from body3d.errors import InputError
from body3d.export import save_glb, save_json, save_npz, save_obj, save_ply
from body3d.images import write_image
from body3d.types import Mesh
from body3d.view.scene import load_results, no_display, view_results

SAVERS = {".glb": save_glb, ".obj": save_obj, ".ply": save_ply}


@pytest.fixture
def person() -> Mesh:
    """A lopsided bump-covered block in camera space (y down), 1.7 m tall, feet at y = 1."""
    box = trimesh.creation.box((0.5, 1.7, 0.3)).subdivide().subdivide()
    verts = box.vertices + (0.3, 0.15, 3.0) + 0.02 * np.sin(40 * box.vertices[:, [1, 2, 0]])
    return Mesh(torch.tensor(verts).float(), torch.tensor(box.faces))


@pytest.mark.parametrize("suffix", SAVERS)
def test_round_trip_with_y_up(tmp_path, person, suffix):
    path = tmp_path / f"person{suffix}"
    SAVERS[suffix](path, person)
    read = trimesh.load(path, process=False, force="mesh")
    np.testing.assert_allclose(read.vertices, person.verts.numpy() * (1, -1, -1), atol=1e-6)
    np.testing.assert_array_equal(read.faces, person.faces.numpy())
    # A half turn, not a mirror: what was outside stays outside, left stays left.
    volume = trimesh.Trimesh(person.verts.numpy(), person.faces.numpy(), process=False).volume
    assert read.volume == pytest.approx(volume, rel=1e-4)
    assert volume > 0.2
    SAVERS[suffix](path, person, frame="y-up")
    read = trimesh.load(path, process=False, force="mesh")
    np.testing.assert_allclose(read.vertices, person.verts.numpy(), atol=1e-6)


def glb_parts(path: Path) -> tuple[dict, bytes]:
    """The JSON header and the binary part of a GLB file."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    return json.loads(data[20 : 20 + length]), data[20 + length + 8 :]


def test_smooth_normals_are_stored(tmp_path, person):
    expected = trimesh.Trimesh(person.verts.numpy() * (1, -1, -1), person.faces.numpy(), process=False).vertex_normals
    save_obj(tmp_path / "a.obj", person)
    lines = [line.split()[1:] for line in (tmp_path / "a.obj").read_text().splitlines() if line.startswith("vn ")]
    np.testing.assert_allclose(np.array(lines, float), expected, atol=1e-5)
    save_ply(tmp_path / "a.ply", person)
    np.testing.assert_allclose(trimesh.load(tmp_path / "a.ply", process=False).vertex_normals, expected, atol=1e-5)
    assert b"property float nx" in (tmp_path / "a.ply").read_bytes()
    save_glb(tmp_path / "a.glb", person)
    header, binary = glb_parts(tmp_path / "a.glb")
    accessor = header["accessors"][header["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]]
    view = header["bufferViews"][accessor["bufferView"]]
    normals = np.frombuffer(binary, "<f4", 3 * accessor["count"], view["byteOffset"]).reshape(-1, 3)
    np.testing.assert_allclose(normals, expected, atol=1e-5)


def test_glb_has_one_mesh_with_its_colour(tmp_path, person):
    save_glb(tmp_path / "a.glb", person, colour=(255, 188, 0))
    header, _ = glb_parts(tmp_path / "a.glb")
    assert len(header["meshes"]) == len(header["meshes"][0]["primitives"]) == 1
    paint = header["materials"][0]["pbrMetallicRoughness"]
    # sRGB 188 is half of the light: glTF's factors are linear.
    np.testing.assert_allclose(paint["baseColorFactor"], [1, 0.5, 0, 1], atol=0.01)
    assert paint["metallicFactor"] == 0


def test_npz_needs_no_pickle(tmp_path, person):
    save_npz(
        tmp_path / "a.npz",
        {"vertices": person.verts.requires_grad_(), "names": ("hip", "größe"), "model": "open", "n": 3},
    )
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        np.testing.assert_array_equal(read["vertices"], person.verts.detach().numpy())
        assert read["names"].tolist() == ["hip", "größe"]
        assert read["model"] == "open"
        assert read["n"] == 3
    with pytest.raises(ValueError, match="thing"):
        save_npz(tmp_path / "b.npz", {"fine": [1], "thing": [object()]})
    assert not (tmp_path / "b.npz").exists()


def test_json_is_strict(tmp_path, person):
    value = {
        "a": np.float32(0.5),
        "b": [torch.tensor(2), float("nan"), np.inf],
        "c": Path("x/y"),
        "d": np.arange(2),
        5: None,
    }
    save_json(tmp_path / "a.json", value)
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert read == {"a": 0.5, "b": [2, None, None], "c": "x/y", "d": [0, 1], "5": None}
    save_json(tmp_path / "b.json", Mesh(person.verts[:1], person.faces[:1]))
    assert json.loads((tmp_path / "b.json").read_text())["faces"] == person.faces[:1].tolist()


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, person, monkeypatch):
    path = tmp_path / "a.json"
    save_json(path, {"old": 1})
    with pytest.raises(TypeError):
        save_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}

    def half(self, data, *args, **kwargs):  # the disk is full after half of the file
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    save_glb(tmp_path / "a.glb", person)
    before = (tmp_path / "a.glb").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match="No space left"):
        save_glb(tmp_path / "a.glb", person, colour=(0, 0, 0))
    assert (tmp_path / "a.glb").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.glb", "a.json"]


@pytest.mark.parametrize("save", [*SAVERS.values(), save_npz, save_json])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, person, save):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        save(tmp_path / "file" / "a.glb", {"a": [1]} if save in (save_npz, save_json) else person)
    assert "\n" not in str(caught.value)
    assert "cannot be written" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_no_single_finite_mesh_is_refused(tmp_path, person):
    with pytest.raises(ValueError, match=r"\(V, 3\)"):
        save_obj(tmp_path / "a.obj", Mesh(person.verts[None], person.faces))
    with pytest.raises(ValueError, match="not finite"):
        save_obj(tmp_path / "a.obj", Mesh(person.verts * float("nan"), person.faces))
    assert list(tmp_path.iterdir()) == []


# ---- results folders ------------------------------------------------------------------------------------------------

K = np.array([[120.0, 0, 63.5], [0, 120, 47.5], [0, 0, 1]], np.float32)


def write_results(folder: Path, person: Mesh, people: int = 1) -> None:
    for n in range(people):
        save_npz(folder / f"person_{n}.npz", {"vertices": person.verts + 0.1 * n, "faces": person.faces, "K": K})


def test_results_are_found_in_order(tmp_path, person):
    write_results(tmp_path, person, people=11)
    meshes, camera, image = load_results(tmp_path)
    assert [round(float((m.verts - person.verts).mean()) * 10) for m in meshes] == list(range(11))
    assert camera.size == (96, 128)  # nothing else tells: the principal point is the middle
    assert image is None
    write_image(tmp_path / "overlay.png", np.zeros((90, 120, 3), np.uint8))
    assert load_results(tmp_path)[1].size == (90, 120)


def test_broken_results_are_named(tmp_path, person):
    with pytest.raises(InputError, match="no such folder"):
        load_results(tmp_path / "missing")
    with pytest.raises(InputError, match="person_0"):
        load_results(tmp_path)
    save_npz(tmp_path / "person_0.npz", {"vertices": person.verts})
    with pytest.raises(InputError, match="faces"):
        load_results(tmp_path)
    save_npz(tmp_path / "person_0.npz", {"vertices": person.verts, "faces": person.faces + 1000, "K": K})
    with pytest.raises(InputError, match="beyond"):
        load_results(tmp_path)
    for bad in (K * np.nan, -K, np.where(K > 1, 1e30, K)):
        save_npz(tmp_path / "person_0.npz", {"vertices": person.verts, "faces": person.faces, "K": bad})
        with pytest.raises(InputError, match="K has entries that are not finite, or no focal length"):
            load_results(tmp_path)
    aside = K * [[1, 1, -1], [1, 1, -1], [1, 1, 1]]  # the principal point lies outside the picture
    save_npz(tmp_path / "person_0.npz", {"vertices": person.verts, "faces": person.faces, "K": aside})
    assert load_results(tmp_path)[1].size == (1, 1)
    (tmp_path / "person_0.npz").write_text("not an archive")
    with pytest.raises(InputError, match="damaged"):
        load_results(tmp_path)


def test_without_a_display_there_are_pictures(tmp_path, person, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert no_display() == "no display"
    write_results(tmp_path, person)
    view_results(tmp_path)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "no display" in said.err
    names = {"front.png", "side.png", "back.png", "top.png", "sides.png"}
    assert {p.name for p in tmp_path.glob("*.png")} == names
