"""MediaPipe's networks in the TensorFlow Lite interpreter: models, and the decoding of its SSD detectors."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from body3d.detect.crops import Roi

__all__ = ["Network", "Detector", "POSE_DETECTOR", "FACE_DETECTOR", "PALM_DETECTOR"]


class Network:
    """One .tflite file as a function from a square crop to its output arrays (batch dimension dropped).

    `low` is the value of a black pixel at the input (white is 1): MediaPipe's detectors want -1..1, its landmark nets 0..1.
    """

    def __init__(self, path: Path, low: float = 0.0, threads: int = 2):
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        (tensor,) = self._interpreter.get_input_details()
        self._input, self.size, self.low = tensor["index"], int(tensor["shape"][1]), low
        self._outputs = [o["index"] for o in self._interpreter.get_output_details()]

    def __call__(self, crop: UInt8[np.ndarray, "n n 3"]) -> list[np.ndarray]:
        x = crop.astype(np.float32) * ((1 - self.low) / 255) + self.low
        self._interpreter.set_tensor(self._input, x[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(i)[0] for i in self._outputs]


@dataclass(frozen=True)
class Detector:
    """The grid of an SSD detector: one anchor of size 1 per slot, at the cell centres of each layer."""

    size: int
    strides: tuple[int, ...]
    slots: int  # anchors per cell and layer

    def anchors(self) -> Float[np.ndarray, "A 2"]:
        """Centres in crop coordinates; layers of equal stride share their cells' slots, as MediaPipe lays them out."""
        return _anchors(self)

    def decode(
        self, raw: Float[np.ndarray, "A C"], logits: Float[np.ndarray, "A 1"], roi: Roi, least: float
    ) -> tuple[Float[np.ndarray, "D K 2"], Float[np.ndarray, "D"]]:
        """Detections scoring at least `least`: points in image pixels and scores.

        Points 0 and 1 are the box's corners (of the crop's axes), the rest the detector's own keypoints.
        """
        score = 1 / (1 + np.exp(-np.clip(logits[:, 0], -100, 100)))
        keep = score >= least
        points = raw[keep].reshape(-1, raw.shape[1] // 2, 2) / self.size
        center, half = points[:, :1] + self.anchors()[keep, None], points[:, 1:2] / 2
        u = np.concatenate([center - half, center + half, points[:, 2:] + self.anchors()[keep, None]], 1)
        return roi.to_image(u), score[keep]


@cache
def _anchors(detector: Detector) -> Float[np.ndarray, "A 2"]:
    out = []
    for stride in dict.fromkeys(detector.strides):
        n, repeat = detector.size // stride, detector.slots * detector.strides.count(stride)
        cell = (np.arange(n) + 0.5) / n
        grid = np.stack(np.meshgrid(cell, cell), -1).reshape(-1, 1, 2)
        out.append(np.repeat(grid, repeat, 1).reshape(-1, 2))
    return np.concatenate(out)


# Strides and anchor counts as in MediaPipe's graphs for these files.
POSE_DETECTOR = Detector(224, (8, 16, 32, 32, 32), 2)
FACE_DETECTOR = Detector(192, (4,), 1)
PALM_DETECTOR = Detector(192, (8, 16, 16, 16), 2)
