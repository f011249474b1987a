"""The tests that the threat model names, and those that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("crates/**/*.rs", "tests/**/*.py", "jupyter-ext/hub-spawner/tests/*.py")
#: A Python test; a Rust test that no attribute sets aside; one that a macro makes, whose parameters have no types; a
#: promise of the backends' contract.
TEST_NAME = re.compile(
    r"^\s*(?:async )?def (test_\w+)\("
    r"|^\s*#\[(?:tokio::)?test\b[^\n]*\n(?:\s*#\[(?!ignore)[^\n]*\n)*\s*(?:async )?fn (\w+)\("
    r"|^\s*async fn (\w+)\(\w+(?:, \w+)*\)"
    r"|^pub async fn (\w+)\(bench: &mut dyn Bench\)",
    re.MULTILINE,
)


def rows(document: str) -> Iterator[list[str]]:
    """The cells of each line of a table whose last column says what shows it."""
    shown = False
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells and not line.startswith("|---"):
            if cells[-1].strip("| ") == "shown by":
                shown = True
            elif shown:
                yield [cell.strip("| ") for cell in cells]
        elif not cells:
            shown = False


def unproven(document: str, tests: set[str]) -> list[str]:
    """What is wrong with the tables, in words."""
    wrong = []
    for cells in rows(document):
        threat = f"{cells[0]} → {cells[1]}"
        names = re.findall(r"`(\w+)`", cells[-1])
        if len(cells) != 4:
            wrong.append(f"{threat}: {len(cells)} columns instead of 4")
        if not names:
            wrong.append(f"{threat}: no test shows it; show it, or say that it is not defended")
        wrong += [f"{threat}: there is no test {name}" for name in names if name not in tests]
    return wrong


def known_tests(top: Path) -> set[str]:
    files = [path for pattern in SOURCES for path in top.glob(pattern)]
    found = (match for path in files for match in TEST_NAME.finditer(path.read_text()))
    return {name for match in found for name in match.groups() if name}
