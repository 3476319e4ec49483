"""Ways to adapt a pre-trained backbone to new data, by training all of it, a little, or nothing.

An adaptation changes a module in place and tells which parameters are to be trained;
:func:`adapt` applies one by name.
"""

from protocl.backbones.adaptation.adapt import adapt, find_adaptation, fold
from protocl.backbones.adaptation.base import Adaptation

__all__ = ["Adaptation", "adapt", "find_adaptation", "fold"]
