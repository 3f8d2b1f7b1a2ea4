"""Where the data lie: one rule for the package, the chapters, ``data_scripts`` and the Makefile, from any working directory.

It imports nothing of the package, so ``data_scripts`` and the Makefile take this file alone, without waiting for torch:
``python amaml_core/locations.py`` prints the folder of the prepared data.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def checkout() -> Path | None:
    """The root of the checkout that this package lies in; None if it is installed."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def folder_in(variable: str) -> Path | None:
    """The folder that an environment variable names, None if it names none.

    A leading ``~`` is the home folder. A relative path counts from the root of the checkout.

    Raises:
        ValueError: a relative path, and the package is installed; or a ``~``, and there is no home folder.
    """
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        folder, root = Path(value).expanduser(), checkout()
    except RuntimeError as error:
        raise ValueError(f"{variable}={value} starts in a home folder, and there is none: name the whole path") from error
    if root is None and not folder.is_absolute():
        raise ValueError(f"{variable}={value} must be an absolute path: there is no checkout that it could start from")
    return folder if root is None else root / folder


def data_root() -> Path:
    """The folder of the prepared data: ``$AMAML_DATA`` if set, else ``data/`` in the root of the checkout.

    Raises:
        FileNotFoundError: AMAML_DATA is not set, and the package is installed, so that no folder is its own.
        ValueError: as :func:`folder_in`.
    """
    configured, root = folder_in("AMAML_DATA"), checkout()
    if configured is not None:
        return configured
    if root is None:
        raise FileNotFoundError("set AMAML_DATA to the folder of the prepared data; only a checkout has one of its own")
    return root / "data"


if __name__ == "__main__":
    try:
        print(data_root())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
