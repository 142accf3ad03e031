"""3DMPPE's RootNet (Moon et al., ICCV 2019) with 3 million weights on rendered people, 128x128; after
synthetic_mppe_posenet_128."""

from dataclasses import replace
from pathlib import Path

from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.builders import rootnet_lite
from body3d.train import Cosine, Plan

EPOCHS = 2  # of 11,400 crops, about four minutes of one core

run = RegressRun(
    data=RenderedScenes(count=15000),
    net=rootnet_lite,
    start=Path("runs/synthetic_mppe_posenet_128/best.pt"),  # a trunk that has learnt poses
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=16,
    steps=712,
    augment=replace(RENDERED_TRAINING, scale=0.0),
)
