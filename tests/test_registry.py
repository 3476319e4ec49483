"""Parts are found by what packages declare, also by one that came while the program ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocl.registry import HEADS


def declare(folder: Path, package: str, head: str) -> Path:
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    text = f"[protocl.heads]\n{head} = protocl.heads.ridge:Ridge\n"
    (info / "entry_points.txt").write_text(text)
    return info


def test_a_package_is_found_as_it_comes_and_gone_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = HEADS.names()
    declare(tmp_path, "acme_one", "acme_first")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert HEADS.names() == sorted([*before, "acme_first"])
    second = declare(tmp_path, "acme_two", "acme_second")  # into a folder that was read before
    assert HEADS.names() == sorted([*before, "acme_first", "acme_second"])
    for file in second.iterdir():
        file.unlink()
    second.rmdir()
    assert "acme_second" not in HEADS.names()


def test_what_is_returned_is_the_caller_s_own() -> None:
    HEADS.entries().clear()
    assert "lda" in HEADS.names()
    assert HEADS.name_of(HEADS.get("lda")) == "lda"
