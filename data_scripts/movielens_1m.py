"""MovieLens 1M: ``python -m data_scripts.movielens_1m`` writes ``ml-1m/ratings.npz``."""

from functools import partial

from data_scripts import movielens, ratings
from data_scripts.common import DataSet, command
from data_scripts.fetch import Archive, obtain_all

ARCHIVES = (
    Archive(
        "movielens/ml-1m.zip",
        "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
    ),
)

DATASET = DataSet(
    name="ml-1m",
    title="MovieLens 1M",
    page="https://grouplens.org/datasets/movielens/1m/",
    licence=movielens.LICENCE,
    counts={"users": 6040, "items": 3952, "ratings": 1_000_209},  # of the 3952 ids, 3706 have ratings
    layout=ratings.layout,
    obtain=partial(obtain_all, ARCHIVES),
    build=partial(movielens.build, member="ratings.dat", separator="::"),
)

if __name__ == "__main__":
    raise SystemExit(command(DATASET))
