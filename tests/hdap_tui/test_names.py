"""What clusters are called."""

import pytest

from hdap_tui.names import cluster_letter, with_letters


def test_letters_go_on_after_z() -> None:
    assert [cluster_letter(n) for n in (0, 25, 26, 27, 702)] == ["A", "Z", "AA", "AB", "AAA"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cluster 2 has no other device", "cluster C has no other device"),
        ("search (cluster 0)", "search (cluster A)"),
        ("cluster 12: gp; cluster 1.", "cluster M: gp; cluster B."),
        ("one for each cluster 1.25x", "one for each cluster 1.25x"),
        ("cluster A", "cluster A"),
    ],
)
def test_clusters_of_a_text_get_their_letters(text: str, named: str) -> None:
    assert with_letters(text) == named
