"""What the system allows one process: open files, of which each connection takes one."""

from __future__ import annotations

from hdap_tui.errors import UserError

_EACH = 2
"""Files of one device: its connection, and a lock while it measures."""
_OTHERS = 200
"""Files that the rest of the program may have open."""


def allow_connections(count: int) -> None:
    """Raise the limit of open files as far as that many connections need it.

    Raises:
        UserError: the system does not allow that many.
    """
    try:
        import resource
    except ImportError:  # there is no such limit
        return
    needed = _EACH * count + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(
            f"{count} devices at once need {needed} open files, and this system allows a process"
            f" {hard}; raise that limit (ulimit -Hn), or choose fewer devices with --select."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
