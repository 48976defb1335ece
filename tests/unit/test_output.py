"""What the commands print."""

import pytest
from rich.console import Console

from console import output


def test_a_table_of_many_columns_is_whole_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "out", Console(width=40, force_terminal=True, no_color=True))
    output.print_table([f"column{i}" for i in range(9)], [[1_000_000 + i for i in range(9)]])
    said = capsys.readouterr().out
    assert all(f"1,000,00{i}" in said and f"column{i}" in said for i in range(9))


def test_a_name_is_in_one_piece_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["topic", *(f"column{i}" for i in range(6))], [["ecluse.payments.predictions", *range(6)]])
    assert "ecluse.payments.predictions" in capsys.readouterr().out
