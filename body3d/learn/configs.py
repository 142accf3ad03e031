"""Configs: Python files that define `run`, which says everything that a training depends on."""

import runpy
from pathlib import Path

from body3d.errors import InputError
from body3d.learn.embedded_lifter import EmbeddedLifterRun
from body3d.learn.lifting import LifterRun

__all__ = ["read_config"]


def read_config(path: Path) -> LifterRun | EmbeddedLifterRun:
    """The `run` of a config file. InputError if there is no such file or it defines none."""
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.py"))) if path.parent.is_dir() else ""
        raise InputError(f"{path}: there is no such config" + (f"; there are {beside}" if beside else ""))
    run = runpy.run_path(str(path)).get("run")
    if not isinstance(run, LifterRun | EmbeddedLifterRun):
        raise InputError(f"{path} defines no `run = LifterRun(...)`; see configs/h36m_simple_baseline.py")
    return run
