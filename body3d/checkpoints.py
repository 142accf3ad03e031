"""Published checkpoints: the state_dict in them, what network it is of, and how it gets into ours."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from body3d.errors import InputError

__all__ = [
    "filled", "load_headed", "load_imagenet", "load_into", "read_published", "to_headed", "weights_in", "what_network",
]  # fmt: skip

Net = TypeVar("Net", bound=nn.Module)

# Where the repositories keep the weights: VideoPose3D "model_pos", PoseAug and weigq's port "state_dict", this project "model",
# 3DMPPE "network".
_PLACES = ("model_pos", "state_dict", "model", "network")


class _Ignored:
    """Stands for what older checkpoints also pickle and no weight needs: NumPy scalars, the state of a random generator."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_IGNORED = [
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray", "numpy.random.__RandomState_ctor",
    *(f"numpy.random._pickle.{name}" for name in ("__randomstate_ctor", "__bit_generator_ctor")),
    "numpy.random._mt19937.MT19937",
]  # fmt: skip


def read_published(path: Path | str) -> dict[str, Tensor]:
    """The weights in a checkpoint by their names (without `module.`), on the CPU. InputError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint")
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the archive makes it stumble on
        raise InputError(f"{path} is not a checkpoint, or is damaged: {str(error).splitlines()[0]}") from error
    if isinstance(content, dict):
        places = (content[place] for place in _PLACES if isinstance(content.get(place), dict))
        content = next(places, None) or ("modules" in content and weights_in(content)) or content
        state = {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise InputError(f"{path} holds no weights")


def weights_in(content: dict[str, Any], main: str = "net") -> dict[str, Any]:
    """The state_dict in a checkpoint: the best's, or the last's (their average, if one was kept) of the module `main`."""
    if "model" in content:
        return content["model"]
    if content.get("average") is None:
        return content.get("modules", {}).get(main, {})
    return {key.removeprefix("module."): v for key, v in content["average"].items() if key.startswith("module.")}


# A name that only one kind of network has.
_KINDS = {
    r"linear_stages\.0\.w1\.weight": "SimpleBaseline-3D",
    r"linear_model\.w1": "SimpleBaseline-3D in TensorFlow's names",
    r"(BA|BL|RT)process\..*": "PoseAug's generators",
    r"kcs_path_1\..*": "PoseAug's 3D discriminator",
    r"pose_layer_1\.weight": "PoseAug's 2D discriminator",
    r"(.*\.)?expand_conv\.weight": "VideoPose3D's temporal network",
    r"gconv_input\..*": "SemGCN",
    r"stgcn\..*": "ST-GCN",
    r"(.*\.)?backbone\.pos_embed": "a vision transformer (ViTPose)",
    r"(.*\.)?keypoint_token": "TokenPose",
    r"(.*\.)?(fc_coord_)?output_branches\.0\..*": "Poseur",
    r"(.*\.)?tokenizer\.codebook": "PCT's tokenizer",
    r"deception\.0\..*": "chained predictions",
    r"(.*\.)?stacks\.0\.hourglass\..*": "multi-context attention",
    r"(.*\.)?layer1\.scales\..*": "PyraNet",
    r"(.*\.)?hgs?\.0\..*": "a stacked hourglass",
    r"(.*\.)?stage0\.0\.layers\..*": "Lite-HRNet",
    r"(.*\.)?transform\.ops\.\d\..*": "HR-NAS",
    r"(.*\.)?final_layers\.1\..*": "HigherHRNet",
    r"(.*\.)?stage2\.0\.fuse_layers\..*": "HRNet",
    r"(.*\.)?Mconv1_stage2_L1\..*": "OpenPose's body network",
    r"(.*\.)?cpm_stages\.0\..*": "a convolutional pose machine in mmpose's names",
    r"(.*\.)?Mconv1_stage2\..*": "the released convolutional pose machine",
    r"(.*\.)?mlp_head_x\..*": "SimCC",
    r"(.*\.)?flow(_model)?\.t\.0\..*": "a regression with RLE",
    r"(.*\.)?deconv_layers\.0\.weight": "SimpleBaseline (a ResNet with deconvolutions)",
    r"(.*\.)?duc1\.conv\.weight": "AlphaPose's FastPose",
    r"global_net\.laterals\..*": "CPN",
    r"(stage0\.downsample|backbone\.multi_stage_mspn)\..*": "MSPN",
    r"(.*\.)?layer1\.0\.conv1\.weight": "a network on images (ResNet)",
}


def what_network(state: Mapping[str, Tensor]) -> str:
    """What the weights are of, in words: a name where it is known, else the first of their names."""
    for pattern, kind in _KINDS.items():
        if any(re.fullmatch(pattern, key) for key in state):
            return kind
    return f"a network with {len(state)} entries ({', '.join(list(state)[:3])} …)"


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Put all of `state`, read from `path` and renamed to our names, into all of `module`.

    InputError if names are missing or left over, or if shapes differ: it names the first five of each. Counts of batches may be
    missing: older checkpoints have none.
    """
    ours = module.state_dict()
    missing = [key for key in ours if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in ours]
    shapes = [
        f"{key} is {_size(value)}, not {_size(ours[key])}"
        for key, value in state.items()
        if key in ours and value.shape != ours[key].shape
    ]
    wrong = {"missing": missing, "not known": extra, "of another size": shapes}
    if any(wrong.values()):
        words = "; ".join(f"{what}: {_first_five(names)}" for what, names in wrong.items() if names)
        raise InputError(f"{path} holds {what_network(state)}, not what was asked for ({words})")
    module.load_state_dict(state, strict=False)


def filled(
    net: Net,
    weights: Path | str | None,
    rename: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = lambda state: state,
) -> Net:
    """`net` with the weights of a checkpoint, in eval mode; as it is where `weights` is None.

    `rename` turns published names into ours. InputError as of `load_into`.
    """
    if weights is not None:
        load_into(net, rename(read_published(weights)), weights)
        net.eval()
    return net


# What published names begin with: mmpose's backbone and head (and parts of a head), AlphaPose's and RLE's backbone.
_BEFORE = re.compile(r"(backbone|preact|(keypoint_)?head(\.(deconv_head|simplebaseline_head))?)\.")
# Constants of a method that some files hold; ours are not weights.
_CONSTANTS = re.compile(r"(.*\.)?(linspace_[xy]|flow_model\.(loc|cov))")


def to_headed(state: Mapping[str, Tensor], head: nn.Module) -> dict[str, Tensor]:
    """Published names as those of a trunk with a head on it: `trunk.` and `head.` before the names that both have by themselves.

    The repositories' own prefixes go, and a `final_layer` is the whole head where `head` is one layer. Names that are so already,
    as this project writes them, stay.
    """
    if all(re.match(r"(net\.)?(trunk|head)\.", key) for key in state) and any("trunk." in key for key in state):
        return {key.removeprefix("net."): value for key, value in state.items()}
    own, renamed = head.state_dict(), {}
    for key, value in state.items():
        if _CONSTANTS.fullmatch(key):
            continue
        name = _BEFORE.sub("", key, count=1) if _BEFORE.match(key) else key
        name = name.replace("loss_module.flow_model.", "flow.")
        if name not in own:
            name = name.removeprefix("final_layer.") if name.removeprefix("final_layer.") in own else f"trunk.{name}"
        renamed[name if name.startswith("trunk.") else f"head.{name}"] = value
    return renamed


def load_headed(module: nn.Module, path: Path | str) -> None:
    """Fill a trunk with a head (`posenet.Headed`) from a checkpoint of its authors, of mmpose, or of this project.

    InputError as of `load_into`.
    """
    load_into(module, to_headed(read_published(path), module.get_submodule("head")), path)


def load_imagenet(trunk: nn.Module, path: Path | str, new: str = "deconv_layers.") -> None:
    """Start a trunk from weights of a classifier, such as torchvision's, whose own last layers are left out.

    What begins with `new` stays as it is. InputError if anything else is missing, or has another shape.
    """
    state, ours = read_published(path), trunk.state_dict()
    kept = {key: value for key, value in ours.items() if key.startswith(new)}
    load_into(trunk, kept | {key: value for key, value in state.items() if key in ours}, path)


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def _first_five(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
