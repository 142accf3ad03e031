"""Compare our functions with published ones: `python scripts/check_known_answers.py FILE …`

Per file: what was compared, the largest difference as a share of what is tolerated, equal or not. Exit code 1 if any
differs, 2 if a file cannot be read.
"""

import argparse
import sys
from pathlib import Path

from body3d.errors import InputError
from body3d.known_answers import check


def main(files: list[Path]) -> int:
    code = 0
    for file in files:
        try:
            comparisons = check(file)
        except InputError as error:
            print(error, file=sys.stderr)
            code = 2
            continue
        if comparisons is None:
            print(f"not implemented here: {file.stem}")
            continue
        equal = all(c.equal for c in comparisons)
        code = code or int(not equal)
        print(f"{'equal' if equal else 'DIFFERS'}: {file.stem}")
        for c in comparisons:
            shape = "x".join(map(str, c.shape)) or "number"
            print(f"  {c.output} ({shape}): largest difference {c.difference:.1e}, {c.ratio:.2g} of the tolerance")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare our functions with published ones.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    sys.exit(main(parser.parse_args().files))
