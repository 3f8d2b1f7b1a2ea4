"""The pages' icons: of the two thousand that the theme's script draws, those that are there to be seen.

Font Awesome's script is by far the largest file of a page. An icon is an entry ``name:[width,height,[aliases],code,path]`` of it.
"""

from __future__ import annotations

import re
from pathlib import Path

SCRIPT = Path("_static/scripts/fontawesome.js")
ENTRY = re.compile(r'("?)(?P<name>[\w$-]+)\1:\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[^"]*",(?:"[^"]*"|\[[^\]]*\])\],?')
USED = re.compile(r"fa-([a-z0-9-]+)")


def trim(site: Path) -> set[str]:
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
