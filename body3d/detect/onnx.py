"""Networks in ONNX files, as RTMPose and ViTPose are given away: run by onnxruntime, cropped and read by our own code.

What a file holds is told by the shapes of what goes in and comes out:

* two outputs (N, J, X) and (N, J, Y): SimCC, as RTMPose has it (Jiang et al., "RTMPose: real-time multi-person pose estimation
  based on MMPose", 2023);
* one output (N, J, h, w): heatmaps, as exports of ViTPose have them.

Colours are normalised by ImageNet's mean and deviation in both (RTMPose writes them for 0..255).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.codecs import Bins, Codec, SimCC, Size, udp_heatmap
from body3d.errors import InputError, MissingExtra
from body3d.joint_set import JointSet
from body3d.posenet import IMAGENET, PoseNet
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, HALPE26, MPII16

__all__ = ["OnnxNet", "RTMBins", "read_onnx"]

JOINTS = {len(joints): joints for joints in (COCO17, HALPE26, COCO_WHOLEBODY133, MPII16)}
NUMBERS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNet(nn.Module):
    """An ONNX model of one image input as a network, (B, 3, H, W) to one raw output in a list: maps, or SimCC's `Bins`.

    It runs on the processor, on as many threads as torch does. InputError for a file that is no ONNX model of this kind.
    """

    def __init__(self, path: Path | str):
        super().__init__()
        self.path = path
        self.session = _session(Path(path))
        taken = self.session.get_inputs()
        shape = taken[0].shape if len(taken) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or not all(isinstance(n, int) for n in shape[2:]):
            said = ", ".join(f"{i.name} {i.shape}" for i in taken)
            raise InputError(f"{path}: one input (N, 3, height, width) of a fixed size was expected, got {said}")
        if taken[0].type not in NUMBERS:
            raise InputError(f"{path}: its input is a {taken[0].type}, not a float: use a model that is not quantised")
        self.input, self.dtype = taken[0].name, NUMBERS[taken[0].type]
        self.batch = shape[0] if isinstance(shape[0], int) else None  # None: any number of crops at once
        self.size: Size = (shape[2], shape[3])

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Any]:
        parts = [self._run(crops) for crops in image.split(self.batch or max(1, len(image)))]
        raw = [torch.cat(outputs).to(image) for outputs in zip(*parts, strict=True)]
        return [raw[0] if len(raw) == 1 else Bins(*raw) if len(raw) == 2 else tuple(raw)]

    def _run(self, crops: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """A model for a fixed number of crops is given black ones beside the last ones."""
        given = crops.numpy(force=True).astype(self.dtype)
        if self.batch is not None:
            given = np.pad(given, ((0, self.batch - len(given)), (0, 0), (0, 0), (0, 0)))
        try:
            outputs = [np.asarray(output, np.float32) for output in self.session.run(None, {self.input: given})]
        except Exception as error:  # onnxruntime's errors have no class of their own
            raise InputError(f"{self.path} cannot be run: {_first_line(error)}") from None
        return [torch.from_numpy(output)[: len(crops)] for output in outputs]


def _session(path: Path) -> Any:
    try:
        import onnxruntime  # type: ignore  # an extra
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", f"reading {path.name}") from error
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised, in one line
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class of their own
        raise InputError(f"{path} is not an ONNX model, or is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class RTMBins(SimCC):
    """SimCC as RTMPose is read: the confidence is the smaller of the two highest logits, which it is trained to hold in 0..1."""

    def decode(self, raw: Bins, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        xy, _ = super().decode(raw, size)
        return xy, torch.minimum(raw.x.amax(-1), raw.y.amax(-1)).clamp_min(0)


def read_onnx(path: Path | str, joints: JointSet | None = None, codec: Codec | None = None) -> PoseNet:
    """The network in an ONNX file, for prediction.

    `joints`: those that it speaks of, if their number does not tell (17 COCO, 26 Halpe, 133 COCO-WholeBody, 16 MPII). `codec`: how
    its output is read, if not as RTMPose's bins or ViTPose's (UDP) heatmaps; networks of the MSRA line have `msra_heatmap()`.
    InputError for any other file; MissingExtra without onnxruntime.
    """
    net = OnnxNet(path)
    raw = net(torch.zeros(1, 3, *net.size))[0]
    maps = tuple(raw) if isinstance(raw, tuple) else (raw,)
    shapes = " and ".join(str(tuple(m.shape)) for m in maps)
    height, width = net.size
    if isinstance(raw, Bins) and raw.x.ndim == raw.y.ndim == 3 and raw.x.shape[1] == raw.y.shape[1]:
        split = raw.x.shape[2] / width
        if raw.y.shape[2] != split * height:
            raise InputError(
                f"{path}: {raw.x.shape[2]} bins of x and {raw.y.shape[2]} of y do not fit crops of {height} x {width} pixels"
            )
        usual: Codec = RTMBins(split, sigma=6.0, places="msra")
    elif len(maps) == 1 and maps[0].ndim == 4:
        usual = udp_heatmap()
    else:
        raise InputError(
            f"{path}: two outputs (N, J, X) and (N, J, Y) or heatmaps (N, J, h, w) were expected, got {shapes}"
        )
    count = maps[0].shape[1]
    joints = joints or JOINTS.get(count)
    if joints is None or len(joints) != count:
        wanted = f"{len(joints)} ({joints.name})" if joints else ", ".join(f"{n} ({j.name})" for n, j in JOINTS.items())
        raise InputError(f"{path}: it speaks of {count} joints; expected are {wanted}")
    return PoseNet(net, codec or usual, joints, net.size, IMAGENET).eval()
