"""The two lines on top: what they say where there is little room."""

import pytest
from dashboard_fake import fleet
from rich.cells import cell_len

from hdap_tui.dashboard.widgets.header import tab_line


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("marks", [0, 1, 250])
@pytest.mark.parametrize(
    "activity",
    ["", "sweep 5/12", "next canary round in 120 s, at 14:32", "PAUSED until Sun 16:30: new fans"],
)
def test_all_views_have_a_place_beside_marks_and_activity(
    width: int, marks: int, activity: str
) -> None:
    for view in ("fleet", "deployments"):
        left, right = tab_line(fleet(), view, False, activity, marks, width)
        words = "".join(piece.text for piece in left)
        said = "".join(piece.text for piece in right)
        assert cell_len(words + said) <= width
        assert all(f" {key}" in words for key in "123456")
        assert all(piece.action for piece in left if piece.text.strip())
        assert f"{marks} marked" in said or not marks
        assert ("6 deploy" if view == "deployments" else "1 fleet") in words
        if width >= 80:
            assert activity[:8] in said
            assert marks or activity[:22] in said  # until when, before all
        if width >= 160:
            assert "6 deployments" in words
            assert activity in said
