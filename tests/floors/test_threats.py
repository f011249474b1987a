"""A threat that is said to be stopped has a test that shows it: the document as it is; that the measure can fail."""

from __future__ import annotations

from pathlib import Path

from threats import known_tests, rows, unproven

TOP = Path(__file__).resolve().parents[2]
TABLE = """
| he has | he wants | what stops him | shown by |
|---|---|---|---|
| a key | a door | a lock | `the_door_is_shut` |
"""


def test_every_threat_names_tests_and_each_of_them_exists() -> None:
    document = (TOP / "docs" / "threat-model.md").read_text()
    assert len(list(rows(document))) > 30, "the tables are read"
    assert unproven(document, known_tests(TOP)) == []


def test_a_test_that_is_gone_and_a_threat_without_one_are_told() -> None:
    assert unproven(TABLE, {"the_door_is_shut"}) == []
    assert unproven(TABLE, {"the_door_is_open"}) == ["a key → a door: there is no test the_door_is_shut"]
    (told,) = unproven(TABLE.replace("`the_door_is_shut`", "a promise"), set())
    assert "no test shows it" in told


def test_a_table_of_another_sort_is_left_alone() -> None:
    assert list(rows("| who | may |\n|---|---|\n| a user | everything |\n")) == []


def test_helpers_and_tests_that_are_set_aside_show_nothing(tmp_path: Path) -> None:
    (tmp_path / "crates").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "crates" / "a.rs").write_text(RUST)
    (tmp_path / "tests" / "test_a.py").write_text("def helper(): ...\n\n\ndef test_it(): ...\n")
    assert known_tests(tmp_path) == {"plain", "slow", "with_reason", "by_macro", "test_it"}


RUST = """
#[test]
fn plain() {}

#[tokio::test(flavor = "multi_thread")]
async fn slow() {}

#[tokio::test]
#[expect(clippy::panic, reason = "why")]
async fn with_reason() {}

#[test]
#[ignore = "the test above starts it"]
fn set_aside() {}

fn helper() {}

over_both! {
    async fn by_macro(reach) {}
}
"""
