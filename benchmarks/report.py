"""Judge and draw a table of measurements, from its CSV alone: ``python -m benchmarks.report benchmarks/results/NAME.csv``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402

from amaml_core.records import write_beside  # noqa: E402
from experiments.common.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, use_style  # noqa: E402

from . import results  # noqa: E402

README = Path(__file__).parents[1] / "README.md"
IN_README = Path(__file__).parent / "results" / "amd-epyc-2-cores.csv"  # the measurements that the README shows
LOOKS = {
    "unrolled": (RED, "o-"), "amaml": (BLUE, "o-"), "amaml compiled": (BLUE, "s--"), "amaml Checkpoint": (SKY, "o-"),
    "amaml compiled Checkpoint": (SKY, "s--"), "amaml kept": (BLUE, "^:"), "amaml two threads": (BLUE, "d-."),
    "amaml Backsolve": (SKY, "x:"), "jax scan": (GREEN, "^-"), "jax scan checkpoint": (GREEN, "v--"),
    "jax mixed mode": (GREEN, "s:"), "torch.func": (ORANGE, "D-"), "higher": (PURPLE, "P-"), "torchopt": (PURPLE, "X--"),
    "torchopt implicit": (PURPLE, "X--"), "hypertorch recipe": (RED, "o-"), "odeint_adjoint": (GREY, "x:"),
    "released recipe": (GREY, "*-"),
}  # fmt: skip
IN_WALL_TIME = ("amaml", "amaml two threads")  # for a single thread it is the CPU time
FIGURES = {"cpu_seconds": "CPU time", "memory_mb": "memory", "compile_seconds": "seconds of the first call"}


class Target(NamedTuple):
    """A promise: ``figure`` of ``contender`` over that of ``peer`` is at most ``bound``, at every K >= ``least``.

    Attributes:
        peer: ``""`` for the contender's figure itself, at the least K alone: there, little but compilation is in a first call.
        median: the bound is for the median over K, not for every K.
        growth: the ratio is the contender's own, of its figure at this K over that at K = 50.
    """

    contender: str
    peer: str
    figure: str
    bound: float
    network: str
    tasks: int
    least: int = 50
    median: bool = False
    growth: int = 0

    @property
    def words(self) -> str:
        what = FIGURES[self.figure]
        if self.growth:
            against = f"{what} at K={self.growth} / K=50"
        elif self.peer:
            against = f"{what} / {self.peer}, K >= {self.least}{', median' if self.median else ''}"
        else:
            against = f"{what} at the least K"
        return f"{self.network}, B={self.tasks}: {self.contender}, {against}"


def targets() -> Iterator[Target]:
    """What this package promises, on a CPU in float32."""
    for tasks, bound in ((5, 0.5), (32, 0.3)):
        yield Target("amaml", "unrolled", "cpu_seconds", bound, "mlp", tasks)
    for tasks in (5, 32):
        yield Target("amaml compiled", "unrolled", "cpu_seconds", 0.12, "mlp", tasks)
        yield Target("amaml compiled", "jax scan checkpoint", "cpu_seconds", 1.0, "mlp", tasks)
        yield Target("amaml compiled", "jax scan checkpoint", "cpu_seconds", 0.9, "mlp", tasks, median=True)
    yield Target("amaml Checkpoint", "", "memory_mb", 8, "mlp", 32, growth=2000)
    yield Target("amaml Checkpoint", "amaml", "cpu_seconds", 1.6, "mlp", 32)
    for contender in ("amaml", "amaml compiled"):
        yield Target(contender, "unrolled", "cpu_seconds", 1.1, "conv", 4, least=5)
    yield Target("amaml kept", "unrolled", "cpu_seconds", 1.05, "conv", 4, least=5)
    yield Target("amaml", "unrolled", "memory_mb", 0.2, "conv", 4)
    for tasks in (5, 32):
        for peer in ("torchopt", "higher"):
            yield Target("amaml compiled", peer, "cpu_seconds", 0.25, "adam", tasks, least=10)
        yield Target("amaml Checkpoint", "", "memory_mb", 4, "adam", tasks, growth=500)  # the root of 10, and some
        yield Target("amaml compiled", "hypertorch recipe", "cpu_seconds", 0.3, "implicit", tasks, least=10)
    for network, tasks in (("mlp", 5), ("mlp", 32), ("adam", 5), ("adam", 32), ("conv", 4), ("transformer", 4)):
        yield Target("amaml compiled", "", "compile_seconds", 5, network, tasks)


def ratios(table: pd.DataFrame, target: Target) -> pd.Series:
    """What a target is about as it was measured, by K; empty where nothing was."""
    rows = table[(table.device == "cpu") & (table.dtype == "float32") & (table.status == "ok")]
    rows = rows[(rows.network == target.network) & (rows.tasks == target.tasks)]
    wide = rows.pivot(index="steps", columns="contender", values=target.figure).reindex(columns=[target.contender, target.peer])
    own = wide[target.contender].dropna()
    if target.growth:
        return pd.Series({target.growth: own.get(target.growth, float("nan")) / own.get(50, float("nan"))}).dropna()
    if not target.peer:
        return own.head(1)
    ratio = (own / wide[target.peer]).dropna()
    return ratio[ratio.index >= target.least]


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Each target with its bound, the median and the worst of what was measured, and whether that meets it."""
    rows = []
    for target in targets():
        measured = ratios(table, target)
        decides = measured.median() if target.median else measured.max()
        verdict = "met" if decides <= target.bound else f"missed by {decides / target.bound - 1:.0%}"
        rows.append(
            (target.words, target.bound, measured.median(), measured.max(), measured.idxmax(), verdict)
            if len(measured)
            else (target.words, target.bound, None, None, "", "not measured")
        )
    return pd.DataFrame(rows, columns=["target", "at most", "median", "worst", "at K", "verdict"])


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, numbers to three digits."""
    cell = lambda v: "" if v is None or v != v else f"{v:.3g}" if isinstance(v, float) else str(v)  # noqa: E731
    lines = [
        list(table.columns),
        ["---"] * table.shape[1],
        *([cell(v) for v in row] for row in table.itertuples(index=False)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# Which cases the README shows, and what it calls those that it sets beside the compiled adjoint, exact ones of one thread.
SHOWN = (("mlp", 5, 50), ("mlp", 5, 500), ("mlp", 32, 50), ("mlp", 32, 500), ("adam", 5, 100), ("adam", 32, 100),
         ("implicit", 32, 50), ("conv", 4, 50), ("transformer", 4, 50))  # fmt: skip
PEERS = {
    "unrolled": ("unrolled",), "torch.func": ("torch.func",), "higher": ("higher",), "TorchOpt": ("torchopt", "torchopt implicit"),
    "JAX": ("jax scan", "jax scan checkpoint", "jax mixed mode"), "hypertorch": ("hypertorch recipe",),
}  # fmt: skip


def beside_ours(table: pd.DataFrame) -> pd.DataFrame:
    """CPU time of each peer over that of the compiled adjoint, float32 on a CPU; of several ways of a peer, the fastest."""
    rows = table[(table.device == "cpu") & (table.dtype == "float32") & (table.status == "ok")]
    found = []
    for network, tasks, steps in SHOWN:
        here = rows[(rows.network == network) & (rows.tasks == tasks) & (rows.steps == steps)].set_index("contender")["cpu_seconds"]
        line = {"network": network, "B": tasks, "K": steps}
        for name, ways in PEERS.items():
            ratio = here.reindex(list(ways)).min() / here.get("amaml compiled", float("nan"))
            line[name] = "–" if pd.isna(ratio) else f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"
        found.append(line)
    return pd.DataFrame(found)


START, END = "<!-- speed: python -m benchmarks.report writes this -->\n", "<!-- /speed -->"


def with_table(readme: str, table: pd.DataFrame) -> str:
    """The README with :func:`beside_ours` between its marks."""
    before, rest = readme.split(START)
    return before + START + "\n" + markdown(beside_ours(table)) + "\n" + END + rest.split(END, 1)[1]


def text(table: pd.DataFrame) -> str:
    """The whole report: machine, targets, and every contender's figures over those of ``unrolled``."""
    spans = f"{table.date.min()} to {table.date.max()}"
    versions = sorted({v for row in table.versions.dropna() for v in row.split()})
    parts = [
        f"Machine: {', '.join(sorted(set(table.machine)))}. Measured {spans}, commit {', '.join(sorted(set(table.commit)))}. "
        f"Load average before a case: at most {table.load_average.max():g}. Versions: {', '.join(versions)}.\n",
    ]
    if (table.device == "cpu").any():
        parts.append("## Targets\n\nCPU, float32, one thread.\n\n" + markdown(judge(table)))
    for (device, network, tasks, dtype), rows in table.groupby(["device", "network", "tasks", "dtype"]):
        parts.append(f"## {network}, B={tasks}, {dtype}, {device}\n")
        for figure, title in (
            ("cpu_seconds", "CPU seconds"),
            ("wall_seconds", "Wall seconds"),
            ("memory_mb", "Memory growth, MB"),
            ("error", "Relative error"),
        ):
            wide = rows.pivot(index="contender", columns="steps", values=figure).astype(object)
            for row in rows[rows.status != "ok"].itertuples():
                wide.loc[row.contender, row.steps] = row.status
            shown = IN_WALL_TIME if figure == "wall_seconds" and device == "cpu" else tuple(LOOKS)
            wide = wide.reindex([name for name in shown if name in wide.index])
            if (figure == "cpu_seconds" and device == "cuda") or (figure == "wall_seconds" and len(wide) < 2):
                continue
            wide.insert(0, title, wide.index)
            parts.append(markdown(wide.rename(columns=lambda c: c if isinstance(c, str) else f"K={c}")))
        if (rows.status != "ok").any():
            gaps = rows[rows.status != "ok"].itertuples()
            parts.append("".join(f"- {gap.contender}, K={gap.steps}, {gap.status}: {gap.reason}\n" for gap in gaps))
    return "# Measurements\n\n" + "\n".join(parts)


def figure(rows: pd.DataFrame, title: str) -> plt.Figure:
    """Time against K, memory against K, and error against time, of one device, network, number of tasks and precision."""
    use_style()
    column, clock = ("wall_seconds", "wall seconds") if rows.device.eq("cuda").any() else ("cpu_seconds", "CPU seconds")
    drawing, (time, memory, cost) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for name, (colour, look) in LOOKS.items():
        own = rows[(rows.contender == name) & (rows.status == "ok")].sort_values("steps")
        if own.empty:
            continue
        style = {"color": colour, "label": name, "markersize": 4, "linewidth": 1.3}
        time.plot(own.steps, own[column], look, **style)
        memory.plot(own.steps, own.memory_mb.clip(lower=0.1), look, **style)
        cost.plot(own[column], own.error.where(own.error > 0), look[0], **style)
    for axes, x, y in (
        (time, "inner steps K", clock),
        (memory, "inner steps K", "memory growth, MB"),
        (cost, clock, "relative error"),
    ):
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    drawing.legend(*time.get_legend_handles_labels(), loc="outside right center")
    drawing.suptitle(title)
    return drawing


def main(argv: list[str] | None = None) -> None:
    """Write NAME.md and the figures beside NAME.csv, and the README's table if it shows these measurements; print the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("csv", type=Path)
    path = parser.parse_args(argv).csv
    table = results.read(path)
    if path.resolve() == IN_README:
        write_beside(README, with_table(README.read_text(), table).encode())
    write_beside(path.with_suffix(".md"), text(table).encode())
    plt.rcParams["svg.hashsalt"] = "benchmarks"  # the same figure gives the same file
    for (device, network, tasks, dtype), rows in table.groupby(["device", "network", "tasks", "dtype"]):
        drawing = figure(rows, f"{network}, B={tasks}, {dtype}, {device} ({', '.join(sorted(set(rows.machine)))})")
        drawing.savefig(path.with_name(f"{path.stem}-{device}-{network}-{tasks}-{dtype}.svg"), metadata={"Date": None})
        plt.close(drawing)
    print(markdown(judge(table)))


if __name__ == "__main__":
    main()
