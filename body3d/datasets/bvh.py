"""BVH motion files, from any exporter: any order of channels, position channels on any joint, ends of chains, either line end.

A joint's rotation is the product of its rotation channels from left to right. Position channels are the joint's position in its
parent's frame and take the place of its OFFSET, as exporters write them today; the format's old description adds the two. (They
differ only where a joint has position channels and an OFFSET other than zero.) A channel that is missing leaves the OFFSET's
coordinate. The file does not say its unit.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch

from body3d.datasets.motion import Motion, axis_rotations
from body3d.datasets.reading import existing
from body3d.errors import InputError
from body3d.skeletons import JointSet

__all__ = ["read_bvh"]

_CHANNEL = re.compile(r"([XYZ])(position|rotation)", re.IGNORECASE)


def read_bvh(path: Path | str, unit: float = 0.01) -> Motion:
    """The motion of a .bvh file; `unit` is the length of its unit in metres (most files are in centimetres).

    The end of a chain is a joint `<parent>_end`. Raises InputError for what is not a whole BVH file.
    """
    path = existing(path, "BVH file", "the motion's publisher")
    head, found, tail = path.read_text(encoding="utf-8-sig", errors="replace").partition("MOTION")
    if not found or not head.lstrip().startswith("HIERARCHY"):
        raise InputError(f"{path} is not a BVH file: it has no HIERARCHY followed by MOTION")
    names, parents, offsets, channels = _hierarchy(path, head.split())
    frames, seconds, rest = _motion_header(path, tail)
    width = sum(map(len, channels))
    try:
        values = np.array(rest.split(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{path}: the MOTION part holds something that is not a number ({error})") from error
    if len(values) != frames * width:
        raise InputError(
            f"{path}: {frames} frames of {width} channels are {frames * width} numbers, but it has {len(values)}; "
            "the file is cut short or changed"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: a channel of frame {np.argmax(~np.isfinite(values)) // width} is NaN or infinite")
    data = torch.from_numpy(values).view(frames, width)
    translations = torch.tensor(offsets, dtype=torch.float64).repeat(frames, 1, 1)
    rotations = torch.eye(3, dtype=torch.float64).repeat(frames, len(names), 1, 1)
    column = 0
    for j, joint_channels in enumerate(channels):
        for axis, kind in joint_channels:
            if kind == "position":
                translations[:, j, "xyz".index(axis)] = data[:, column]
            else:
                rotations[:, j] = rotations[:, j] @ axis_rotations(data[:, column], axis)
            column += 1
    joints = JointSet(path.stem, tuple(names), tuple(parents))
    return Motion(joints, rotations.float(), (translations * unit).float(), 1 / seconds)


def _hierarchy(
    path: Path, words: list[str]
) -> tuple[list[str], list[int], list[list[float]], list[list[tuple[str, str]]]]:
    """Names, parents, offsets and (axis, kind) channels of all joints, from the words of the HIERARCHY part."""
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[tuple[str, str]]] = []
    stack: list[int] = [-1]
    k = 1  # after HIERARCHY
    try:
        while k < len(words):
            word = words[k]
            if word in ("ROOT", "JOINT", "End"):
                brace = words.index("{", k)
                name = f"{names[stack[-1]]}_end" if word == "End" else " ".join(words[k + 1 : brace])
                while name in names:  # a few exporters repeat a name; a joint has one end, rarely more
                    name += "_"
                names.append(name)
                parents.append(stack[-1])
                offsets.append([0.0, 0.0, 0.0])
                channels.append([])
                stack.append(len(names) - 1)
                k = brace + 1
            elif word == "OFFSET":
                offsets[stack[-1]] = [float(x) for x in words[k + 1 : k + 4]]
                k += 4
            elif word == "CHANNELS":
                count = int(words[k + 1])
                for channel in words[k + 2 : k + 2 + count]:
                    match = _CHANNEL.fullmatch(channel)
                    if match is None:
                        raise InputError(f"{path}: joint {names[stack[-1]]} has the unknown channel {channel!r}")
                    channels[stack[-1]].append((match[1].lower(), match[2].lower()))
                k += 2 + count
            elif word == "}":
                stack.pop()
                k += 1
            else:
                raise InputError(
                    f"{path}: {word!r} stands in the HIERARCHY where ROOT, JOINT, OFFSET or }} was expected"
                )
    except (IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the HIERARCHY is broken near joint {names[-1] if names else 'ROOT'}") from error
    if stack != [-1] or not names:
        raise InputError(f"{path}: the HIERARCHY has {len(stack) - 1} joints that are not closed by }}")
    return names, parents, offsets, channels


def _motion_header(path: Path, tail: str) -> tuple[int, float, str]:
    match = re.match(r"\s*Frames:\s*(\S+)\s+Frame Time:\s*(\S+)", tail)
    try:
        frames, seconds = (int(match[1]), float(match[2])) if match else (0, 0.0)
    except ValueError:
        frames, seconds = 0, 0.0
    if match is None or frames < 1 or not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"{path}: MOTION should start with 'Frames: <1 or more>' and 'Frame Time: <seconds above 0>'")
    return frames, seconds, tail[match.end() :]
