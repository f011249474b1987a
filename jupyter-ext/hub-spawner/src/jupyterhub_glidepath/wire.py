"""What the service says, as values.

In: JSON from the service. Out: frozen values with only the fields that are used here; unknown fields and words are
left alone, so that a newer service can be understood. All text in them is data from outside: escape it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: States in which nothing runs and nothing will.
OVER = frozenset({"none", "ended"})
#: Ends that somebody asked for.
ASKED_FOR = frozenset({"stopped", "cancelled"})


@dataclass(frozen=True)
class End:
    """How a run ended."""

    reason: str
    message: str
    exit_code: int | None
    signal: int | None
    last_lines: tuple[str, ...]
    at: str

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> End:
        lines = raw.get("last_lines") or []
        return cls(
            reason=str(raw.get("reason") or "unknown"),
            message=str(raw.get("message") or ""),
            exit_code=_whole(raw.get("exit_code")),
            signal=_whole(raw.get("signal")),
            last_lines=tuple(str(line) for line in lines),
            at=str(raw.get("at") or ""),
        )

    def status(self) -> int:
        """The exit status for the Hub, as a shell has it; 0 when the end was asked for or nothing is known."""
        if self.reason in ASKED_FOR:
            return 0
        if self.exit_code is not None:
            return self.exit_code
        if self.signal is not None:
            return 128 + self.signal
        return 0


@dataclass(frozen=True)
class Verdict:
    """What placement says of one site."""

    site: str
    title: str
    fits: bool
    chosen: bool
    sentence: str
    predicted_wait_s: int | None

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Verdict:
        return cls(
            site=str(raw.get("site") or ""),
            title=str(raw.get("title") or raw.get("site") or ""),
            fits=bool(raw.get("fits")),
            chosen=bool(raw.get("chosen")),
            sentence=str(raw.get("sentence") or ""),
            predicted_wait_s=_whole(raw.get("predicted_wait_s")),
        )


@dataclass(frozen=True)
class NearEnd:
    """An end that the user was warned of."""

    reason: str
    ends_at: str

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> NearEnd:
        return cls(reason=str(raw.get("reason") or "unknown"), ends_at=str(raw.get("ends_at") or ""))


@dataclass(frozen=True)
class ServerView:
    """One server as it stands."""

    key: str
    user: str
    server: str
    run: str | None
    attempt: int | None
    state: str
    life: str
    site: str | None
    message: str
    progress: int
    queue_position: int | None
    predicted_wait_s: int | None
    url: str | None
    end: End | None
    verdicts: tuple[Verdict, ...]
    requested_at: str | None
    since: str | None
    memory_bytes: int | None
    cpu_s: float | None
    walltime_s: int | None
    lives_until: str | None
    #: What ends it early, in sentences.
    limits: str
    near_ends: tuple[NearEnd, ...]

    @classmethod
    def parse(cls, raw: object) -> ServerView:
        """Raises ``ValueError`` when it is no server at all."""
        if not isinstance(raw, dict) or not isinstance(raw.get("key"), str):
            raise ValueError("the service told of a server without a key")
        end, usage = raw.get("end"), raw.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        limits = raw.get("limits")
        limits = limits if isinstance(limits, dict) else {}
        return cls(
            key=raw["key"],
            user=str(raw.get("user") or ""),
            server=str(raw.get("server") or ""),
            run=_text(raw.get("run")),
            attempt=_whole(raw.get("attempt")),
            state=str(raw.get("state") or "none"),
            life=str(raw.get("life") or "unknown"),
            site=_text(raw.get("site")),
            message=str(raw.get("message") or ""),
            progress=min(100, max(0, _whole(raw.get("progress")) or 0)),
            queue_position=_whole(raw.get("queue_position")),
            predicted_wait_s=_whole(raw.get("predicted_wait_s")),
            url=_text(raw.get("url")),
            end=End.parse(end) if isinstance(end, dict) else None,
            verdicts=tuple(Verdict.parse(one) for one in raw.get("verdicts") or [] if isinstance(one, dict)),
            requested_at=_text(raw.get("requested_at")),
            since=_text(raw.get("since")),
            memory_bytes=_whole(usage.get("memory_bytes")),
            cpu_s=float(usage["cpu_s"]) if isinstance(usage.get("cpu_s"), int | float) else None,
            walltime_s=_whole(limits.get("walltime_s")),
            lives_until=_text(limits.get("lives_until")),
            limits=str(limits.get("message") or ""),
            near_ends=tuple(NearEnd.parse(one) for one in raw.get("near_ends") or [] if isinstance(one, dict)),
        )

    @property
    def over(self) -> bool:
        """True when nothing runs under this key and nothing will."""
        return self.state in OVER

    def site_title(self) -> str:
        """What users read for the site; empty when none is chosen yet."""
        for verdict in self.verdicts:
            if verdict.site == self.site:
                return verdict.title
        return self.site or ""


@dataclass(frozen=True)
class Adopted:
    """A live run that an earlier spawn created: the Hub token that its server holds."""

    hub_token: str

    def __repr__(self) -> str:
        return "Adopted(hub_token=***)"


@dataclass(frozen=True)
class Started:
    """Answer to a start."""

    view: ServerView
    adopted: Adopted | None


@dataclass(frozen=True)
class Problem:
    """A refusal, as RFC 9457 shapes it."""

    code: str
    title: str
    status: int
    #: Field and sentence for everything that is wrong.
    fields: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, status: int, raw: object) -> Problem:
        raw = raw if isinstance(raw, dict) else {}
        fields = tuple(
            (str(one.get("field") or ""), str(one.get("message") or ""))
            for one in raw.get("problems") or []
            if isinstance(one, dict)
        )
        title = str(raw.get("title") or f"the service answered {status}")
        return cls(code=str(raw.get("code") or "unknown"), title=title, status=status, fields=fields)


def _text(raw: object) -> str | None:
    return raw if isinstance(raw, str) and raw else None


def _whole(raw: object) -> int | None:
    return raw if isinstance(raw, int) and not isinstance(raw, bool) else None
