"""Put a model on the devices, prove on them that it is faster, and put the old one back.

A few devices go first, one of every cluster among them; the others follow in stages, as long as
those before have become faster and stay well. Old and new are timed in the same blocks on every
device, so the proof is a paired comparison. Every step is written down before and after it is
done: a process that was killed is followed by one that asks the devices and goes on.
"""

from hdap_tui.deploy.back import back, settle
from hdap_tui.deploy.planning import Options, Plan, plan
from hdap_tui.deploy.preview import preview
from hdap_tui.deploy.report import Report
from hdap_tui.deploy.rollout import Rollout
from hdap_tui.deploy.taking_up import abort, resume

__all__ = [
    "Options", "Plan", "Report", "Rollout", "abort", "back", "plan", "preview", "resume", "settle",
]  # fmt: skip
