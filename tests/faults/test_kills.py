"""A command that was killed ends, when it is run again, with the files of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import kills

# A folder that is renamed as a whole, a single file, and an export; the other stages are slow.
SHORT = {"build tables": 2, "mask": 1, "simulate mosi": 1}
LONG = 200


@pytest.mark.parametrize("name", SHORT)
def test_a_killed_command_ends_with_the_same_files(name: str, tmp_path: Path) -> None:
    result = kills.kill(kills.STAGE[name], SHORT[name], 0, tmp_path)
    assert result.faults == ()
    assert result.kills == SHORT[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.STAGE)
def test_every_command_survives_kills_at_any_moment(name: str, tmp_path: Path) -> None:
    result = kills.kill(kills.STAGE[name], LONG // len(kills.STAGE) + 1, 1, tmp_path)
    assert result.faults == ()


def test_a_left_over_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself fails if a rerun leaves a file that an undisturbed run does not write."""
    real, runs = kills.launch, []

    def untidy(folder: Path, *arguments: object) -> tuple[int, str]:
        runs.append(folder)
        if len(runs) == 3:
            (folder / ".x.tmp").write_text("")
        return real(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kills, "launch", untidy)
    stage = kills.Stage("simulate tables", [], [kills.TABLES])
    result = kills.kill(stage, 1, 0, tmp_path, most=1)
    assert "left over ['.x.tmp']" in "".join(result.faults)
