"""What the published figure claims, and what the recipe's curves say."""

from __future__ import annotations

import pandas as pd

from ..common.claims import Claim, decide
from .settings import UNTRAINED
from .tables import above_untrained, compared, curves, distances, final, more_shots, spread, theirs

NEAR = 0.04  # twice the error of reading a value off the figure
EPOCH = 1000


def _whole(found: pd.DataFrame) -> bool:
    """Whether the curves of all methods of all panels are there, to the figure's last epoch."""
    return not found.empty and final(found, EPOCH)["ours"].notna().all(axis=None) and final(found, EPOCH)["ours"].shape[1] == 4


def claims(table: pd.DataFrame) -> list[Claim]:
    """Of the recipe's rows."""
    name, found = "synthetic regression", curves(table) if len(table) else pd.DataFrame()
    if not _whole(found):
        return []
    of = {s: distances(compared(found[found["set"].eq(s) & found["method"].eq("A-MAML")]), ["method"]).loc["A-MAML"] for s in
          ("support", "held-out")}  # fmt: skip
    figure = theirs()
    falling = (figure["published"] - figure.groupby("step")["published"].transform("mean"))[figure["step"] > 0].pow(2).mean() ** 0.5
    ends = final(found, EPOCH)
    apart, shots = spread(found, EPOCH), more_shots(found, EPOCH)
    beaten = ends.drop(index=["A-MAML", UNTRAINED]).min() / ends.loc["A-MAML"]
    lowest = [beaten["ours"][panel] > 1 for panel in beaten["ours"].index]
    same = [0.8 <= beaten["ours"][p] / beaten["published"][p] <= 1.25 for p in beaten["ours"].index]
    above, baselines = above_untrained(found, EPOCH)
    inside = {s: shots[s].between(shots["published"].min(), shots["published"].max()).mean() for s in ("support", "held-out")}
    return [
        Claim(name, "The figure shows how A-MAML's error falls",
              f"the recipe's support errors are within {NEAR:g} of the published ones after epoch 0 (root mean square), "
              "and its held-out errors are not", "four curves",
              f"support {of['support']['without epoch 0']:.3f}, held-out {of['held-out']['without epoch 0']:.3f}; "
              f"a curve that only falls {falling:.3f}",
              decide([of["support"]["without epoch 0"] <= NEAR, of["held-out"]["without epoch 0"] > NEAR]),
              "an error on the points that the network is fitted to"),
        Claim(name, "A-MAML falls lowest of all methods", f"it has the lowest support error at epoch {EPOCH} in every panel",
              "in all 4 panels",
              f"in {sum(lowest)} of 4 panels", decide(lowest)),
        Claim(name, "A-MAML beats the best other method by a factor",
              "the factor is the published one, within 1.25, in every panel",
              ", ".join(f"{v:.2f}" for v in beaten["published"]), ", ".join(f"{v:.2f}" for v in beaten["ours"]), decide(same),
              "the order of the panels is that of the table"),
        Claim(name, "The methods differ", "the largest error over the smallest is the published one, within 1.25, in every panel",
              ", ".join(f"{v:.1f}" for v in apart["published"]), ", ".join(f"{v:.1f}" for v in apart["ours"]),
              decide(0.8 <= o / p <= 1.25 for o, p in zip(apart["ours"], apart["published"], strict=True)),
              "nearly all methods give one curve under the recipe"),
        Claim(name, "Meta-training helps the baselines, too",
              "their published errors lie below those of a network that was not trained",
              f"{baselines - above} of {baselines} do", f"untrained: {', '.join(f'{v:.2f}' for v in ends['ours'].loc[UNTRAINED])}",
              decide([above < baselines, above == 0])),
        Claim(name, "More shots raise the error that the figure shows",
              "ours with 100 over 50 shots lies within the published range on support points, and not on held-out points",
              f"{shots['published'].min():.2f} to {shots['published'].max():.2f}",
              f"support {inside['support']:.0%} inside, held-out {inside['held-out']:.0%}",
              decide([inside["support"] > 0.5, inside["held-out"] < 0.5]), "what tells which points the figure shows"),
    ]  # fmt: skip
