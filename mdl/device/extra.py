"""What is said where the optional packages of an export are missing."""

from __future__ import annotations

from mdl.errors import UserError


def lacks_extra(error: ImportError) -> UserError:
    """What is said where the optional packages of an export are not installed."""
    return UserError(
        f"The package '{error.name}' is not installed, which this needs: "
        "pip install -c constraints.txt -e '.[device]'"
    )
