"""Loop bodies that a GPU runs by Numba: the irregular integer steps between sorts.

Each is a plain function body(i, *arrays and numbers), called for every i = 0 .. count - 1 in any order and at the same
time; it writes only what no other i reads, and nothing that another i writes unless it is the same value.
`Device.for_each` compiles and runs them by name. What indexes or is computed with is made int64 first: Numba makes
floats of uint64 beside int64.
"""

from __future__ import annotations

from collections.abc import Callable

from gpudedup.kernels import buckets, candidates

BODIES: dict[str, Callable[..., None]] = {
    body.__name__: body
    for body in (
        buckets.gather_keys,
        buckets.mark_shared,
        buckets.place_members,
        buckets.place_slots,
        buckets.mark_bounded,
        buckets.mark_shared_members,
        buckets.count_up,
        candidates.count_window,
        candidates.list_window,
        candidates.mark_first,
        candidates.place_better,
        candidates.find_begins,
        candidates.place_waiting,
    )
}
