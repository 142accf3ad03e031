"""The command line: `body3d COMMAND …`. Each command is a typed function that a script may call too.

Exit codes: 0 all done; 2 bad usage or unreadable input (one line on stderr each, the other inputs are still done); 3 nobody found.
"""

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import tyro

from body3d.commands.bench import Bench, bench
from body3d.commands.data import Data, data
from body3d.commands.detect import Detect, detect
from body3d.commands.evaluate import Evaluate, evaluate
from body3d.commands.fit import Fit, fit
from body3d.commands.lift import Lift, lift
from body3d.commands.regress import Regress, regress
from body3d.commands.shared import BAD_INPUT, DONE, complain
from body3d.commands.train import Train, train
from body3d.commands.train_lifter import TrainLifter, train_lifter
from body3d.commands.view import View, view
from body3d.commands.weights import Weights, weights
from body3d.errors import InputError, MissingExtra

COMMANDS: dict[type, Callable] = {
    Fit: fit, Detect: detect, Lift: lift, Regress: regress, Train: train, TrainLifter: train_lifter, Evaluate: evaluate, View: view,
    Data: data, Weights: weights, Bench: bench,
}  # fmt: skip
Command = (
    Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Detect, tyro.conf.subcommand("detect")]
    | Annotated[Lift, tyro.conf.subcommand("lift")]
    | Annotated[Regress, tyro.conf.subcommand("regress")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[TrainLifter, tyro.conf.subcommand("train-lifter")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> None:
    """`body3d COMMAND …`"""
    run(Command, lambda args: COMMANDS[type(args)](args), "body3d", arguments)


def run(kind, command: Callable, prog: str, arguments: list[str] | None = None) -> None:
    """Parse the command line as `kind`, run `command` and exit with its code; what the user did wrong is one line on stderr."""
    sys.exit(_code(kind, command, prog, arguments))


def _code(kind, command: Callable, prog: str, arguments: list[str] | None) -> int:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args = tyro.cli(kind, prog=prog, args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            return DONE
        complain(f"{prog}: {_one_line(complaint.getvalue())} (see {prog} --help)")
        return BAD_INPUT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return command(args)
    except (InputError, MissingExtra) as error:
        complain(f"{prog}: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("stopped")
        return 130


def _one_line(text: str) -> str:
    """tyro's boxed complaint as one sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", text)
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and line not in ("Parsing error", "Unrecognized options", "Missing value")]
    chatter = ("For full helptext", "Perhaps you meant", "Argument helptext")
    told = next((i for i, line in enumerate(said) if line.startswith(chatter)), len(said))
    return re.sub(r"\s+", " ", " ".join(said[:told])) or "the command line could not be read"
