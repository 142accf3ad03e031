import csv
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from body3d.errors import InputError
from body3d.train import Cosine, Exponential, Linear, Plan, Steps, Task, read_checkpoint, train

pytest.importorskip("accelerate")

# A run of its own process, slow enough to be killed in the middle.
RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_train import Line, PLAN
from body3d.train import train
class Slow(Line):
    def batches(self, epoch, random):
        time.sleep(0.3)
        yield from super().batches(epoch, random)
train(Slow(), PLAN, sys.argv[2], resume=sys.argv[3] == "resume", cpu=True)
"""
# One of two processes: a whole run, and one that stops after the second epoch and goes on.
RUN_OF_TWO = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from test_train import SHORT, Line
from body3d.train import train
class Stops(Line):
    def batches(self, epoch, random):
        if epoch == 2:
            raise KeyboardInterrupt
        yield from super().batches(epoch, random)
train(Line(), SHORT, sys.argv[2] + "/whole", cpu=True)
try:
    train(Stops(), SHORT, sys.argv[2] + "/part", cpu=True)
except KeyboardInterrupt:
    torch.distributed.barrier()  # the first process has written
train(Line(), SHORT, sys.argv[2] + "/part", resume=True, cpu=True)
torch.distributed.destroy_process_group()
"""
PLAN = Plan(epochs=8, lr=0.05, schedule=Cosine(8), ema=0.9, clip_norm=1.0)
SHORT = Plan(epochs=3, lr=0.05)


class Line(Task):
    """y = 3 x - 1 with noise, through a network with dropout, so that every kind of randomness counts."""

    main = "net"

    def __init__(self):
        torch.manual_seed(0)
        self.modules = nn.ModuleDict(
            {"net": nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))}
        )

    def steps(self):
        return 10

    def batches(self, epoch, random):
        for _ in range(10):
            x = torch.rand(32, 1, generator=random)
            yield x, 3 * x - 1 + 0.1 * torch.randn(32, 1, generator=random)

    def losses(self, batch):
        return {"square": (self.modules["net"](batch[0]) - batch[1]).square().mean()}

    def validate(self, model):
        x = torch.linspace(0, 1, 11)[:, None]
        return {"error": (model(x) - (3 * x - 1)).abs().mean().item()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_it_learns_and_writes_a_run_folder(tmp_path):
    log = train(Line(), PLAN, tmp_path / "run", cpu=True)
    assert len(log) == 8
    assert log[-1]["error"] < 0.3 * log[0]["error"]
    assert log[-1]["best"] == min(row["error"] for row in log)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "log.csv", "curves.png", "last.pt", "best.pt"}
    best = read_checkpoint(tmp_path / "run" / "best.pt")
    net = Line().modules["net"].eval()
    net.load_state_dict(best["model"])
    assert Line().validate(net)["error"] == pytest.approx(log[-1]["best"], abs=1e-6)


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    whole = train(Line(), PLAN, tmp_path / "whole", cpu=True)
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(tmp_path / "killed")]
    process = subprocess.Popen([*command, "begin"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    last = tmp_path / "killed" / "last.pt"
    deadline = time.time() + 120
    log = tmp_path / "killed" / "log.csv"
    while not (log.exists() and len(rows(log.parent)) >= 2) and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(read_checkpoint(last)["log"])
    assert 2 <= done < 8
    subprocess.run([*command, "resume"], check=True, capture_output=True)
    again = rows(tmp_path / "killed")
    assert len(again) == 8
    for a, b in zip(whole, again, strict=True):
        assert all(float(b[name]) == a[name] for name in a)


def test_several_processes_resume_to_the_same_numbers(tmp_path):
    """Each draws its own batches, whose gradients are averaged; the log is of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", RUN_OF_TWO, str(Path(__file__).parent), str(tmp_path)]
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    environment = [os.environ | about | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in environment]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    states = read_checkpoint(tmp_path / "part" / "last.pt")["random"]
    assert len(states) == 2 and not torch.equal(states[0]["data"], states[1]["data"])
    with pytest.raises(InputError, match="made by 2 processes, this run has 1"):
        train(Line(), SHORT, tmp_path / "part", resume=True, cpu=True)


def test_a_run_of_another_device_is_not_taken_for_other_networks(tmp_path):
    train(Line(), SHORT, tmp_path, cpu=True)
    content = read_checkpoint(tmp_path / "last.pt")
    content["random"][0] |= {"device": "cuda", "data": torch.zeros(16, dtype=torch.uint8)}
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(InputError, match="made on cuda, this run is on cpu"):
        train(Line(), SHORT, tmp_path, resume=True, cpu=True)


def test_a_run_is_neither_overwritten_nor_mixed_up(tmp_path):
    train(Line(), Plan(epochs=1, lr=0.1), tmp_path, cpu=True)
    with pytest.raises(InputError, match="holds a run already"):
        train(Line(), Plan(epochs=1, lr=0.1), tmp_path, cpu=True)
    with pytest.raises(InputError, match="made with another plan"):
        train(Line(), Plan(epochs=1, lr=0.2), tmp_path, resume=True, cpu=True)
    with pytest.raises(InputError, match="there is no such checkpoint"):
        train(Line(), Plan(epochs=1, lr=0.1), tmp_path / "other", resume=True, cpu=True)
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a checkpoint, or is damaged"):
        train(Line(), Plan(epochs=1, lr=0.1), tmp_path, resume=True, cpu=True)


def test_divergence_is_reported_and_the_last_good_epoch_kept(tmp_path):
    class Bad(Line):
        def validate(self, model):
            self.calls = getattr(self, "calls", 0) + 1
            return {"error": math.nan if self.calls == 3 else 1.0}

    with pytest.raises(InputError, match="diverged in epoch 3"):
        train(Bad(), PLAN, tmp_path, cpu=True)
    assert len(read_checkpoint(tmp_path / "last.pt")["log"]) == 2


def test_schedules():
    assert [Cosine(10, warmup=2.0)(e) for e in (1.0, 2.0, 6.0, 10.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert Exponential(0.96, every=2.0)(4.0) == pytest.approx(0.96**2)
    assert [Linear(4)(e) for e in (0.0, 1.0, 4.0)] == [1, 0.75, 0]
    assert [Steps((3, 5))(e) for e in (2.9, 3.0, 6.0)] == pytest.approx([1, 0.1, 0.01])
