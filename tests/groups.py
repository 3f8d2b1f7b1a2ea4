"""Process groups of torch.distributed that end after the wrappers that use them."""

import gc
from contextlib import contextmanager

import torch


@contextmanager
def gloo(store, rank=0, size=1):
    """This process as one of a Gloo group, whose processes find each other by a file.

    A wrapper that outlived the group would close it amid the interpreter's lock, for which the group's own thread may wait
    (https://github.com/pytorch/pytorch/issues/56297). So it lives in a function that ends within, and what frames of errors and
    cycles still hold of it is collected before the group ends.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        yield
    finally:
        gc.collect()
        torch.distributed.destroy_process_group()
