"""The command line. `--json` prints one object on standard output; everything else goes to standard error."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import click

from tuner.errors import BadInput

study_file = click.argument("study", type=click.Path(dir_okay=False))
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


class _Failed(Exception):
    """A check that fails: status 1, and what it told."""

    def __init__(self, told: dict[str, Any] | None) -> None:
        super().__init__()
        self.told = told


class _OneLine(click.Group):
    """A misspelt command or option is bad input like any other: one line and status 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
        except click.ClickException as error:
            _say(f"{error.format_message().rstrip('.')}; see tuner --help")
        except click.Abort:
            sys.exit(INTERRUPTED)
        sys.exit(BAD_INPUT)


def _say(error: str) -> None:
    click.echo(f"error: {' '.join(error.split())}", err=True)


@click.group(cls=_OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="transfer-tuner")
def main() -> None:
    """Choose the hyperparameters of a network too large to tune, from cheap runs of smaller ones."""


def _command(function: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Bad input is one line and status 2; Ctrl-C is status 130 and says how to go on. What it returns is printed."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _prints_aside():
                told = function(*args, **kwargs)
            if told is not None:
                click.echo(json.dumps(told))
        except _Failed as failed:
            if failed.told is not None:
                click.echo(json.dumps(failed.told))
            sys.exit(FAILED)
        except BadInput as error:
            _say(str(error))
            sys.exit(BAD_INPUT)
        except KeyboardInterrupt:
            recorded = "; finished trials are recorded. To go on: " + _again() if function.__name__ == "run" else ""
            click.echo(f"interrupted{recorded}", err=True)
            sys.exit(INTERRUPTED)

    return run


@contextmanager
def _prints_aside() -> Iterator[None]:
    """Standard output is for the answer: what training prints, in workers too, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _again() -> str:
    return shlex.join(["tuner", *sys.argv[1:]])


@main.command()
@study_file
@click.option("--budget", type=float, help="Of the search, in target runs; default: the study file's.")
@click.option("--workers", type=click.IntRange(0), help="Worker processes; 0: this one. Default: one a core.")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Of a Dask cluster, whose workers train.")
@click.option("--scheduler-file", type=click.Path(dir_okay=False), help="That the scheduler wrote, instead.")
@click.option("--resource", multiple=True, metavar="NAME=AMOUNT", help="Of a cluster's worker, that trials occupy.")
@click.option("--track", multiple=True, metavar="NAME=WHERE", help="tensorboard=FOLDER, mlflow=URI, wandb=PROJECT.")
@click.option("--no-verify", is_flag=True, help="Leave out the run at the target that checks the answer.")
@click.option("--skip-check", is_flag=True, help="Leave out the coordinate check before the first trial.")
@as_json
@_command
def run(
    study: str,
    budget: float | None,
    workers: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
    resource: tuple[str, ...],
    track: tuple[str, ...],
    no_verify: bool,
    skip_check: bool,
    as_json: bool,
) -> dict[str, Any] | None:
    """Run live training, or resume it, and check the answer at the target."""
    from tuner.opening import open_study
    from tuner.report.terminal import progress
    from tuner.study import checked_budget
    from tuner.studyfile import read

    file = read(study)
    if file.objective is None:
        raise BadInput(f"run: {file.path.name} has no [objective] to train; add one, or give tuner predict the table")
    budget = checked_budget(file.budget.target_runs if budget is None else budget)
    workers = _cores() if workers is None else workers
    trackers = _trackers(track)
    with (
        _cluster(scheduler, scheduler_file, resource) as cluster,
        open_study(file, budget=budget) as opened,
        ExitStack() as stack,
    ):
        for tracker in trackers:
            stack.enter_context(tracker)
        if not (skip_check or opened.entries):
            _hold_to_claim(opened)
        where = {"workers": workers, "executor": cluster}
        with progress(budget) as shown:
            stopped = opened.optimize(
                None, budget, tolerance=file.budget.tolerance, callbacks=[shown, *trackers], **where
            )
        rec = None if opened.all_diverged else opened.recommend()
        _say_dropped(opened.dropped)
        if rec is not None and file.budget.verify and not no_verify:
            click.echo(f"verifying at {opened.problem.target} ...", err=True)
            entry = opened.verify(rec.params, workers=min(workers, 1), executor=cluster)
            if entry.error is not None:
                click.echo(f"the verification broke: {entry.error.splitlines()[0]}", err=True)
        return _answer(opened, rec, as_json, stopped)


def _cluster(scheduler: str | None, file: str | None, resource: tuple[str, ...]) -> Any:
    """The cluster that is named; without a name, none."""
    if scheduler is None and file is None:
        if resource:
            raise BadInput("resource: it is of a cluster's workers; name its --scheduler or --scheduler-file")
        return nullcontext()
    from tuner.cluster import Cluster

    return Cluster(scheduler, file=file, resources=dict(map(_amount, resource)))


def _trackers(named: Sequence[str]) -> list[Any]:
    if not named:
        return []
    from tuner.integrations.trackers import tracker

    return [tracker(text) for text in named]


def _amount(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise BadInput(f"resource: must be NAME=AMOUNT, got {text!r}; write for example GPU=1") from None


def _hold_to_claim(study: Any) -> None:
    """Stops a study whose objective does not keep what its parametrization says, before money is spent on it."""
    from tuner.mup.check import claim_checked
    from tuner.report.terminal import checked, console
    from tuner.trial import Evidence

    try:
        told = claim_checked(study.source.load(), study.problem)
    except BadInput as error:
        raise BadInput(f"{error}, or run with --skip-check") from error
    if told is not None and told.verdict == "fail":
        console.print(checked(told))
        click.echo("stopped before the first trial; correct the parametrization, or run with --skip-check", err=True)
        raise _Failed(None)
    if told is not None:
        study.add_evidence(Evidence("coordinate check before the first trial", told.verdict, told.reasons[0]))
        click.echo(f"coordinate check: {told.verdict}; {told.reasons[0]}", err=True)


@main.command()
@study_file
@as_json
@_command
def predict(study: str, as_json: bool) -> dict[str, Any] | None:
    """Say what the record knows of the target, without a new run."""
    from tuner.opening import open_study
    from tuner.studyfile import read

    with open_study(read(study), read_only=True) as opened:
        rec = None if opened.all_diverged else opened.recommend()
        _say_dropped(opened.dropped)
        return _answer(opened, rec, as_json, None)


@main.command()
@study_file
@click.option("--seeds", default="0:1", show_default=True, help="A:B, half-open.")
@click.option("--budget", type=float, help="In target runs; default: the study file's.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes. Default: one a core.")
@as_json
@_command
def replay(study: str, seeds: str, budget: float | None, workers: int | None, as_json: bool) -> dict[str, Any] | None:
    """Spend a budget on recorded runs; the target's own rows score the answer."""
    from tuner.comparison import compare_recorded
    from tuner.replay import Replay
    from tuner.report.terminal import bar, console, replayed
    from tuner.study import checked_budget
    from tuner.studyfile import read

    file = read(study)
    if file.runs is None:
        raise BadInput(f"replay: {file.path.name} has no [runs]; name a table of recorded runs")
    budget = checked_budget(file.budget.target_runs if budget is None else budget)
    table = Replay.of(file)
    with bar("replaying") as shown:
        told = compare_recorded(table, ["transfer"], _seeds(seeds), budget, 1, workers or _cores(), shown)
    _say_dropped(table.table.dropped)
    console.print(replayed(told))
    return {name: told["transfer"][name] for name in ("seeds", "summary")} if as_json else None


def _say_dropped(dropped: Mapping[str, int]) -> None:
    for why, count in dropped.items():
        click.echo(f"dropped {count} rows {why}", err=True)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _answer(study: Any, rec: Any, as_json: bool, stopped: str | None) -> dict[str, Any] | None:
    """Print the answer, and the bill of a search where one has just stopped; return the same where JSON is wanted.

    `rec` is None where every run diverged: then there is a verdict, and no answer.
    """
    from tuner.report.terminal import answer, console, expected, paid, unanswered

    ledger = study.ledger(rec.params if rec else {})
    spent = ledger.search if study.source else study.spent("recorded")
    if rec is None:
        console.print(unanswered(study))
    else:
        console.print(answer(study, rec))
        console.print(expected(rec))
    if stopped is not None:
        console.print(paid(ledger, rec, stopped))
    if not as_json:
        return None
    told = {
        "target": dict(study.problem.target),
        **(_no_answer(study.transfer()) if rec is None else rec.as_json()),
        "spent": {"cost": spent, "target_runs": spent / ledger.target_run},
        "trials": len(study.observations),
    }
    return told if stopped is None else {**told, "ledger": ledger.as_json(stopped)}


def _no_answer(told: Any) -> dict[str, Any]:
    """The fields of a recommendation, of which only the verdict is known."""
    unknown = {"loss": {"mean": None, "sd": None}, "expected_regret": None, "noise": None, "drift": {}}
    return {"recommendation": {}, "interval": {}, **unknown, "verdict": told.verdict, "reasons": list(told.reasons)}


@main.command()
@study_file
@click.option("-o", "--output", default="report.html", show_default=True, type=click.Path(dir_okay=False))
@_command
def report(study: str, output: str) -> None:
    """Write one self-contained HTML page about the study."""
    from tuner.opening import open_study
    from tuner.report.page import write
    from tuner.studyfile import read

    with open_study(read(study), read_only=True) as opened:
        write(opened, output)
        _say_dropped(opened.dropped)
    click.echo(f"wrote {output}", err=True)


@main.command()
@study_file
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--beyond-loopback", is_flag=True, help="Allow a host where whoever reaches it sees the study.")
@_command
def dashboard(study: str, port: int, host: str, beyond_loopback: bool) -> None:
    """Serve the report as a live page, while trials run and after."""
    from tuner.report.live import Dashboard

    with Dashboard(study, host, port, beyond_loopback) as served:
        click.echo(f"serving {study} at {served.url}, Ctrl-C ends it", err=True)
        served.serve_forever()


@main.command()
@study_file
@click.option("--methods", default="transfer,optuna-tpe,optuna-gp,random,copy", show_default=True)
@click.option("--seeds", default="0:1", show_default=True, help="A:B, half-open.")
@click.option("--budget", type=float, help="Of a search from below, in target runs; default: the study file's.")
@click.option("--direct", default=16, show_default=True, type=click.IntRange(1), help="Runs of direct tuning.")
@click.option(
    "--answers",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Scored along a search: at its end, half, ...",
)
@click.option("--workers", type=click.IntRange(1), help="Worker processes. Default: one a core.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Of a table: a page with the figure.")
@as_json
@_command
def compare(
    study: str,
    methods: str,
    seeds: str,
    budget: float | None,
    direct: int,
    answers: int,
    workers: int | None,
    output: str | None,
    as_json: bool,
) -> dict[str, Any] | None:
    """Cost against regret, methods side by side, each charged for every run it makes."""
    from tuner.comparison import compare_live, compare_recorded
    from tuner.replay import Replay
    from tuner.report.terminal import bar, comparison, console, replayed
    from tuner.report.versus import write
    from tuner.study import checked_budget
    from tuner.studyfile import read

    file, names, numbers = read(study), methods.split(","), _seeds(seeds)
    budget = checked_budget(file.budget.target_runs if budget is None else budget)
    workers = _cores() if workers is None else workers
    if file.objective is None:
        if output is not None and not os.access(os.path.dirname(os.path.abspath(output)), os.W_OK):
            raise BadInput(f"compare: {output!r} cannot be written: no such folder to write in; choose another path")
        table = Replay.of(file)
        with bar("replaying") as shown:
            compared = compare_recorded(table, names, numbers, budget, direct, workers, shown)
        _say_dropped(table.table.dropped)
        console.print(replayed(compared))
        if output is not None:
            write(compared, f"{file.study.name}: methods side by side", output)
    else:
        if output is not None:
            raise BadInput(
                f"compare: a page is drawn of recorded runs, {file.path.name} trains live; leave --output out"
            )
        said = partial(click.echo, err=True)
        compared = compare_live(file, names, numbers, budget, direct, answers, workers, said)
        console.print(comparison(compared))
    return {"methods": compared} if as_json else None


@main.command()
@study_file
@click.option("--budget", type=float, help="Of the search, in target runs; default: the study file's.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="In place of what runs say: alpha, ratio, gap, ...")
@as_json
@_command
def breakeven(study: str, budget: float | None, assume: tuple[str, ...], as_json: bool) -> dict[str, Any] | None:
    """Does searching small pay, and at which scale? From the runs there are, or from assumptions before any."""
    from tuner.breakeven import Assumptions
    from tuner.opening import open_pilot
    from tuner.report.terminal import at_sizes, console, crossing
    from tuner.studyfile import read

    file, assumed = read(study), Assumptions.read(assume) if assume else None
    with open_pilot(file) as opened:
        told = opened.break_even(file.budget.target_runs if budget is None else budget, assumed)
    console.print(at_sizes(told))
    console.print(crossing(told))
    return told.as_json() if as_json else None


@main.command()
@click.argument("family")
@click.option("--parametrization", default="mup", show_default=True, help="Of the plan: sp, mup, spectral, ...")
@click.option("--optimizer", default="adamw", show_default=True, help="Of the plan: sgd, adam, adamw, muon.")
@click.option("--branch", "branches", multiple=True, help="A module that ends a residual branch, * for any characters.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="A page with the figures.")
@as_json
@_command
def check(
    family: str, parametrization: str, optimizer: str, branches: tuple[str, ...], output: str | None, as_json: bool
) -> dict[str, Any] | None:
    """Is the parametrization of a model right? FAMILY, module:attribute, has build(scale) and loss(model, seed).

    With optimizer(model, scale, lr) it is judged as it stands; without, the plan is.
    """
    from tuner.mup.check import coordinate_check, family_named, optimized
    from tuner.report.coordinates import write
    from tuner.report.terminal import checked, console

    found = family_named(family)
    if optimized(found):
        click.echo(f"{family} has its own optimizer: its parametrization is judged as it stands", err=True)
    told = coordinate_check(found, parametrization, optimizer, branches=branches or None)
    console.print(checked(told))
    if output is not None:
        write(told, family, output)
    answer = told.as_json() if as_json else None
    if told.verdict == "fail":
        raise _Failed(answer)
    return answer


def _seeds(text: str) -> range:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise BadInput(f"seeds: must be A:B with A below B, got {text!r}; write for example 0:5")
    return range(int(first), int(last))


if __name__ == "__main__":
    main()
