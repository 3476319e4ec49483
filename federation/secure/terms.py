"""The terms of a secure sum as entries of a Flower ``ConfigRecord``."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, cast

from flwr.app import ConfigRecord

from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError
from protocl.federation.secure.protocol.schemes import Complete, Graph, Pinned, Scheme

_SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (Complete, Pinned, Graph)}


def write_agreement(agreement: Agreement) -> dict[str, Any]:
    """The terms as entries of a ``ConfigRecord``."""
    return {
        "session": agreement.session,
        "layout-digest": agreement.layout_digest,
        "size": agreement.size,
        "invited": agreement.invited,
        "colluders": agreement.colluders,
        "scheme": agreement.scheme.name,
        **{f"scheme-{name}": value for name, value in asdict(agreement.scheme).items()},
    }


def read_agreement(config: ConfigRecord) -> Agreement:
    """Read the agreement that :func:`write_agreement` wrote.

    Raises:
        SecureAggregationError: its scheme is not known here.
    """
    name = str(config["scheme"])
    scheme = _SCHEMES.get(name)
    if scheme is None:
        raise SecureAggregationError(
            f"scheme='{name}': expected one of {', '.join(_SCHEMES)}; the server has "
            "another version of protocl"
        )
    settings: dict[str, Any] = {f.name: config[f"scheme-{f.name}"] for f in fields(scheme)}
    return Agreement(
        cast(bytes, config["session"]),
        str(config["layout-digest"]),
        cast(int, config["size"]),
        cast(int, config["invited"]),
        cast(int, config["colluders"]),
        scheme(**settings),
    )
