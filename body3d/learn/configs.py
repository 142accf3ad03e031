"""Configs: Python files that define `run`, which says everything that a training depends on."""

import runpy
import zipfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from body3d.errors import InputError
from body3d.train import Plan, Task

__all__ = ["Run", "read_config"]


@runtime_checkable
class Run(Protocol):
    """What a config defines: a frozen dataclass with a plan (`PoseRun`, `LifterRun` ...)."""

    @property
    def plan(self) -> Plan: ...

    def task(self, path: Path | None, device: torch.device) -> Task:
        """Read the data that lies in `path` (None: the usual place) and build the networks."""
        ...


def read_config(path: Path) -> Run:
    """The `run` of a config file. InputError if there is no such file, it is not Python, or it defines none."""
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.py"))) if path.parent.is_dir() else ""
        raise InputError(f"{path}: there is no such config" + (f"; there are {beside}" if beside else ""))
    if zipfile.is_zipfile(path):  # Python would look for a program in it
        raise InputError(f"{path} is an archive, as checkpoints are, and no config; see configs/lspet_small.py")
    try:
        run = runpy.run_path(str(path)).get("run")
    except SyntaxError as error:
        raise InputError(
            f"{path} is not a config, which is a Python file: {error}; see configs/lspet_small.py"
        ) from error
    if not isinstance(run, Run):
        raise InputError(
            f"{path} defines no `run = PoseRun(...)` or `run = LifterRun(...)`; see configs/lspet_small.py"
        )
    return run
