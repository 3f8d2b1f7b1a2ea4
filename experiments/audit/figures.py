"""Meta-gradients against the number of steps, and what training under the switches changes."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..common.plots import BLUE, GREY, ORANGE, PURPLE, RED, SKY, below, panels
from .settings import EXACT, TRAINED, UNTRAINED
from .switches import BARE, INNER_ALONE, OUTER_ALONE, RELEASED, backward_loops
from .tables import ADAM, INNER, effect, select, trained_on, typical

CURVES = {
    "released": (RELEASED, RED, "s"),
    "inner term alone": (INNER_ALONE, PURPLE, "^"),
    "outer term alone": (OUTER_ALONE, ORANGE, "v"),
    "neither": (BARE, BLUE, "o"),
}
LOOPS = dict(
    zip(
        backward_loops(RELEASED),
        zip((RED, ORANGE, PURPLE, SKY, GREY, BLUE), "sv^<Do", ("-", "-", "-", "--", ":", "-"), strict=True),
        strict=True,
    )
)


def _number_of_steps(axis: Axes, table: pd.DataFrame, label: str) -> None:
    counts = sorted(table["steps"].unique())
    axis.set(xscale="log", xlabel=label)
    axis.set_xticks(counts, [str(k) for k in counts])
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def proximal(gradient: pd.DataFrame) -> Figure:
    """Cosine with plain MAML's meta-gradient over the number of steps, with and without the proximal terms."""
    fig, axes = panels(2, height=3.2, sharey=True)
    for axis, at in zip(axes, ("initial", "trained"), strict=True):
        mine = gradient[gradient["formula"].eq("cosmixture") & gradient["at"].eq(at)]
        for name, (switches, colour, marker) in CURVES.items():
            groups = select(mine, switches).groupby("steps")["plain_cosine"]
            axis.plot(groups.mean(), color=colour, marker=marker, label=name)
            axis.fill_between(groups.mean().index, groups.min(), groups.max(), color=colour, alpha=0.15, linewidth=0)
        axis.set_title(f"{at} network")
        _number_of_steps(axis, mine, "inner steps K")
        axis.axhline(0, color=GREY, lw=0.8)
    axes[0].set_ylabel("cosine with plain MAML")
    below(fig, *axes[0].get_legend_handles_labels())
    return fig


def loops(gradient: pd.DataFrame) -> Figure:
    """Error against each setting's own exact gradient for all backward loops, at the initial network, on cosine mixtures."""
    mine = gradient[gradient["formula"].eq("cosmixture") & gradient["at"].eq("initial")]
    fig, axes = panels(2, height=3.6, sharey=True)
    for axis, base, title in zip(axes, (BARE, RELEASED), ("without proximal terms", "with proximal terms"), strict=True):
        for name, switches in backward_loops(base).items():
            colour, marker, dashes = LOOPS[name]
            errors = pd.Series({steps: typical(rows, switches, "own_error") for steps, rows in mine.groupby("steps")})
            axis.plot(errors, color=colour, marker=marker, ls=dashes, ms=5, label=name)
        axis.set(yscale="log", title=title)
        _number_of_steps(axis, mine, "inner steps K of size 0.01")
    axes[0].set_ylabel("relative error, own reference")
    below(fig, *axes[1].get_legend_handles_labels())
    return fig


def training(table: pd.DataFrame) -> Figure:
    """Held-out errors less those of training with the exact meta-gradient: each seed a dot, the interval over seeds a bar."""
    names = [name for name in TRAINED if name not in (EXACT, UNTRAINED)]
    fig, axes = panels(2, height=3.6, sharey=True)
    for axis, moment, title in zip(axes, (INNER, ADAM), ("50 inner steps", "500 epochs of Adam"), strict=True):
        for formula, colour, shift in (("cosmixture", BLUE, -0.15), ("alpine", ORANGE, 0.15)):
            exact, tried = trained_on(table, formula, EXACT, *moment), set(table.loc[table["formula"].eq(formula), "setting"])
            for place, name in enumerate(names):
                if name not in tried:
                    continue
                mine = trained_on(table, formula, name, *moment)
                change, dots = effect(mine, exact), (mine - exact).groupby(level="seed").mean()
                axis.errorbar(change.mean, place + shift, xerr=change.half_width, color=colour, capsize=3, lw=1.2)
                label = formula if name == names[-1] else None
                axis.plot(dots, [place + shift] * len(dots), "o", color=colour, ms=5, label=label)
        axis.axvline(0, color=GREY, lw=0.8)
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    fig.supxlabel("difference of the held-out error (standard deviations)", fontsize="medium")
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].invert_yaxis()
    below(fig, *axes[1].get_legend_handles_labels())
    return fig
