"""The look of the figures: one style, and one colour for each method in every chapter."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from .parameters import check
from .tables import shell, use_tables

# Okabe and Ito's palette: distinguishable with every common form of colour blindness. Its black is a grey here, which is read on a
# white page and on a dark one alike.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676"
COLOURS = {
    "A-MAML": BLUE, "MAML": RED, "MAML-1": SKY, "iMAML": GREEN, "FOMAML": PURPLE, "Reptile": ORANGE, "untrained": GREY,
}  # fmt: skip
MARKERS = {"A-MAML": "o", "MAML": "s", "MAML-1": "P", "iMAML": "D", "FOMAML": "^", "Reptile": "v", "untrained": "x"}
# Solvers are no methods: shades of one colour that no method has.
SOLVERS = dict(zip(("Euler", "Heun", "RK4", "Dopri5"), seaborn.color_palette("crest", 4).as_hex(), strict=True))
WIDTH = 7.6  # inches, of a figure as wide as the text
TITLES = {"cosmixture": "CosMixture", "alpine": "Alpine"}  # of functions, in titles


def use_style() -> None:
    """Set the look of all figures of a notebook: drawings that scale, without a background, with letters as large as the page's;
    and that of its tables.

    Every chapter calls it right after its parameters, whoever runs it, so they are checked here.

    Raises:
        ValueError: the notebook has a ``profile`` and a ``seed``, and no chapter can be run with them.
    """
    given = getattr(shell(), "user_ns", {})
    if "profile" in given and "seed" in given:
        check(given["profile"], given["seed"])
    use_tables()
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
    sizes = {"font.size": 10.5, "axes.titlesize": 10.5, "axes.labelsize": 10.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
             "legend.fontsize": 9.5, "legend.title_fontsize": 9.5, "figure.labelsize": 10.5}  # fmt: skip
    more = {"figure.figsize": (WIDTH, 3.2), "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
            "axes.grid": True, "grid.color": "#9a9a9a40", "lines.linewidth": 1.8, "legend.frameon": False,
            "svg.fonttype": "path", "svg.hashsalt": "amaml",
            **dict.fromkeys((f"axes3d.{a}axis.panecolor" for a in "xyz"), "none")}  # fmt: skip
    seaborn.set_theme(style="ticks", rc=ink | sizes | more | {"axes.spines.top": False, "axes.spines.right": False})
    if shell():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})  # the same figure gives the same file


def panels(count: int, height: float = 2.7, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure as wide as the text with ``count`` axes in two columns; ``options`` are those of ``plt.subplots``.

    Args:
        height: of a row, in inches.
    """
    rows = -(-count // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(WIDTH, height * rows), layout="constrained", squeeze=False, **options)
    for spare in axes.flat[count:]:
        spare.set_axis_off()
        axes[max(rows - 2, 0), -1].xaxis.set_tick_params(labelbottom=True)  # of the axes above
    return fig, list(axes.flat)[:count]


def adaptation_curves(axes: Axes, table: pd.DataFrame, column: str, methods: Iterable[str] | None = None) -> None:
    """The mean over tasks of ``column`` against the number of inner steps, with 95 % intervals, one line for each method.

    Args:
        axes: to draw in.
        table: tidy, with the columns ``method``, ``task``, ``step`` and ``column``, as the experiments give it.
        methods: which, in this order; all by default.
    """
    for method in methods or table["method"].unique():
        groups = table[table["method"] == method].groupby("step")[column]
        mean, half = groups.mean(), 1.96 * groups.std() / groups.count() ** 0.5
        colour = COLOURS[method]
        axes.plot(mean.index, mean, color=colour, marker=MARKERS[method], markersize=4, label=method)
        axes.fill_between(mean.index, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def band(axes: Axes, rows: pd.DataFrame, colour: object, **look: object) -> None:
    """A curve, ``mean`` against ``step``, and its interval, ``half`` to either side, where it has one."""
    rows = rows.sort_values("step")
    axes.plot(rows["step"], rows["mean"], color=colour, lw=1.5, **look)
    axes.fill_between(rows["step"], rows["mean"] - rows["half"], rows["mean"] + rows["half"], color=colour, alpha=0.12, lw=0)


def dashes(method: str) -> str:
    """The network that was not trained is dashed."""
    return "--" if method == "untrained" else "-"


def legend(fig: Figure, methods: Iterable[str]) -> None:
    """All methods below the figure, whether or not each has a record."""
    lines = [plt.Line2D([], [], color=COLOURS[n], marker=MARKERS[n], ls=dashes(n), label=n) for n in methods]
    below(fig, lines, [line.get_label() for line in lines])


def plain_numbers(axis: Axis) -> None:
    """On a logarithmic axis of few decades: 1, 2, 5, 10, 20 and so on, as numbers."""
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def below(fig: Figure, handles: list, labels: list[str]) -> None:
    """A legend in the place that :func:`panels` has left free, or else below the figure, in as few lines as its width allows."""
    if spare := [axes for axes in fig.axes if not axes.axison]:
        spare[0].legend(handles, labels, loc="center")
        return
    width, letters = 95, [len(label) + 6 for label in labels]
    columns = len(labels) if sum(letters) <= width else max(1, width // max(letters))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns)


def say_if_empty(axes: Axes, rows: pd.DataFrame | pd.Series) -> None:
    """Say in the axes that there is nothing to draw."""
    if rows.empty:
        axes.text(0.5, 0.5, "no record", transform=axes.transAxes, ha="center", color="gray")
