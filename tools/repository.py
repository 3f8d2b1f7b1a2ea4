"""Where the book's repository lies, if that is known: launch buttons that lead there, and a cell that fetches the code.

GitHub tells its builds (GITHUB_SERVER_URL, GITHUB_REPOSITORY, GITHUB_SHA). The committed notebooks know what pyproject.toml
says, ``[project.urls] Repository``. Where neither does, there are no buttons and no such cell.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ADDRESS = re.compile(r"https://[\w.-]+(/[\w.-]+){2}", re.ASCII)
SETUP = "setup"  # the tag of the cell that fetches the code
FETCH = """\
# Opened alone, as on Colab, this notebook fetches the book's code. In a checkout that is set up it does nothing.
import importlib.util
import os
import subprocess
import sys

if not all(map(importlib.util.find_spec, ("amaml_core", "experiments"))):
    if not os.path.isdir("book-code"):
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "{address}", "book-code"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", "./book-code[book]"], check=True)
    sys.path.insert(0, os.path.abspath("book-code"))
    os.chdir("book-code/book")"""


def declared(root: Path) -> str | None:
    """The address that pyproject.toml gives."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except FileNotFoundError:
        return None
    return _checked(project.get("urls", {}).get("Repository"), "pyproject.toml's Repository")


def building(root: Path) -> str | None:
    """The address that GitHub gives to a build, else the declared one."""
    name = os.environ.get("GITHUB_REPOSITORY")
    if not name:
        return declared(root)
    return _checked(f"{os.environ.get('GITHUB_SERVER_URL') or 'https://github.com'}/{name}", "GITHUB_SERVER_URL/GITHUB_REPOSITORY")


def _checked(address: str | None, where: str) -> str | None:
    if address is not None and not ADDRESS.fullmatch(address):
        raise ValueError(f"{where} is {address!r}; the address of a repository looks like https://github.com/owner/name")
    return address


def with_setup(notebook: NotebookNode, address: str | None) -> NotebookNode:
    """The notebook with a first cell that fetches the code from this address; as it is without an address."""
    if address and not any(SETUP in cell.metadata.get("tags", []) for cell in notebook.cells):
        notebook.cells.insert(0, new_code_cell(FETCH.format(address=address), metadata={"tags": [SETUP, "remove-cell"]}))
    return notebook


def with_buttons(config: dict, address: str | None, root: Path) -> dict:
    """The configuration of Jupyter Book with launch buttons for a repository at GitHub; as it is for others.

    Colab has one file and no environment, so its button needs notebooks that are committed with their first cell.
    """
    if address is None or not address.startswith("https://github.com/"):
        return config
    commit = os.environ.get("GITHUB_SHA", "")
    config["repository"] = {"url": address, "branch": commit if re.fullmatch("[0-9a-f]{40}", commit) else "main"}
    config["launch_buttons"] = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
    if declared(root) == address:
        config["launch_buttons"]["colab_url"] = "https://colab.research.google.com"
    config["html"]["use_repository_button"] = True
    codespaces = address.replace("https://github.com/", "https://codespaces.new/")
    link = {"name": "Open in Codespaces", "url": codespaces, "icon": "fa-solid fa-laptop-code", "type": "fontawesome"}
    config["sphinx"]["config"]["html_theme_options"]["icon_links"] = [link]
    return config
