"""Carries a plan out, stage by stage, and goes on with one that was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from engine.latency import Latency, compare, compare_fleet
from hdap_tui.context import Context
from hdap_tui.deploy import selftest
from hdap_tui.deploy.back import settle
from hdap_tui.deploy.device import HookError, Work
from hdap_tui.deploy.hooks import Hooks
from hdap_tui.deploy.many import on_devices
from hdap_tui.deploy.owning import owning, refuse_unfinished
from hdap_tui.deploy.planning import Plan
from hdap_tui.deploy.report import Report, brief, kind, latency, verdict_of
from hdap_tui.measuring import Measuring
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.locks import LEASE_S, Claim
from hdap_tui.store import deployments
from hdap_tui.store.records import DeploymentRow, DeploymentState, Outcome

FRESH_S = 30.0
"""Seconds for which a measurement counts as of now, between two stages."""
_DECIDED = {"kept", "back", "failed"}


class Rollout:
    """One deployment, new or taken up again."""

    def __init__(self, measuring: Measuring, chosen: Plan) -> None:
        self.measuring, self.plan = measuring, chosen
        self.context: Context = measuring.context
        self.store = measuring.store
        self.section = measuring.settings.deploy
        self.margin = self.section.margin_percent / 100
        self._measured: dict[str, float] = {}
        self._is_half_way = False

    # ------------------------------------------------------------------------- three ways to begin

    def run(self) -> Report:
        """Deploy stage by stage; return what was measured.

        A stage where most devices are not faster, or too many failed, gets the old model back,
        and is the last; where all is well, only those that became slower get it back.

        Raises:
            RefusedError: another process deploys to this fleet, or a deployment was interrupted.
            UserError: this machine cannot run the model that it is to compare with.
        """
        with owning(self.context.settings.state_dir):
            refuse_unfinished(self.store)
            known = self._known()
            claim = Claim(lease_s=self._lease_s())
            number = deployments.begin(
                self.store, self.plan.model.digest, self.plan.names, stages=self.plan.numbers,
                token=claim.token, options=self.plan.options.document,
            )  # fmt: skip
            self._open(number, claim, known)
            return self._carry_on()

    def resume(self, number: int, token: str) -> Report:
        """Go on with a deployment that was interrupted, from what the devices really run."""
        self._open(number, Claim(token, self._lease_s()), self._known())
        deployments.set_state(self.store, number, "running")
        self._recall()
        return self._carry_on()

    def abort(self, number: int, token: str) -> Report:
        """Let all devices of an interrupted deployment run again what they ran before."""
        self._open(number, Claim(token, self._lease_s()), None)
        deployments.set_state(self.store, number, "running")
        self._recall()
        try:
            over = ("back", "failed")
            left = [n for n in self.plan.names if self.outcomes[n] not in over]
            self._take_back(left, "aborted")
            self._let_all_go()
        finally:
            self._finish()
        return self.report

    def _known(self) -> selftest.Known | None:
        if not self.section.self_test:
            return None
        return selftest.known(self.plan.model, self.context.settings.state_dir / "self-tests")

    def _lease_s(self) -> int:
        """Return for how long a device stays locked without a word: longer than any one step."""
        blocks = self.section.blocks
        bench = self.measuring.bench(blocks_min=blocks, blocks_max=blocks)
        visits = {name: [self.plan.before[name], self.plan.model] for name in self.plan.names}
        proof = self.measuring.expected_s(visits, bench)
        return int(LEASE_S + 2 * proof + 4 * self.section.hook_timeout_s)

    def _open(self, number: int, claim: Claim, known: selftest.Known | None) -> None:
        section, fleet = self.section, self.measuring.fleet
        self.number = number
        self.report = Report(deployments.row(self.store, number), None)
        self.outcomes: dict[str, Outcome] = dict.fromkeys(self.plan.names, "")
        self.work = Work(
            self.store, number, self.plan, claim,
            Hooks(section.hook, section.health, section.hook_timeout_s), known,
            fleet.pool, fleet.on_stage, self.context.cancelled,
        )  # fmt: skip

    def _recall(self) -> None:
        """Take over what the interrupted process has written down."""
        proofs = deployments.proofs(self.store, self.number)
        for row in deployments.devices(self.store, self.number):
            self.outcomes[row.device] = row.outcome
            if row.error:
                self.report.errors[row.device] = DeviceError(
                    kind(row.error), row.detail or row.error
                )
            if row.device in proofs:
                pair = tuple(latency(one) for one in proofs[row.device]["pair"])
                self._compared(row.device, (pair[0], pair[1]))
        self.report.stopped = deployments.row(self.store, self.number).stopped
        self.work.taken_up = True

    # ------------------------------------------------------------------------- the stages

    def _carry_on(self) -> Report:
        """Do all stages that are not decided yet."""
        try:
            # What was decided and not done before an interruption comes first.
            over = ("going back", "") if self.report.stopped else ("going back",)
            self._take_back([n for n in self.plan.names if self.outcomes[n] in over])
            for index, stage in enumerate(self.plan.stages, start=1):
                todo = [n for n in stage if self.outcomes[n] not in _DECIDED]
                if self.report.stopped or self.context.cancelled():
                    break
                if not todo:
                    continue
                if index > 1 and not self._may_go_on(index):
                    break
                deployments.enter_stage(self.store, self.number, index)
                self._stage(index, stage, todo)
            self._let_all_go()
        finally:
            self.report.row = self._finish()
        return self.report

    def _stage(self, index: int, stage: Sequence[str], todo: Sequence[str]) -> None:
        """Deploy to one stage; `stopped` is said where it is the last."""
        report = self.report
        try:
            self._put(todo)
            switched = [n for n in todo if n in self.work.switching and n not in report.errors]
            self._prove(switched, self.section.blocks)
        except BaseException:
            # Interrupted: what nobody has proven does not stay.
            self._take_back([n for n in todo if n in self.work.switching], "interrupted")
            raise
        for name in todo:
            self._record(name)
        stopped = self._verdict(index, stage, switched)
        unproven = [n for n in switched if verdict_of(report, n) in ("", "slower")]
        going = [n for n in todo if n in self.work.switching and n not in switched]
        going += switched if stopped else unproven
        kept = [n for n in switched if n not in going]
        outcomes: dict[str, Outcome] = {n: "failed" for n in todo if n not in (*going, *kept)}
        outcomes.update(dict.fromkeys(going, "going back"))
        outcomes.update(dict.fromkeys(kept, "kept"))
        self.outcomes.update(outcomes)
        # All in one step, so that nobody who goes on later has to guess.
        deployments.decide(self.store, self.number, outcomes, stopped or None)
        report.stopped = stopped
        if stopped:
            self.context.reporter.noted("deploy", f"{stopped}: the old model goes back")
        self._take_back(going)
        self._leave(kept, kept)

    def _verdict(self, index: int, stage: Sequence[str], switched: Sequence[str]) -> str:
        """Return why this stage is the last, or nothing."""
        report, options = self.report, self.plan.options
        if self.context.cancelled():
            return "cancelled"
        failed = [n for n in stage if n in report.errors]
        if options.too_many(len(report.errors), len(failed), len(stage)):
            return (
                f"{len(failed)} of {len(stage)} devices failed in stage {index}, and at most "
                f"{options.max_failures} may"
            )
        found = [report.comparisons[n] for n in switched if n in report.comparisons]
        if switched and not found:
            return "the new model could not be shown to be faster: no device could be measured"
        if not switched:
            return "no device could be given the new model"
        # Each device against itself: a few devices of unlike clusters say little about a mean.
        if 2 * sum(one.verdict == "faster" for one in found) <= len(found):
            return "the new model was not measured faster"
        return ""

    def _put(self, todo: Sequence[str]) -> None:
        """Upload, check, switch, run the hook on every device; errors go to the report."""
        self._on_devices("push", todo, self.work.put, may_end=True, weight=0.8)

    def _prove(self, names: Sequence[str], blocks: int) -> None:
        """Time old and new side by side on every device that was switched."""
        if not names:
            return
        new, before = self.plan.model, self.plan.before
        bench = self.measuring.bench(blocks_min=blocks, blocks_max=blocks)
        found: dict[tuple[str, str], Latency] = {}
        for name in names:
            deployments.journal(self.store, self.number, name, "A/B measurement")
        visits = {name: [before[name], new] for name in names}
        for one in self.measuring.run("deploy", visits, bench):
            found[one.device, one.model] = one
        for name in names:
            old, now = found.get((name, before[name].digest)), found.get((name, new.digest))
            if old is None or now is None:
                continue  # cancelled
            failed = next((one for one in (old, now) if not one.ok), None)
            try:
                if failed is not None:
                    raise DeviceError(kind(failed.error), failed.detail)
                self._compared(name, (old, now))
            except (DeviceError, ValueError) as error:  # or time ran out after a single block
                self.report.errors[name] = (
                    error
                    if isinstance(error, DeviceError)
                    else DeviceError(ErrorKind.TIMEOUT, str(error))
                )
            self._journal_proof(name)

    def _journal_proof(self, name: str) -> None:
        error = self.report.errors.get(name)
        text = str(error) if error else self.report.comparisons[name].verdict
        deployments.journal(
            self.store, self.number, name, "A/B measurement", "failed" if error else "done", text
        )

    def _compared(self, name: str, pair: tuple[Latency, Latency]) -> None:
        self.report.comparisons[name] = compare(*pair, self.margin)
        self.report.latencies[name] = pair
        self._measured[name] = time.monotonic()

    # ------------------------------------------------------------------------- between two stages

    def _may_go_on(self, index: int) -> bool:
        """Pause, and look at the devices that were switched; say why it ends where it does."""
        kept = [n for n in self.plan.names if self.outcomes[n] == "kept"]
        stage = self.plan.stages[index - 1]
        if not self._rest(index, stage):
            return False
        errors: dict[str, DeviceError] = {}
        self._on_devices("check", kept, self.work.alive, errors=errors, may_end=True, weight=0.1)
        now = time.monotonic()
        old = [n for n in kept if n not in errors and now - self._measured.get(n, 0.0) > FRESH_S]
        old.sort(key=lambda n: self._measured.get(n, 0.0))
        sample = old[: self.section.recheck]
        report = self.report
        proven = dict(report.comparisons), dict(report.latencies)
        self._prove(sample, max(2, self.section.blocks // 2))
        slower = [n for n in sample if verdict_of(report, n) == "slower"]
        # The longer measurement stays the one that counts, unless it no longer holds.
        report.comparisons = proven[0] | {n: report.comparisons[n] for n in slower}
        report.latencies = proven[1] | {n: report.latencies[n] for n in slower}
        report.errors.update(errors)
        for name in (*errors, *sample):
            self._record(name)
        last = [n for n in self.plan.stages[index - 2] if n in kept]
        failed = [n for n in kept if n in self.report.errors]
        too_many = self.plan.options.too_many(len(self.report.errors), len(failed), len(kept))
        if too_many or 2 * len(slower) > len(sample):
            what = "fail" if too_many else "are slower now"
            named = ", ".join((failed if too_many else slower)[:5])
            why = f"before stage {index} devices that were switched {what}: {named}"
            self._take_back(last, why)
            return False
        return not self.context.cancelled()

    def _rest(self, index: int, stage: Sequence[str]) -> bool:
        """Wait as long as is asked for; return whether to go on."""
        options = self.plan.options
        until = time.monotonic() + options.pause_s
        if options.pause_s:
            self.context.reporter.noted(
                "deploy", f"stage {index} of {len(self.plan.stages)} in {options.pause_s:g} s"
            )
        while (left := until - time.monotonic()) > 0:
            if self.context.cancelled():
                return False
            time.sleep(min(0.2, left))
        if options.ask:
            self.context.reporter.noted("deploy", self.report.so_far(self.plan.stages[index - 2]))
            touched = [self.context.shown(name) for name in stage]
            question = f"Go on with stage {index} of {len(self.plan.stages)}?"
            if not self.context.confirm(question, touched):
                self.report.stopped = f"the operator ended it before stage {index}"
                deployments.decide(self.store, self.number, {}, self.report.stopped)
                return False
        return True

    # ------------------------------------------------------------------------- the way back

    def _take_back(self, names: Sequence[str], stopped: str | None = None) -> None:
        """Let devices run their old model again, and write it down, before and after."""
        if stopped is not None:
            self.report.stopped = stopped
        going: dict[str, Outcome] = dict.fromkeys(names, "going back")
        self.outcomes.update(going)
        deployments.decide(self.store, self.number, going, stopped)
        if not names:
            return
        errors: dict[str, DeviceError] = {}
        self._is_half_way = True
        done = self._on_devices("rollback", names, self.work.back, errors=errors)
        self._is_half_way = False
        for name in names:
            error = errors.get(name)
            if error is not None:
                self.report.errors.setdefault(name, error)
            if name in done or isinstance(error, HookError):
                self.outcomes[name] = "back"
                self.report.taken_back.append(name)
            self._record(name)
        for digest in {self.plan.before[n].digest for n in done}:
            own = [n for n in done if self.plan.before[n].digest == digest]
            settle(self.measuring, digest, own, "the previous model was put back")
        self._leave(names, ())

    def _leave(self, names: Sequence[str], kept: Sequence[str]) -> None:
        """Give devices free, and remove what none of them needs any more."""
        keep = {name: self._keep(name) for name in kept} if self.section.keep else {}

        def leave(connection: Connection) -> None:
            self.work.leave(connection, keep.get(connection.where))

        errors = self.report.errors
        # A device that took its old model back was reached, even where its hook ran out of time.
        gone = [n for n in names if n in errors and (errors[n].transient or errors[n].kept_out)]
        there = [n for n in names if n not in gone or self.outcomes[n] == "back"]
        self._on_devices("tidy", there, leave, errors={}, weight=0.1)

    def _let_all_go(self) -> None:
        """Give free what the process that was killed had locked and no longer came to give."""
        if self.work.taken_up:
            self._leave(self.plan.names, ())

    def _keep(self, device: str) -> tuple[str, ...]:
        named = [model.digest for model in self.measuring.models.values()]
        return (*deployments.releases(self.store, device, self.section.keep), *named)

    def _record(self, name: str) -> None:
        error = self.report.errors.get(name)
        pair = self.report.latencies.get(name)
        outcome = self.outcomes[name]
        deployments.record_device(
            self.store, self.number, name,
            switched=name in self.work.switching and outcome in ("", "kept"),
            comparison=self.report.comparisons.get(name),
            error=error.kind.value if error else "rolled back" if outcome == "back" else "",
            detail=str(error) if error else "",
            outcome=outcome or None,
            proof={"pair": [brief(one) for one in pair]} if pair else None,
        )  # fmt: skip

    def _finish(self) -> DeploymentRow:
        report, number = self.report, self.number
        pairs = list(report.latencies.values())
        report.result = compare_fleet(pairs, self.margin) if pairs else None
        if self._is_half_way:
            deployments.set_state(self.store, number, "interrupted")
            return deployments.row(self.store, number)
        row = deployments.row(self.store, number)
        state: DeploymentState = "finished"
        if not row.switched:
            state = "rolled back" if report.comparisons or report.taken_back else "failed"
        elif row.switched < row.devices or report.errors:
            state = "partly"
        running = [d.device for d in deployments.devices(self.store, number) if d.switched]
        settle(self.measuring, self.plan.model.digest, running, "a new model was deployed")
        report.row = deployments.finish(self.store, number, state, report.result)
        return report.row

    def _on_devices(
        self,
        step: str,
        names: Sequence[str],
        action: Callable[[Connection], None],
        *,
        errors: dict[str, DeviceError] | None = None,
        may_end: bool = False,
        weight: float = 0.3,
    ) -> list[str]:
        """Do something on devices at once; errors go to the report where no other is given."""
        found = self.report.errors if errors is None else errors
        return on_devices(
            self.measuring, self.work, step, names, action, found, may_end=may_end, weight=weight
        )
