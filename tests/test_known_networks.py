import json
from pathlib import Path

import numpy as np
import pytest
import torch

from body3d.errors import InputError
from body3d.known_answers import check
from body3d.known_answers.question import published_input, published_weight

FOLDER = Path(__file__).parent / "known_answers"


def is_network(path: Path) -> bool:
    with np.load(path) as answer:
        return "keys" in answer.files


FILES = sorted(path for path in FOLDER.glob("*.npz") if is_network(path))


def altered(source: Path, folder: Path, meta: dict | None = None, **changes) -> Path:
    """A copy of an answer with some arrays, or entries of `meta`, replaced."""
    with np.load(source) as answer:
        arrays = {key: answer[key] for key in answer.files}
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | (meta or {})))
    np.savez(folder / source.name, **arrays | changes)
    return folder / source.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_output_is_equal(path):
    comparisons = check(path)
    assert comparisons
    assert all(c.equal for c in comparisons), comparisons


def test_the_rule():
    """First numbers of each kind, as the published table of answers was made with them."""
    assert published_weight("a.num_batches_tracked", (), 3).item() == 0
    for key, shape, low, high, deviation in (
        ("bn.running_var", (4000,), 0.5, 1.5, 1 / 12**0.5),
        ("bn.weight", (4000,), 0.5, 1.5, 1 / 12**0.5),
        ("bn.running_mean", (4000,), -1, 1, 0.1),
        ("w.bias", (4000,), -1, 1, 0.1),
        ("w.weight", (40, 100), -1, 1, 0.1),
        ("conv.weight", (40, 25, 2, 2), -1, 1, 0.1),
    ):
        value = published_weight(key, shape)
        assert value.dtype == torch.float32 and value.shape == shape
        assert low <= value.min() and value.max() <= high
        assert value.std().item() == pytest.approx(deviation, rel=0.05)
        assert torch.equal(published_weight(key, shape), value) and not torch.equal(
            published_weight(key, shape, 1), value
        )
        assert torch.equal(published_weight(key, shape, gain=0.5), value * (0.5 if len(shape) > 1 else 1))
    assert published_input("x", (4000,)).std().item() == pytest.approx(1, rel=0.05)


SMALL = FOLDER / "simplebaseline3d.npz"


def test_differences_are_seen(tmp_path):
    with np.load(SMALL) as answer:
        value, mean_abs = answer["out0_value"], float(answer["out0_mean_abs"])
    moved = value.copy()
    moved[-1] += 3 * (1e-4 * mean_abs + 1e-6)
    outcome = lambda path: {c.output: c.equal for c in check(path)}
    assert outcome(altered(SMALL, tmp_path, out0_value=moved)) == {"parameters": True, "pose3d": False}
    assert outcome(altered(SMALL, tmp_path, out0_shape=np.array([4, 16, 3]))) == {"parameters": True, "pose3d": False}
    assert outcome(altered(SMALL, tmp_path, meta={"param_count": 4_291_631})) == {"parameters": False, "pose3d": True}
    assert outcome(altered(SMALL, tmp_path, meta={"seed": 1})) == {"parameters": True, "pose3d": False}


def test_a_state_dict_of_another_network(tmp_path):
    with np.load(SMALL) as answer:
        keys, shapes = answer["keys"], answer["shapes"]
    shapes = shapes.copy()
    shapes[0] = "512,32"
    with pytest.raises(
        InputError, match=r"simplebaseline3d.npz: its state_dict is not that of our network: .*w1.weight"
    ):
        check(altered(SMALL, tmp_path, shapes=shapes))
    with pytest.raises(InputError, match=r"Missing key.*w2.bias"):
        check(altered(SMALL, tmp_path, keys=keys[:-1], shapes=shapes[:-1]))


def test_networks_that_are_not_here(tmp_path):
    assert check(altered(SMALL, tmp_path, meta={"system": "of somebody else"})) is None


def test_files_that_lack_something(tmp_path):
    np.savez(tmp_path / "simplebaseline3d.npz", meta='{"seed": 0}', keys=["w1.weight"])
    with pytest.raises(InputError, match="it has no input, outputs, param_count, shapes"):
        check(tmp_path / "simplebaseline3d.npz")
