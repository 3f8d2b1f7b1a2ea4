"""What every test needs: one thread, so that parallel workers do not fight for cores and sums come out the same.

``AMAML_SHUFFLE=1`` runs the files, and the tests of each, in another order; any number is one.
``AMAML_PART=0/3`` runs a third of the tests, ``AMAML_PART=1/3`` another, and ``AMAML_PART=2/3`` the last.
Both are about this run of pytest: what its tests start does not see them.
"""

import os
import random
import zlib
from itertools import groupby

import torch

torch.set_num_threads(1)


def pytest_itemcollected(item):
    """What a cell says on the standard error, such as that it uses a stand-in, is not compared with the committed output."""
    if type(item).__name__ == "IPyNbCell":
        item.parent.skip_compare = (*item.parent.skip_compare, "stderr")


def pytest_collection_modifyitems(config, items):
    """Take a part, and shuffle, if that is wanted: no test may need another one before it. Cells of a notebook keep their order."""
    if part := os.environ.pop("AMAML_PART", ""):
        number, parts = map(int, part.split("/"))
        mine = [zlib.crc32(test.nodeid.encode()) % parts == number for test in items]
        config.hook.pytest_deselected(items=[test for test, is_mine in zip(items, mine, strict=True) if not is_mine])
        items[:] = [test for test, is_mine in zip(items, mine, strict=True) if is_mine]
    if seed := os.environ.pop("AMAML_SHUFFLE", ""):
        draw = random.Random(int(seed))
        files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
        draw.shuffle(files)
        for tests in files:
            if tests[0].path.suffix != ".ipynb":
                draw.shuffle(tests)
        items[:] = [test for tests in files for test in tests]
