"""Everybody in turn, again and again, so that what the machine does meanwhile hits all of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from given import Bench
from net import Failed
from peers import Peer

#: Of one peer, in one repetition, with a folder of its own that is not there yet.
Measure = Callable[[Peer, Path, int], dict[str, float]]
#: What was measured: by key, then by the peer's name, one value for each repetition.
Values = dict[str, dict[str, list[float]]]


def in_turn(
    bench: Bench, label: str, peers: Sequence[Peer], needed: Collection[Peer], missing: dict[str, str], measure: Measure
) -> Values:
    """A peer that gives no figure is in `missing` from then on, with the reason; one that is `needed` ends the row."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for repetition in range(bench.repetitions):
        for peer in peers:
            if peer.name in missing:
                continue
            bench.wait_quiet()
            folder = bench.folder / re.sub(r"[^\w.]+", "-", f"{label}-{repetition}-{peer.name}")
            try:
                found = measure(peer, folder, repetition)
            except Failed as reason:
                if peer in needed:
                    raise
                missing[peer.name] = bench.failed(peer.name, repetition, reason)
                continue
            for key, value in found.items():
                values[key][peer.name].append(value)
            told = " ".join(f"{key}={value:.4g}" for key, value in found.items())
            bench.say(f"{label}, {repetition + 1} {peer.name}: {told}")
    return values
