"""The lifter that comes with the package: open bodies in free mocap poses, seen from anywhere, with the detector's errors.

python scripts/retarget_mocap.py MOCAP --out data/retargeted.npz
python scripts/train_lifter.py configs/embedded_lifter.py
python scripts/ship_lifter.py runs/embedded_lifter body3d/lift/embedded_lifter.npz
"""

from body3d.learn.embedded_lifter import EmbeddedLifterRun
from body3d.train import Cosine, Plan

run = EmbeddedLifterRun(plan=Plan(epochs=45, lr=1.5e-3, schedule=Cosine(45, warmup=1.0), clip_norm=1.0, ema=0.999))
