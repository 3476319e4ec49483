"""Small pictures are kept by class, and go with what they show."""

from __future__ import annotations

from pathlib import Path

from protocl.model.changes.change import Change
from protocl.model.changes.thumbnails import Thumbnails


def taught(kept: Thumbnails, class_id: int, time: float, count: int = 1) -> Change:
    change = Change("teach", "x", time=time)
    kept.add(class_id, change, [b"picture"] * count)
    return change


def test_the_newest_is_shown(tmp_path: Path) -> None:
    kept = Thumbnails(tmp_path)
    taught(kept, 3, 9.0)
    newer = taught(kept, 3, 10.5, count=9)
    found = kept.newest(3)
    assert found is not None
    assert newer.id in found.name
    assert kept.newest(3, after=10.0) == found
    assert kept.newest(3, after=10.5) is None
    assert kept.newest(4) is None
    assert len(list(tmp_path.rglob("*.jpg"))) == 6  # five of one change are enough
    assert kept.file(3, found.name) == found
    for name in ("../../model.json", found.name + "x", "", "..%2f"):
        assert kept.file(3, name) is None


def test_they_go_with_what_they_show(tmp_path: Path) -> None:
    kept = Thumbnails(tmp_path)
    first, _, other = taught(kept, 3, 1.0), taught(kept, 3, 2.0), taught(kept, 4, 1.0)
    kept.forget(3, until=1.0)
    assert not list(tmp_path.rglob(f"*{first.id}*"))
    assert kept.newest(3) is not None
    kept.undo(other.id)
    assert kept.newest(4) is None
    kept.keep([5])
    assert not (tmp_path / "thumbnails").exists()
    kept.forget(7)
    kept.keep([])
