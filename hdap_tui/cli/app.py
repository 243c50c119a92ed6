"""The command line, built from the registry."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hdap_tui import __version__
from hdap_tui.cli import diagnostics, output
from hdap_tui.commands import BY_NAME, COMMANDS, Command, Parameter
from hdap_tui.context import Context, nobody, silent_stage
from hdap_tui.errors import ExitCode, RefusedError, UserError

OpenDashboard = Callable[[Context], int]
C = TypeVar("C", bound=click.Command)

GROUPS = {
    "devices": "The devices of the fleet.",
    "alerts": "What has drifted.",
    "policy": "What follows from alerts.",
    "jobs": "Long work in processes of its own.",
    "models": "Model files and where they came from.",
    "deployments": "What was put on the devices, and what it brought.",
    "lab": "The emulated fleet.",
    "config": "The settings.",
}
UNATTENDED = frozenset({"watch"})
"""Commands that run on while nobody is there: a question in the night would never be answered."""
_DEFAULTS = {"lab": "status", "config": "show", "policy": "check"}
_TYPES: dict[str, Any] = {
    "text": click.STRING,
    "integer": click.INT,
    "number": click.FLOAT,
    "path": click.Path(path_type=Path),
}


def run(arguments: Sequence[str], open_dashboard: OpenDashboard) -> int:
    """Run one command and return the exit status of the process."""
    for number, action in ((signal.SIGTERM, _interrupt), (signal.SIGHUP, _hang_up)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, action)
    try:
        result = build(open_dashboard).main(
            args=list(arguments), prog_name="hdap", standalone_mode=False
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as mistake:
        diagnostics.note(f"hdap: {mistake.format_message()}")
        return int(ExitCode.USAGE)
    except UserError as error:
        diagnostics.note(f"hdap: {error}")
        return int(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is impatient has said so already
        diagnostics.note("hdap: interrupted.")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has left; nothing is wrong
        return int(ExitCode.DONE)
    return int(result or 0)


def build(open_dashboard: OpenDashboard) -> click.Group:
    """Return the whole command line as a click group."""

    @click.group(
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Watch a fleet of edge devices over SSH, and recompress what they run.\n\n"
        "Without a command it opens the dashboard.",
    )
    @click.version_option(__version__, prog_name="hdap")
    @click.option(
        "--config", type=click.Path(path_type=Path), help="Settings file (default: fleet.toml)."
    )
    @click.pass_context
    def hdap(context: click.Context, config: Path | None) -> int | None:
        context.obj = config
        if context.invoked_subcommand is not None:
            return None
        return open_dashboard(Context(config=config))

    groups = {name: _group(name, text) for name, text in GROUPS.items()}
    # A command that has others below it is a group that does something by itself.
    heads = {command.name.partition(" ")[0] for command in COMMANDS if " " in command.name}
    for command in COMMANDS:
        first, _, rest = command.name.partition(" ")
        if rest:
            groups[first].add_command(_build_command(command, click.Command), rest)
        elif first in heads:
            groups[first] = _build_command(command, click.Group, invoke_without_command=True)
        else:
            hdap.add_command(_build_command(command, click.Command), first)
    for group in groups.values():
        hdap.add_command(group)
    return hdap


def _group(name: str, text: str) -> click.Group:
    @click.group(name, invoke_without_command=True, help=text)
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.pass_context
    def group(context: click.Context, /, as_json: bool, **given: Any) -> int | None:
        if context.invoked_subcommand is not None:
            for option in given:
                if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
                    written = f"--{option.replace('_', '-')}"
                    behind = f"{name} {context.invoked_subcommand}"
                    raise click.UsageError(f"write {written} behind {behind}.")
            return None
        default = group.commands[_DEFAULTS.get(name, "list")]
        arguments = {p.name: p.default for p in default.params if p.name != "as_json"}
        return int(context.invoke(default, as_json=as_json, **{**arguments, **given}))

    usual = BY_NAME[f"{name} {_DEFAULTS.get(name, 'list')}"]
    # "hdap alerts --at yesterday" is what one types.
    group.params += [_build_parameter(p) for p in usual.parameters if not p.positional]
    return group


def _build_command(command: Command, kind: type[C], **options: Any) -> C:
    def callback(as_json: bool, config: Path | None = None, **arguments: Any) -> int | None:
        context = click.get_current_context()
        root = context.find_root()
        if context.invoked_subcommand is not None:
            root.obj = config or root.obj
            return None
        return execute(command, config or root.obj, as_json, arguments)

    params: list[click.Parameter] = [_build_parameter(p) for p in command.parameters]
    params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))
    if not any(parameter.name == "config" for parameter in command.parameters):
        # Also here, since that is where one types it; the help has it once, before the command.
        params.append(
            click.Option(["--config"], type=click.Path(path_type=Path), default=None, hidden=True)
        )
    return kind(command.name, callback=callback, params=params, help=command.help, **options)


def _build_parameter(parameter: Parameter) -> click.Parameter:
    kind = (
        click.Choice(parameter.choices)
        if parameter.kind == "choice"
        else _TYPES.get(parameter.kind)
    )
    default = False if parameter.kind == "flag" else parameter.default
    if parameter.positional and parameter.multiple:
        default = None
    # A default that is given, None included, counts as a value for what is required.
    more: dict[str, Any] = {} if parameter.required else {"default": default}
    if parameter.positional:
        return click.Argument(
            [parameter.name],
            type=kind,
            required=parameter.required,
            nargs=-1 if parameter.multiple else 1,
            **more,
        )
    return click.Option(
        [f"--{parameter.name}", parameter.argument],
        type=kind,
        is_flag=parameter.kind == "flag",
        required=parameter.required,
        help=parameter.help,
        **more,
    )


def execute(command: Command, config: Path | None, as_json: bool, arguments: dict[str, Any]) -> int:
    """Run a command of the registry and print what came out of it."""
    unattended = command.name in UNATTENDED
    # Whoever wants JSON is a program, and what it shows is its own affair.
    with diagnostics.ProgressBar(
        not as_json, lambda device: context.shown(device), unattended
    ) as bar:
        from engine.events import Reporter

        def secret(question: str) -> str | None:
            with bar.paused():
                return diagnostics.secret(question)

        def confirm(question: str, touched: Sequence[str]) -> bool:
            with bar.paused():
                return diagnostics.confirm(question, touched)

        context = Context(
            config=config,
            reporter=Reporter(command.name, bar),
            confirm=confirm,
            secret=nobody if unattended else secret,
            on_stage=bar.stage if bar.draws else silent_stage,
        )
        try:
            _check_allowed(command, context, arguments)
            outcome = command.load()(context, **arguments)
        except KeyboardInterrupt:
            if unattended and not sys.stderr.isatty():
                raise click.Abort from None  # else click puts an empty line into the log
            raise
        except EOFError as error:  # click would say that it was interrupted
            raise RuntimeError("nobody handled the end of a connection") from error
        finally:
            context.close()
    output.write(outcome, as_json)
    return int(outcome.exit_code)


def _check_allowed(command: Command, context: Context, arguments: dict[str, Any]) -> None:
    """Refuse what changes devices where the settings say that nothing may.

    The lab's own commands are for devices that exist nowhere else.
    """
    if not command.dangerous or command.name.startswith("lab ") or arguments.get("dry_run"):
        return
    if context.settings.fleet.read_only:
        raise RefusedError(
            f"{context.settings.path}: fleet.read_only is set, so {command.name} is refused."
        )


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _hang_up(_number: int, _frame: object) -> None:
    """End as on Ctrl-C; what is still said to the terminal, which has gone, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
    raise KeyboardInterrupt
