"""The pose prior that comes with the package: VPoser's second network on free motion capture.

python scripts/retarget_mocap.py MOCAP --out data/retargeted.npz
python scripts/train_pose_vae.py configs/pose_vae.py
python scripts/ship_pose_vae.py runs/pose_vae body3d/body/pose_vae.npz
"""

from body3d.learn.pose_vae import PoseVAERun
from body3d.train import Cosine, Plan

EPOCHS = 24

# The losses of rotations and joints stay to the end: without them the weight of the divergence is too much for that of the
# surface, and the codes shrink until poses come back within 10 degrees only. VPoser's released weights are from before, too.
run = PoseVAERun(
    plan=Plan(EPOCHS, lr=1e-3, schedule=Cosine(EPOCHS, warmup=1.0), weight_decay=1e-5), batch=128, steps=150,
    validation=2048, extra_epochs=EPOCHS,
)  # fmt: skip
