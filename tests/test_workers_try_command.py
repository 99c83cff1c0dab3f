"""What `repotune try` shows."""

from workers.try_command import _show


def test_both_sides_stand_side_by_side_and_code_is_never_taken_for_markup(capsys):
    _show({"path": "a.py", "line": 3, "base": "x[red]y[/red]\n", "adapter": "return [bold]"})
    shown = capsys.readouterr().out
    assert "a.py, end of line 3" in shown
    assert any("x[red]y[/red]" in line and "return [bold]" in line for line in shown.splitlines())


def test_a_long_path_is_not_cut_into_lines_where_both_sides_are_short(capsys):
    _show({"path": "package/of/some/shapes.py", "line": 3, "base": "x", "adapter": ""})
    assert "package/of/some/shapes.py, end of line 3" in capsys.readouterr().out
