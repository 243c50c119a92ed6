from __future__ import annotations

import threading
import time

import pytest
from sshd import wait_for

from hdap_tui.ssh.alarm import Alarm


def test_a_call_comes_at_its_time_unless_it_is_called_off() -> None:
    alarm, late = Alarm(), threading.Event()
    with alarm.after(30, lambda: pytest.fail("it was called off")):
        pass
    began = time.monotonic()
    with alarm.after(0.1, late.set):
        assert late.wait(10)
    assert time.monotonic() - began >= 0.1


def test_a_nearer_call_goes_before_a_farther_one() -> None:
    alarm, near, far = Alarm(), threading.Event(), threading.Event()
    with alarm.after(60, far.set), alarm.after(0.05, near.set):
        assert near.wait(5)
    assert not far.is_set()


def test_a_call_that_gets_stuck_holds_up_no_other_and_the_thread_ends() -> None:
    alarm, free, called = Alarm(), threading.Event(), threading.Event()
    with alarm.after(0, lambda: free.wait(20) and None), alarm.after(0.05, called.set):
        assert called.wait(5)
    free.set()
    wait_for(lambda: all("alarm" not in thread.name for thread in threading.enumerate()))
