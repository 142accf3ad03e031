"""The pose prior that comes with the package: VPoser's second network on free motion capture.

python scripts/retarget_mocap.py MOCAP --out data/retargeted.npz
python scripts/train_pose_vae.py configs/pose_vae.py
python scripts/ship_pose_vae.py runs/pose_vae body3d/body/pose_vae.npz
"""

from body3d.learn.pose_vae import PoseVAERun
from body3d.train import Cosine, Plan

run = PoseVAERun(plan=Plan(epochs=60, lr=1e-3, schedule=Cosine(60, warmup=1.0), weight_decay=1e-5))
