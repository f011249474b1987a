"""What a churn will do, drawn from one seed: what its clients ask for, and whom death meets when.

Pure: the same seed is the same plan. What becomes of it depends on the machine, so a plan names its victims by a number
between 0 and 1, and whoever carries it out picks among those that live then.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

CLIENTS = 20
#: Servers of one user: the default one and named ones.
NAMES = ["", "lab", "second", "a-long-job", "x"]

#: What clients do, and how often of a hundred times.
ACTS = {"start": 44, "stop": 15, "stop early": 11, "cancel": 7, "ask": 19, "rename user": 3, "rename server": 1}
#: Whom death meets, and how often of a hundred times. A link is cut and comes back.
BLOWS = {"service": 58, "agent": 13, "server": 11, "link": 11, "hub": 4, "proxy": 3}
#: Where servers are asked for.
SITES = {"far": 5, "here": 2, "slow": 3}


@dataclass(frozen=True)
class Act:
    """One thing that a client does after a pause."""

    pause_s: float
    what: str
    #: Number of the server; of its first one for what concerns its user.
    server: int
    site: str


@dataclass(frozen=True)
class Blow:
    """One death or cut, after a pause."""

    number: int
    pause_s: float
    whom: str
    #: Which of those that live, between 0 and 1.
    pick: float
    #: For how long a link stays cut, or a Hub stays dead.
    lasts_s: float


def acts(seed: int, client: int, servers: int) -> Iterator[Act]:
    """What this client does, without end. Most of it with servers of its own users."""
    draw = random.Random(f"client {client} of churn {seed}")
    own = range(client * servers // CLIENTS, (client + 1) * servers // CLIENTS)
    while True:
        what = _one_of(draw, ACTS)
        anybody = draw.random() < 0.2 and not what.startswith("rename")
        yield Act(
            pause_s=draw.uniform(0.3, 2.7),
            what=what,
            server=draw.randrange(servers) if anybody else draw.choice(own),
            site=_one_of(draw, SITES),
        )


def blows(seed: int, count: int) -> list[Blow]:
    """All deaths and cuts, in their order. Mostly seconds lie between them, sometimes nearly nothing."""
    draw = random.Random(f"blows of churn {seed}")
    drawn = []
    for number in range(1, count + 1):
        whom = _one_of(draw, BLOWS)
        pause_s = draw.uniform(0.02, 0.6) if draw.random() < 0.3 else draw.uniform(0.6, 3.5)
        longest_s = {"link": 20.0 if draw.random() < 0.2 else 4.0, "hub": 3.0}.get(whom, 0.0)
        drawn.append(Blow(number, round(pause_s, 3), whom, draw.random(), round(draw.uniform(0, longest_s), 3)))
    return drawn


def _one_of(draw: random.Random, weights: dict[str, int]) -> str:
    return draw.choices(list(weights), list(weights.values()))[0]
