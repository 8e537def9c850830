"""How a command begins and ends: `--allow`, errors in one sentence, exit codes.

Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from mdl.errors import OwnError, ProcessLost, UserError

# exit status of what was told to stop and can be started again (sysexits' EX_TEMPFAIL)
STOPPED = 75
INTERRUPTED = 130  # by Ctrl-C, as a shell counts it


def take_allowed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--allow PACKAGE`, and the packages that it names.

    Recipes reach Python code by dotted names. What they may reach beside this project's own is said
    here, by whoever types the command; no recipe, and no file, can say it.
    """
    words, allowed = list(arguments), []
    while "--allow" in words:
        at = words.index("--allow")
        if not words[at + 1 :] or "=" in words[at + 1] or words[at + 1].startswith("-"):
            raise UserError("--allow names no package; expected e.g. --allow my_callbacks")
        allowed.append(words[at + 1])
        del words[at : at + 2]
    return words, allowed


def at_least(least: int) -> Callable[[str], int]:
    """What makes a word a whole number that is not below `least`, for argparse."""

    def number(word: str) -> int:
        if not word.removeprefix("-").isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word}; expected a whole number, at least {least}")
        return int(word)

    return number


def run_command(main: Callable[[Sequence[str]], None]) -> int:
    """Runs a command: 0 when its work is done, 2 for what the user can mend, 1 for what broke."""
    # a file's name may be no text; what is told of it is escaped
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except (UserError, ProcessLost) as error:
        tell(error)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is saved", file=sys.stderr)
        return INTERRUPTED
    return 0


def tell(error: UserError | ProcessLost) -> None:
    """Prints an error's sentence: once, also where all processes of a run have met it."""
    first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if not error.told and (first or isinstance(error, OwnError | ProcessLost)):
        print(f"error: {error}", file=sys.stderr, flush=True)
    error.told = True
