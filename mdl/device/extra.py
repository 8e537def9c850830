"""What is said where the optional packages of an export are missing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from mdl.errors import UserError


def check_installed(packages: Iterable[str]) -> None:
    """Raises UserError where a package is not installed: before anything is computed or written."""
    for package in packages:
        if find_spec(package) is None:
            raise lacks_extra(ImportError(name=package))


def lacks_extra(error: ImportError) -> UserError:
    """What is said where the optional packages of an export are not installed."""
    return UserError(
        f"The package '{error.name}' is not installed, which this needs: "
        "pip install -c constraints.txt -e '.[device]'"
    )
