"""Runs a house for hours with light churn and looks for what grows.      make soak [HOURS=1]

Servers come and go all the time, others are pinged. Memory, open files and the store of the service, memory and open
files of the Hub are sampled, and a line is laid through each after the first fifth. A line that rises more than its
tolerance fails the run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

import tables
from far import Far
from many import Many, Sockets, many
from waiting import eventually

SAMPLE_EVERY_S = 10.0
WITHIN = "within"
KEPT, COMING = 12, 6
#: What may be added in an hour: noise of allocators, events that are kept up to their bound.
TOLERATED_PER_HOUR = {"service MB": 12.0, "service files": 12.0, "store MB": 40.0, "Hub MB": 60.0, "Hub files": 12.0}


@dataclass
class Sample:
    at_h: float
    values: dict[str, float]


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("--hours", type=float, default=1.0)
    told.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    args = told.parse_args()
    far = Far()
    far.build()
    try:
        with tempfile.TemporaryDirectory(prefix="gp-soak.", dir="/tmp") as folder:
            Path(folder).chmod(0o711)
            with many(Path(folder), far) as crowd:
                samples, rounds = soaked(crowd, args.hours)
    finally:
        far.remove()
    rows = [judged(name, samples) for name in TOLERATED_PER_HOUR]
    head = f"{args.hours:g} h, {rounds} servers came and went beside {KEPT} that stayed"
    told_as = tables.table((head, "first", "last", "per hour", "at most", ""), rows)
    print(told_as)
    if args.write:
        tables.write("soaked", told_as)
    if grown := [name for name, *_, verdict in rows if verdict != WITHIN]:
        raise SystemExit("grows: " + ", ".join(grown))


def soaked(crowd: Many, hours: float) -> tuple[list[Sample], int]:
    """Starts and stops in turn until the time is over."""
    crowd.start(KEPT, within_s=180)
    samples: list[Sample] = []
    rounds, began, next_sample = 0, time.monotonic(), 0.0
    with Sockets(crowd, every_s=1) as sockets:
        while (now := time.monotonic() - began) < hours * 3600:
            if now >= next_sample:
                samples.append(Sample(now / 3600, sampled(crowd)))
                next_sample = now + SAMPLE_EVERY_S
            come_and_go(crowd, f"light-come{rounds % COMING}")
            rounds += 1
            sockets.all_answer(within_s=60)
    return samples, rounds


def come_and_go(crowd: Many, user: str) -> None:
    house = crowd.house
    eventually("it is on its way", lambda: house.ask_for(user, site="far", memory_mb=128).status_code in (201, 202), 60)
    house.wait_ready(user, within_s=120)
    eventually("it answers", lambda: requests.get(crowd.url(user), timeout=20).status_code == 200, 30)
    assert house.stop_server(user).status_code in (202, 204)
    house.wait_gone(user, within_s=60)


def sampled(crowd: Many) -> dict[str, float]:
    service = psutil.Process(crowd.service.pid)
    assert crowd.house.process is not None
    hub = psutil.Process(crowd.house.process.pid)
    store = sum(file.stat().st_size for file in crowd.service.state_dir.glob("glidepath.db*"))
    return {
        "service MB": service.memory_info().rss / 2**20,
        "service files": service.num_fds(),
        "store MB": store / 2**20,
        "Hub MB": hub.memory_info().rss / 2**20,
        "Hub files": hub.num_fds(),
    }


def judged(name: str, samples: list[Sample]) -> tuple[str, ...]:
    """How it went after the first fifth, which is for warming up; a row."""
    settled = samples[len(samples) // 5 :]
    per_hour = slope([(one.at_h, one.values[name]) for one in settled])
    first, last = settled[0].values[name], settled[-1].values[name]
    most = TOLERATED_PER_HOUR[name]
    verdict = WITHIN if per_hour <= most else "GROWS"
    return name, f"{first:.1f}", f"{last:.1f}", f"{per_hour:+.1f}", f"{most:+.0f}", verdict


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line with the least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


if __name__ == "__main__":
    main()
