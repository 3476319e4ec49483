"""Entries of an answer that may hold anything, read as what they should be."""

from __future__ import annotations

from fractions import Fraction

from flwr.app import ConfigRecord, RecordDict

from protocl.errors import DataError
from protocl.federation.secure.protocol.identity import SIGNATURE_BYTES
from protocl.federation.secure.protocol.masked_sum import Complaint


def answer_in(content: RecordDict) -> ConfigRecord:
    if "answer" not in content.config_records:
        raise DataError("the record 'answer' is missing")
    return content.config_records["answer"]


def read_bytes(answer: ConfigRecord, name: str) -> bytes:
    value = answer.get(name)
    if not isinstance(value, bytes):
        raise DataError(f"{name}={value!r:.40}: expected bytes")
    return value


def read_signature(answer: ConfigRecord) -> bytes:
    signature = read_bytes(answer, "signature")
    if len(signature) != SIGNATURE_BYTES:
        raise DataError(f"a signature of {len(signature)} bytes: expected {SIGNATURE_BYTES}")
    return signature


def read_complaint(answer: ConfigRecord) -> Complaint:
    given = answer["complaint"]
    senders = given if isinstance(given, list) else []
    named = frozenset(sender for sender in senders if isinstance(sender, int))
    if named and len(named) == len(senders):
        return named
    raise DataError(f"complaint={answer['complaint']!r:.40}: expected some whole numbers")


def read_number(answer: ConfigRecord, name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int):
        raise DataError(f"{name}={value!r:.40}: expected a whole number")
    return value


def read_fraction(answer: ConfigRecord, name: str) -> Fraction:
    value = answer.get(name)
    match value:
        case [int(numerator), int(denominator)] if denominator > 0 <= numerator:
            return Fraction(numerator, denominator)
    raise DataError(f"{name}={value!r:.40}: expected numerator and denominator")
