"""Sections of a configuration whose settings are the arguments of a constructor.

Names, types and defaults of a head or a plugin stand in the signature of its constructor, and
nowhere else: ``strategy.head.shrinkage`` is an argument of the head. So a third party's head has
its settings on the command line without a line of configuration.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, reduce
from operator import or_
from types import NoneType
from typing import Any, ClassVar, Literal, Self, cast, get_args, get_origin

from omegaconf import MISSING

from protocl.config.validation import hints_of, members_of
from protocl.errors import ConfigError
from protocl.registry import HEADS, Registry

_PLAIN = (bool, int, float, str, NoneType)


@dataclasses.dataclass
class Part:
    """Settings of something that a constructor makes; subclasses are made by :func:`part`."""

    made_by: ClassVar[Callable[..., Any] | None] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Settings by the name of their argument; a name that picks the part is none."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "name"]
        return {name: getattr(self, name) for name in names}

    def build(self, **more: Any) -> Any:
        """What the constructor makes of these settings and ``more`` arguments."""
        make = type(self).made_by
        assert make is not None
        return make(**self.arguments, **more)

    def check(self) -> None:
        """Let the constructor check the settings, where it needs no further arguments.

        Raises:
            ValueError: of the constructor.
        """
        make = type(self).made_by
        if make is None:
            return
        try:
            inspect.signature(make).bind(**self.arguments)
        except TypeError:
            return
        self.build()


def part(made_by: Callable[..., Any], *without: str, **defaults: Any) -> Any:
    """A field of a configuration: the settings of what ``made_by`` constructs.

    Args:
        made_by: a class or a function with annotated arguments.
        without: arguments that the configuration does not give.
        defaults: those that differ from the constructor's own.
    """
    return dataclasses.field(default_factory=_settings(Part, made_by, without, **defaults))


@dataclasses.dataclass
class HeadChoice(Part):
    """A registered head and its settings: ``head=lda``, ``head.name=lda head.shrinkage=0.1``.

    Attributes:
        name: ``protocl list heads``.
    """

    name: str = MISSING

    @classmethod
    def named(cls, name: str, **defaults: Any) -> type[HeadChoice]:
        """The settings of the head that is registered under ``name``.

        Raises:
            ConfigError: there is none.
        """
        made = (kind for kind in cls.__mro__ if "made_by" not in vars(kind))
        schema: type[HeadChoice] = _settings(next(made), HEADS.get(name), (), name=name, **defaults)
        return schema


def head(name: str, kind: type[HeadChoice] = HeadChoice, **defaults: Any) -> Any:
    """A field of a configuration: a registered head, which another name replaces."""
    return dataclasses.field(default_factory=lambda: kind.named(name, **defaults)())


def name_of_head(made_by: Callable[..., Any]) -> str:
    """The registered name of a head's class, also under ``functools.partial``; else its own."""
    kind = getattr(made_by, "func", made_by)
    value = f"{kind.__module__}:{kind.__qualname__}"
    names = (name for name, entry in HEADS.entries().items() if entry.value == value)
    return next(names, kind.__name__)


@dataclasses.dataclass
class Registered:
    """Settings of a part that is picked by name; a base for those of each registry.

    Attributes:
        registry: of the subclasses of the class that states it.
        name: the registered name.
    """

    registry: ClassVar[Registry]

    name: str = MISSING

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """The settings of the part that is registered under ``name``.

        Raises:
            ConfigError: there is none, or it is no subclass of the registry's class.
        """
        base = next(kind for kind in cls.__mro__ if "registry" in vars(kind))
        schema = cls.registry.get(name)
        if not (isinstance(schema, type) and issubclass(schema, base)):
            raise ConfigError(
                f"{cls.registry.kind} '{name}' is registered as {schema!r}; expected a subclass of "
                f"{base.__module__.removesuffix('.schema')}.{base.__name__}"
            )
        return cast(type[Self], schema)


def default_of(made_by: Callable[..., Any], argument: str) -> Any:
    """The default of an argument, for a setting that stands alone."""
    return inspect.signature(made_by).parameters[argument].default


@cache
def _settings(
    base: Any, made_by: Callable[..., Any], without: tuple[str, ...], **defaults: Any
) -> Any:
    fields: list[tuple[str, Any, Any]] = [
        (name, hint, dataclasses.field(default=defaults[name]))
        for name, hint in hints_of(base).items()
        if name in defaults
    ]
    for name, hint, default in _given(made_by):
        if name not in without:
            fields.append((name, hint, dataclasses.field(default=defaults.get(name, default))))
    label = f"{getattr(made_by, '__name__', 'Part')}Settings"
    return dataclasses.make_dataclass(
        label, fields, bases=(base,), namespace={"made_by": staticmethod(made_by)}
    )


def _given(made_by: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, type and default of each argument that a configuration can give."""
    found = []
    for name, parameter in _signature(made_by).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = _configurable(parameter.annotation)
        if hint is not None:
            absent = parameter.default is parameter.empty
            found.append((name, hint, MISSING if absent else parameter.default))
    return found


def _signature(made_by: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(made_by, eval_str=True)
    except NameError:  # an annotation is of a module that is imported for type checkers alone
        return inspect.signature(made_by)


def _configurable(hint: Any) -> Any:
    """The part of a type that can be written in a configuration, or None."""
    if isinstance(hint, str):
        with suppress(NameError):
            return _configurable(eval(hint, dict(vars(typing))))
        return None
    origin, members = get_origin(hint), members_of(hint)
    if len(members) > 1:
        kept = [kind for kind in map(_configurable, members) if kind is not None]
        return reduce(or_, kept) if set(kept) - {NoneType} else None
    if hint is inspect.Parameter.empty:
        return Any
    if hint in _PLAIN or origin is Literal:
        return hint
    if origin in (list, tuple, Sequence):
        return tuple.__class_getitem__((*get_args(hint), ...)) if origin is Sequence else hint
    return None
