"""Where the long-lived identities of a pinned roster are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from flwr.app import Context

from protocl.errors import ConfigError
from protocl.federation.client.client import client_name
from protocl.federation.secure.protocol.identity import (
    Roster,
    Signer,
    new_private_key,
    public_key,
)
from protocl.io.atomic import atomic_write

ROSTER_FILE = "roster.json"


class Identities(Protocol):
    """Gives a node its identity."""

    @property
    def roster(self) -> Roster:
        """Which all pin."""

    def __call__(self, context: Context) -> Signer:
        """The identity of the node that ``context`` is of."""


class SimulatedIdentities:
    """New identities for the clients of a simulation.

    Args:
        clients: how many there are.

    Raises:
        ConfigError: fewer than 3 or more than 128.
    """

    def __init__(self, clients: int) -> None:
        self._private = [new_private_key() for _ in range(clients)]
        self.roster = Roster({f"client-{i}": public_key(p) for i, p in enumerate(self._private)})

    def __call__(self, context: Context) -> Signer:
        """See :class:`Identities`."""
        return Signer(self._private[int(context.node_config["partition-id"])], self.roster)


class IdentitiesOnDisk:
    """Identities in the folder of what a node must not lose, beside the roster that it pins.

    Args:
        folder: has ``roster.json`` on the server and on every node, and ``NAME.identity.pem`` on
            the node of that name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def has_roster(self) -> bool:
        """Whether a roster is pinned here."""
        return (self.folder / ROSTER_FILE).is_file()

    @property
    def roster(self) -> Roster:
        """Which is pinned here.

        Raises:
            ConfigError: it is missing or damaged.
        """
        return Roster.load(self.folder / ROSTER_FILE)

    def __call__(self, context: Context) -> Signer:
        """See :class:`Identities`.

        Raises:
            ConfigError: the key is missing or damaged, or not on the roster.
        """
        return Signer(read_identity(_path(self.folder, client_name(context))), self.roster)


def write_identity(folder: Path, name: str) -> str:
    """Make a new identity for the node ``name``, readable by its owner only.

    Returns:
        Its public key, as rosters have it.

    Raises:
        ConfigError: there is one.
    """
    path = _path(folder, name)
    if path.exists():
        raise ConfigError(f"{path} exists; whoever has its public key relies on it")
    private = new_private_key()
    key = Ed25519PrivateKey.from_private_bytes(private)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    folder.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    atomic_write(path, text)
    path.chmod(0o600)
    return public_key(private).hex()


def read_identity(path: Path) -> bytes:
    """The private key that :func:`write_identity` wrote.

    Raises:
        ConfigError: it is missing or none.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is no identity: {error}; make one with protocl federate identity"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind: expected Ed25519")
    return key.private_bytes_raw()


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.identity.pem"
