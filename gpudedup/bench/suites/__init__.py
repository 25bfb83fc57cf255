"""The suites of `gpudedup bench`, one file each: a function from an `Order` to an iterator of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from gpudedup.bench.devices import Device
from gpudedup.bench.measure import Measured
from gpudedup.bench.record import Record, new_record

SUITES = (
    "transfers",
    "signatures",
    "short-texts",
    "match",
    "end-to-end",
    "scaling",
    "memory",
    "quality",
)
"""In the order in which they run. Each is the function ``suite`` of a module of that name."""


@dataclass(frozen=True)
class Order:
    """What is to be measured, and on what."""

    folder: Path
    """For corpora, runs and whatever else is made; deleted afterwards."""
    devices: tuple[Device, ...]
    """Every one to measure; of the CPU's tiers the best is the first."""
    text_bytes: int = 1_000_000_000
    mix: str = "mixed"
    inputs: tuple[str, ...] = ()
    """Files of the user, instead of a made corpus."""
    text_column: str = "text"
    seed: int = 1
    repeat: int = 3
    quick: bool = False
    """Least sizes: all suites within a minute on two cores."""
    workers: int = 1
    """Cores that cases may use."""
    peers: Path | None = None
    """Where `gpudedup bench peers --install` put the peers' environments."""
    tell: Callable[[str], None] = field(default=lambda what: None)
    """Told what is going on, for a person who waits."""

    @property
    def best(self) -> tuple[Device, ...]:
        """Every GPU, and the CPU with its best tier: for cases that say nothing about tiers."""
        first = next((one for one in self.devices if one.device == "cpu"), None)
        return tuple(one for one in self.devices if one.device != "cpu" or one is first)


def run_suite(name: str, order: Order) -> Iterator[Record]:
    """The records of a suite, as they come."""
    module = import_module(f"gpudedup.bench.suites.{name.replace('-', '_')}")
    found: Iterator[Record] = module.suite(order)
    return found


def recorded(suite: str, case: str, order: Order, device: Device, found: Measured | str, **fields: Any) -> Record:
    """The record of a case that was measured, or could not be."""
    own: dict[str, Any] = {"seed": order.seed, "device": str(device)}
    if isinstance(found, str):
        return new_record(suite, case, **own, cannot=found, **{**fields, "figures": {}})
    return new_record(
        suite,
        case,
        **{
            **own,
            "repeats": found.repeats,
            "seconds": found.seconds,
            "cpu_seconds": found.cpu_seconds,
            "peak_bytes": found.peak_bytes,
            **fields,
            "figures": {**found.figures, **fields.get("figures", {})},
        },
    )
