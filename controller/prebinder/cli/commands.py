"""The commands. Each is thin: it reads arguments, calls one part, and turns its end into an exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from prebinder import __version__
from prebinder.cli import client, terminal
from prebinder.cli.logfile import log_to
from prebinder.config import json_schema, load
from prebinder.config.state import describe
from prebinder.model.events import BuildEvent, BuildState, Phase
from prebinder.model.failure import ConfigurationError, EngineError, HubError, PrebinderError, RegistryError, SpecError
from prebinder.model.links import LandingError, landing_path, server_address
from prebinder.model.spec import Spec

OK, FAILED, USAGE, AWAY, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="prebinder",
    help="Makes every Binder link open at once: images are built on push, not on click.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(name="config", help="Look at the configuration file.", no_args_is_help=True)
app.add_typer(config_app)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="PREBINDER_CONFIG", help="The configuration file; ./prebinder.yaml if there."
    ),
]
StateOption = Annotated[
    Path,
    typer.Option("--state", envvar="PREBINDER_STATE", help="Folder for ledger, logs, images and the site."),
]
ControllerOption = Annotated[
    str | None,
    typer.Option("--controller", envvar="PREBINDER_CONTROLLER", help="Address of a controller; else the one here."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="gh/owner/repository/ref, git/<escaped URL>/ref, or a whole Binder link.")
]
DEFAULT_STATE = Path(".prebinder")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"prebinder {__version__}")
        raise typer.Exit


@app.command()
def up(
    config: ConfigOption = None,
    state: StateOption = DEFAULT_STATE,
    port: Annotated[int | None, typer.Option(help="Port of the site; site.port by default.", min=0, max=65535)] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of every part.")] = False,
) -> None:
    """Run everything on this machine: controller, launch endpoint, JupyterHub, and a demo if nothing is configured."""
    from prebinder.onemachine.stack import run_stack

    state = state.absolute()
    try:
        log_to(state / "log" / "prebinder.log" if not verbose else None)
    except OSError as error:
        _stop(describe(error, state), AWAY)
    _run(run_stack(_configuration_file(config), state, port), state=state)


@app.command()
def controller(config: ConfigOption = None, state: StateOption = DEFAULT_STATE) -> None:
    """Run the controller apart: watch repositories, build, and serve its API."""
    from prebinder.cli.apart import run_controller

    log_to(None)
    _run(run_controller(_needed(config), state.absolute()), state=state.absolute())


@app.command()
def serve(config: ConfigOption = None, state: StateOption = DEFAULT_STATE) -> None:
    """Run the launch endpoint apart: serve the site and answer clicks."""
    from prebinder.cli.apart import run_endpoint

    log_to(None)
    _run(run_endpoint(_needed(config), state.absolute()), state=state.absolute())


@config_app.command("check")
def config_check(
    file: Annotated[Path | None, typer.Argument(help="The file; ./prebinder.yaml by default.")] = None,
) -> None:
    """Check the configuration file: one line for each thing that is wrong, with its line number."""
    path = _needed(file)
    try:
        configuration = load(path)
    except ConfigurationError as error:
        _stop(str(error), USAGE, bare=True)
    count = len(configuration.repositories)
    typer.echo(f"{path}: valid, {count} {'repository' if count == 1 else 'repositories'}.")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file."""
    typer.echo(json_schema(), nl=False)


@app.command()
def build(
    spec: SpecArgument,
    state: StateOption = DEFAULT_STATE,
    controller: ControllerOption = None,
    rebuild: Annotated[bool, typer.Option(help="Try again although the last attempt failed.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Build an image now, at the front of the queue, and follow its phases and log."""

    async def work() -> int:
        wanted = client.spec_from_text(spec)
        async with client.connect(state, controller, _token()) as api:
            reply = await api.request_build(wanted, rebuild=rebuild)
            if reply.launchable:
                _print_event(as_json, {"phase": "built", "image": reply.launchable, "revision": reply.revision})
                if not as_json:
                    typer.echo(f"Found built image {reply.launchable}")
                return OK
            assert reply.build
            last: BuildEvent | None = None
            with terminal.BuildView(f"{wanted.repository.name} {reply.revision[:10]}") as view:
                async with aclosing(api.events(reply.build.id)) as events:
                    async for event in events:
                        last = event
                        if as_json:
                            typer.echo(event.model_dump_json())
                        else:
                            view.show(event)
            if last and last.phase is Phase.BUILT:
                return OK
            if last and last.failure:
                terminal.fail(f"{last.failure.heading}. {last.failure.advice}")
            return FAILED

    _run(work())


@app.command()
def status(
    state: StateOption = DEFAULT_STATE, controller: ControllerOption = None, as_json: JsonOption = False
) -> None:
    """Show what runs, what waits, what was built last, and what is wrong."""

    async def work() -> int:
        async with client.connect(state, controller, _token()) as api:
            now = await api.status()
            builds = await api.builds(limit=15)
        if as_json:
            typer.echo(now.model_dump_json(indent=2))
        elif not sys.stdout.isatty():
            typer.echo(terminal.builds_plain(builds), nl=False)
            for check in now.health.checks:
                if not check.ok:
                    terminal.fail(f"{check.service}: {check.message or 'does not answer'}")
        if now.configuration_problem and not as_json:
            terminal.fail(
                f"The configuration file is invalid; the last good one is in force:\n{now.configuration_problem}"
            )
        if not as_json and sys.stdout.isatty():
            for check in now.health.checks:
                mark = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
                terminal.out.print(f"{mark} {check.service}", end="")
                terminal.out.print(f"  {terminal.clean(check.message or '')}", markup=False)
            terminal.out.print()
            for repository in now.repositories:
                terminal.out.print(
                    f"{repository.repository}  last look {terminal.ago(repository.looked_at)}"
                    + (f"  {terminal.clean(repository.problem)}" if repository.problem else ""),
                    markup=False,
                )
            terminal.out.print()
            terminal.out.print(terminal.builds_table(builds, f"{len(now.running)} building, {len(now.queued)} waiting"))
        return OK if now.health.ok else AWAY

    _run(work())


@app.command()
def logs(
    build_id: Annotated[str, typer.Argument(metavar="BUILD", help="Id of a build, or its beginning.")],
    state: StateOption = DEFAULT_STATE,
    controller: ControllerOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the build ends.")] = False,
) -> None:
    """Print the log of a build, also long after it ended."""

    async def work() -> int:
        async with client.connect(state, controller, _token()) as api:
            record = await api.build(build_id)
            if not follow:
                typer.echo(terminal.clean(await api.log(record.id)), nl=False)
                return OK
            with terminal.BuildView(record.repository) as view:
                async with aclosing(api.events(record.id)) as events:
                    async for event in events:
                        view.show(event)
            return OK if (await api.build(record.id)).state is BuildState.READY else FAILED

    _run(work())


@app.command()
def cancel(
    build_id: Annotated[str, typer.Argument(metavar="BUILD", help="Id of a build, or its beginning.")],
    state: StateOption = DEFAULT_STATE,
    controller: ControllerOption = None,
) -> None:
    """Cancel a build that waits or runs."""

    async def work() -> int:
        async with client.connect(state, controller, _token()) as api:
            record = await api.build(build_id)
            await api.cancel(record.id)
            typer.echo(f"Cancelled {record.id}.")
            return OK

    _run(work())


@app.command()
def launch(
    spec: SpecArgument,
    site: Annotated[
        str, typer.Option(envvar="PREBINDER_SITE", help="Address of the launch site.")
    ] = "http://127.0.0.1:8585/",
    urlpath: Annotated[str, typer.Option(help="Where to land, for example lab/tree/index.ipynb.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Launch like a click, and print the address of the server when it is ready."""

    async def work() -> int:
        wanted = client.spec_from_text(spec)
        landing = landing_path({"urlpath": urlpath})
        async with aclosing(client.launch_events(site, wanted)) as events:
            return await show(events, wanted, landing)

    async def show(events: AsyncGenerator[dict[str, Any]], wanted: Spec, landing: str) -> int:
        with terminal.BuildView(wanted.repository.name) as view:
            async for event in events:
                if as_json:
                    typer.echo(_json(event))
                phase = Phase(event.get("phase", Phase.UNKNOWN))
                if phase is Phase.READY:
                    if not as_json:
                        typer.echo(server_address(event["url"], event["token"], landing))
                    return OK
                if phase is Phase.FAILED:
                    terminal.fail(str(event.get("message", "The launch failed.")).strip())
                    return FAILED
                if not as_json:
                    terminal.err.print(terminal.clean(str(event.get("message", ""))).rstrip(), markup=False)
                    view.phase(phase)
        terminal.fail("The launch endpoint closed the stream before the server was ready.")
        return FAILED

    _run(work())


def run() -> None:
    """Run the command that the arguments name."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _run(work: Coroutine[Any, Any, int], *, state: Path | None = None) -> NoReturn:
    """Run a command to its end and leave with its exit code; errors for people become one message.

    With `state`, the command is a part that runs in that folder: whatever ends it, something that it needs is away.
    """
    try:
        code = asyncio.run(work)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (ConfigurationError, SpecError, LandingError) as error:
        _stop(str(error), USAGE)
    except (client.Away, EngineError, HubError, RegistryError) as error:
        _stop(str(error), AWAY)
    except PrebinderError as error:
        _stop(str(error), FAILED if state is None else AWAY)
    except BrokenPipeError:
        # The reader went away (`prebinder logs … | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if state is None:
            raise
        _stop(describe(error, state), AWAY)
    sys.exit(code)


def _stop(message: str, code: int, *, bare: bool = False) -> NoReturn:
    if bare:
        typer.echo(message, err=True)
    else:
        terminal.fail(message)
    sys.exit(code)


def _configuration_file(given: Path | None) -> Path | None:
    if given is not None:
        return given.absolute()
    here = Path("prebinder.yaml")
    return here.absolute() if here.exists() else None


def _needed(given: Path | None) -> Path:
    path = _configuration_file(given)
    if path is None:
        _stop("There is no prebinder.yaml here; name a configuration file.", USAGE)
    return path


def _token() -> str | None:
    return os.environ.get("PREBINDER_CONTROLLER_TOKEN")


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _print_event(as_json: bool, event: dict[str, Any]) -> None:
    if as_json:
        typer.echo(_json(event))
