"""MediaPipe's networks in the TensorFlow Lite interpreter, and the decoding of its single-shot detectors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from body3d.detect.crops import Roi

__all__ = ["Network", "Detector", "Networks", "load_networks", "sigmoid"]


def sigmoid(x: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


@contextmanager
def _silent() -> Iterator[None]:
    """The interpreter greets on the standard error from C++, where only our own complaints belong."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Network:
    """One .tflite file as a function from a square crop to its output arrays, batch dimension dropped.

    `black` is what a black pixel is at the input (white is 1): MediaPipe's detectors want -1..1, its landmark networks
    0..1.
    """

    def __init__(self, path: Path, black: float = 0.0, threads: int = 2):
        from ai_edge_litert.interpreter import Interpreter

        with _silent():
            self._interpreter = Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        (tensor,) = self._interpreter.get_input_details()
        self._input, self.size, self.black = tensor["index"], int(tensor["shape"][1]), black
        self._outputs = [o["index"] for o in self._interpreter.get_output_details()]

    def __call__(self, crop: UInt8[np.ndarray, "n n 3"]) -> list[Float[np.ndarray, "..."]]:
        x = crop.astype(np.float32) * ((1 - self.black) / 255) + self.black
        self._interpreter.set_tensor(self._input, x[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(i)[0] for i in self._outputs]


class Detector(Network):
    """A single-shot detector: `slots` anchors of the crop's size at each cell of each layer of its grid.

    `strides` are the layers' cell sizes in pixels; layers of one stride lie interleaved, as MediaPipe's graphs lay them
    out.
    """

    def __init__(self, path: Path, strides: tuple[int, ...], slots: int, threads: int = 2):
        super().__init__(path, black=-1.0, threads=threads)
        self.anchors: Float[np.ndarray, "A 1 2"] = anchor_grid(self.size, strides, slots)

    def detect(
        self, image: UInt8[np.ndarray, "H W 3"], roi: Roi, least: float
    ) -> tuple[Float[np.ndarray, "D K 2"], Float[np.ndarray, " D"]]:
        """Points (image pixels) and scores of what scores at least `least` in a part of the image.

        Points 0 and 1 are two opposite corners of the box, the others are the detector's own keypoints.
        """
        raw, logits = self(roi.cut(image, self.size))
        score = sigmoid(logits[:, 0])
        keep = score >= least
        points = raw[keep].reshape(int(keep.sum()), raw.shape[1] // 2, 2) / self.size
        anchors = self.anchors[keep]
        center, half = points[:, :1] + anchors, points[:, 1:2] / 2
        return roi.to_image(np.concatenate([center - half, center + half, points[:, 2:] + anchors], 1)), score[keep]


def anchor_grid(size: int, strides: tuple[int, ...], slots: int) -> Float[np.ndarray, "A 1 2"]:
    """The anchors' centres in crop coordinates 0..1."""
    layers = []
    for stride in dict.fromkeys(strides):
        cell = (np.arange(size // stride) + 0.5) * stride / size
        grid = np.stack(np.meshgrid(cell, cell), -1).reshape(-1, 1, 2)
        layers.append(np.repeat(grid, slots * strides.count(stride), axis=0))
    return np.concatenate(layers)


@dataclass(frozen=True)
class Networks:
    """The embedded front end's networks."""

    pose_detector: Detector
    pose: Network
    face_detector: Detector
    face: Network
    palm_detector: Detector
    hand: Network


@cache
def load_networks(folder: Path, threads: int = 2) -> Networks:
    """Loaded once per process; the interpreters keep scratch memory, so it serves one thread at a time."""
    return Networks(
        pose_detector=Detector(folder / "pose_detection.tflite", (8, 16, 32, 32, 32), 2, threads),
        pose=Network(folder / "pose_landmark_full.tflite", threads=threads),
        face_detector=Detector(folder / "face_detection_full_range_sparse.tflite", (4,), 1, threads),
        face=Network(folder / "face_landmark.tflite", threads=threads),
        palm_detector=Detector(folder / "palm_detection_full.tflite", (8, 16, 16, 16), 2, threads),
        hand=Network(folder / "hand_landmark_full.tflite", threads=threads),
    )
