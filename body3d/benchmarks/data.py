"""How fast images come and how much memory a large file of poses takes: `body3d bench data LSPET`."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from body3d.errors import InputError
from body3d.images import warp_crop

FRAMES = 1_500_000  # Human3.6M seen by four cameras has 2.1 million, of them 1.56 million for training
COUNT = 1000
SIZE = (256, 192)

# Run on its own, so that its memory is its own: before and after opening, and what a sample of it costs.
_OPEN = r"""
import json, pathlib, re, sys, time
from body3d.datasets.h36m import H36M
# Not getrusage: its maximum starts at that of the process that started this one.
used = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before, began = used(), time.perf_counter()
data = H36M.videopose(sys.argv[1], None)
seconds = time.perf_counter() - began
opened = used()
began = time.perf_counter()
for i in range(0, len(data), len(data) // 1000):
    data[i]
print(json.dumps({"bytes": opened - before, "seconds": seconds, "sample": (time.perf_counter() - began) / 1000}))
"""


class Crops(Dataset):
    """A data set of photos as a network sees them: decoded, cut out around the person, (3, 256, 192) in 0..1."""

    def __init__(self, photos):
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> torch.Tensor:
        sample = self.photos[i]
        x0, y0, x1, y1 = sample.box.xyxy.tolist()
        scale = 0.8 * min(SIZE[0] / (y1 - y0), SIZE[1] / (x1 - x0))
        move = [(SIZE[1] - 1) / 2 - scale * (x0 + x1) / 2, (SIZE[0] - 1) / 2 - scale * (y0 + y1) / 2]
        crop = warp_crop(sample.image.numpy(), np.array([[scale, 0, move[0]], [0, scale, move[1]]]), SIZE)
        return torch.from_numpy(crop).permute(2, 0, 1) / 255


def run(lspet: Path) -> dict[str, dict[str, float]]:
    """The table of docs/benchmarks.md."""
    return {f"LSPET, {COUNT} photos decoded and cropped": photos(lspet), f"{FRAMES:,} frames in an npz": poses()}


def photos(lspet: Path) -> dict[str, float]:
    from body3d.datasets.catalogue import SETS

    form = next((form for form in SETS["lspet"].forms if any(lspet.glob(form.needs))), None)
    if form is None:
        raise InputError(f"{lspet} holds no LSPET; data/README.md says what lies where")
    crops = Crops(form.open(lspet))
    table = {}
    for workers in (0, 2):
        loader = DataLoader(
            torch.utils.data.Subset(crops, range(min(COUNT, len(crops)))), batch_size=50, num_workers=workers
        )
        began = time.perf_counter()
        for _ in tqdm(loader, desc=f"{workers} workers", leave=False):
            pass
        table[f"photos per second, {workers} workers"] = min(COUNT, len(crops)) / (time.perf_counter() - began)
    return table


def poses() -> dict[str, float]:
    """Opening a VideoPose3D file of that many frames: peak memory over the file's size, and seconds."""
    rng = np.random.default_rng(0)
    take = rng.standard_normal((FRAMES // 100, 32, 3), dtype=np.float32)
    subjects = {"S1": {f"Walking {k}": take + np.float32(k) for k in range(50)}}
    subjects["S5"] = {f"Eating {k}": take - np.float32(k) for k in range(50)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data_3d_h36m.npz"
        np.savez_compressed(path, positions_3d=np.array(subjects))
        size = FRAMES * 32 * 3 * 4
        del subjects
        done = subprocess.run([sys.executable, "-c", _OPEN, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"opening the file failed: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout)
    return {
        "size of the poses, MB": size / 1e6,
        "peak memory when opening / size": found["bytes"] / size,
        "seconds to open": found["seconds"],
        "milliseconds per sample": 1000 * found["sample"],
    }
