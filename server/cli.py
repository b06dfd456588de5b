"""Commands that headquarters' people type. `fedshelf.py` puts them beside the others.

Only typer is imported up here: torch, Flower and FastAPI take seconds, and `--help` needs none.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli import line_printer
from shared.errors import ConfigError

if TYPE_CHECKING:
    from server.control import Control
    from server.headquarters import Headquarters
    from server.training import Training

app = typer.Typer(help="Headquarters.")
server = typer.Typer(help="Run headquarters of a federation.", no_args_is_help=True)
app.add_typer(server, name="server")

_Dir = Annotated[Path, typer.Option("--dir", help="The headquarters folder.")]
_Region = Annotated[str, typer.Argument(help="Name of the region.")]
_Number = Annotated[int, typer.Argument(min=1, help="Number of the release.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_HERE = Path()


@server.callback()
def _group() -> None:
    """Run headquarters of a federation."""


@server.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    address: Annotated[str, typer.Option(help="HOST:PORT that regions connect to.")],
    name: Annotated[str, typer.Option(help="Of the federation, for people.")] = "fedshelf",
    base: Annotated[Path | None, typer.Option(help="A base artefact to copy.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of a base that needs no data.")] = None,
    signing_key: Annotated[
        Path | None, typer.Option(help="A release-signing key that is kept elsewhere.")
    ] = None,
    superlink_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Flower's own port, on loopback.")
    ] = 19092,
    as_json: _Json = False,
) -> None:
    """Make a headquarters folder: certificates, signing key, base, empty registry."""
    from server.headquarters import init_headquarters
    from shared.audit import AuditLog

    hq = init_headquarters(
        folder,
        name=name,
        address=address,
        base=base,
        preset=preset,
        signing_key=signing_key,
        superlink_port=superlink_port,
    )
    AuditLog(hq.audit).append(
        "headquarters.made", base_fingerprint=hq.fingerprint, release_key=hq.release_key
    )
    facts = {
        "folder": str(hq.folder),
        "address": hq.config.address,
        "base_fingerprint": hq.fingerprint,
        "release_key": hq.release_key,
    }
    lines = [
        f"headquarters in {hq.folder}, base {hq.fingerprint[:12]}",
        f'next: "fedshelf server up --dir {folder}", then "fedshelf server invite REGION"',
    ]
    _say(facts, lines, as_json)


@server.command()
def up(folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Run SuperLink, SuperExec and nginx until interrupted."""
    from server.processes import Ports, headquarters_processes, prepare
    from shared.supervise import Supervisor

    hq = _open(folder)
    ports = Ports(public=hq.config.port, superlink=hq.config.superlink_port)
    prepare(hq.folder, ports)
    echo = line_printer(as_json)
    supervisor = Supervisor(headquarters_processes(hq.folder, ports), on_event=echo)
    supervisor.start()
    echo(f"headquarters is up at {hq.config.address}; Ctrl-C stops it")
    echo(
        'regions need an enrolment file: "fedshelf server invite REGION", and their key\'s '
        'admission: "fedshelf server admit REGION KEY.pub"'
    )
    supervisor.run()


@server.command()
def invite(
    region: _Region,
    folder: _Dir = _HERE,
    out: Annotated[Path | None, typer.Option(help="File to write; REGION.enrolment.json.")] = None,
    as_json: _Json = False,
) -> None:
    """Make an enrolment file for a region; hand it over by a way that you trust."""
    from server import enrolment
    from shared.audit import AuditLog

    hq = _open(folder)
    path = out or Path(f"{region}.enrolment.json")
    if path.exists():  # seen to before the invitation that it may hold is made void
        raise ConfigError(f"{path}: there already, and nothing is overwritten; name a new file")
    made = enrolment.invite(hq, region)
    enrolment.write_enrolment(made, path)
    AuditLog(hq.audit).append("region.invited", region=region, expires=made.expires.isoformat())
    lines = [
        f"{path}: valid until {made.expires:%Y-%m-%d %H:%M} UTC, holds a secret; the region runs",
        f"  fedshelf region enroll {path.name}",
    ]
    _say({"file": str(path), "expires": made.expires.isoformat()}, lines, as_json)


@server.command()
def admit(
    region: _Region,
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="What the region handed back.")],
    folder: _Dir = _HERE,
    as_json: _Json = False,
) -> None:
    """Admit a region's public key; headquarters must be up."""
    from server import enrolment
    from shared.audit import AuditLog

    hq = _open(folder)
    control = _control(hq)
    control.list_nodes()  # fails before the invitation is used up
    record = enrolment.regions(hq).get(region)
    if record is None or record.state != "admitted" or record.node_id is not None:
        record = enrolment.admit(hq, region, key)  # else the last attempt was cut off after this
    node_id = _register(control, record.public_key or "", region)
    enrolment.set_node_id(hq, region, node_id)
    AuditLog(hq.audit).append(
        "region.admitted", region=region, key=record.key_fingerprint, node_id=str(node_id)
    )
    facts = {"region": region, "key": record.key_fingerprint, "node_id": str(node_id)}
    _say(facts, [f"{region}: admitted, key {record.key_fingerprint}"], as_json)


@server.command()
def revoke(region: _Region, folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Shut a region out at once; it needs a new invitation and a new key to come back."""
    from server import enrolment
    from shared.audit import AuditLog

    hq = _open(folder)
    record = enrolment.revoke(hq, region)
    if record.node_id is not None:
        _control(hq).unregister(record.node_id)
    AuditLog(hq.audit).append("region.revoked", region=region, key=record.key_fingerprint)
    _say({"region": region, "state": record.state}, [f"{region}: revoked"], as_json)


@server.command()
def train(
    folder: _Dir = _HERE,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the federation.")] = 7,
    knob: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the run config."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last training.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give the last training up first.")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Put it into use if accepted.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help='Only say how "flwr run" runs it; then --resume.')
    ] = False,
    as_json: _Json = False,
) -> None:
    """Run a training: rounds, gate and, if the gate accepts, a signed release."""
    from server import conduct
    from server import training as trainings
    from shared.config import parse_knobs

    if resume and (abandon or knob):
        raise typer.BadParameter(
            "goes on as it was; leave out --abandon and --set", param_hint="--resume"
        )
    if prepare and promote:
        raise typer.BadParameter("runs nothing; leave out --promote", param_hint="--prepare")
    hq = _open(folder)
    if abandon:
        trainings.abandon(conduct.latest(hq), "given up by headquarters")
    if resume:
        chosen = conduct.latest(hq)
    else:
        knobs = parse_knobs(knob or []) | {"num-rounds": rounds}
        _control(hq).list_nodes()  # fails before a training is made that nobody can run
        chosen = conduct.new_training(hq, knobs, seed=seed)
    if prepare:
        line = conduct.by_hand(hq, chosen)
        then = 'then release it with "fedshelf server train --resume"'
        _say({"training": chosen.number, "command": line}, [line, then], as_json)
        return
    number = _conduct(hq, chosen, promote=promote, echo=_quiet if as_json else typer.echo)
    if as_json:
        typer.echo(json.dumps(_training_facts(chosen, number)))


@server.command()
def schedule(
    every_h: Annotated[float, typer.Option(min=0.01, max=8784, help="Hours from start to start.")],
    folder: _Dir = _HERE,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each training.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; grows by one.")] = 7,
    promote: Annotated[bool, typer.Option("--promote", help="Put what is accepted into use.")] = (
        False
    ),
    times: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 never.")] = 0,
    as_json: _Json = False,
) -> None:
    """Train again and again, in the foreground; an unfinished training is resumed first."""
    from server.schedule import run_schedule

    hq, echo = _open(folder), line_printer(as_json)

    def once(chosen: "Training") -> None:
        _conduct(hq, chosen, promote=promote, echo=echo)

    run_schedule(
        hq,
        once,
        every=timedelta(hours=every_h),
        rounds=rounds,
        first_seed=seed,
        times=times,
        on_line=echo,
    )


@server.command()
def status(folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Regions, the running training, the release in use."""
    from server.status import read_status, status_tables

    found = read_status(_open(folder))
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print(*status_tables(found))


@server.command()
def releases(folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Every release, what the gate found, and which one is in use."""
    from server.status import read_releases, release_table

    found = read_releases(_open(folder))
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print(release_table(found))


@server.command()
def promote(number: _Number, folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Put a release into use; regions fetch, check and accept it on their own."""
    _put_into_use(folder, number, "release.promoted", as_json)


@server.command()
def rollback(number: _Number, folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Go back to an earlier release; regions that still have it switch at once."""
    _put_into_use(folder, number, "release.rolled_back", as_json)


@server.command()
def matrix(
    folder: _Dir = _HERE,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of an adapter trained alone.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the adapters trained alone.")] = 7,
    as_json: _Json = False,
) -> None:
    """Every release on every agreeing region's gate clicks, as a table and a heat map."""
    from server import conduct
    from server.status import draw_matrix, matrix_table

    hq = _open(folder)
    chosen = conduct.new_matrix(hq, {"num-rounds": rounds}, seed=seed)
    conduct.follow(hq, _control(hq), chosen, on_line=_quiet if as_json else typer.echo)
    found = chosen.history.matrix() or {}
    picture = chosen.folder / "matrix.svg"
    picture.write_text(draw_matrix(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print(matrix_table(found))
    typer.echo(f"heat map: {picture}")


@server.command()
def dashboard(
    folder: _Dir = _HERE,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8060,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Under which your own proxy, with login, asks; repeatable."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Serve a page of all this, on loopback, until interrupted."""
    from server.dashboard import serve_dashboard

    echo = line_printer(as_json)
    serve_dashboard(
        _open(folder).folder,
        host=host,
        port=port,
        on_ready=lambda url: echo(f"dashboard: {url}; Ctrl-C stops it"),
        names=tuple(names or ()),
    )


@server.command("renew-certificate")
def renew_certificate(folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Issue a new server certificate; restart "server up" to show it."""
    from server.authority import certificate_expiry, issue_server_certificate
    from shared.audit import AuditLog

    hq = _open(folder)
    issue_server_certificate(hq.tls, [hq.config.host])
    until = certificate_expiry(hq.server_certificate)
    AuditLog(hq.audit).append("certificate.renewed", until=until.isoformat())
    _say({"until": until.isoformat()}, [f"valid until {until:%Y-%m-%d}"], as_json)


@server.command("rotate-key")
def rotate_key(folder: _Dir = _HERE, as_json: _Json = False) -> None:
    """Begin to sign releases with a new key as well, until regions trust only that one."""
    from server.headquarters import rotate_signing_key
    from shared.audit import AuditLog

    hq = _open(folder)
    public = rotate_signing_key(hq.folder)
    AuditLog(hq.audit).append("signing_key.rotated", release_key=public)
    lines = [
        f"new release key {public}",
        "everything is signed with both keys; tell regions to set base.release_key to the new one, "
        "and when all have, remove signing.former.key",
    ]
    _say({"release_key": public}, lines, as_json)


# -- parts -----------------------------------------------------------------------------------------


def _open(folder: Path) -> "Headquarters":
    from server.headquarters import open_headquarters

    return open_headquarters(folder)


def _control(hq: "Headquarters") -> "Control":
    from server.control import Control

    return Control(hq.flower)


def _register(control: "Control", public_key: str, region: str) -> int:
    """Register the key that was checked, which the file may no longer hold."""
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile("w", suffix=".pub", encoding="ascii") as checked:
        checked.write(f"{public_key}\n")
        checked.flush()
        return control.register(Path(checked.name), region)


def _conduct(
    hq: "Headquarters", chosen: "Training", *, promote: bool, echo: Callable[[str], None]
) -> int | None:
    """Run a training to its end, release it and, if wanted, put it into use."""
    from server import conduct

    if not chosen.complete:
        conduct.follow(hq, _control(hq), chosen, on_line=echo)
    gate = chosen.history.gate()
    assert gate is not None, "a complete training has been judged"
    for line in conduct.gate_lines(gate):
        echo(line)
    number = conduct.release(hq, chosen)
    if number is None:
        return None
    echo(f"release {number} is signed")
    if promote:
        conduct.put_into_use(hq, number, event="release.promoted")
        echo(f"release {number} is in use")
    else:
        echo(f'put it into use with "fedshelf server promote {number}"')
    return number


def _training_facts(chosen: "Training", number: int | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "training": chosen.number,
        "rounds": [asdict(record) for record in chosen.history.rounds()],
        "gate": chosen.history.gate(),
        "release": number,
    }


def _put_into_use(folder: Path, number: int, event: str, as_json: bool) -> None:
    from server.conduct import put_into_use

    current = put_into_use(_open(folder), number, event=event)
    lines = [f"release {number} is in use, until {current.expiry:%Y-%m-%d} unless replaced"]
    _say(current.model_dump(mode="json"), lines, as_json)


def _say(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else "\n".join(lines))


def _print(*tables: Any) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


def _quiet(line: str) -> None:
    """Say nothing: the JSON at the end says all."""
