"""Apply an adaptation by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from protocl.backbones.adaptation.base import Adaptation
from protocl.backbones.base import Backbone
from protocl.errors import ConfigError
from protocl.registry import ADAPTATIONS, written_setting


def adapt(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Change ``module`` in place so that it can be adapted; nothing else of it takes gradients.

    Args:
        module: a backbone, or any module that contains it.
        name: ``"none"``, ``"finetune"``, ``"bn"``, ``"vpt_shallow"``, ``"vpt_deep"``, ``"ssf"``,
            ``"adapter"``, ``"lora"``, or one that another package registered; with arguments as in
            ``"lora:rank=4:alpha=8"``.

    Returns:
        The parameters to be trained.

    Raises:
        ConfigError: there is no such adaptation, or it does not apply to ``module``.
    """
    trained = find_adaptation(module, name).insert(module)
    _read_on(module, name)
    if isinstance(module, Backbone) and module.origin is not None:
        module.origin = replace(module.origin, adapted=name)
    module.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def fold(module: nn.Module, adaptation: Adaptation) -> None:
    """End an adaptation: what can be folded into the module's own weights is.

    Its layers, names and fingerprint are then those of a network that was trained as a whole.
    """
    if not adaptation.fold(module):
        return
    _read_on(module, "finetune")
    if isinstance(module, Backbone) and module.origin is not None:
        module.origin = replace(module.origin, adapted="finetune")


def _read_on(module: nn.Module, name: str) -> None:
    """Have backbones that read layers hear the modules that stand in their places now."""
    for backbone in (part for part in module.modules() if isinstance(part, Backbone)):
        if backbone.reader is not None:
            try:
                backbone.reader.attach(backbone.network)
            except (AttributeError, ValueError) as error:
                raise ConfigError(
                    f"adapt={name} moves the layers that backbone {backbone.architecture} reads "
                    f"({error}): choose another adaptation, or leave backbone.layers out"
                ) from error


def find_adaptation(module: nn.Module, name: str) -> Adaptation:
    """The adaptation called ``name``, which applies to ``module``.

    Raises:
        ConfigError: there is none, or it does not apply; the message names those that do.
    """
    adaptation = _built(name)
    if adaptation.applies(module):
        return adaptation
    what = (inspect.getdoc(adaptation) or "").partition("\n")[0].rstrip(".")
    raise ConfigError(
        f"adapt={name} ('{what}') does not apply to {_description(module)}: "
        f"choose from {', '.join(_applying(module))}"
    )


def _built(name: str) -> Adaptation:
    """The adaptation of ``NAME`` or ``NAME:ARGUMENT=VALUE:...``."""
    name, *words = name.split(":")
    kind = ADAPTATIONS.get(name)
    known = inspect.signature(kind).parameters
    given: dict[str, Any] = {}
    for word in words:
        setting, value = written_setting(f"adapt={name}", word, known)
        if setting in given:
            raise ConfigError(f"adapt={':'.join([name, *words])} says {setting} twice: say it once")
        given[setting] = value
    try:
        adaptation: Adaptation = kind(**given)
    except ValueError as error:
        raise ConfigError(f"adapt={name}: {error}") from error
    return adaptation


def _applying(module: nn.Module) -> Iterator[str]:
    for name in ADAPTATIONS.names():
        try:
            adaptation: Adaptation = ADAPTATIONS.get(name)()
        except ConfigError:  # one broken package must not hide the others
            continue
        if adaptation.applies(module):
            yield name


def _description(module: nn.Module) -> str:
    backbone = next((m for m in module.modules() if isinstance(m, Backbone)), None)
    if backbone is None:
        return f"a {type(module).__name__}"
    return f"backbone {backbone.architecture}"
