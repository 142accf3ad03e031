"""A network of 2 million weights on the extended Leeds Sports Pose, crops of 128x96: hours on one core, not days.

Every codec fits: put it in the place of `CODEC`, such as Heatmap(sigma=1.5), DSNT() or RLE().
"""

from body3d.augment import Augmentation, Colours
from body3d.codecs import SimCC
from body3d.learn.crops import lspet
from body3d.learn.pose2d import PoseRun
from body3d.nets.small import small
from body3d.train import Cosine, Plan

CODEC = SimCC(sigma=3.0)
EPOCHS = 60

run = PoseRun(
    data=lspet(),
    net=lambda joints: small(joints, CODEC),
    plan=Plan(EPOCHS, 2e-3, Cosine(EPOCHS, warmup=0.5), "adamw", weight_decay=0.05, clip_norm=1.0, ema=0.99),
    batch=32,
    augment=Augmentation(scale=0.25, half_body=None, colours=Colours()),
    workers=0,  # crops of this size are made faster than they are learnt from
)
