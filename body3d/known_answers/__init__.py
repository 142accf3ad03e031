"""What we compute against numbers computed from published implementations.

A known answer is an .npz file with a `meta`, a JSON text that names the source. There are two kinds:

* a function: inputs (`in_*`) and what the published function made of them (`out_*`). `ADAPTERS` says how each is computed here.
  A body model is read from the file that `meta` names, beside the answer's own;
* a network: the published state_dict's keys and shapes, and some entries of each output. The weights and the inputs are not in
  it: both follow from their names by a rule, so whoever computes the same function gets the same numbers. `NETWORKS` says what
  answers each file.

A new one is a function and a line in the table of the file it belongs to.
"""

import json
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from body3d.body.files import read_arrays
from body3d.errors import InputError
from body3d.known_answers import (
    bottomup,
    functions_body,
    functions_codecs,
    functions_collision,
    functions_direct,
    functions_fit,
    functions_metrics,
    light,
    multiperson,
    networks_convolutional,
    networks_direct,
    networks_lift,
    networks_others,
    networks_transformers,
    networks_vposer,
    training,
)
from body3d.known_answers.question import Adapter, Comparison, Network, Question, published_input, published_weight

__all__ = ["ABSOLUTE", "ADAPTERS", "NETWORKS", "Comparison", "check"]

# By the published name of the function or the system, `*` for any ending; the first that fits counts.
ADAPTERS: dict[str, Adapter] = (
    bottomup.ADAPTERS
    | functions_body.ADAPTERS
    | functions_codecs.ADAPTERS
    | functions_collision.ADAPTERS
    | functions_direct.ADAPTERS
    | functions_fit.ADAPTERS
    | functions_metrics.ADAPTERS
    | light.ADAPTERS
    | multiperson.ADAPTERS
    | training.ADAPTERS
)
NETWORKS: dict[str, Callable[[str], Network]] = {
    **bottomup.NETWORKS,
    **light.NETWORKS,
    **multiperson.NETWORKS,
    **networks_convolutional.NETWORKS,
    **networks_direct.NETWORKS,
    **networks_lift.NETWORKS,
    **networks_others.NETWORKS,
    **networks_transformers.NETWORKS,
    **networks_vposer.NETWORKS,
    **training.NETWORKS,
}

# Where the published code is further from its own formula than the rule tolerates: an absolute tolerance.
ABSOLUTE = {
    ("rotation_spin", "rodrigues"): 1e-7,  # adds 1e-8 to the vector before taking its norm, in double precision
}


def check(path: str | Path) -> list[Comparison] | None:
    """Compute a file's outputs here and compare them; None where nothing here computes that function or network.

    Raises InputError for a file that is not a known answer.
    """
    path = Path(path)
    arrays = read_arrays(path, None, required=("meta",), what="known answer")
    try:
        meta = json.loads(str(arrays["meta"]))
        name = meta.get("name", path.stem.removeprefix("fn_"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a known answer: its 'meta' is not a JSON object") from error
    if "keys" in arrays:
        return _check_network(arrays, meta, path)
    adapter = next((make for pattern, make in ADAPTERS.items() if fnmatchcase(name, pattern)), None)
    expected = {key[4:]: value for key, value in arrays.items() if key.startswith("out_")}
    if adapter is None or not expected:
        return None
    inputs = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("in_")}
    computed = adapter(Question(name, inputs, meta, path.parent))
    double = all(t.dtype == torch.float64 for t in inputs.values() if t.is_floating_point())
    out = []
    for key, theirs in expected.items():
        tolerance = ABSOLUTE.get((name, key)) or _tolerance(theirs, double and theirs.dtype == np.float64)
        out.append(_compare_output(key, computed.get(key), theirs, tolerance))
    return out


def _tolerance(theirs: np.ndarray, double: bool) -> float:
    """1e-9 of the mean magnitude where all was computed in double precision, else 1e-4 of it plus 1e-6.

    The 1e-6 is left out where it would be more than the numbers themselves and so accept anything.
    """
    size = float(np.abs(theirs).mean())
    return (1e-9 * size if double else 1e-4 * size + 1e-6 * (size > 1e-6)) or 1e-6


def _compare_output(output: str, ours: Tensor | None, theirs: np.ndarray, tolerance: float) -> Comparison:
    if ours is None or tuple(ours.shape) != theirs.shape:
        return Comparison(output, theirs.shape, float("nan"), float("nan"))
    difference = float(np.abs(ours.detach().double().numpy() - theirs).max(initial=0))
    return Comparison(output, theirs.shape, difference, difference / tolerance)


@torch.no_grad()
def _check_network(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], path: Path) -> list[Comparison] | None:
    """Compare our network with the one whose numbers `path` holds; None where there is none of ours.

    InputError if the published state_dict does not fit it, or if the file lacks something.
    """
    system = meta.get("system", path.stem)
    build = next((make for pattern, make in NETWORKS.items() if fnmatchcase(system, pattern)), None)
    if build is None:
        return None
    lacking = sorted({"shapes"} - arrays.keys() | {"seed", "input", "param_count", "outputs"} - meta.keys())
    if lacking:
        raise InputError(f"{path} is not a known answer of a network: it has no {', '.join(lacking)}")
    network = build(system)
    kept = meta.get("kept", [])  # constants of the method: ours stay as they are
    state = {} if not kept else network.module.state_dict()
    published = {
        key: published_weight(key, _shape(shape), meta["seed"], meta.get("gain", 1.0))
        for key, shape in zip(arrays["keys"].tolist(), arrays["shapes"].tolist(), strict=True)
        if key not in kept
    }
    try:
        network.module.load_state_dict(state | network.rename(published), strict=True)
    except (KeyError, RuntimeError) as error:
        raise InputError(
            f"{path}: its state_dict is not that of our network: {' '.join(str(error).split())[:300]}"
        ) from error
    network.module.eval()

    inputs = {name: published_input(name, shape, meta["seed"]) for name, shape in meta["input"]}
    outputs = network.run(**inputs) if network.run else network.module(*inputs.values())
    if isinstance(outputs, Tensor):
        outputs = [outputs]
    parameters = sum(p.numel() for p in network.module.parameters() if p.requires_grad)
    wrong = float(abs(parameters - meta["param_count"]))
    found = [Comparison("parameters", (), wrong, math.inf if wrong else 0.0)]
    for i, name in enumerate(meta["outputs"]):
        theirs = {key: arrays[f"out{i}_{key}"] for key in ("shape", "mean", "mean_abs", "index", "value")}
        ours = outputs[i] if i < len(outputs) else None
        found.append(_compare_entries(name, ours, theirs, network.tolerance.get(i)))
    return found


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _compare_entries(
    name: str, ours: Tensor | None, theirs: Mapping[str, np.ndarray], tolerance: float | None
) -> Comparison:
    """The picked entries, and the means of all, which say something of the others."""
    shape = tuple(theirs["shape"].tolist())
    if ours is None or tuple(ours.shape) != shape:
        return Comparison(name, shape, math.nan, math.nan)
    flat = ours.flatten().double()
    mine = torch.cat([flat[theirs["index"]], flat.mean()[None], flat.abs().mean()[None]]).numpy()
    difference = float(np.abs(mine - [*theirs["value"], theirs["mean"], theirs["mean_abs"]]).max())
    return Comparison(name, shape, difference, difference / (tolerance or 1e-4 * float(theirs["mean_abs"]) + 1e-6))
