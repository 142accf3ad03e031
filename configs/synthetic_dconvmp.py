"""DconvMP (Li & Chan, ACCV 2014), both tasks at once, on rendered people: crops of 112x112, 9.8 million weights."""

from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.builders import dconvmp_112
from body3d.train import Cosine, Plan

EPOCHS = 8  # of 11,400 crops, about two minutes of one core

run = RegressRun(
    data=RenderedScenes(count=15000),
    net=dconvmp_112,
    plan=Plan(EPOCHS, 3e-4, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=16,
    steps=712,
    augment=RENDERED_TRAINING,
)
