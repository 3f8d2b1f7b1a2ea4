"""What every test needs: one thread, so that parallel workers do not fight for cores and sums come out the same."""

import torch

torch.set_num_threads(1)
