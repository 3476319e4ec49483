"""Replies as a hostile client may send them: real ones, changed on the wire."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict  # type: ignore[attr-defined]

from protocl.federation.wire.compat import failed_reply
from protocl.federation.wire.grid import InProcessGrid

Draw = random.Random

VALUES: tuple[Any, ...] = (
    0, 1, -1, 2**62, -(2**63), 2**63 - 1, 0.5, float("nan"), float("inf"), "", "x", "9" * 5000, b"",
    b"\x00" * 96, b"\xff" * 300, [], [0, 1], [2**63 - 1] * 3, ["x"], [float("nan")], True,
    "merged", "x" * 65, ["x" * 300] * 3, 2**53, "9" * 100_000,
)  # fmt: skip
HEADERS = (
    b"-" * 9000 + b"1",
    b"(" * 5000,
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    b"{'descr': '<i8', 'fortran_order': True, 'shape': (), }",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (" + b"1," * 3000 + b"), }",
)
TEXTS = ("", "x", "-1", "9" * 400, "train", "train.mask", "evaluate", "\x00", "\u0663")  # one is 3


def mutate(reply: Message, draw: Draw) -> Message:
    """The reply with one thing in it changed; maybe one that nobody can read."""
    change = draw.choice(
        [wire_bytes, array_bytes, array_bytes, array_values, config_value, config_value,
         other_records, metadata, more_than_allowed, second_moment]
    )  # fmt: skip
    try:
        return change(reply, draw)
    except Exception as error:
        # Flower cannot read it either, of which the server hears as of a failure.
        return failed_reply(reply, f"unreadable: {error}")


def wire_bytes(reply: Message, draw: Draw) -> Message:
    data = bytearray(recorddict_to_proto(reply.content).SerializeToString())
    for _ in range(draw.choice([1, 1, 3, 20])):
        place = draw.randrange(len(data) or 1)
        edit = draw.randrange(4)
        if edit == 0 and data:
            data[place] ^= 1 << draw.randrange(8)
        elif edit == 1:
            del data[place : place + draw.choice([1, 4, 100])]
        elif edit == 2:
            data[place:place] = draw.randbytes(draw.choice([1, 4, 100]))
        elif data:
            data[place] = draw.randrange(256)
    reply.content = recorddict_from_proto(ProtoRecordDict.FromString(bytes(data)))
    return reply


def array_bytes(reply: Message, draw: Draw) -> Message:
    def change(array: Array) -> Array:
        data = bytearray(array.data)
        edit = draw.randrange(4)
        if edit == 0:
            header = draw.choice(HEADERS)
            data = bytearray(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        elif edit == 1:
            del data[draw.randrange(len(data)) :]
        else:
            data[draw.randrange(len(data) if edit == 2 else 128)] = draw.randrange(256)
        return Array(array.dtype, array.shape, array.stype, bytes(data))

    return with_an_array(reply, draw, change)


def array_values(reply: Message, draw: Draw) -> Message:
    def change(array: Array) -> Array:
        values = np.array(array.numpy())
        edit = draw.randrange(4)
        if edit == 0:
            values = values.astype(draw.choice(["<f8", "<i8", "<i1", "<f2", ">i8", "<u8"]))
        elif edit == 1:
            values = draw.choice([values.T, values[..., :0], values[None], values.ravel()])
        elif values.size:
            extreme = draw.choice([0, -1, 1, *limits(values.dtype)])
            values.flat[draw.randrange(values.size)] = extreme
        return Array(np.ascontiguousarray(values))

    return with_an_array(reply, draw, change)


def limits(kind: np.dtype[Any]) -> list[Any]:
    if kind.kind == "f":
        return [float("nan"), float("inf"), np.finfo(kind).max, -np.finfo(kind).max]
    return [np.iinfo(kind).min, np.iinfo(kind).max, np.iinfo(kind).max // 2]


def with_an_array(reply: Message, draw: Draw, change: Callable[[Array], Array]) -> Message:
    found = [(r, k) for r in reply.content.array_records.values() for k in r]
    if not found:
        return config_value(reply, draw)
    record, key = draw.choice(found)
    record[key] = change(record[key])
    return reply


def config_value(reply: Message, draw: Draw) -> Message:
    found = [(r, k) for r in reply.content.config_records.values() for k in r]
    if not found:
        return other_records(reply, draw)
    record, key = draw.choice(found)
    if draw.random() < 0.2:
        del record[key]
    else:
        record[key] = draw.choice(VALUES)
    return reply


def other_records(reply: Message, draw: Draw) -> Message:
    content = reply.content
    key = draw.choice(list(content))
    kept = content.pop(key)
    edit = draw.randrange(5)
    if edit < 3:
        content[key] = [ArrayRecord(), ConfigRecord({"x": 1}), MetricRecord({"x": 1.0})][edit]
    elif edit == 3:
        content[draw.choice(["x", "arrays-1", "header-1", "arrays"])] = kept
    return reply


def more_than_allowed(reply: Message, draw: Draw) -> Message:
    """Far more classes, texts or contributions than any limit allows."""
    content, edit = reply.content, draw.randrange(3)
    if edit == 0:
        content["more"] = ConfigRecord({"text": draw.choice(["x" * 200_000, ["y" * 100] * 2000])})
    elif edit == 1 and "header-0" in content:
        for number in range(1, 40):
            content[f"arrays-{number}"] = content["arrays-0"]
            content[f"header-{number}"] = content["header-0"]
    elif "arrays-0" in content:
        many = np.arange(draw.choice([50, 5000]), dtype=np.int64)
        content["arrays-0"]["classes"] = Array(np.stack([many, many + 1]))  # type: ignore[index]
    return reply


def second_moment(reply: Message, draw: Draw) -> Message:
    """Moments that no samples could have, or others that they could."""
    record = reply.content.get("arrays-0")
    if not isinstance(record, ArrayRecord) or "second" not in record:
        return config_value(reply, draw)
    values = np.array(record["second"].numpy())
    if draw.random() < 0.5:
        values.flat[draw.randrange(values.size)] *= draw.choice([-1, 0, 2, 3])
    else:
        values = (values * draw.choice([0.3, 0.999, 1.001, 4])).astype(values.dtype)
    record["second"] = Array(values)
    return reply


def metadata(reply: Message, draw: Draw) -> Message:
    name = draw.choice(["_group_id", "_message_type", "_reply_to_message_id"])
    reply.metadata.__dict__[name] = draw.choice(TEXTS)
    return reply


class HostileGrid(InProcessGrid):
    """A grid whose nodes ``hostile`` send something changed in place of ``share`` of their replies.

    Attributes:
        mutations: how many replies were changed.
        watch: told of each reply before and after the change.
    """

    def __init__(
        self, *arguments: Any, hostile: set[int], share: float, draw: Draw, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.hostile, self.share, self.draw = hostile, share, draw
        self.mutations = 0
        self.watch: Callable[[Message, Message], None] = lambda before, after: None

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        node = message.metadata.dst_node_id
        if node not in self.hostile or reply.has_error() or self.draw.random() >= self.share:
            return reply
        self.mutations += 1
        before = Message(
            recorddict_from_proto(recorddict_to_proto(reply.content)), reply_to=message
        )
        after = mutate(reply, self.draw)
        if after is not reply:
            after = failed_reply(message, after.error.reason)
        self.watch(before, after)
        return after
