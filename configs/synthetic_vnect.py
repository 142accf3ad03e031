"""VNect (Mehta et al., SIGGRAPH 2017) with 1 million weights on rendered people, crops of 128x128."""

from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.regressors import vnect_128
from body3d.train import Cosine, Plan

EPOCHS = 60  # of about four minutes of one core

run = RegressRun(
    data=RenderedScenes(count=5000),
    net=vnect_128,
    plan=Plan(
        EPOCHS,
        lr=3e-3,
        schedule=Cosine(EPOCHS, warmup=0.2),
        optimizer="adamw",
        weight_decay=0.01,
        clip_norm=1.0,
        ema=0.99,
    ),
    batch=16,
)
