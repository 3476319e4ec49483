"""What a strategy says of itself; importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StrategyInfo:
    """What ``protocl list strategies`` and reports say about a strategy.

    Written as constants in the body of the settings, it is read from the source without importing
    the strategy (:func:`protocl.source.constant`).

    Attributes:
        title: name as the field writes it ("Streaming LDA").
        paper: authors, year and venue, or "-" for a plain baseline.
        stored_between_experiences: what is kept from one experience to the next, in words.
        keeps_data: whether training samples themselves are among it.
        bytes_per_class: what one more class adds to it besides samples, in bytes for ``D``
            features, as text ("16 D + 16"); sums are kept as pairs of float64. ``C`` stands for
            the classes before it, ``M`` for the width of random features.
        trains_backbone: whether it changes the weights of the backbone, its defaults being as they
            are.
    """

    title: str
    paper: str
    stored_between_experiences: str
    keeps_data: bool
    bytes_per_class: str = "not stated"
    trains_backbone: bool = True
