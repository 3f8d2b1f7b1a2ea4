"""Guesses at the published protocol, each of which changes one thing about the tasks, and the cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..common.cells import Cell
from ..ratings.settings import SHOTS, Trial

METHODS = ("A-MAML", "FOMAML")
DATA = ("jester-1", "ml-100k")
INPUTS = 100  # the paper's input dimension
TRIAL = Trial(0.1)  # the largest of the trials' rates, with which a task is learnt by heart the soonest
ADAM = {"lr": 1e-3, "weight_decay": 1e-6}  # of the released code, at test time

Inputs = Literal["one-hot", "number", "factors", "all factors", "raters"]
Fill = Literal["nothing", "item mean", "user mean", "zero"]
Overlap = Literal["disjoint", "independent", "contained", "same"]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A guess at the published protocol; the defaults are the protocol of this book.

    Attributes:
        says: the guess in words.
        inputs: ``"one-hot"`` items; the item's ``"number"``; ``"factors"`` of the training users' ratings, or ``"all factors"``,
            of the test users' ratings too; the ratings of an item by 100 ``"raters"``, who are training users.
        items: the 100 ``"most rated"`` or the ``"first"`` 100 of the catalogue.
        fill: what stands where a user gave no rating: nothing, the ``"item mean"``, the ``"user mean"``, or ``"zero"`` stars.
        overlap: query items are ``"disjoint"`` from the support items, ``"independent"`` of them, or ``"contained"``: all
            support items are also query items; or both sets are the ``"same"``.
        adapt: by the method's ``"own"`` inner loop at test time, or by ``"Adam"``, as the released code.
        updates: of meta-training, as a multiple of the usual number.
    """

    says: str
    inputs: Inputs = "one-hot"
    items: Literal["most rated", "first"] = "most rated"
    fill: Fill = "nothing"
    overlap: Overlap = "disjoint"
    adapt: Literal["own", "Adam"] = "own"
    updates: int = 1


HYPOTHESES: dict[str, Hypothesis] = {
    "base": Hypothesis(says="nothing: one-hot items, disjoint sets, known ratings"),
    "longer": Hypothesis(says="meta-training is four times as long", updates=4),
    "number": Hypothesis(says="the input is the item's number", inputs="number"),
    "factors": Hypothesis(says="the inputs are factors of the training users' ratings", inputs="factors"),
    "leak": Hypothesis(says="the factors know the test users' ratings", inputs="all factors"),
    "raters": Hypothesis(says="the inputs are the ratings by 100 other users", inputs="raters"),
    "independent": Hypothesis(says="query items are drawn without regard to the support items", overlap="independent"),
    "contained": Hypothesis(says="the query set contains the support set", overlap="contained"),
    "same": Hypothesis(says="query set and support set are the same", overlap="same"),
    "adam": Hypothesis(says="the test adapts by 1,000 epochs of Adam", adapt="Adam"),
    "item mean": Hypothesis(says="gaps are filled with the item's mean", fill="item mean"),
    "user mean": Hypothesis(says="gaps are filled with the user's mean", fill="user mean"),
    "zero": Hypothesis(says="gaps are filled with zero", fill="zero"),
    "item mean, first": Hypothesis(says="the same, with the first 100 films", items="first", fill="item mean"),
    "user mean, first": Hypothesis(says="the same, with the first 100 films", items="first", fill="user mean"),
    "zero, first": Hypothesis(says="the same, with the first 100 films", items="first", fill="zero"),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done; ``train_users`` None are all, ``test_steps`` of the method's own loop, ``adam_steps`` of Adam's. Whether a
    stand-in will do for absent data."""

    train_users: int | None
    test_users: int
    updates: int
    inner_steps: int
    test_steps: tuple[int, ...]
    adam_steps: tuple[int, ...]
    stand_in: bool = False


SIZES = {
    "smoke": Size(
        train_users=30, test_users=20, updates=4, inner_steps=10, test_steps=(0, 10), adam_steps=(0, 10), stand_in=True,
    ),
    "book": Size(
        train_users=None, test_users=100, updates=150, inner_steps=50,
        test_steps=(0, 5, 50), adam_steps=(0, 100, 1000), stand_in=True,
    ),
    "full": Size(
        train_users=None, test_users=100, updates=500, inner_steps=50,
        test_steps=(0, 1, 5, 10, 50, 100, 500), adam_steps=(0, 100, 200, 500, 1000),
    ),
}  # fmt: skip


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """Hypothesis × data × shots: the test users, and for each method their errors. One seed: the question is one of orders of
    magnitude."""
    found = []
    for name, hypothesis in HYPOTHESES.items():
        for data in DATA:
            if data == "jester-1" and hypothesis.items == "first":  # Jester-1 has 100 items in all
                continue
            for shots in SHOTS:
                what = {"size": size, "hypothesis": name, "data": data, "shots": shots}
                found.append(Cell("ratings_gap", "users", what, seed or 0))
                found += [Cell("ratings_gap", "errors", what | {"method": method}, seed or 0) for method in METHODS]
    return found
