"""The client's side: features of its own data, its memory, and what it sends of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from torch import Tensor

from protocl.errors import FingerprintError
from protocl.federation.client.state import ClientState, StatesInProcess, StateStore
from protocl.federation.exactly_once.client import Life, Settled
from protocl.federation.wire.codec import Precision
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.low_rank import factor_arrays
from protocl.federation.wire.messages import Contribution, decode, encode
from protocl.federation.wire.npy import array_of
from protocl.federation.wire.received_backbone import ReceivedBackbone
from protocl.federation.wire.replies import confusion_content
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.low_rank import of_low_rank
from protocl.memory.rows import class_id_of
from protocl.metrics.confusion import Confusion

logger = logging.getLogger(__name__)

Encode = Callable[[Tensor], Tensor]
"""Samples ``(N, ...)`` to features ``(N, D)``."""

Sanitise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Changes features ``(N, D)`` and labels ``(N,)`` before they are counted: clipping."""


@dataclass(frozen=True)
class ClientData:
    """The data of one client.

    Attributes:
        chunks: samples ``(N, ...)`` and labels ``(N,)`` in the order of their arrival; chunk ``t``
            is there from round ``t + 1`` on.
        test: held-out samples and labels for the evaluation on the client; None for no part in it.
        class_names: names of the classes ``0, 1, ...``. Given, classes are shared by name: every
            client may number them as it likes.

    Raises:
        TypeError: a chunk is no pair.

    Example:
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 1]))
        >>> len(ClientData([batch, batch]).chunks)
        2
        >>> ClientData(batch)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: chunks[0] is no pair of samples and labels: ...
    """

    chunks: Sequence[tuple[Tensor, Tensor]]
    test: tuple[Tensor, Tensor] | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.chunks, list | tuple | Tensor):
            return  # they may be loaded when they are asked for
        for number, chunk in enumerate(self.chunks):
            if isinstance(chunk, Tensor) or len(chunk) != 2:
                raise TypeError(
                    f"chunks[{number}] is no pair of samples and labels: expected a list of pairs, "
                    "such as ClientData([(features, labels)])"
                )


_NEWEST = "protocl-newest"

Loader = Callable[[Context], ClientData]
"""Gives the data of the client that a Flower ``Context`` describes."""


def client_name(context: Context) -> str:
    """``name`` of the node's configuration, else its partition, else Flower's node id."""
    config = context.node_config
    if "name" in config:
        return str(config["name"])
    if "partition-id" in config:
        return f"partition-{config['partition-id']}"
    return f"node-{context.node_id}"


class PrototypeClient:
    """Answers the messages of :class:`protocl.federation.FederatedPrototypes`.

    Args:
        load: gives the client's data.
        empty: memory without samples; its level, map and arithmetic must be the server's.
        states: where the state of a client is kept between messages; in this process by default,
            which only suits a simulation.
        encode: samples to features; the samples are taken as features by default.
        backbone: in place of ``encode``, the one that the server distributes.
        head: classifies at evaluation; without one the client does not evaluate.
        precision: of what is sent.
        rank: 0, or eigenpairs of the second moment that are sent in its place.
        sanitise: changes the client's samples before they are counted.
        merged: memory without samples of the kind that the server answers with; ``empty`` by
            default.
        name: name of a client's state, from its context.

    Example:
        >>> from protocl.federation import FederatedPrototypes, simulate
        >>> batch = (torch.zeros(2, 4), torch.tensor([0, 1]))
        >>> empty = PrototypeMemory(4, exact=True)
        >>> client = PrototypeClient(lambda context: ClientData([batch]), empty)
        >>> strategy = FederatedPrototypes(empty)
        >>> _ = simulate(strategy, client.app(), clients=5, rounds=1)
        >>> strategy.memory.counts.tolist()
        [5, 5]
    """

    def __init__(
        self,
        load: Loader,
        empty: PrototypeMemory,
        *,
        states: StateStore | None = None,
        encode: Encode | None = None,
        backbone: ReceivedBackbone | None = None,
        head: Head | None = None,
        precision: Precision = "exact",
        rank: int = 0,
        sanitise: Sanitise | None = None,
        merged: PrototypeMemory | None = None,
        name: Callable[[Context], str] = client_name,
    ) -> None:
        self.load = load
        self.empty = empty
        self.states = states or StatesInProcess()
        self.encode = encode if backbone is None else backbone.encode
        self.backbone = backbone
        self.head = head
        self.precision: Precision = precision
        self.rank = rank
        self.sanitise = sanitise
        self.merged = empty if merged is None else merged
        self.name = name
        self._fitted_to = ""

    def app(self) -> ClientApp:
        """The ClientApp; the same for simulation and deployment."""
        app = ClientApp()
        app.train()(self.train)
        app.evaluate()(self.evaluate)
        return app

    # -- messages ---------------------------------------------------------------------------

    def train(self, message: Message, context: Context) -> Message:
        """Count the data that arrived, and send what the server has not acknowledged.

        Raises:
            FingerprintError, ValueError: the server sent weights other than announced, or merges
                statistics of another kind.
        """
        config = message.content.config_records["config"]
        self._take_backbone(str(config["fingerprint"]), message.content, context)
        require_same_statistics(self.empty, config)
        data = self.load(context)
        with self.states.open(self.name(context), self.empty) as state:
            state.names = names_of(data)
            if (edge := str(config.get("edge", ""))) != state.life.edge:
                state.arrive(edge)
            take_up(state.life, context)
            self._hear(state, config)
            self._count(state, data, int(cast(int, config["round"])))
            if config["full"]:
                state.send_everything()
            pending = list(state.pending) if not config["forgotten"] else []
        note_newest(state.life, context)
        # The state is saved before anything leaves: what is sent twice is merged once, but what
        # is forgotten after it was sent would be counted again.
        content = RecordDict()
        for number, contribution in enumerate(pending):
            arrays, header = self.packed(contribution)
            content[f"arrays-{number}"] = arrays
            content[f"header-{number}"] = header
        content["metrics"] = MetricRecord({"num-examples": state.memory.total})
        return Message(content, reply_to=message)

    def packed(self, contribution: Contribution) -> tuple[ArrayRecord, ConfigRecord]:
        """The records that carry a contribution."""
        if not self.rank:
            return encode(contribution, self.precision)
        estimate, moment = of_low_rank(contribution.memory, self.rank)
        arrays, header = encode(replace(contribution, memory=estimate))
        del arrays["second"]
        for name, array in factor_arrays(moment).items():
            arrays[name] = array_of(array)
        return arrays, header

    def evaluate(self, message: Message, context: Context) -> Message:
        """Classify the client's test data with the merged memory; answer with the confusion."""
        data = self.load(context)
        if data.test is None or self.head is None or not len(data.test[1]):
            confusion = Confusion.empty()
        else:
            header = message.content.config_records["header"]
            self._take_backbone(str(header["fingerprint"]), message.content, context)
            self._fit(message.content)
            x, y = data.test
            confusion = Confusion.from_predictions(
                shared_labels(y, data), self.head.predict(self._features(x))
            ).cpu()
        return Message(confusion_content(confusion), reply_to=message)

    # -- parts ------------------------------------------------------------------------------

    def _hear(self, state: ClientState, config: ConfigRecord) -> None:
        """What the server says of itself and of this client."""
        state.hear(*heard_of(config))
        if config["refused"]:
            logger.warning("the server refused what this client sent: %s", config["refused"])

    def _count(self, state: ClientState, data: ClientData, round_number: int) -> None:
        arrived = min(round_number, len(data.chunks))
        if arrived <= state.counted:
            return
        delta = self.empty.empty_like()
        for x, y in data.chunks[state.counted : arrived]:
            if not len(y):
                continue
            features, labels = self._features(x), shared_labels(y, data)
            if self.sanitise is not None:
                features, labels = self.sanitise(features, labels)
            delta.update(features, labels)
        state.contribute(delta, arrived)

    def _take_backbone(self, expected: str, content: RecordDict, context: Context) -> None:
        if self.backbone is None:
            return
        self.backbone.require(expected, content, context)
        if self.empty.fingerprint != expected:
            self.empty, self.merged = self.empty.empty_like(), self.merged.empty_like()
            self.empty.fingerprint = self.merged.fingerprint = expected

    def _features(self, x: Tensor) -> Tensor:
        return x if self.encode is None else self.encode(x)

    def _fit(self, content: RecordDict) -> None:
        assert self.head is not None
        arrays = content.array_records["memory"]
        digest = hashlib.blake2b()
        for name, array in arrays.items():
            digest.update(name.encode())
            digest.update(array.data)
        # In a simulation one client object answers for all nodes, with one merged memory.
        if digest.hexdigest() != self._fitted_to:
            # By the limits of a sum: no single client has so many samples of a class as all.
            merged = decode(arrays, content.config_records["header"], self.merged, Limits.of_sum())
            self.head.fit(merged.memory)
            self._fitted_to = digest.hexdigest()


def require_same_statistics(empty: PrototypeMemory, config: ConfigRecord) -> None:
    """Refuse a request for statistics of another kind than those of ``empty``.

    Raises:
        FingerprintError, ValueError: it is one.
    """
    theirs = str(config["fingerprint"]) or None
    mine = empty.fingerprint
    if None not in (mine, theirs) and mine != theirs:
        raise FingerprintError(
            f"the federation merges features of backbone {theirs}, this client's is {mine}; "
            "use the same weights and preprocessing on all nodes"
        )
    for key, value in empty.describe().items():
        theirs = str(config.get(key))
        if theirs != value:
            raise ValueError(
                f"the federation merges memories with {key}={theirs}, this client's "
                f"has {key}={value}; give server and clients the same settings"
            )


def heard_of(config: ConfigRecord) -> tuple[str, Settled, bool]:
    """What a request says of the server and of this client, for :meth:`.Life.hear`."""
    settled, samples = (int(cast(int, config[key])) for key in ("settled", "samples"))
    heard = Settled(str(config["epoch"]), settled, samples)
    return str(config["server"]), heard, bool(config["prove"])


def take_up(life: Life, context: Context) -> None:
    """Go on in a new life unless this very process made what the state did last.

    Flower keeps ``context.state`` for as long as the run and the node live, and no longer: a
    process that was started again, a copy, and a state that was restored under a running node do
    not find theirs in it.
    """
    if context.state.get(_NEWEST) != _newest(life):
        life.take_up()


def note_newest(life: Life, context: Context) -> None:
    """Remember what this process did last; see :func:`take_up`."""
    context.state[_NEWEST] = _newest(life)


def _newest(life: Life) -> ConfigRecord:
    return ConfigRecord({"epoch": life.epoch, "seq": life.seq})


def names_of(data: ClientData) -> dict[int, str]:
    """Shared class id -> name; empty where classes are shared by number."""
    return {class_id_of(name): name for name in data.class_names or ()}


def shared_labels(labels: Tensor, data: ClientData) -> Tensor:
    """The class ids that the federation uses for the client's own ``labels`` ``(N,)``."""
    if data.class_names is None:
        return labels
    ids = torch.tensor([class_id_of(name) for name in data.class_names])
    return ids[labels.cpu()]
