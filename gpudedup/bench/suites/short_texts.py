"""Signing of texts of 70 bytes: what a document costs, where its text costs little."""

from __future__ import annotations

from collections.abc import Iterator

from gpudedup.bench.inputs import inputs, made
from gpudedup.bench.record import Record
from gpudedup.bench.suites import Order
from gpudedup.bench.suites.signatures import CLOCK, signed

MOST_BYTES = 64_000_000
TEXT_BYTES = 70
"""Of a text: a title, a query, a line of chat."""


def suite(order: Order) -> Iterator[Record]:
    size = min(order.text_bytes, MOST_BYTES)
    text = inputs(order) if order.inputs else made(order, mix="english", size=min(order.text_bytes, 128_000_000))
    clock = f"{CLOCK}; texts of {TEXT_BYTES} bytes each, cut from longer ones"
    yield from signed("short-texts", order, text, {"most_bytes": size, "cut": TEXT_BYTES}, clock)
