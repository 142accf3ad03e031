"""VNect (Mehta et al., SIGGRAPH 2017) with 3 million weights on rendered people: the first half of its training, on crops of
128x128; after synthetic_mppe_posenet_128."""

from functools import partial
from pathlib import Path

from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.builders import vnect_lite
from body3d.train import Cosine, Plan

EPOCHS = 11  # of 11,400 crops, about four minutes of one core

run = RegressRun(
    data=RenderedScenes(count=15000),
    net=partial(vnect_lite, side=128),
    start=Path("runs/synthetic_mppe_posenet_128/best.pt"),  # the paper's has learnt 2D poses
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=32,
    steps=356,
    augment=RENDERED_TRAINING,
)
