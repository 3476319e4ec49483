"""What a shell offers after Tab: commands, options, keys that pick a part, names of parts.

``eval "$(protocl completion bash)"`` in ``~/.bashrc`` switches it on. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import argcomplete
from argcomplete.completers import BaseCompleter, FilesCompleter

from protocl.config.presets import group_names
from protocl.registry import ADAPTATIONS, HEADS, MAPS, Registry

_METHODS = Registry("protocl.federated", "federated method")
_REGISTRIES = {
    "strategy.head": HEADS,
    "strategy.answer": HEADS,
    "method.head": HEADS,
    "strategy.head.map": MAPS,
    "strategy.session.adapt": ADAPTATIONS,
    "method": _METHODS,
}
_GROUPS = {
    "run": ("benchmark", "strategy", "backbone", "experiment"),
    "federate": ("benchmark", "backbone", "federation"),
    "pretrain": ("benchmark", "backbone", "pretraining"),
    "reconnaissance": ("benchmark", "backbone", "reconnaissance"),
    "discover": ("benchmark", "backbone", "discovery"),
}
_KEYS = {
    "run": ("strategy.head", "strategy.head.map", "strategy.session.adapt", "strategy.answer"),
    "federate": ("method", "method.head", "clients", "rounds"),
}
_COMMON = ("seed", "name", "device", "output", "jobs", "resume")


def shell_code(shell: str) -> str:
    """The lines that a shell evaluates to complete ``protocl``.

    Args:
        shell: ``bash`` or ``zsh``.
    """
    code: str = argcomplete.shellcode(["protocl"], shell=shell)
    return code


def words_typed(words: Sequence[str]) -> list[str]:
    """What was typed so far where a shell asks, else ``words``."""
    if not asked():
        return list(words)
    return os.environ.get("COMP_LINE", "").split()[1:]


def asked() -> bool:
    """Whether a shell has started this process to know what could come next."""
    return "_ARGCOMPLETE" in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what could come next, and end the process."""
    argcomplete.autocomplete(parser, default_completer=_Arguments())


class _Arguments(BaseCompleter):
    """What an argument could be: settings by our own lists, anything else by files."""

    def __call__(self, *, prefix: str, action: argparse.Action, **about: Any) -> list[str]:
        if action.dest != "settings":
            return list(FilesCompleter()(prefix))
        return settings(words_typed(())[0], prefix)


def settings(command: str, prefix: str) -> list[str]:
    """Settings of a command that begin with ``prefix``; after a comma, the next value of a sweep.

    >>> settings("federate", "me")
    ['method=', 'method.head=']
    >>> settings("run", "strategy.head=nearest_mean,l")
    ['strategy.head=nearest_mean,lda']
    """
    key, equals, value = prefix.partition("=")
    if not equals:
        keys = (*_GROUPS.get(command, ()), *_KEYS.get(command, ()), *_COMMON)
        return [f"{one}=" for one in keys if one.startswith(key)]
    before, comma, last = value.rpartition(",")
    names = [name for name in _names(key) if name.startswith(last)]
    return [f"{key}={before}{comma}{name}" for name in names]


def _names(key: str) -> list[str]:
    if key in _REGISTRIES:
        return _REGISTRIES[key].names()
    if any(key in groups for groups in _GROUPS.values()):
        return group_names(key)
    return {"device": ["auto", "cpu", "cuda"], "resume": ["true", "false"]}.get(key, [])
