"""What was measured, against its goal: one table for people, one list for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "latest.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"


@dataclass(frozen=True)
class Goal:
    """What a row is to reach: a figure, or a multiple of the best peer's in the same run."""

    at_least: float | None = None
    at_most: float | None = None
    at_least_times: float | None = None
    at_most_times: float | None = None

    def met(self, ours: float, best: float | None) -> bool | None:
        """`None` when there is nothing to reach, or nobody to compare with."""
        if self.at_least is not None:
            return ours >= self.at_least
        if self.at_most is not None:
            return ours <= self.at_most
        if best is None:
            return None
        if self.at_least_times is not None:
            return ours >= self.at_least_times * best
        if self.at_most_times is not None:
            return ours <= self.at_most_times * best
        return None

    def __str__(self) -> str:
        for value, words in (
            (self.at_least, "≥ {:g}"),
            (self.at_most, "≤ {:g}"),
            (self.at_least_times, "≥ {:g} x"),
            (self.at_most_times, "≤ {:g} x"),
        ):
            if value is not None:
                return words.format(value)
        return ""


NO_GOAL = Goal()


@dataclass
class Row:
    """One figure of ours beside the peers', one value per repetition.

    A value whose bytes were not checked is no value.
    """

    name: str
    unit: str
    ours: Sequence[float]
    peers: dict[str, Sequence[float]] = field(default_factory=dict)
    lower_is_better: bool = False
    goal: Goal = field(default_factory=Goal)
    #: Not a peer to win against: what the machine can do at most. Shown, never compared.
    limit: Sequence[float] = ()
    #: Neither: what relays that only copy, in the same number of hops, make of it.
    reference: Sequence[float] = ()
    #: Peers that there is no figure of, and why.
    not_here: dict[str, str] = field(default_factory=dict)
    #: Why a goal cannot be met, or what the figure does not say.
    remark: str = ""

    def best(self) -> tuple[str, float] | None:
        """The best peer and its median."""
        known = {name: median(values) for name, values in self.peers.items() if values}
        if not known:
            return None
        name = (min if self.lower_is_better else max)(known, key=lambda name: known[name])
        return name, known[name]

    def as_json(self) -> dict[str, object]:
        """The row as it is kept."""
        ours, best = (median(self.ours) if self.ours else None), self.best()
        return {
            "row": self.name,
            "unit": self.unit,
            "ours": ours,
            "spread": [min(self.ours), max(self.ours)] if self.ours else None,
            "best_peer": best[1] if best else None,
            "peer": best[0] if best else None,
            "ratio": ours / best[1] if ours is not None and best and best[1] else None,
            "goal": str(self.goal),
            "met": self.goal.met(ours, best[1] if best else None) if ours is not None else None,
            "limit": median(self.limit) if self.limit else None,
            "reference": median(self.reference) if self.reference else None,
            "peers": {name: median(values) for name, values in self.peers.items() if values},
            "not_here": self.not_here,
            "repetitions": len(self.ours),
            "remark": self.remark,
        }


def figure(value: object) -> str:
    """A number as short as it may be."""
    if not isinstance(value, (int, float)):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def told(rows: Sequence[dict[str, object]]) -> str:
    """The table, as Markdown, and below it who is not in it and what the figures do not say."""
    heads = ("row", "unit", "ours", "spread", "best peer", "", "ratio", "goal", "met", "copied", "limit")
    lines = [heads, tuple("---" for _ in heads)]
    for row in rows:
        spread = row["spread"]
        lines.append(
            (
                str(row["row"]),
                str(row["unit"]),
                figure(row["ours"]),
                f"{figure(spread[0])} to {figure(spread[1])}" if isinstance(spread, list) else "-",
                figure(row["best_peer"]),
                str(row["peer"] or "-"),
                figure(row["ratio"]),
                str(row["goal"]) or "-",
                {True: "yes", False: "NO", None: "-"}[row["met"] if isinstance(row["met"], bool) else None],
                figure(row["reference"]),
                figure(row["limit"]),
            )
        )
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + below(rows))


def below(rows: Sequence[dict[str, object]]) -> list[str]:
    """Who is not in the table, each once, and the remarks."""
    missing: dict[str, None] = {}
    for row in rows:
        absent = row["not_here"]
        if isinstance(absent, dict):
            missing |= {f"- not here: {name}: {reason}": None for name, reason in absent.items()}
    remarks: dict[str, list[str]] = {}
    for row in rows:
        if row["remark"]:
            remarks.setdefault(str(row["remark"]), []).append(str(row["row"]))
    lines = [*missing, *(f"- {'; '.join(names)}: {remark}" for remark, names in remarks.items())]
    return ["", *lines] if lines else []


def keep(rows: Sequence[Row], where: Path = RESULTS) -> list[dict[str, object]]:
    """Puts these rows into the list that is kept, in the place of those of the same names. Answers the whole list."""
    kept: list[dict[str, object]] = json.loads(where.read_text()) if where.exists() else []
    for row in rows:
        fresh = row.as_json()
        places = [index for index, old in enumerate(kept) if old["row"] == row.name]
        if places:
            kept[places[0]] = fresh
        else:
            kept.append(fresh)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    return kept


def write(where: Path = DOCUMENT) -> None:
    """Puts all that is kept into the document, one table for each row module."""
    kept: list[dict[str, object]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    modules: dict[str, list[dict[str, object]]] = {}
    for row in kept:
        modules.setdefault(str(row["row"]).split()[0].rstrip(":"), []).append(row)
    text = "\n\n".join(f"### {module}\n\n{told(rows)}" for module, rows in modules.items())
    begin, end = "<!-- bench: begin -->", "<!-- bench: end -->"
    before, rest = where.read_text().split(begin)
    where.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
