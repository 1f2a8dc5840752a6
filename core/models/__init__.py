"""The zoo: the papers' networks as plain modules, one file a family; `load` makes any MODEL of the command line."""

from .loading import Loaded, load, read_weights
from .zoo import ZOO, Entry

__all__ = ["ZOO", "Entry", "Loaded", "load", "read_weights"]
