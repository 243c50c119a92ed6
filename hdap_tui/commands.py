"""The one registry of commands.

The keys of the dashboard, its ``:`` prompt, palette and help, and the whole command line come
from this table, so that what one can do the other can. It holds data only: what a command runs
is imported when it runs.
"""

from __future__ import annotations

import importlib
import keyword
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    from hdap_tui.context import Context, Outcome

Kind = Literal["text", "integer", "number", "flag", "path", "choice"]
Subject = Literal[
    "", "devices", "device", "alert", "matter", "silence", "decision", "job", "model", "deployment"
]
"""Matter: what an alert is about, as a selector."""
View = Literal[
    "", "fleet", "map", "alerts", "jobs", "models", "compare", "deployments", "device", "job",
    "help",
]  # fmt: skip


class Runner(Protocol):
    """What a command's `run` names."""

    def __call__(self, context: Context, **arguments: Any) -> Outcome:
        """Do it."""
        ...


@dataclass(frozen=True)
class Parameter:
    """One argument or option."""

    name: str
    help: str
    kind: Kind = "text"
    positional: bool = False
    required: bool = False
    multiple: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()

    @property
    def argument(self) -> str:
        """What its function calls it: Python keeps words such as "for" to itself."""
        name = self.name.replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) else name


@dataclass(frozen=True)
class Command:
    """One thing that can be done with a fleet."""

    name: str
    """The verb on the command line and at the prompt: "devices trust"."""
    help: str
    """One sentence."""
    key: str
    """The key in the dashboard, in Textual's notation."""
    run: str
    """Where its function is: "package.module:function"."""
    parameters: tuple[Parameter, ...] = ()
    subject: Subject = ""
    """What the dashboard passes from the selection, as the first positional parameter, or as
    `select` for "devices"."""
    view: View = ""
    """The screen that shows the same facts; the key opens it instead of running the command."""
    dangerous: bool = False
    """Changes devices or discards something: it asks first, and is gone in read-only mode."""
    long: bool = False
    """Takes more than a moment: reports its progress, and runs in the background of the
    dashboard."""

    def load(self) -> Runner:
        """Import what the command runs."""
        module, _, function = self.run.partition(":")
        return cast("Runner", getattr(importlib.import_module(module), function))


SELECT = Parameter(
    "select", 'Devices: names, patterns, "tag=orin and not state=off"; all where left out.'
)
_ALERT = Parameter("alert", "Number of the alert.", kind="integer", positional=True, required=True)
_JOB = Parameter("job", "Name of the job; the latest where left out.", positional=True)
_DEPLOYMENT = Parameter(
    "deployment", "Number of the deployment; the latest where left out.", kind="integer",
    positional=True,
)  # fmt: skip
_DECISION = Parameter(
    "decision", "Number of the decision; the latest where left out.", kind="integer",
    positional=True,
)  # fmt: skip
_MODEL = Parameter("model", "Name or digest of the model.", positional=True, required=True)
_DEVICE = Parameter("device", "Name of the device.", positional=True, required=True)
_YES = Parameter("yes", "Do not ask.", kind="flag")
_DETACH = Parameter("detach", "Start it and return at once.", kind="flag")
_AT = Parameter(
    "at", 'As it was then: 2026-11-28T10:00, "2 hours ago", -2h, yesterday; local time.'
)
_INPUT = Parameter("input", "Read this CSV table in place of the fleet.", kind="path")


def _action(name: str) -> str:
    return f"hdap_tui.actions.{name}"


COMMANDS: tuple[Command, ...] = (
    Command(
        "devices list",
        "Show the fleet: state, latency, cluster and drift of every device.",
        "1",
        _action("devices:list_devices"),
        (SELECT, Parameter("columns", "What to show, apart by commas: state,board,kernel."), _AT),
        view="fleet",
    ),
    Command(
        "devices show",
        "Show one device: its facts and the history of its latency.",
        "enter",
        _action("devices:show"),
        (_DEVICE, Parameter("limit", "How many measurements.", kind="integer", default=50), _AT),
        subject="device",
        view="device",
    ),
    Command(
        "devices import",
        "Add devices to the settings from ~/.ssh/config, an Ansible inventory or a CSV table.",
        "I",
        _action("inventory:import_devices"),
        (
            Parameter(
                "source",
                "The file; - is the standard input.",
                kind="path",
                positional=True,
                required=True,
            ),
            Parameter(
                "format",
                "What it is; found from the content where left out.",
                kind="choice",
                choices=("ssh-config", "ansible", "csv"),
            ),
            Parameter("only", "Take only these hosts: names, patterns, tag=…, as with --select."),
            Parameter("tag", "Tags to add to each, apart by commas."),
            Parameter("dry-run", "Only say what would be added.", kind="flag"),
            _YES,
        ),
    ),
    Command(
        "devices check",
        "Connect to the devices and say what each has, or why it cannot be reached.",
        "c",
        _action("reaching:check"),
        (SELECT,),
        subject="devices",
        long=True,
    ),
    Command(
        "devices trust",
        "Show the fingerprints of unknown or changed host keys, and accept them if you say so.",
        "T",
        _action("reaching:trust"),
        (
            SELECT,
            Parameter(
                "same-device",
                "A device with a changed key is the same one set up anew, and keeps its history.",
                kind="flag",
            ),
            _YES,
        ),
        subject="devices",
        dangerous=True,
        long=True,
    ),
    Command(
        "devices rename",
        "Give what was recorded of a device to the name that the settings have for it now.",
        "f12",
        _action("devices:rename"),
        (
            Parameter("old", "The name that it had.", positional=True, required=True),
            Parameter("new", "Its name in the settings.", positional=True, required=True),
            _YES,
        ),
        dangerous=True,
    ),
    Command(
        "devices facts",
        "Show what the devices are (board, processor, system, runtime), or how that changed.",
        "f",
        _action("facts:facts"),
        (
            SELECT,
            Parameter("columns", "Facts to show, apart by commas: board,isa,kernel."),
            Parameter("history", "Show when a fact changed, and how.", kind="flag"),
            Parameter("refresh", "Ask the devices anew.", kind="flag"),
        ),
        subject="devices",
        long=True,
    ),
    Command(
        "devices probe",
        "Find the channel multiple at which the devices' convolutions run fastest.",
        "k",
        _action("facts:probe"),
        (SELECT,),
        subject="devices",
        long=True,
    ),
    Command(
        "devices cohorts",
        "Count the devices that share some facts, with their measured latency.",
        "h",
        _action("facts:cohorts"),
        (
            Parameter("by", "Facts that make a cohort, apart by commas.", default="board,os"),
            SELECT,
        ),
    ),
    Command(
        "devices provision",
        "Build a Python environment with ONNX Runtime on the devices that lack one; they need no"
        " internet.",
        "O",
        _action("provisioning:provision"),
        (
            SELECT,
            Parameter("wheels", "Take the wheels from this folder, not from PyPI.", kind="path"),
            Parameter("onnxruntime", "Version of ONNX Runtime; this machine's where left out."),
            Parameter("python", "Interpreter on the devices; the newest fit where left out."),
            Parameter(
                "dry-run", "Only say what would be done (wheels may be downloaded).", kind="flag"
            ),
            Parameter("undo", "Remove the environments and the wheels.", kind="flag"),
            _YES,
        ),
        subject="devices",
        dangerous=True,
        long=True,
    ),
    Command(
        "bench",
        "Time ONNX models on the devices, interleaved, each block in a fresh process.",
        "b",
        _action("bench:bench"),
        (
            Parameter(
                "models",
                "Names of models, or ONNX files; the deployed model where left out.",
                positional=True,
                multiple=True,
            ),
            SELECT,
            Parameter("batch", "Images in one inference; a list such as 1,4,8 times each."),
            Parameter("threads", "Threads of one inference; a list such as 1,2,4 times each."),
            Parameter("provider", "Execution providers, such as CUDA; a list times each."),
            Parameter("compare", "Compare the models with the first, block by block.", kind="flag"),
            Parameter("cool-below", "Wait until it is cooler than so many °C.", kind="number"),
            Parameter(
                "idle-below",
                "Wait until others use less than this share of the CPU.",
                kind="number",
            ),
            Parameter("wait-limit", "Seconds that a device may wait for that.", kind="number"),
            Parameter(
                "at-limit",
                "When that is over: measure and say so, or skip the device.",
                kind="choice",
                choices=("measure", "skip"),
            ),
            Parameter(
                "energy", "Seconds that each model runs for its energy; 0: none.", kind="number"
            ),
        ),
        subject="devices",
        long=True,
    ),
    Command(
        "try",
        "Show test images to a model on the devices: accuracy, latency and energy there.",
        "e",
        _action("trying:try_model"),
        (
            Parameter(
                "model",
                "Name or digest of the model, or an ONNX file.",
                positional=True,
                required=True,
            ),
            Parameter(
                "images",
                "digits, CIFAR-10, a folder of pictures or an .npz; what compression.data names"
                " where left out. Its test images alone are shown.",
            ),
            SELECT,
            Parameter("limit", "Images at most; 2000 where left out.", kind="integer"),
            Parameter(
                "time-limit",
                "Seconds that a device may take; 1800 where left out.",
                kind="number",
            ),
        ),
        subject="model",
        long=True,
    ),
    Command(
        "sweep",
        "Measure all probe models and the deployed one on every device, then cluster the fleet.",
        "s",
        _action("watching:sweep"),
        (
            SELECT,
            Parameter(
                "estimate",
                "Time only the deployed model, on so few devices as tell its mean to this ± %.",
                kind="number",
            ),
        ),
        long=True,
    ),
    Command(
        "watch",
        "Sweep on a schedule, with canary rounds between the sweeps, and raise alerts.",
        "w",
        _action("watching:watch"),
        (
            Parameter("rounds", "Stop after this many canary rounds.", kind="integer"),
            Parameter("until-alert", "Stop at the first alert.", kind="flag"),
        ),
        long=True,
    ),
    Command(
        "watch pause",
        "Have the watcher leave devices alone for a while; other commands still reach them.",
        "f7",
        _action("pausing:pause"),
        (
            replace(SELECT, positional=True),
            Parameter("for", "How long: 45m, 2h, 1h30m, 2d.", default="1h"),
            Parameter("reason", "What to show beside it."),
        ),
    ),
    Command(
        "watch resume",
        "End pauses of the watcher, all or those of some devices.",
        "f8",
        _action("pausing:resume"),
        (replace(SELECT, positional=True),),
    ),
    Command(
        "watch status",
        "Show who watches the fleet, what is done now and next, and who is left alone.",
        "f9",
        _action("pausing:status"),
    ),
    Command(
        "clusters",
        "Show which devices behave alike (DBSCAN), of the fleet or of a table.",
        "2",
        _action("clusters:clusters"),
        (
            _INPUT,
            Parameter("eps-percent", "Devices within this many per cent are alike.", kind="number"),
            Parameter("min-samples", "Devices that make a dense neighbourhood.", kind="integer"),
            Parameter("facts", "Columns of the table that tell what a device is: os,board."),
            Parameter("assign", "Say where the devices of this table belong, too.", kind="path"),
            Parameter(
                "anew", "Do not wait until rounds agree: cluster the newest latencies.", kind="flag"
            ),
            _AT,
        ),
        view="map",
    ),
    Command(
        "estimate",
        "Estimate the fleet's mean latency from those measured last, or a table's from its rows.",
        "M",
        _action("estimate:estimate"),
        (
            _INPUT,
            Parameter(
                "within",
                "Say how many devices must be measured for an interval of ± so many per cent.",
                kind="number",
            ),
        ),
    ),
    Command(
        "drift",
        "Show how far each device has drifted from its baseline, or the changes in a table.",
        "D",
        _action("clusters:drift"),
        (
            _INPUT,
            Parameter("fleet", "Watch the table's devices as one fleet.", kind="flag"),
        ),
    ),
    Command(
        "alerts list",
        "Show the alerts.",
        "3",
        _action("alerts:list_alerts"),
        (Parameter("all", "Those that a wider alert stands for, too.", kind="flag"), _AT),
        view="alerts",
    ),
    Command(
        "alerts show",
        "Show one alert and its whole history.",
        "i",
        _action("alerts:show"),
        (_ALERT,),
        subject="alert",
    ),
    Command(
        "alerts explain",
        "Say in words what an alert says, against what, since when, how surely, and what else"
        " changed.",
        "d",
        _action("alerts:explain"),
        (_ALERT,),
        subject="alert",
    ),
    Command(
        "alerts acknowledge",
        "Say that somebody looks after an alert.",
        "a",
        _action("alerts:acknowledge"),
        (_ALERT, Parameter("reason", "What to write beside it.")),
        subject="alert",
    ),
    Command(
        "alerts accept",
        "Take the present latency as the new baseline, which resolves the alert.",
        "A",
        _action("alerts:accept"),
        (_ALERT, Parameter("reason", "What to write beside it."), _YES),
        subject="alert",
        dangerous=True,
    ),
    Command(
        "alerts silence",
        "Tell nobody of some alerts for a while; they are recorded and shown all the same.",
        "l",
        _action("silences:silence"),
        (
            Parameter(
                "selector",
                'Alerts: subjects, patterns, "kind=spread", "scope=fleet", "tag=hall-a"; * is all.',
                positional=True,
                required=True,
            ),
            Parameter("for", "How long: 30m, 2h, 1d.", required=True),
            Parameter("reason", "Why, for whoever asks later.", required=True),
        ),
        subject="matter",
    ),
    Command(
        "alerts silences",
        "Show the silences that are on, and the latest that are over.",
        "H",
        _action("silences:list_silences"),
    ),
    Command(
        "alerts unsilence",
        "End a silence before its time.",
        "Q",
        _action("silences:end_silence"),
        (
            Parameter(
                "silence",
                "Number of the silence; the only one where left out.",
                kind="integer",
                positional=True,
            ),
        ),
        subject="silence",
    ),
    Command(
        "alerts export",
        "Print the alerts for another program.",
        "f2",
        _action("alerts:export"),
        (
            Parameter(
                "alertmanager",
                "As the array that Alertmanager takes (POST /api/v2/alerts); so far the only way.",
                kind="flag",
            ),
        ),
    ),
    Command(
        "alerts notifications",
        "Show what was sent to the webhook and the command, and what waits.",
        "9",
        _action("notifications:list_notifications"),
    ),
    Command(
        "alerts test-notification",
        "Send a trial to the webhook and the command of the settings.",
        "7",
        _action("notifications:test_notification"),
        long=True,
    ),
    Command(
        "policy check",
        "Say what would follow now from alerts and latencies, and what is missing; do nothing.",
        "f3",
        _action("policy:check"),
    ),
    Command(
        "policy log",
        "Show what the policy decided, why, and what became of it.",
        "f4",
        _action("policy:log"),
        (Parameter("decision", "Number; all where left out.", kind="integer", positional=True),),
    ),
    Command(
        "policy start",
        "Start the compression that was suggested, as a job in the background.",
        "f6",
        _action("policy:start"),
        (_DECISION,),
        subject="decision",
        long=True,
    ),
    Command(
        "policy undo",
        "Withdraw a suggestion, or cancel the job that it started.",
        "f5",
        _action("policy:undo"),
        (_DECISION,),
        subject="decision",
    ),
    Command(
        "compress",
        "Start a job that makes a smaller network for the fleet as it is now.",
        "r",
        _action("compress:compress"),
        (
            Parameter(
                "recipe", "Steps of the settings' [recipes]; a search for the fleet where left out."
            ),
            Parameter("data", "digits, CIFAR-10, a folder of pictures or an .npz."),
            Parameter("weights", "Weights to start from (safetensors or .pth).", kind="path"),
            Parameter(
                "network", "resnet20, vgg16, …, timm:NAME, package.module:function or an .onnx."
            ),
            Parameter("evaluations", "Candidates that the search may score.", kind="integer"),
            Parameter("epochs", "Epochs of fine-tuning.", kind="integer"),
            Parameter("seed", "Seed of everything random.", kind="integer"),
            Parameter("maximum-drop", "Points of accuracy that may be lost.", kind="number"),
            Parameter("target-speedup", "Speed-up over the fleet to reach.", kind="number"),
            Parameter("target-latency-ms", "The same as a latency.", kind="number"),
            Parameter(
                "constraint",
                "What must be kept to.",
                kind="choice",
                choices=("accuracy", "latency", "both"),
            ),
            Parameter(
                "objective",
                "Which latency of the fleet counts.",
                kind="choice",
                choices=("mean", "percentile-95", "worst"),
            ),
            Parameter(
                "per-cluster",
                "Whether each cluster gets a network of its own.",
                kind="choice",
                choices=("auto", "never", "always"),
            ),
            _DETACH,
        ),
        long=True,
    ),
    Command(
        "quantize",
        "Start a job that makes an int8 version of a model for the clusters that run it faster.",
        "8",
        _action("quantize:quantize"),
        (
            Parameter(
                "model",
                "Name or digest of the model; the one in use where left out.",
                positional=True,
            ),
            Parameter("data", "digits, CIFAR-10, a folder of pictures or an .npz."),
            Parameter(
                "method",
                "static (usual): ranges from images, for convolutions; dynamic: for MatMul alone.",
                kind="choice",
                choices=("static", "dynamic"),
            ),
            Parameter(
                "maximum-drop",
                "Points of accuracy that static may lose; layers that cost more stay in float.",
                kind="number",
            ),
            Parameter(
                "calibration",
                "How the ranges follow from the images.",
                kind="choice",
                choices=("minmax", "entropy", "percentile"),
            ),
            Parameter("always", "Take it for all clusters, faster or not.", kind="flag"),
            Parameter(
                "explain",
                "Say why each cluster gets what it gets, from what was measured last time.",
                kind="flag",
            ),
            _DETACH,
        ),
        subject="model",
        long=True,
    ),
    Command("jobs list", "Show the jobs.", "4", _action("jobs:list_jobs"), view="jobs"),
    Command(
        "jobs show",
        "Show one job: its steps, curves and log.",
        "j",
        _action("jobs:show"),
        (_JOB,),
        subject="job",
        view="job",
    ),
    Command(
        "jobs follow",
        "Follow a job until it ends.",
        "F",
        _action("jobs:follow"),
        (_JOB,),
        subject="job",
        long=True,
    ),
    Command(
        "jobs cancel",
        "Stop a job; what it has measured and trained stays.",
        "x",
        _action("jobs:cancel"),
        (_JOB, _YES),
        subject="job",
        dangerous=True,
    ),
    Command(
        "jobs resume",
        "Go on with a job that was stopped, killed or failed, from its last checkpoint.",
        "u",
        _action("jobs:resume"),
        (_JOB, _DETACH),
        subject="job",
        long=True,
    ),
    Command(
        "jobs repeat",
        "Do a job once more from what was measured then; it ends in the same model.",
        "J",
        _action("jobs:repeat"),
        (_JOB, _DETACH),
        subject="job",
        long=True,
    ),
    Command("models list", "Show the models.", "5", _action("models:list_models"), view="models"),
    Command(
        "models show",
        "Show one model: its lineage, and what was measured when it was made.",
        "o",
        _action("models:show"),
        (_MODEL,),
        subject="model",
    ),
    Command(
        "models compare",
        "Show models side by side: accuracy, size, latency, energy, and which no other beats.",
        "V",
        _action("profiles:compare"),
        (
            Parameter(
                "models",
                "Names or digests of models, or ONNX files; all but the probes where left out.",
                positional=True,
                multiple=True,
            ),
            Parameter(
                "data",
                "Images to find accuracies out that are not known: digits, CIFAR-10, a folder of"
                " pictures or an .npz.",
            ),
            Parameter(
                "device",
                "Whose latencies to show; where left out, the device that measured most of them.",
            ),
            Parameter("markdown", "Print the table in Markdown.", kind="flag"),
        ),
        view="compare",
        long=True,
    ),
    Command(
        "deploy",
        "Put a model on the devices, then prove on them that it is faster.",
        "p",
        _action("deploying:deploy"),
        (
            Parameter(
                "model",
                "Name or digest of the model; the latest artifact where left out.",
                positional=True,
            ),
            SELECT,
            Parameter("stages", 'How far each stage reaches: "1 per cluster, 10 %, 100 %".'),
            Parameter("pause", 'Seconds between two stages, or "ask".'),
            Parameter("max-failures", 'The most devices that may fail: "2", or "20 %" of a stage.'),
            Parameter("dry-run", "Only say what would be done.", kind="flag"),
            Parameter("resume", "Go on with what was interrupted: [NUMBER].", kind="flag"),
            Parameter("abort", "Take back what was interrupted: [NUMBER].", kind="flag"),
            _YES,
        ),
        subject="model",
        dangerous=True,
        long=True,
    ),
    Command(
        "deployments list",
        "Show the deployments.",
        "6",
        _action("deployments:list_deployments"),
        (Parameter("limit", "How many.", kind="integer", default=20),),
        view="deployments",
    ),
    Command(
        "deployments show",
        "Show one deployment: its stages, and what was done on every device.",
        "P",
        _action("deployments:show"),
        (
            _DEPLOYMENT,
            Parameter("steps", "Every step of every device.", kind="flag"),
        ),
        subject="deployment",
    ),
    Command(
        "deployments check",
        "Ask the devices what they run, and correct what is recorded where it is wrong.",
        "W",
        _action("deployments:check"),
        (SELECT,),
        subject="devices",
        long=True,
    ),
    Command(
        "deployments resume",
        "Go on with the deployment that was interrupted.",
        "R",
        _action("deploying:resume_deployment"),
        (_DEPLOYMENT, _YES),
        subject="deployment",
        dangerous=True,
        long=True,
    ),
    Command(
        "deployments abort",
        "Take the deployment that was interrupted back, on all of its devices.",
        "Z",
        _action("deploying:abort_deployment"),
        (_DEPLOYMENT, _YES),
        subject="deployment",
        dangerous=True,
        long=True,
    ),
    Command(
        "rollback",
        "Put the previous model back on the devices.",
        "B",
        _action("deploying:rollback"),
        (SELECT, _YES),
        dangerous=True,
        long=True,
    ),
    Command(
        "lab up",
        "Start the emulated lab: real SSH servers on this machine whose devices are made slower.",
        "U",
        _action("lab:up"),
        (
            Parameter("devices", "How many.", kind="integer"),
            Parameter("foreground", "Stay until interrupted.", kind="flag"),
        ),
    ),
    Command(
        "lab down", "Stop the emulated lab.", "K", _action("lab:down"), (_YES,), dangerous=True
    ),
    Command("lab status", "Show the emulated lab.", "L", _action("lab:status")),
    Command(
        "lab fault",
        "Make an emulated device fail in a chosen way, or mend it.",
        "X",
        _action("lab:fault"),
        (
            _DEVICE,
            Parameter(
                "kind",
                "How it fails; none mends it.",
                kind="choice",
                positional=True,
                required=True,
                choices=(
                    "none",
                    "refuse",
                    "hang",
                    "hang-after-auth",
                    "drop",
                    "full-disk",
                    "garbage",
                    "host-key-changed",
                    "slow",
                ),
            ),
        ),
        subject="device",
        dangerous=True,
    ),
    Command(
        "lab drift",
        "Make an emulated device slower from now on.",
        "S",
        _action("lab:drift"),
        (
            _DEVICE,
            Parameter("percent", "By how much.", kind="number", positional=True, default=25.0),
        ),
        subject="device",
        dangerous=True,
    ),
    Command(
        "config show",
        "Show the settings in force, and the file they come from.",
        "g",
        _action("config:show"),
    ),
    Command("config check", "Check the settings file.", "G", _action("config:check")),
    Command(
        "backup",
        "Put the database, known hosts, models and jobs into one file, while anything goes on.",
        "y",
        _action("backup:backup"),
        (
            Parameter(
                "file",
                "The .tar.gz to write, or a folder for it; this folder where left out.",
                kind="path",
                positional=True,
            ),
        ),
        long=True,
    ),
    Command(
        "compact",
        "Roll old measurements up to one row an hour, then a day, as [retention] in the settings"
        " says; the watcher does it by itself.",
        "f10",
        _action("retention:compact"),
        (Parameter("dry-run", "Only say what would become what.", kind="flag"),),
        long=True,
    ),
    Command(
        "doctor",
        "Check this machine, the settings, the database and the terminal.",
        "Y",
        _action("doctor:doctor"),
    ),
    Command(
        "demo",
        "Run the whole job on a fresh emulated lab, from the first sweep to the proof: a report.",
        "E",
        _action("demo:demo"),
        (Parameter("devices", "How many emulated devices.", kind="integer", default=12),),
        long=True,
    ),
)

BY_NAME: dict[str, Command] = {command.name: command for command in COMMANDS}
