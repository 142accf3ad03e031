import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from body3d.errors import InputError
from body3d.known_answers import ABSOLUTE, check

FOLDER = Path(__file__).parent / "known_answers"
SCRIPT = Path(__file__).parents[1] / "scripts" / "check_known_answers.py"
FILES = sorted(FOLDER.glob("fn_*.npz"))


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def altered(source: Path, folder: Path, **changes) -> Path:
    """A copy of an answer with some arrays replaced, the body models beside it."""
    for model in FOLDER.glob("model_*.npz"):
        shutil.copy(model, folder)
    with np.load(source) as answer:
        arrays = {key: answer[key] for key in answer.files}
    np.savez(folder / source.name, **arrays | changes)
    return folder / source.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_output_is_equal(path):
    comparisons = check(path)
    assert comparisons
    assert all(c.equal for c in comparisons), comparisons


@pytest.mark.parametrize("path", [f for f in FILES if "smplx_" in f.stem or f.stem == "fn_smpl"], ids=lambda p: p.stem)
def test_body_models_are_equal_within_a_hundredth_of_a_millimetre(path):
    comparisons = check(path)
    assert max(c.difference for c in comparisons) < 1e-5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_difference_is_seen_in_every_output(path, tmp_path):
    """One entry of an output moved by three tolerances: that output differs, the others do not."""
    with np.load(path) as answer:
        outputs = {key: answer[key] for key in answer.files if key.startswith("out_")}
        inputs = [answer[key] for key in answer.files if key.startswith("in_")]
    double = all(value.dtype == np.float64 for value in inputs if value.dtype.kind == "f")
    few = list(outputs)[:: max(1, len(outputs) // 8)]  # each costs a whole answer
    for key in few:
        value = outputs[key]
        size = np.abs(value).mean()
        exact = double and value.dtype == np.float64
        step = ABSOLUTE.get((path.stem[3:], key[4:]), 1e-9 * size if exact else 1e-4 * size + 1e-6 * (size > 1e-6))
        wrong = value.copy()
        wrong.flat[-1] += 3 * step if value.dtype.kind == "f" else 1
        found = {c.output: c.equal for c in check(altered(path, tmp_path, **{key: wrong}))}
        assert found == {k[4:]: k != key for k in outputs}


def test_any_batch_size(tmp_path):
    for name in ("fn_smplx_contour", "fn_smpl"):
        with np.load(FOLDER / f"{name}.npz") as answer:
            first = {k: answer[k][:1] for k in answer.files if answer[k].ndim}
        assert all(c.equal for c in check(altered(FOLDER / f"{name}.npz", tmp_path, **first)))


def test_exit_codes_and_lines(main, tmp_path, capsys):
    assert main([FOLDER / "fn_gmof.npz"]) == 0
    assert capsys.readouterr().out.startswith("equal: fn_gmof\n  value (12x7): largest difference ")

    np.savez(tmp_path / "some_network.npz", meta='{"system": "some network"}', keys=["a.weight"], out0_value=[1.0])
    assert main([tmp_path / "some_network.npz"]) == 0
    assert capsys.readouterr().out == "not implemented here: some_network\n"

    wrong = altered(FOLDER / "fn_gmof.npz", tmp_path, out_value=np.zeros((12, 7)))
    assert main([wrong, FOLDER / "fn_smpl.npz"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS: fn_gmof" in out
    assert "equal: fn_smpl" in out

    assert main([tmp_path / "missing.npz", FOLDER / "fn_gmof.npz"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{tmp_path / 'missing.npz'}: there is no such file\n"
    assert "equal: fn_gmof" in captured.out


def test_files_that_are_no_answers(tmp_path):
    np.savez(tmp_path / "no_meta.npz", in_x=np.zeros(3))
    with pytest.raises(InputError, match="not a known answer: it has no 'meta'"):
        check(tmp_path / "no_meta.npz")
    np.savez(tmp_path / "bad_meta.npz", meta="no JSON")
    with pytest.raises(InputError, match="'meta' is not a JSON object"):
        check(tmp_path / "bad_meta.npz")
    shutil.copy(FOLDER / "fn_smpl.npz", tmp_path)
    with pytest.raises(InputError, match=r"model_smpl_random.npz: there is no such file"):
        check(tmp_path / "fn_smpl.npz")
