"""Coarse-to-fine volumes (Pavlakos et al., CVPR 2017), light stacks of 1 and 16 slices; after synthetic_mppe_posenet."""

from pathlib import Path

from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.builders import volumetric_lite
from body3d.train import Cosine, Plan

EPOCHS = 11  # of 5,700 crops, about four minutes of one core

run = RegressRun(
    data=RenderedScenes(count=15000),
    net=volumetric_lite,
    start=Path("runs/synthetic_mppe_posenet/best.pt"),  # a trunk that has learnt poses
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=16,
    steps=356,
    augment=RENDERED_TRAINING,
    frozen=3,
)
