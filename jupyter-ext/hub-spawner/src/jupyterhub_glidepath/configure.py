"""Placeholder."""


def configure(c: object) -> None: ...
