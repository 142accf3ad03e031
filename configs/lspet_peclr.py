"""PeCLR (ICCV 2021): a ResNet-50 learns from the extended Leeds Sports Pose without its joints, crops of 128x128.

The paper's are hands, its optimiser LARS at 1e-4 with a batch of 128; here it is Adam. Go on with best.pt as the `start` of a run
whose network has a ResNet-50 (`--start runs/lspet_peclr/best.pt`).
"""

from body3d.learn.crops import lspet
from body3d.learn.peclr import PeCLRRun
from body3d.nets.resnet import resnet50
from body3d.train import Cosine, Plan

EPOCHS = 50

run = PeCLRRun(
    data=lspet(),
    trunk=resnet50,
    plan=Plan(EPOCHS, lr=1e-4, schedule=Cosine(EPOCHS, warmup=10.0), weight_decay=1e-6),
    batch=128,
)
