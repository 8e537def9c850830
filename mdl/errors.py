"""What a user can mend."""

GOES_ON = "The same command goes on from the last checkpoint."


class UserError(ValueError):
    """Bad recipe, bad data, bad file: the message says what, found, expected and remedy.

    The commands print it without a traceback and exit with status 2.
    """

    told = False  # whether it was printed


class OwnError(UserError):
    """A UserError of one process of several: the others do not say it."""


class ProcessLost(RuntimeError):
    """A process that a run needs ended, or no longer answers: nobody's mistake.

    The commands print its one sentence and exit with status 1: starting again may do.
    """

    told = False  # whether it was printed


def nearest(word: str, known: list[str]) -> str:
    """A hint for a misspelt word: the nearest of the known ones, or all of them."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
