"""MovieLens 100K: ``python -m data_scripts.movielens_100k`` writes ``ml-100k/ratings.npz``."""

from functools import partial

from data_scripts import movielens, ratings
from data_scripts.common import DataSet, command
from data_scripts.fetch import Archive, obtain_all

ARCHIVES = (
    Archive(
        "movielens/ml-100k.zip",
        "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ("https://files.grouplens.org/datasets/movielens/ml-100k.zip",),
    ),
)

DATASET = DataSet(
    name="ml-100k",
    title="MovieLens 100K",
    page="https://grouplens.org/datasets/movielens/100k/",
    licence=movielens.LICENCE,
    counts={"users": 943, "items": 1682, "ratings": 100_000},
    layout=ratings.layout,
    obtain=partial(obtain_all, ARCHIVES),
    build=partial(movielens.build, member="u.data", separator="\t"),
)

if __name__ == "__main__":
    raise SystemExit(command(DATASET))
