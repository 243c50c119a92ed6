"""What may stand in `fleet.toml`: one class a section, one sentence under each key.

The sentences are the reference (`docs/fleet-toml.md` is made from them). A list in square brackets
inside a text is a pattern: ``edge-[01:12]`` stands for twelve names.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from engine.accelerator import processors

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Tag = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}$")]
Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
StageText = Annotated[
    str,
    Meta(
        pattern=r"^[1-9][0-9]{0,5}( ?%| per cluster)?$",
        description='"N per cluster", "N" or "N %"',
    ),
]
ClockText = Annotated[
    str,
    Meta(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", description='a time as "HH:MM"'),
]
Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
FailuresText = Annotated[str, Meta(pattern=r"^[0-9]{1,6}( ?%)?$", description='"N" or "N %"')]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common to all sections."""


class Fleet(Section, frozen=True):
    """The fleet as a whole."""

    name: Name = "fleet"
    """What the fleet is called, on the screen and in the default state folder."""
    state: str = ""
    """Folder for the database, jobs and known hosts, relative to this file; left out: a folder
    of the fleet's name in the user's state folder. The variable HDAP_STATE goes before it."""
    model: str = ""
    """Name of the model that the devices run at the start; left out: the first that is no probe."""
    read_only: bool = False
    """Whether every command that changes devices is refused."""


class Ssh(Section, frozen=True):
    """How devices are reached, unless a device says otherwise."""

    user: str = ""
    """Whom to log in as; left out: as the SSH configuration says, else the user who runs hdap."""
    port: Port | None = None
    """Port of the SSH server; left out: as the SSH configuration says, else 22."""
    identity: str = ""
    """Private key, relative to this file; left out: as the SSH configuration says, else the SSH
    agent and the usual keys."""
    certificate: str = ""
    """Certificate of the key, relative to this file; left out: KEY-cert.pub, where there is one."""
    proxy_jump: str = ""
    """Jump hosts on the way to the devices, each [user@]host[:port], several apart by commas; left
    out: as the SSH configuration says; "none": no jump host."""
    config: str = ""
    """SSH configuration that says how devices are reached where this file does not, relative to
    this file; left out: ~/.ssh/config and the system's; "none": no such file."""
    ask_password: bool = False
    """Whether hdap may ask for a password, once for the fleet, where keys are not enough."""
    password_command: str = ""
    """Command on this machine whose first line of output is the password; it finds the device in
    HDAP_DEVICE, HDAP_HOST and HDAP_USER."""
    known_hosts: str = ""
    """File of trusted host keys, relative to this file; left out: known_hosts in the state
    folder."""
    connect_timeout_s: Positive = 10.0
    """Seconds that connecting and logging in may take."""
    command_timeout_s: Positive = 60.0
    """Seconds that a short command or one step of a transfer may take."""
    parallel: Count = 64
    """How many devices are worked on at once."""
    handshakes: Count = 8
    """How many logins may be under way at one server at once; a jump host gets a single one for
    all devices behind it."""
    python: str = ""
    """Python on the devices (3.8 or newer, with numpy and onnxruntime); left out: the environment
    that "hdap devices provision" built, or else python3."""


class DeviceEntry(Section, frozen=True):
    """One device, or many by pattern; patterns in several keys go in step."""

    name: Text
    """Name, or a pattern such as "edge-[01:12]"; no two devices share one."""
    host: Text | None = None
    """Host name or address, or a pattern; left out: the name."""
    port: Port | Text | None = None
    """Port, or a pattern such as "221[01:12]"; left out: as in [ssh]."""
    user: Text | None = None
    """Whom to log in as, or a pattern; left out: as in [ssh]."""
    identity: Text | None = None
    """Private key, or a pattern; left out: as in [ssh]."""
    certificate: Text | None = None
    """Certificate of the key, or a pattern; left out: as in [ssh]."""
    proxy_jump: Text | None = None
    """Jump hosts on the way to it, or "none"; left out: as in [ssh]."""
    tags: tuple[Tag, ...] = ()
    """Words to select devices by, as in --select "tag=kitchen and not state=off"."""
    emulated: bool = False
    """Whether it belongs to the emulated lab and only pretends to be slower; a running lab says
    itself where it listens."""
    host_group: Name | None = None
    """The machine that it shares with other devices, named in [host_groups]."""
    python: Text | None = None
    """Python on the device; left out: as in [ssh]."""


class HostGroup(Section, frozen=True):
    """Devices that share one machine, and so would disturb each other's measurements."""

    cores: Count = 1
    """How many benchmarks may run on that machine at once."""


class ModelEntry(Section, frozen=True):
    """One ONNX model."""

    name: Name
    """What the model is called; no two models share a name."""
    path: Text
    """ONNX file, relative to this file, or one that comes along: "builtin:resnet20-digits",
    "builtin:compute", "builtin:bandwidth", "builtin:dispatch"."""
    probe: bool = False
    """Whether every sweep times it to tell devices apart."""


class Canary(Section, frozen=True):
    """The short round between two sweeps; what is left out is as in [benchmark]."""

    runs: Count | None = None
    """Timed inferences of a model in a block, at most."""
    warmup_runs: Whole | None = None
    """Inferences before the first that counts."""
    warmup_s: NotNegative | None = None
    """Seconds of warm-up at least."""
    block_s: NotNegative | None = None
    """Seconds that the timed inferences of a model in a block take, at most."""
    blocks_min: Count | None = 1
    """Blocks at least."""
    blocks_max: Count | None = 1
    """Blocks at most."""
    interval_percent: Positive | None = None
    """Stop once the median's 95 % interval is this narrow."""
    time_limit_s: Positive | None = None
    """Seconds that one device's round may take."""
    lease_s: Positive | None = None
    """Seconds beyond the expected time after which a device ends a round that nobody fetches."""
    cool_below_c: NotNegative | None = None
    """Wait until the processor is cooler than this, in °C; 0: do not wait."""
    idle_below: Share | None = None
    """Wait until others use less than this share of the CPU; 0: do not wait."""
    wait_limit_s: NotNegative | None = None
    """Seconds that a device may wait for that."""
    at_limit: Literal["measure", "skip"] | None = None
    """What to do when that time is over: measure and say so, or skip the device."""
    energy_s: NotNegative | None = 0.0
    """Seconds that each model runs for its energy where the device has a power sensor; 0: none."""


class Benchmark(Section, frozen=True):
    """How models are timed on a device: in blocks, each a fresh process."""

    batch: Count = 1
    """Images in one inference, where the model leaves that open."""
    threads: Count = 1
    """Threads of one inference."""
    provider: Text = "CPUExecutionProvider"
    """ONNX Runtime's execution provider."""
    runs: Count = 30
    """Timed inferences of a model in a block, at most."""
    warmup_runs: Whole = 10
    """Inferences before the first that counts."""
    warmup_s: NotNegative = 1.0
    """Seconds of warm-up at least."""
    block_s: NotNegative = 1.0
    """Seconds that the timed inferences of a model in a block take, at most."""
    blocks_min: Count = 5
    """Blocks before the stop rule may end the run."""
    blocks_max: Count = 20
    """Blocks at most."""
    interval_percent: Positive = 2.0
    """Stop once the median's 95 % interval reaches no further than this to either side."""
    time_limit_s: Positive = 300.0
    """Seconds that one device's run may take."""
    lease_s: Positive = 600.0
    """Seconds beyond the expected time after which a device ends a run that nobody fetches."""
    cool_below_c: NotNegative = 0.0
    """Wait until the processor is cooler than this, in °C; 0: do not wait."""
    idle_below: Share = 0.0
    """Wait until others use less than this share of the CPU; 0: do not wait."""
    wait_limit_s: NotNegative = 120.0
    """Seconds that a device may wait for that."""
    at_limit: Literal["measure", "skip"] = "measure"
    """What to do when that time is over: measure and say so, or skip the device."""
    energy_s: NotNegative = 6.0
    """Seconds that each model runs for its energy, and as long before it idle, where the device
    has a power sensor; 0: energy is not measured."""
    canary: Canary = Canary()


class Maintenance(Section, frozen=True):
    """Hours of the week in which the watcher leaves devices alone: it does not measure them, and
    tells no drift of them. Other commands go on."""

    start: ClockText
    """When it begins, by the clock of the time zone."""
    end: ClockText
    """When it ends; a time no later than `start` is one of the next day."""
    days: tuple[Day, ...] = ()
    """Days on which it begins; left out: every day."""
    timezone: str = ""
    """Time zone, such as "Europe/Berlin"; left out: that of the machine that watches."""
    select: str = ""
    """Which devices, as with --select; left out: all."""
    reason: str = ""
    """What to show beside it."""


class Watch(Section, frozen=True):
    """When the fleet is measured by itself."""

    sweep_every_s: Positive = 86400.0
    """Seconds between two full sweeps (all probes on every device), by the wall clock."""
    canary_every_s: Positive = 3600.0
    """Seconds between two canary rounds (only the deployed model, one short block)."""
    probe_channels: bool = True
    """Whether a sweep also finds the channel multiple of a device that was never probed, which
    takes about ten seconds; emulated devices are left out."""
    jitter: Share = 0.1
    """Share of the time between two rounds or sweeps by which each is moved to later at random."""
    resume_within_s: NotNegative = 3600.0
    """A sweep that was broken off is taken up where it began no longer ago than this: only devices
    that are missing are measured. An older one is left as it is, and a new one begins."""
    maintenance: tuple[Maintenance, ...] = ()


class Retention(Section, frozen=True):
    """How long measurements are kept as they are. Days are those on which something was measured.

    Alerts, deployments, rounds, facts and the newest measurement of each device and model are
    kept for ever.
    """

    full_days: Whole = 30
    """Days for which every measurement is kept in full, and every clustering; before them one row
    an hour and the last clustering of a day. 0: for ever."""
    hourly_days: Whole = 365
    """Days for which there is at least one row an hour; before them one row a day and the last
    clustering of a month. 0: for ever."""


class Clusters(Section, frozen=True):
    """Which devices count as alike."""

    eps_percent: NotNegative = 0.0
    """Devices within this many per cent are alike; 0: found from the measurements."""
    min_samples: Whole = 0
    """Devices that make a dense neighbourhood; 0: found from the size of the fleet."""


class Drift(Section, frozen=True):
    """When a latency counts as changed."""

    baseline: Annotated[int, Meta(ge=3)] = 60
    """Canary rounds from which a device's baseline is learned."""
    false_alerts_per_week: Positive = 1.0
    """How often chance may alarm, over the whole fleet. The heights of the charts follow from it,
    from the number of devices, the time between rounds and the noise that was learned."""
    k: NotNegative = 0.8
    """Slack of the CUSUM chart, in standard deviations; another than 0.8 needs h as well."""
    h: NotNegative = 0.0
    """Height at which the CUSUM chart alarms, in standard deviations; 0: found from the false
    alerts that are allowed."""
    jump_z: NotNegative = 0.0
    """Standard deviations from the baseline that count as a jump; 0: found likewise."""
    jump_consecutive: Count = 3
    """Rounds in a row that a jump must last."""
    effect_percent: NotNegative = 3.0
    """Smallest change that is worth an alert."""
    clear_percent: NotNegative = 2.0
    """An alert resolves once the latency is back within this of the baseline."""
    clear_consecutive: Count = 5
    """Rounds in a row that it must be back for."""
    sigma_floor: Positive = 0.005
    """Smallest standard deviation (of log latency) that is believed."""


class Webhook(Section, frozen=True):
    """Where notifications of alerts are posted to, as JSON; secrets never stand in this file."""

    url: str = ""
    """Address, http or https; left out: nothing is posted."""
    header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "Authorization"
    """Header that carries the secret, where there is one."""
    prefix: str = "Bearer "
    """What stands before the secret in that header."""
    secret_env: str = ""
    """Environment variable that holds the secret; left out: none."""
    secret_command: tuple[Text, ...] = ()
    """Command on this machine, word by word, whose first line of output is the secret."""
    timeout_s: Positive = 10.0
    """Seconds that one attempt may take, the answer included."""


class CommandHook(Section, frozen=True):
    """A command on this machine that gets each notification of alerts as JSON on its standard
    input."""

    argv: tuple[Text, ...] = ()
    """The command, word by word, without a shell; left out: none is run."""
    timeout_s: Positive = 30.0
    """Seconds that it may take; then it is ended with all that it started."""


class Alerts(Section, frozen=True):
    """Who is told of alerts. The watcher tells; what could not be told is tried again."""

    retry_s: Positive = 10.0
    """Seconds until a notification that failed is sent again; each time twice as many."""
    retry_most_s: Positive = 900.0
    """Seconds between two attempts at most."""
    give_up_h: Positive = 168.0
    """Hours after which a notification that nobody took is given up."""
    webhook: Webhook = Webhook()
    command: CommandHook = CommandHook()


class Policy(Section, frozen=True):
    """What follows from an alert of a cluster or the fleet, or from a latency that is too high;
    nothing is ever deployed by it."""

    mode: Literal["off", "suggest", "start"] = "suggest"
    """Nothing; a compression is suggested, and one key starts it; or it is started."""
    recipe: str = ""
    """Recipe of [recipes] that is carried out; left out: a search for the fleet."""
    minimum_percent: NotNegative = 5.0
    """Shift of a cluster or the fleet that is large enough, in per cent."""
    lasting_rounds: Count = 12
    """Canary rounds that it must have lasted."""
    objective_ms: NotNegative = 0.0
    """Latency of the deployed model that must be kept to, whatever has changed; 0: none."""
    objective: Literal["mean", "percentile-95"] = "mean"
    """Which latency of the fleet that is: the mean over its devices, or the one that 95 % of them
    stay within."""
    cooldown_h: NotNegative = 24.0
    """Hours after a compression before another one is suggested or started."""


class Finetune(Section, frozen=True):
    """How a pruned network is trained again."""

    epochs: Whole = 60
    """Passes over the training images."""
    lr: Positive = 0.01
    """Learning rate at the start."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of SGD."""
    batch: Count = 128
    """Images in a batch."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls."""
    bf16: bool = False
    """Train in bfloat16 where the processor has it: about twice as fast."""
    distill: Share = 0.0
    """Share of the loss that comes from the unpruned network as the teacher."""
    processes: Count = 1
    """Processes that train together and average their gradients, one a GPU where there are any
    (extra "gpu")."""
    threads: Whole = 0
    """Threads of the processor that each of them uses; 0: all cores, shared out among them."""


class Compression(Section, frozen=True):
    """How a smaller network for the fleet is searched."""

    network: Text = "resnet20"
    """The network: one that comes along (resnet20, resnet32, resnet44, resnet56, resnet8,
    resnet8-40, vgg16, mobilenetv1-cifar, convnext-pico-cifar, convnext-pico-timm-cifar,
    convnext-tiny-cifar, convnext-small-cifar for images of 32x32; mobilenetv1, convnext-tiny,
    convnext-small, convnext-tiny-timm, convnext-small-timm, resnet50 for 224x224), "timm:NAME",
    "package.module:function" for your own (beside this file or on Python's path), or an .onnx
    file, relative to this file."""
    weights: str = ""
    """Trained weights (safetensors, or .pth), relative to this file, or "builtin:resnet20-digits";
    empty: those that come along with resnet20, with an .onnx file or with your own function."""
    data: Text = "digits"
    """"digits" (comes along), CIFAR-10, a folder of pictures with a folder for each class, or an
    .npz of images, relative to this file."""
    classes: Annotated[int, Meta(ge=2)] = 10
    """Classes that the network tells apart."""
    maximum_drop: NotNegative = 2.0
    """Points of accuracy that the result may lose against the original network."""
    target_speedup: NotNegative = 0.0
    """Speed-up over the fleet, above 1, at which the search is content; 0: as fast as it gets."""
    target_latency_ms: NotNegative = 0.0
    """The same as a latency in milliseconds; 0: none."""
    constraint: Literal["accuracy", "latency", "both"] = "accuracy"
    """What must be kept to: the accuracy, and the result is as fast as that allows; the target, and
    the result is as accurate as that allows, whatever it loses; or both."""
    objective: Literal["mean", "percentile-95", "worst"] = "mean"
    """Which latency of the fleet counts: the mean over its devices, the one that 95 % of them stay
    within, or that of the slowest."""
    weighting: Literal["size", "plain"] = "size"
    """Whether a cluster counts by its devices, or every cluster alike."""
    per_cluster: Literal["auto", "never", "always"] = "auto"
    """Whether each cluster gets a network of its own; auto: where that is predicted to make the
    fleet faster by `per_cluster_gain`."""
    per_cluster_gain: NotNegative = 10.0
    """Per cent by which networks of their own must make the fleet faster."""
    samples: Annotated[int, Meta(ge=10)] = 60
    """Designs measured on every cluster's representative to learn its latency from."""
    sampling: Literal["guided", "uniform"] = "guided"
    """How they are chosen: where the search goes and near its best designs, or uniformly over all
    designs as in HDAP's paper, which takes thousands."""
    optimiser: Literal["ncs", "phc", "random", "cma", "de", "nsga2", "ncs-authors", "de-pymoo"] = (
        "de"
    )
    """What proposes candidates: differential evolution, the Negatively Correlated Search of HDAP's
    paper (ncs), or one to compare them with (cma, nsga2 and de-pymoo need the extra "peers")."""
    evaluations: Count = 1000
    """Candidates that one search may score."""
    population: Whole = 0
    """Candidates that the optimiser proposes at once; 0: what suits it."""
    outer_iterations: Count = 10
    """Rounds of search, prune and fine-tune at most."""
    accuracy_images: Annotated[int, Meta(ge=2)] = 512
    """Images that a candidate's accuracy is estimated on."""
    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of its accuracy that a candidate must keep before fine-tuning."""
    penalty: Literal["replace", "add"] = "replace"
    """What becomes of a candidate that does not: its loss replaces its latency, and it is worse
    than all that do; or is added to it, so that a fast one may miss a little."""
    max_extra_pruning: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Largest share of a group's channels that one round removes."""
    channel_multiple: Whole = 0
    """Kept channels are always rounded up to it; 0: design by design, where that is faster, up to
    the devices' own multiple, which `hdap devices probe` finds (8 where none was probed)."""
    finalists: Whole = 3
    """Best designs that are measured during and after each search, where the fastest wins."""
    surrogate: Literal["auto", "gbrt", "gp", "ridge"] = "auto"
    """What predicts latency: gradient boosting, a Gaussian process, ridge regression, or
    whichever of them predicts each cluster best."""
    quantize: Literal["auto", "never", "always"] = "auto"
    """Whether the result becomes int8; auto: where the devices' own measurements say it pays."""
    seed: Whole = 0
    """Seed of everything random."""
    threads: Whole = 0
    """Candidates scored at once on this machine; 0: one a core."""
    executor: Literal["processes", "threads", "dask"] = "processes"
    """Where candidates are scored: processes or threads of this machine, or the workers of a dask
    cluster (extra "cluster")."""
    scheduler: str = ""
    """Address of the dask cluster's scheduler, such as "tcp://10.0.0.1:8786"."""
    finetune: Finetune = Finetune()

    def with_threads(self) -> Compression:
        """Return the settings with what 0 threads stand for here: a job resumes with the same."""
        cores, tuning = processors(), self.finetune
        threads = tuning.threads or max(1, cores // tuning.processes)
        return replace(
            self,
            threads=self.threads or cores,
            finetune=replace(tuning, threads=threads),
        )


class RecipeStep(Section, frozen=True):
    """One step of a recipe; a method takes only the keys that say so."""

    method: Literal[
        "search", "uniform", "dhspg", "hesso", "unstructured", "finetune", "dynamic", "static",
        "precision",
    ]  # fmt: skip
    """What is done: "search" prunes channels for the fleet, as [compression] says; "uniform" prunes
    every layer alike; "dhspg" and "hesso" train to structured sparsity; "unstructured" zeroes
    single weights, which makes nothing faster; "finetune" trains; "dynamic" and "static" quantize
    to int8; "precision" learns a precision for each layer. Nothing comes after a quantization."""
    kept: Share | None = None
    """uniform, dhspg, hesso: share of the channels that stay; unstructured: of the weights."""
    multiple: Count | None = None
    """uniform, dhspg, hesso: kept channels are rounded up to a multiple of it; left out: 1."""
    measure: Literal["l1", "l2", "random"] | None = None
    """uniform, unstructured: what tells which go; left out: "l1", those of the smallest sum of
    absolute weights. "l2" is for uniform alone, "random" for unstructured alone."""
    scope: Literal["layer", "global"] | None = None
    """unstructured: whether every layer loses the same share (what holds where it is left out), or
    all layers together do."""
    epochs: Count | None = None
    """finetune, dhspg, hesso: passes over the training images; left out: as in
    [compression.finetune], whose other keys hold here too."""
    lr: Positive | None = None
    """finetune, dhspg, hesso: learning rate at the start; left out: as for fine-tuning."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """finetune, dhspg, hesso: what takes the steps; left out: "sgd"."""
    maximum_drop: NotNegative | None = None
    """static: points of accuracy that quantization may lose; layers that cost more stay in float.
    Left out: all layers are quantized. precision: what lies beyond it counts as failed; left out:
    1."""
    calibration: Literal["minmax", "entropy", "percentile"] | None = None
    """static, precision: how the ranges follow from the calibration images; left out: "minmax"."""
    operators: tuple[Literal["MatMul", "Gemm", "Conv"], ...] | None = None
    """dynamic: whose weights are quantized; left out: MatMul and Gemm. Convolutions get slower."""
    precisions: tuple[Literal["fp32", "int8", "int4"], ...] | None = None
    """precision: what a layer may have, fp32 and at least one other; left out: fp32 and int8. int4
    saves bytes, and no time."""
    rounds: Count | None = None
    """precision: rounds of proposals; left out: 12."""
    take: Literal["faster", "always"] | None = None
    """dynamic, static, precision: whether the quantized network is taken by those clusters only
    whose devices measured it as faster (what holds where it is left out), or by all."""


class Recipe(Section, frozen=True):
    """A compression step by step, for `hdap compress --recipe NAME`; network, weights, data and
    seed are those of [compression]."""

    maximum_bytes: Whole = 0
    """Size of the ONNX file that must be met; 0: any."""
    steps: tuple[RecipeStep, ...] = ()
    """What is done, in this order."""


class Deploy(Section, frozen=True):
    """How a new model goes out and is proven."""

    stages: tuple[StageText, ...] = ("1 per cluster", "5 %", "25 %", "100 %")
    """How far each stage reaches, the devices of the stages before it included: "N per cluster",
    a number of devices, or "N %" of them; after the last of these come all that are left."""
    pause_s: NotNegative = 0.0
    """Seconds between two stages."""
    recheck: Whole = 3
    """Devices that are measured once more before the next stage, unless they just were."""
    max_failures: FailuresText = "20 %"
    """The most devices that may fail: a number in the whole deployment, or "N %" (rounded up) in
    each stage; beyond that the stage gets the old model back, and is the last."""
    self_test: bool = True
    """Whether a device must compute the same as this machine, within what its arithmetic allows,
    before it runs the model."""
    hook: str = ""
    """Command that a device runs after each switch and each roll-back, as "systemctl --user
    restart inference"; it knows HDAP_MODEL, HDAP_DIGEST and HDAP_ACTION (deploy or rollback)."""
    health: str = ""
    """Command that must succeed on a device after the hook; it is tried again each second."""
    hook_timeout_s: Positive = 30.0
    """Seconds that the hook may take, and the time until the health command must succeed."""
    keep: Whole = 3
    """Releases that stay on a device, the present and the previous among them; 0: all."""
    blocks: Annotated[int, Meta(ge=2)] = 8
    """Blocks in which old and new are timed side by side on every device."""
    margin_percent: NotNegative = 2.0
    """Smallest speed-up that counts."""


class Lab(Section, frozen=True):
    """The emulated lab's own make-up; of no meaning for a real fleet."""

    devices: Annotated[int, Meta(ge=1, le=1000)] = 12
    """How many devices `hdap lab up` starts."""
    base_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port of the first, the others follow; 0: free ones, the same each time where possible."""
    seed: Whole = 7
    """Seed of speed profiles and noise."""
    drift_after_s: NotNegative = 90.0
    """Seconds after which one device becomes slower; 0: none does."""
    drift_percent: NotNegative = 25.0
    """By how much."""


DEFAULT_MODELS = (
    ModelEntry(name="resnet20-digits", path="builtin:resnet20-digits"),
    ModelEntry(name="compute", path="builtin:compute", probe=True),
    ModelEntry(name="bandwidth", path="builtin:bandwidth", probe=True),
    ModelEntry(name="dispatch", path="builtin:dispatch", probe=True),
)


class File(Section, frozen=True):
    """The whole file; a section that is left out has its defaults."""

    fleet: Fleet = Fleet()
    ssh: Ssh = Ssh()
    devices: tuple[DeviceEntry, ...] = ()
    host_groups: dict[Name, HostGroup] = {}
    models: tuple[ModelEntry, ...] = DEFAULT_MODELS
    benchmark: Benchmark = Benchmark()
    watch: Watch = Watch()
    retention: Retention = Retention()
    clusters: Clusters = Clusters()
    drift: Drift = Drift()
    alerts: Alerts = Alerts()
    policy: Policy = Policy()
    compression: Compression = Compression()
    recipes: dict[Name, Recipe] = {}
    deploy: Deploy = Deploy()
    lab: Lab = Lab()
