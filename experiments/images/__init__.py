"""Few-shot images: N-way 1-shot classification of Omniglot's characters and of mini-ImageNet's objects, seven rows side by side.

Chapter "Few-shot images" shows it. Kinds of cells:

- ``accuracy``: a row is trained and tested. How many query images are right, for each test task and number of inner steps, with
  transduction and without; where the size asks for it, also the learning curve on validation tasks. Those of the paper's own sizes
  take hours of a GPU and may be cut off at any time: the next call goes on from a checkpoint that is at most half a minute old.
- ``choice``: a row's trials, each a short training that is judged on tasks of validation classes.
- ``speed``: what an update costs on a CPU: that of each row as it is trained, and some by each of the ways that made it cheaper.

The sizes whose names begin with ``cpu`` or ``gpu`` have the paper's tasks and networks, and fewer updates; they may be cut off as
well.

With the same release and processor a training repeats to the bit. With other rounding, single precision through batch norm soon
takes another course. In the cell that was compared (A-MAML, T=0.5) two thirds of the tasks then had another accuracy, and the mean
over all 600 the same within 0.1 %; the mean validation accuracies of a choice moved by up to 2 %. So the tolerance of other
evaluations, row by row, does not hold here.
"""

from ..common.training import image_network
from . import beside, claims, figures, horizons, settings, tables
from .run import answers, first_look, live, one_at_a_time
from .training import samplers

__all__ = [
    "answers",
    "beside",
    "claims",
    "figures",
    "first_look",
    "horizons",
    "image_network",
    "live",
    "one_at_a_time",
    "samplers",
    "settings",
    "tables",
]
