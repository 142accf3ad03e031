"""A network of 2.8 million weights that begins from ImageNet, on the extended Leeds Sports Pose, crops of 128x96.

Every codec fits: put it in the place of `CODEC`, such as Heatmap(sigma=1.5), DSNT() or RLE().
"""

from body3d.augment import Augmentation, Colours
from body3d.codecs import SimCC
from body3d.learn.crops import lspet
from body3d.learn.pose2d import PoseRun
from body3d.nets.efficientnet_lite import imagenet_file
from body3d.nets.small import small_lite
from body3d.train import Cosine, Plan

CODEC = SimCC(sigma=3.0)
EPOCHS = 20

run = PoseRun(
    data=lspet(),
    net=lambda joints: small_lite(joints, CODEC),
    start=imagenet_file,
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.05, clip_norm=1.0, ema=0.99),
    batch=32,
    augment=Augmentation(scale=0.25, half_body=None, colours=Colours()),
    workers=0,  # crops of this size are made faster than they are learnt from
)
