"""SCAI (CVPR 2023) on a small network that was trained on the extended Leeds Sports Pose with heat maps, crops of 128x96.

Give best.pt of that run as `--start`: configs/lspet_small.py with Heatmap(sigma=1.5) in the place of its codec. The paper has no
numbers for this; they are this project's.
"""

from body3d.augment import Augmentation, Colours
from body3d.learn.crops import lspet
from body3d.learn.scai import SCAIRun
from body3d.nets.small import small
from body3d.train import Cosine, Plan

EPOCHS = 20

run = SCAIRun(
    data=lspet(),
    net=lambda joints: small(joints),
    plan=Plan(EPOCHS, lr=1e-3, schedule=Cosine(EPOCHS, warmup=0.5), clip_norm=1.0),
    batch=32,
    augment=Augmentation(scale=0.25, half_body=None, colours=Colours()),
    workers=0,
    first=10,
)
