"""ORPM (Mehta et al., 3DV 2018) with 3 million weights on rendered images with one to four people, at 160x160; after
synthetic_mppe_posenet_128."""

from pathlib import Path

from body3d.learn.pose3d import RENDERED_TRAINING
from body3d.learn.pose3d_data import RenderedScenes
from body3d.learn.pose3d_scenes import SceneRun
from body3d.nets3d.builders import orpm_lite
from body3d.skeletons import H36M17
from body3d.train import Cosine, Plan

EPOCHS = 6  # of 5,000 images, about four minutes of one core

run = SceneRun(
    data=RenderedScenes(count=15000),
    net=orpm_lite,
    start=Path("runs/synthetic_mppe_posenet_128/best.pt"),  # the paper's has learnt 2D poses
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=8,
    steps=625,
    augment=RENDERED_TRAINING,
    joints=H36M17,
)
