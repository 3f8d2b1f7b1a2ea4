"""A bibliography whose labels are what the text cites: *Hairer et al., 1993*. Sphinx loads this as an extension."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybtex.database import Entry, Person
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.sorting.author_year_title import SortingStyle
from sphinx.application import Sphinx

NAME = "author_year"


def last_name(person: Person) -> str:
    """As it is printed: with *de* and *von*, and with accents and braces as TeX means them."""
    return "\N{NO-BREAK SPACE}".join(str(part) for part in (*person.rich_prelast_names, *person.rich_last_names))


class Labels(BaseLabelStyle):
    """One author, two, or one and others; and the year."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """The label of each entry."""
        for entry in sorted_entries:
            names = [last_name(person) for person in entry.persons.get("author") or entry.persons["editor"]]
            who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            yield f"{who}, {entry.fields.get('year', 'n.d.')}"


class Sorting(SortingStyle):
    """By the names as they are printed: Pybtex puts those in braces last."""

    def person_key(self, person: Person) -> str:
        """What a person is sorted by."""
        return " ".join((last_name(person), *person.first_names)).lower()


class AuthorYear(Style):
    """Pybtex's plain style with these labels, in this order."""

    default_label_style = Labels
    default_sorting_style = Sorting


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the style known under its name."""
    register_plugin("pybtex.style.formatting", NAME, AuthorYear)
    return {"parallel_read_safe": True}
