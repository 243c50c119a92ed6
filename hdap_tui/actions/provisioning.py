"""Environments on devices: find what is lacking, build it, take it away again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from hdap_tui.actions.reaching import exit_code
from hdap_tui.config.settings import Device
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import RefusedError, SettingsError
from hdap_tui.fanout import on_each
from hdap_tui.figures import count
from hdap_tui.provision.building import provision as build
from hdap_tui.provision.building import undo as remove
from hdap_tui.provision.building import works
from hdap_tui.provision.downloading import cache_folder
from hdap_tui.provision.planning import Plan, Shelf, make_plan, megabytes
from hdap_tui.provision.survey import survey
from hdap_tui.provision.wheels import in_folder
from hdap_tui.reach import connections, targets
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Target
from hdap_tui.stages import Stages
from hdap_tui.store import devices as table
from hdap_tui.store import facts

_WEIGHTS = {"look": 1.0, "build": 10.0, "remove": 1.0}
_FACTS = ("python", "onnxruntime", "numpy")
_EMULATED = "emulated: the lab gives it a Python with all that is needed; nothing to do"


def provision(
    context: Context,
    select: str | None = None,
    wheels: Path | None = None,
    onnxruntime: str | None = None,
    python: str | None = None,
    dry_run: bool = False,
    undo: bool = False,
    yes: bool = False,
) -> Outcome:
    """Build an environment for ONNX Runtime on devices that lack one; no internet, no root."""
    shelf = Shelf(cache_folder(), wheels, _version(onnxruntime))
    if wheels is not None:
        in_folder(wheels)
    chosen = context.select(select)
    with _Work(context, chosen) as work:
        if undo:
            return _undone(work, dry_run, yes)
        plans = work.look(shelf, python or "")
        todo = [plan for plan in plans.values() if plan.state == "todo"]
        if not dry_run and todo:
            if not yes and not context.confirm("Build an environment on these?", work.said(todo)):
                raise RefusedError("Nothing was changed on any device.")
            work.build(todo)
    return work.outcome(dry_run)


def _version(text: str | None) -> Version | None:
    try:
        return Version(text) if text else None
    except InvalidVersion:
        raise SettingsError(f'--onnxruntime "{text}" is no version; 1.22.1 would be one.') from None


@dataclass
class _Work:
    """One run of the command on some devices, and what came of each."""

    context: Context
    devices: tuple[Device, ...]
    plans: dict[str, Plan] = field(default_factory=dict)
    errors: dict[str, DeviceError] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    """What was done on a device, in words."""
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Work:
        self._stack = ExitStack()
        table.sync(self.context.store, self.context.settings.devices)
        real = [device for device in self.devices if not device.emulated]
        self.targets = {t.name: t for t in targets(self.context.settings, real)}
        self.pool: Connections = self._stack.enter_context(connections(self.context))
        self.stages = self._stack.enter_context(Stages(self.context.store, self.context.on_stage))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- on the devices

    def unwanted(self) -> bool:
        """Whether what still runs should end."""
        return self.stop.is_set() or self.context.cancelled()

    def each(
        self, step: str, names: Iterable[str], action: Callable[[Connection], Any], doing: str
    ) -> dict[str, Any]:
        """Act on devices, saying how far it is; what goes wrong is kept in `errors`."""
        chosen: list[Target] = [self.targets[name] for name in names]
        reporter, answers = self.context.reporter, {}
        reporter.started(step, total=len(chosen), weight=_WEIGHTS[step] * len(chosen))
        found = on_each(
            self.pool, chosen, action, self.context.cancelled, self.stop,
            on_stage=self.stages.say, doing=doing,
        )  # fmt: skip
        for ended, (target, answer) in enumerate(found, start=1):
            reporter.advanced(step, ended)
            if isinstance(answer, DeviceError):
                self.errors[target.name] = answer
                reporter.noted(step, str(answer))
                if answer.transient:
                    table.set_state(
                        self.context.store, target.name, "off", answer.kind.value, str(answer)
                    )
            else:
                answers[target.name] = answer
        reporter.finished(step)
        self.stop.clear()  # set at the end of every round
        return answers

    def look(self, shelf: Shelf, python: str) -> dict[str, Plan]:
        """Look at all devices, and plan what is to be done on each."""

        def one(connection: Connection) -> Plan:
            found = survey(connection, python)
            self.stages.say(connection.where, "choosing wheels")
            return make_plan(
                connection.target, found, shelf, lambda: works(connection, self.unwanted)
            )

        shelf.cancelled = self.unwanted
        found = self.each("look", self.targets, one, "looking")
        self.plans |= {name: found[name] for name in self.targets if name in found}
        return self.plans

    def build(self, todo: list[Plan]) -> None:
        """Carry the plans out."""

        def one(connection: Connection) -> None:
            name = connection.where

            def say(stage: str) -> None:
                self.stages.say(name, stage)

            build(connection, self.plans[name], say, self.unwanted)

        for name in self.each("build", [plan.device for plan in todo], one, "upload"):
            plan = self.plans[name]
            assert plan.chosen is not None
            assert plan.interpreter is not None
            self.done[name] = (
                f"ONNX Runtime {plan.chosen.version} on Python {plan.interpreter.short};"
                f" {megabytes(plan.push)} sent"
            )
            table.set_state(self.context.store, name, "ok")
            now = {wheel.name: str(wheel.version) for wheel in plan.chosen.wheels}
            now["python"] = ".".join(map(str, plan.interpreter.version))
            facts.add(self.context.store, name, {n: now[n] for n in _FACTS if n in now})

    # -- for people

    def said(self, plans: Iterable[Plan]) -> list[str]:
        """Return a line for each plan."""
        return [f"{self.context.shown(plan.device)}: {_intent(plan)}" for plan in plans]

    def state(self, name: str) -> str:
        """Return one word for what came of a device."""
        if name in self.errors:
            return "failed"
        if name in self.done:
            return "provisioned"
        plan = self.plans.get(name)
        if plan is None:
            return "ready"
        return "to do" if plan.state == "todo" else plan.state

    def detail(self, name: str) -> str:
        """Return a sentence on what came of a device."""
        if name in self.errors:
            return str(self.errors[name])
        if name in self.done:
            return self.done[name]
        plan = self.plans.get(name)
        if plan is None:
            return _EMULATED
        return _intent(plan) if plan.state == "todo" else plan.detail

    def outcome(self, dry_run: bool) -> Outcome:
        """Return one line a device."""
        names = [d.name for d in self.devices if d.emulated or d.name in self.plans | self.errors]
        rows, documents, results = [], [], []
        for name in names:
            plan = self.plans.get(name)
            rows.append(
                (self.context.shown(name), self.state(name), *_sizes(plan), self.detail(name))
            )
            documents.append(self._document(name, plan))
            lacking = plan is not None and plan.state == "lacking"
            results.append(
                DeviceError(ErrorKind.FAILED, plan.detail) if plan and lacking
                else self.errors.get(name)
            )  # fmt: skip
        columns = ("device", "", "Python", "ONNX Runtime", "to push", "disk", "")
        todo = sum(plan.state == "todo" for plan in self.plans.values())
        text = ""
        if dry_run:
            text = f"Nothing was changed; {todo} of {len(names)} devices would get an environment."
        return Outcome(
            data={"dry_run": dry_run, "devices": documents},
            table=Table(columns, tuple(rows)),
            text=text,
            exit_code=exit_code(results),
        )

    def _document(self, name: str, plan: Plan | None) -> dict[str, Any]:
        emulated = name not in self.targets
        error = self.errors.get(name)
        document: dict[str, Any] = {
            "name": name,
            "emulated": emulated,
            "state": self.state(name),
            "error": error.kind.value if error else "",
            "detail": self.detail(name),
        }
        if plan is not None and plan.chosen is not None and plan.interpreter is not None:
            document |= {
                "python": ".".join(map(str, plan.interpreter.version)),
                "interpreter": plan.interpreter.path,
                "machine": plan.interpreter.machine,
                "libc": plan.interpreter.libc,
                "onnxruntime": str(plan.chosen.version),
                "wheels": [wheel.path.name for wheel in plan.chosen.wheels],
                "push_bytes": plan.push,
                "needed_bytes": plan.needed,
                "free_bytes": plan.free,
                "plan": plan.digest,
            }
        return document


def _intent(plan: Plan) -> str:
    assert plan.chosen is not None
    assert plan.interpreter is not None
    return (
        f"an environment on {plan.interpreter.path} ({plan.interpreter.label}) with"
        f" {len(plan.chosen.wheels)} wheels"
    )


def _sizes(plan: Plan | None) -> tuple[str, str, str, str]:
    if plan is None or plan.chosen is None or plan.interpreter is None:
        return "", "", "", ""
    disk = f"{megabytes(plan.needed)} of {megabytes(plan.free)}" if plan.free is not None else ""
    version = str(plan.chosen.version)
    if plan.state == "ready":
        return plan.interpreter.short, version, "", ""
    return plan.interpreter.short, version, megabytes(plan.push), disk


def _undone(work: _Work, dry_run: bool, yes: bool) -> Outcome:
    """Remove the environments and what was pushed for them."""
    context = work.context
    shown = [context.shown(name) for name in work.targets]
    if dry_run:
        return Outcome(
            data={"dry_run": True, "undo": True, "devices": sorted(work.targets)},
            text="Nothing was changed; what would be removed is the environment on "
            f"{count(len(shown), 'device')}.",
        )
    question = "Remove the environment (~/.hdap/environment) and its wheels from these?"
    if work.targets and not yes and not context.confirm(question, shown):
        raise RefusedError("Nothing was changed on any device.")

    freed = work.each("remove", work.targets, remove, "removing")
    rows: list[tuple[str, str, str]] = []
    documents: list[dict[str, Any]] = []
    for device in work.devices:
        name, error = device.name, work.errors.get(device.name)
        if error is None and name not in freed and not device.emulated:
            continue  # it is no longer wanted
        if error is not None:
            state, detail = "failed", str(error)
        elif freed.get(name) is not None:
            state, detail = "removed", f"{megabytes(freed[name])} are free again"
        else:
            state, detail = "ready", "there was nothing to remove"
        rows.append((context.shown(name), state, detail))
        documents.append(
            {
                "name": name,
                "emulated": device.emulated,
                "state": state,
                "error": error.kind.value if error else "",
                "detail": detail,
                "freed_bytes": freed.get(name),
            }
        )
    return Outcome(
        data={"dry_run": False, "undo": True, "devices": documents},
        table=Table(("device", "", ""), tuple(rows)),
        exit_code=exit_code([work.errors.get(row["name"]) for row in documents]),
    )
