"""Fetch the book's data sets from their official hosts and prepare them as compact arrays.

``python -m data_scripts`` prepares all the small ones, ``--images`` adds mini-ImageNet, ``--status`` only shows what is
there; ``python -m data_scripts.NAME`` prepares one, with NAME one of jester, movielens_100k, movielens_1m, omniglot,
mini_imagenet.

``AMAML_DATA`` is the folder for the arrays (default: ``data/`` beside this package). ``AMAML_MIRROR`` is a folder with
the archives, laid out as ``movielens/ml-100k.zip`` and so on, that is used instead of the network. Relative paths count
from the root of the checkout. Archives other than the official ones pass only if the mirror's own ``SHA256SUMS`` lists them.
"""
