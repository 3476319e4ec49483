"""How explanations are shown: some lines for people, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from protocl.cli.model.show import oddness
from protocl.open_world.explanation.explanation import Explanation


def show_explanations(names: Sequence[str], found: Sequence[Explanation], *, as_json: bool) -> None:
    """Print why samples are answered so."""
    for name, one in zip(names, found, strict=True):
        lines = [json.dumps(as_object(name, one), ensure_ascii=False)] if as_json else _lines(one)
        if not as_json:
            print(name)  # noqa: T201
        print("\n".join(lines))  # noqa: T201


def as_object(name: str, one: Explanation) -> dict[str, Any]:
    """An explanation as JSON has it."""
    kinds = ("total", "aleatoric", "epistemic", "unknown")
    by_score = {} if one.verdict is None else {"unknown_by": one.verdict._asdict()}
    return {
        "file": name,
        "label": one.prototypes[0].label,
        "prototypes": [each._asdict() for each in one.prototypes],
        "samples": [each._asdict() for each in one.samples],
        **{kind: getattr(one, kind) for kind in kinds},
        **by_score,
    }


def _lines(one: Explanation) -> list[str]:
    width = max(len(str(each.label)) for each in one.prototypes)
    lines = [
        f"  {each.label!s:{width}}  {_share(each.share)}, {each.behind:.3g} behind, "
        f"prototype of {each.samples} samples at distance {each.distance:.3g}"
        for each in one.prototypes
    ]
    lines += [f"  like {each.label} (cosine {each.cosine:.3f})" for each in one.samples]
    if one.total is not None:
        lines.append(
            f"  uncertain by {one.total:.3f} nats: {one.aleatoric:.3f} because classes overlap, "
            f"{one.epistemic:.3f} for want of samples"
        )
    if odd := oddness(one):
        lines.append(f"  {odd}")
    return lines


def _share(share: float | None) -> str:
    return "share of the decision not known" if share is None else f"{100 * share:.1f} %"
