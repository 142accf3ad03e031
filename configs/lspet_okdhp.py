"""Online knowledge distillation (OKDHP, ICCV 2021) of three small networks on the extended Leeds Sports Pose, crops of 128x96.

Each branch on the stem is `nets.small.small` with heat maps. The weights of the losses and the ramp are the release's, for
`learn.okdhp.okdhp_hourglass_4` on MPII: batch 4, Adam at 2.5e-4 cut to a tenth after 90 and 120 of 140 epochs. Here the ramp is
as long a share of the epochs.
"""

from body3d.augment import Augmentation, Colours
from body3d.learn.crops import lspet
from body3d.learn.okdhp import OKDHPRun, okdhp_small
from body3d.train import Cosine, Plan

EPOCHS = 60

run = OKDHPRun(
    data=lspet(),
    net=lambda joints: okdhp_small(joints),
    plan=Plan(EPOCHS, 2e-3, Cosine(EPOCHS, warmup=0.5), "adamw", weight_decay=0.05, clip_norm=1.0),
    batch=32,
    augment=Augmentation(scale=0.25, half_body=None, colours=Colours()),
    workers=0,
    ramp=EPOCHS * 60 // 140,
)
