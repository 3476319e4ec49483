"""What a registered part says of itself, read from its source without importing it.

To import a strategy takes seconds, for it imports torch and often Avalanche; to list all strategies
needs a docstring and a few constants of each.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from typing import TypeVar

T = TypeVar("T")
Definition = ast.ClassDef | ast.FunctionDef


def definition(entry: EntryPoint) -> Definition | None:
    """The statement that defines a registered class or function.

    None where only importing it tells: its module is compiled or absent, or has the name from
    elsewhere.
    """
    try:
        tree = ast.parse(_source(entry.module) or "")
    except (SyntaxError, ValueError, AttributeError, ImportError, OSError):
        return None
    bound = [node for node in tree.body if entry.attr in _names_bound(node)]
    last = bound[-1] if bound else None
    return last if isinstance(last, ast.ClassDef | ast.FunctionDef) else None


def docstring(part: Definition) -> str | None:
    """The docstring of a part itself, as :func:`inspect.getdoc` gives it."""
    return ast.get_docstring(part)


def constant(part: Definition, name: str, kind: Callable[..., T]) -> T | None:
    """The value of ``name = Kind(...)`` in the body of a class.

    Args:
        part: the class.
        name: an attribute of it.
        kind: the class that the value is made by, of constants.

    Returns:
        None where the class does not state it in this form.
    """
    for node in part.body:
        call = getattr(node, "value", None) if name in _names_bound(node) else None
        if isinstance(call, ast.Call) and _last_name(call.func) == kind.__name__:
            return _made(call, kind)
    return None


def _made(call: ast.Call, kind: Callable[..., T]) -> T | None:
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        settings = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        return kind(*arguments, **settings)
    except (ValueError, TypeError):  # no constants; the import then says what is wrong
        return None


def _names_bound(node: ast.stmt) -> list[str]:
    """Names that a statement defines or assigns to."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.ImportFrom | ast.Import):
        return [alias.asname or alias.name for alias in node.names]
    name = getattr(node, "name", None)
    return [] if name is None else [name]


def _last_name(node: ast.expr) -> str:
    """``Kind`` of ``Kind`` and of ``module.Kind``."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _source(module: str) -> str | None:
    """The text of a module, of which neither itself nor its packages are imported."""
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = _found(".".join(parts[:depth]), spec)
        if spec is None:
            return None
    get_source = getattr(spec and spec.loader, "get_source", None)
    text: str | None = get_source(module) if get_source else None
    return text


def _found(name: str, package: ModuleSpec | None) -> ModuleSpec | None:
    """As :func:`importlib.util.find_spec`, which would import the package of ``name``."""
    path = None if package is None else package.submodule_search_locations
    if package is not None and path is None:
        return None
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None
