"""Imports go one way: values <- parts <- networks <- pipeline; nothing heavy is imported that is not asked for."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import body3d

PACKAGE = Path(body3d.__file__).parent

# A module may import from its own row and from rows above it.
ROWS = (
    ("version", "errors", "tensors", "joint_set", "geometry", "filters"),
    ("dataset_joints",),
    ("skeletons",),
    ("camera", "camera_conventions"),
    ("types", "atomic"),
    ("images", "export", "weights", "checkpoints", "rot6d"),
    ("layers", "attention", "losses", "crop", "augment"),
    ("codecs",),
    ("body", "view", "datasets", "metrics", "lift"),
    ("nets", "nets3d", "bottomup", "posenet"),
    ("detect",),
    ("train",),
    ("learn", "evaluate"),
    ("fit",),
    ("pipeline", "known_answers"),
    ("results",),
    ("benchmarks",),
    ("commands",),
    ("cli", "__main__", "__init__"),
)
KEPT = ("names", "parents", "flip")  # what a joint set holds, by joint
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports name the package"
            first, *rest = (node.module or "").split(".")
            if first == "body3d":
                yield from rest[:1] or (name.name for name in node.names)
        elif isinstance(node, ast.Import):
            paths = [name.name.split(".") for name in node.names]
            yield from ([*path, "__init__"][1] for path in paths if path[0] == "body3d")


def test_imports_go_down_only():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert room in LEVEL, f"{file.name}: say in ROWS where {room!r} belongs"
        wrong += [
            f"{file.relative_to(PACKAGE)} imports {other}" for other in imports(file) if LEVEL[other] > LEVEL[room]
        ]
    assert not wrong


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, body3d, body3d.cli; "
        "print([m for m in ('torch', 'cv2', 'trimesh', 'open3d', 'smplx', 'pytorch3d', 'ai_edge_litert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reconstructing_needs_no_extra():
    code = (
        "import sys, body3d; body3d.reconstruct, body3d.detect_embedded; "
        "print([m for m in ('open3d', 'smplx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_is_no_module():
    """A sub-package of the same name would take a function's place once it is loaded."""
    for name in body3d.__all__:
        getattr(body3d, name)
    assert not [name for name in body3d.__all__ if isinstance(getattr(body3d, name), ModuleType)]


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert body3d.__version__ == project["version"]


def test_joints_are_not_numbered_outside_skeletons():
    """`.names.index(...)` and friends are fine; a joint set indexed or cut by a number is not."""
    for file in PACKAGE.rglob("*.py"):
        if file.name == "skeletons.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr in KEPT:
                numbers = [n for n in ast.walk(node.slice) if isinstance(n, ast.Constant) and isinstance(n.value, int)]
                assert not numbers, f"{file.name}:{node.lineno}"
