# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""How a program takes its arguments, and how it tells its user's mistakes: in one line, with exit status 2."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar


Result = TypeVar("Result")

DEBUG = "--debug"
# Of several processes the first one tells the mistake, and the launcher then ends the others. A process that is still
# there after so many seconds is alone with its mistake, and tells it.
SECONDS_FOR_THE_FIRST = 10.0
# What launchers tell a process about its place among several: torch's, or MPI's.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


EMPTY = "it is empty; a variable of the shell that is not set?"
# An empty prefix is none, where the checkpoint has one.
MAY_BE_EMPTY = ("source_prefix",)


class RunError(RuntimeError):
    """A run cannot go on, neither by a fault of its code nor of its arguments; the message says what to do."""


class Mistake(SystemExit):
    """A user's mistake, raised where only the command line leads; the message says what to do."""


# What our checks and the libraries raise for a bad value, a bad file or a bad configuration. Not TypeError, LookupError
# and the like: these are mistakes of the code, and need their traceback.
USER_ERRORS = (Mistake, ValueError, OSError, StrictDataclassError)


class _Nothing(argparse.Action):
    """Leaves no trace among the arguments, which are written down, and compared when a run goes on."""

    def __call__(self, *args: Any) -> None:
        pass


class ArgumentParser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, instead of below all arguments that there are, and knows --debug.

    Its help gives the default of every argument, and the examples of the program's docstring.

    Args:
        description: the docstring; its first line stands above the arguments, and the others below them.
        epilog: follows these.
    """

    def __init__(self, *, description: str | None = None, epilog: str | None = None, **kwargs: Any):
        first, _, others = (description or "").partition("\n")
        below = "\n\n".join(text.strip("\n") for text in (others, epilog) if text)
        super().__init__(
            description=first, epilog=below, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )
        self.add_argument(
            DEBUG, action=_Nothing, nargs=0, default=argparse.SUPPRESS, help="Show the traceback of an error."
        )

    def format_help(self) -> str:
        for action in self._actions:
            action.help = _with_default(action)
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        parsed, others = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            if action.dest not in MAY_BE_EMPTY and (value == "" or (isinstance(value, list) and "" in value)):
                self.error(f"argument {'/'.join(action.option_strings) or action.metavar or action.dest}: {EMPTY}")
        return parsed, others

    def option_of(self, name: str) -> str:
        """As which option an attribute of the arguments is given; some are called otherwise in some scripts."""
        return next((action.option_strings[0] for action in self._actions if action.dest == name), f"--{name}")

    def error(self, message: str) -> NoReturn:
        _end(self.prog, f"{message}; see --help")


def script_parser(description: str | None, epilog: str | None = None) -> ArgumentParser:
    """The parser of a script; see `ArgumentParser`."""
    # The model card tells the command, and must know --hub_token when it sees it.
    return ArgumentParser(description=description, epilog=epilog, allow_abbrev=False)


def _with_default(action: argparse.Action) -> str | None:
    """The help of an argument, which says what holds without it, unless its words already do."""
    text, default = action.help or "", action.default
    if action.required:
        return text if not action.option_strings or "required" in text.lower() else f"{text} Required.".strip()
    if default == argparse.SUPPRESS or re.search("default|required", text, re.IGNORECASE) or "%(default)" in text:
        return action.help
    if default is None or default == [] or default == {}:
        shown = "none"
    elif isinstance(default, bool):
        shown = "on" if default else "off"
    elif isinstance(default, (list, tuple, range)):
        shown = " ".join(map(str, default))
    else:
        shown = str(default)
    return f"{text} Default: {shown.replace('%', '%%')}.".strip()


def directory(text: str) -> Path:
    """The type of an argument that names a directory to write into."""
    if not text.strip():  # would be the directory that one happens to be in
        raise argparse.ArgumentTypeError(EMPTY)
    try:
        Path(text).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character
        raise argparse.ArgumentTypeError(f"{text!r} is no path: {error}") from None
    return Path(text)


def program_name(module: str) -> str:
    """How a module was called that is also a command of `ea-hf`."""
    return sys.argv[0] if sys.argv[0].startswith("ea-hf ") else f"python -m {module}"


def run_main(main: Callable[[], Result]) -> Result:
    """Runs a program's `main`; a user's mistake ends it with one line on stderr and exit status 2, a `RunError` with 1.

    With `--debug` among the arguments of the command, it ends with its traceback instead. Transformers draws no bars where
    nobody sees them grow.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()
    program = Path(sys.argv[0]).name
    try:
        return main()
    except USER_ERRORS as error:
        if DEBUG in sys.argv[1:]:
            raise
        message = str(error) or type(error).__name__
    except RunError as error:
        if DEBUG in sys.argv[1:]:
            raise
        _end(program, str(error), status=1)
    _end(program, message)


def _end(program: str, message: str, status: int = 2) -> NoReturn:
    if any(os.environ.get(name, "0") != "0" for name in RANKS):
        time.sleep(SECONDS_FOR_THE_FIRST)
    # A character that the terminal cannot show must not hide the others.
    line = " ".join(message.split()).encode(errors="backslashreplace").decode()
    print(f"{program}: error: {line}", file=sys.stderr, flush=True)
    sys.exit(status)
