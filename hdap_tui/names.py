"""What the operator is called on this machine."""

from __future__ import annotations

import getpass


def own_name() -> str:
    """Return the user who runs this, empty where nobody has named them, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
