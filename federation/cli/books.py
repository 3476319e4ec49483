"""Commands for the books of a federation: audit, certificates, backup, restore, forget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from protocl.errors import ConfigError, DataError


def audit(words: list[str]) -> int:
    """``audit FOLDER [head=DIGITS]``, or ``audit ROOT EDGE ... [head=DIGITS]``."""
    from protocl.federation.books.audit import audit as audit_books

    heads = [word.removeprefix("head=") for word in words if word.startswith("head=")]
    words = [word for word in words if not word.startswith("head=")]
    folder, *edges = _words(words, "audit FOLDER [EDGE ...] [head=DIGITS]", 1, 10**6)
    if len(heads) > 1:
        raise ConfigError("head= was given more than once")
    found = audit_books(Path(folder), *heads)
    _say(
        f"{found.entries} rows in the ledger, {found.contributions} contributions, "
        f"{found.samples} samples; {found.forgotten} rows forgotten, {found.certificates} "
        f"certificates, {found.rewritten} rows rewritten when classes were forgotten"
    )
    _say(f"head={found.head}")
    faults = [*found.faults, *(_audit_edges(Path(folder), edges) if edges else ())]
    if faults:
        more_of_them = f" (and {len(faults) - 10} more)" if len(faults) > 10 else ""
        raise DataError("; ".join(faults[:10]) + more_of_them)
    _say("chain, marks and sum are as they should be")
    return 0


def _audit_edges(root: Path, edges: list[str]) -> list[str]:
    """Say what was found of each edge; the faults."""
    from protocl.federation.edges.audit import audit_tree

    found = list(audit_tree(root, [Path(edge) for edge in edges]))
    for edge in found:
        _say(f"{edge.name}: {'; '.join(edge.faults) or edge.text}")
    compared = sum(edge.compared and not edge.faults for edge in found)
    without = sum(not edge.compared and not edge.faults for edge in found)
    aside = f"; {without} were not compared, for the reasons above" if without else ""
    _say(f"{compared} of {len(found)} edges are at the root what their books sum to{aside}")
    return [f"{edge.name}: {fault}" for edge in found for fault in edge.faults]


def certificates(words: list[str]) -> int:
    """``certificates FOLDER``."""
    from protocl.federation.edges.certificates import certificates as certificates_in

    (folder,) = _words(words, "certificates FOLDER", 1, 1)
    found = [str(certificate) for certificate in certificates_in(Path(folder))]
    for text in found or [f"{folder}: nothing was forgotten, and nothing is asked to be"]:
        _say(text)
    return 0


def backup(words: list[str]) -> int:
    """``backup FOLDER FILE``."""
    from protocl.federation.books.backup import back_up

    folder, file = _words(words, "backup FOLDER FILE", 2, 2)
    back_up(Path(folder), Path(file))
    _say(f"wrote {file}; the keys, without which it cannot be read, are not in it")
    return 0


def restore(words: list[str]) -> int:
    """``restore FOLDER FILE``."""
    from protocl.federation.cli.forget import bring_back

    folder, file = _words(words, "restore FOLDER FILE", 2, 2)
    more = bring_back(Path(folder), Path(file))
    _say(f"{folder} is as in {file}, without what was forgotten since")
    for line in more:
        _say(line)
    return 0


def forget(words: list[str]) -> int:
    """``forget FOLDER client=NAME|edge=NAME|class=NAME [wait=SECONDS]``."""
    from protocl.federation.cli.forget import forget as forget_in

    usage = "forget FOLDER client=NAME|edge=NAME|class=NAME [wait=SECONDS]"
    folder, what, *more = _words(words, usage, 2, 3)
    seconds = more[0].removeprefix("wait=") if more else "60"
    if not seconds.replace(".", "", 1).isdecimal():
        raise ConfigError(f"{more[0]}: expected wait=SECONDS")
    for line in forget_in(Path(folder), what, float(seconds)):
        _say(line)
    if what.startswith("client="):
        _say(
            "it is known by its node and its state; at another node, without that state, it would "
            "be a new client: take its key from the SuperLink, too"
        )
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "audit": audit,
    "certificates": certificates,
    "backup": backup,
    "restore": restore,
    "forget": forget,
}


def _words(words: list[str], usage: str, least: int, most: int) -> list[str]:
    if not least <= len(words) <= most:
        raise ConfigError(f"protocl federate {usage}: got {' '.join(words) or 'nothing'}")
    return words


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, soft_wrap=True, highlight=False, markup=False)
