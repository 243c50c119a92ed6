"""Messages that go by themselves, also where they come too late to be seen.

Textual 8.2 sets a message's timer to what is left of its time. Where that is over already, because
the machine was slow or slept in between, the timer's interval is negative, and the timer counts for
ever without letting anything else be done.
"""

from __future__ import annotations

from textual.notifications import Notification

LEAST_S = 0.05
"""How long a message is shown at least."""


class Notice(Notification):
    """A message whose time is never less than over."""

    @property
    def time_left(self) -> float:
        """Seconds that it is still to be shown, more than 0."""
        return max(super().time_left, LEAST_S)

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return super().time_left <= 0
