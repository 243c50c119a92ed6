"""What the operator and the clusters are called."""

from __future__ import annotations

import getpass
import re


def own_name() -> str:
    """Return the user who runs this, empty where nobody has named them, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def cluster_letter(cluster: int) -> str:
    """Return what a cluster is called on the screen: A to Z, then AA, AB and so on."""
    letters = ""
    while cluster >= 0:
        letters = chr(ord("A") + cluster % 26) + letters
        cluster = cluster // 26 - 1
    return letters


def with_letters(text: str) -> str:
    """Return a text with its clusters by their letters: "cluster 2" becomes "cluster C"."""
    # "one for each cluster 1.25x" names none.
    numbers = r"\bcluster (\d+)\b(?!\.\d)"
    return re.sub(numbers, lambda found: f"cluster {cluster_letter(int(found[1]))}", text)
