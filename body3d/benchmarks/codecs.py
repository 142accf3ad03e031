"""Codecs compared on real photos: one small trunk, each codec's head, the same crops in the same order.

    body3d bench codecs LSPET --runs runs/bench_codecs

trains what is not trained yet (it can be killed and goes on), draws the curves, and prints the table. The trunk, the sizes and
the plan are those of `configs/lspet_lite.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from body3d.codecs import DSNT, Codec, Heatmap, SimCC
from body3d.images import write_image
from body3d.learn.configs import read_config
from body3d.learn.pose2d import PoseRun
from body3d.nets.small import small_lite
from body3d.train import LAST, Cosine, train
from body3d.view.plot import curves

__all__ = ["CODECS", "bench_codecs"]

CODECS: dict[str, Callable[[], Codec]] = {
    "SimCC": lambda: SimCC(sigma=3.0),
    "DSNT": DSNT,
    "heatmap, DARK": lambda: Heatmap(sigma=2.0),
}


def bench_codecs(
    photos: Path, config: Path, runs: Path, epochs: int, codecs: Mapping[str, Callable[[], Codec]] = CODECS
) -> dict[str, dict[str, float]]:
    """PCK of the held-out tenth at the end, and on the way: `{codec: {"PCK@0.2, epoch 15": ...}}`; curves.png goes to `runs`."""
    run = read_config(config)
    assert isinstance(run, PoseRun)
    plan = replace(run.plan, epochs=epochs, schedule=Cosine(epochs, warmup=0.2))
    table, lines = {}, {}
    for name, codec in codecs.items():
        folder = runs / name.replace(", ", "_").replace(" ", "_")
        chosen = replace(run, plan=plan, net=lambda joints, codec=codec: small_lite(joints, codec()))
        task = chosen.task(photos, torch.device("cpu"))
        log = train(task, plan, folder, resume=(folder / LAST).exists(), cpu=True, description=name)
        weights = sum(p.numel() for p in task.modules.parameters())
        on_the_way = {
            f"PCK@0.2, epoch {row['epoch']}": row["PCK@0.2"]
            for row in log[:-1]
            if row["epoch"] % max(1, epochs // 4) == 0
        }
        table[name] = {"weights, million": weights / 1e6, **on_the_way}
        table[name] |= {f"PCK@{t}, epoch {epochs}": log[-1][f"PCK@{t}"] for t in (0.2, 0.1)}
        lines[f"{name}: PCK@0.2"] = [row["PCK@0.2"] for row in log]
    write_image(runs / "curves.png", curves(range(1, epochs + 1), lines, "epoch", columns=3))
    return table
