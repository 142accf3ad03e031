"""VNect (Mehta et al., SIGGRAPH 2017), light, on rendered people, 160x160; after synthetic_vnect_128."""

from pathlib import Path

from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.builders import vnect_lite
from body3d.train import Cosine, Plan

EPOCHS = 8  # of 11,400 crops, about six minutes of one core

run = RegressRun(
    data=RenderedScenes(count=15000),
    net=vnect_lite,
    start=Path("runs/synthetic_vnect_128/best.pt"),
    plan=Plan(EPOCHS, 5e-4, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=32,
    steps=356,
    augment=RENDERED_TRAINING,
    frozen=3,
)
