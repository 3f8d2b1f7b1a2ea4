"""What every test needs: one thread, so that parallel workers do not fight for cores and sums come out the same."""

import torch

torch.set_num_threads(1)


def pytest_itemcollected(item):
    """What a cell says on the standard error, such as that it uses a stand-in, is not compared with the committed output."""
    if type(item).__name__ == "IPyNbCell":
        item.parent.skip_compare = (*item.parent.skip_compare, "stderr")
