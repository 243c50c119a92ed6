"""What a device is: gathered without Python on it, checked, bounded, and named."""

from hdap_tui.fact_names import BY_NAME, NAMES, PROBED, VOLATILE, Fact, Facts, checked, shown
from hdap_tui.facts.asking import ask_runner, gather, gather_again, look, merged
from hdap_tui.facts.reading import Python, parse, pythons

__all__ = [
    "BY_NAME", "NAMES", "PROBED", "VOLATILE", "Fact", "Facts", "Python", "ask_runner", "checked",
    "gather", "gather_again", "look", "merged", "parse", "pythons", "shown",
]  # fmt: skip
