"""Pictures of what several nodes know: their prototypes in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from protocl.memory import PrototypeMemory

_MARKERS = "os^DvPX*<>"


def draw_prototypes(
    moments: Mapping[str, Mapping[str, PrototypeMemory]], class_names: Sequence[str] | None = None
) -> Figure:
    """One panel a moment, such as before and after a merge, all in the same plane.

    The plane is that of the two largest principal components of all prototypes shown. A colour is
    a class, a marker a node; where nodes agree, their markers lie on each other.

    Args:
        moments: title -> node -> what it knows; empty memories are left out.
        class_names: name of each class id; the ids themselves by default.

    Raises:
        ValueError: fewer than two prototypes are shown.
    """
    shown = [m.means.numpy() for nodes in moments.values() for m in nodes.values() if len(m)]
    points = np.concatenate(shown) if shown else np.zeros((0, 2))
    if len(points) < 2:
        raise ValueError(f"draw_prototypes: {len(points)} prototypes; expected at least 2")
    plane = PCA(2).fit(points)
    figure = Figure(figsize=(5 * len(moments), 4.5), layout="constrained")
    panels = figure.subplots(1, len(moments), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, nodes) in zip(panels, moments.items(), strict=True):
        _draw(axes, nodes, plane, class_names)
        axes.set(title=title, xlabel="first principal component")
    panels[0].set_ylabel("second principal component")
    panels[0].legend(fontsize="small")
    return figure


def _draw(
    axes: Axes, nodes: Mapping[str, PrototypeMemory], plane: PCA, names: Sequence[str] | None
) -> None:
    labelled: set[int] = set()
    for place, (node, memory) in enumerate(nodes.items()):
        if not len(memory):
            continue
        x, y = plane.transform(memory.means.numpy()).T
        ids = memory.classes.tolist()
        axes.scatter(
            x, y, c=[f"C{c % 10}" for c in ids], marker=_MARKERS[place % len(_MARKERS)],
            s=60 + 50 * place, alpha=0.6, label=node,
        )  # fmt: skip
        for c, point in zip(ids, zip(x, y, strict=True), strict=True):
            if c not in labelled:
                axes.annotate(str(c) if names is None else names[c], point, fontsize="small")
                labelled.add(c)
