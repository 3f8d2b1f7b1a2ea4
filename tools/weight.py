"""What a page need not load: icons that it does not show, and the last decimals of its drawings.

Font Awesome's script would be by far the largest file of a page. An icon is an entry ``name:[width,height,[aliases],code,path]`` of
it. Drawings come next: Matplotlib writes six decimals of a point of 1/72 inch.
"""

from __future__ import annotations

import re
from pathlib import Path

SCRIPT = Path("_static/scripts/fontawesome.js")
ENTRY = re.compile(r'("?)(?P<name>[\w$-]+)\1:\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[^"]*",(?:"[^"]*"|\[[^\]]*\])\],?')
PLACES = re.compile(r'(?<=\s)(?:d|x|y)="[^"]*"')
NUMBER = re.compile(r"-?\d+\.\d+")
AROUND_COMMAND = re.compile(r"\s*([A-Za-z])\s*")
USED = re.compile(r"fa-([a-z0-9-]+)")


def trim_icons(site: Path) -> set[str]:
    """Take out of a built site's script what no page and no other script names; the names of the icons that are left.

    Raises:
        ValueError: no icon is left, so the script is not what it was when this was written.
    """
    script = site / SCRIPT
    others = [path for path in site.rglob("*.js") if path != script and "mathjax" not in path.parts]
    used = {name for path in [*site.rglob("*.html"), *others] for name in USED.findall(path.read_text())}
    kept = set()

    def keep(entry: re.Match[str]) -> str:
        names = {entry["name"], *re.findall(r'"([^"]*)"', entry["aliases"])}
        if not names & used:
            return ""
        kept.add(entry["name"])
        return entry[0]

    shorter = ENTRY.sub(keep, script.read_text())
    if not kept:
        raise ValueError(f"{script} has none of the icons that the pages name; its format has changed")
    script.write_text(shorter)
    return kept


def round_off(drawing: str) -> str:
    """An SVG with its places to a hundredth of a point, and no comments, and no blanks where they separate nothing."""

    def shorter(found: re.Match[str]) -> str:
        name, places = found[0].split("=", 1)
        places = NUMBER.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), places)
        return name + "=" + AROUND_COMMAND.sub(r"\1", places)

    return PLACES.sub(shorter, re.sub(r"(?s)<!--.*?-->|(?<=>)\s+(?=<)", "", drawing))
