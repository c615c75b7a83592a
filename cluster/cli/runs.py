"""``boostlu runs``: what runs there are and where each stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cluster.cli.train import Runs

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List and show runs.")


@app.command("list")
def list_(runs: Runs = "runs") -> None:
    """List the runs in a folder or below a URL.

    Example:  boostlu runs list --runs s3://bucket/runs
    """
    from rich.table import Table

    from cluster.cli.terminal import terminal
    from trainer.run.registry import list_runs

    found = list_runs(runs)
    if not found:
        print(f"no runs in {runs}")
        return
    table = Table("run", "state", "step", "best val mAP", "test mAP", box=None, header_style="bold")
    for registry in found:
        facts = overview(registry)
        table.add_row(
            registry.name, facts["state"], str(facts["step"]), _percent(facts["best"]), _percent(facts["test"])
        )
    terminal().print(table)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name of the run below --runs, or its path or URL.")],
    runs: Runs = "runs",
    watch: Annotated[bool, typer.Option("--watch", help="Show again every two seconds until the run ends.")] = False,
) -> None:
    """Show a run: state, position, rate, checkpoints, evaluations, attempts and why each ended.

    Example:  boostlu runs show digits-ll-r --watch
    """
    from trainer.run.registry import RunRegistry, find_run

    registry = RunRegistry.open(find_run(runs, run))
    _show(registry)
    while watch and registry.state() == "running":
        time.sleep(2)
        print("\033[2J\033[H", end="")
        _show(registry)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run.")],
    second: Annotated[str, typer.Argument(help="Another run.")],
    runs: Runs = "runs",
) -> None:
    """Compare two runs: settings that differ, results, and average precision class by class.

    Example:  boostlu runs compare an ll-r-boostlu --runs demo/runs
    """
    from rich.table import Table

    from cluster.cli.terminal import terminal
    from trainer.run.registry import RunRegistry, find_run

    pair = [RunRegistry.open(find_run(runs, run)) for run in (first, second)]
    settings = [dict(_flat(registry.config().model_dump(mode="json"))) for registry in pair]
    console = terminal()
    table = Table("", pair[0].name, pair[1].name, box=None, header_style="bold")
    for key in sorted(settings[0].keys() | settings[1].keys()):
        if key != "name" and settings[0].get(key) != settings[1].get(key):
            table.add_row(key, str(settings[0].get(key)), str(settings[1].get(key)))
    facts = [overview(registry) for registry in pair]
    for title, key in (("best val mAP", "best"), ("test mAP", "test")):
        table.add_row(title, *(_percent(fact[key]) for fact in facts))
    tests = [(registry.result() or {}).get("test") or {} for registry in pair]
    names = [[c["name"] for c in registry.description()["classes"]] for registry in pair]
    if all("ap" in test for test in tests) and names[0] == names[1]:
        for name, *values in zip(names[0], tests[0]["ap"], tests[1]["ap"], strict=True):
            table.add_row(f"AP {name}", *(_percent(value) for value in values))
    console.print(table)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``a.b.c`` → value for every leaf of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(registry: Any) -> None:
    config, facts = registry.config(), overview(registry)
    print(f"run         {registry.name} ({facts['state']}) at {registry.url}")
    print(f"method      {config.loss.name}, alpha {config.model.alpha:g}, labels {config.dataset.labels}")
    print(f"step        {facts['step']}, epoch {facts['epoch']} of {config.epochs}, loss {facts['loss']}")
    if facts["rate"] is not None:
        left = max(0, config.epochs * facts["steps_per_epoch"] - facts["step"]) * facts["step_seconds"]
        print(f"rate        {facts['rate']:.1f} images/s, about {left / 60:.0f} min left when it runs")
        print(f"time        of the last steps: {facts['time'].shares()}")
        if (hint := facts["time"].hint()) is not None:
            print(f"hint        {hint}")
    validation = registry.evaluations(config.dataset.validation)
    for manifest in registry.checkpoints():
        record = validation.get(manifest.name, {})
        score = _percent(record.get("map")) if "map" in record else record.get("error", "not evaluated")
        print(f"checkpoint  {manifest.name}, epoch {manifest.epoch}, val mAP {score}")
    _show_picks(registry)
    waiting = sum(m.epoch_end and m.name not in validation for m in registry.checkpoints())
    failed = sum("error" in record for record in validation.values())
    print(f"evaluated   {len(validation) - failed} checkpoints, {failed} failed, {waiting} waiting")
    _show_attempts(registry, facts["state"])
    if facts["best"] is not None:
        print(f"best        val mAP {_percent(facts['best'])}, test mAP {_percent(facts['test'])}")


def _show_attempts(registry: Any, state: str) -> None:
    """Say of every attempt when and where it ran, with what, which steps it did, and why it ended."""
    from trainer.run.amendments import changes
    from trainer.run.events import read_events

    events, attempts = read_events(registry.url), registry.attempts()
    before: dict[str, Any] | None = None
    for number, attempt in attempts.items():
        steps = [e["step"] for e in events if e["event"] == "step" and e["attempt"] == number]
        did = f"steps {min(steps)} to {max(steps)}" if steps else "no step"
        died = "running" if state == "running" and number == max(attempts) else "died without a word"
        reason = f": {attempt['reason']}" if attempt.get("reason") else ""
        place = f"{attempt.get('workers', '?')} workers, driven from {attempt.get('host', '?')}"
        print(f"attempt {number:<3} {_when(attempt)}, {place}, {did}, {attempt.get('outcome', died)}{reason}")
        for key, (old, new) in changes(before or attempt.get("config", {}), attempt.get("config", {})).items():
            print(f"            {key} changed from {old} to {new}")
        before = attempt.get("config") or before
    slow = {(e["rank"], e["host"]): e for e in events if e["event"] == "straggler"}
    for (rank, host), e in sorted(slow.items()):
        share = f"{e['seconds']:.2f} s a step, the median {e['median']:.2f} s, {e['waited']:.2f} s of it for data"
        print(f"straggler   rank {rank} on {host}: {share} (at step {e['step']})")


def _when(attempt: dict[str, Any]) -> str:
    """Return when an attempt started and how long it lasted; its record may be torn."""
    if "started" not in attempt:
        return "start unknown"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["started"]))
    return f"{started} for {attempt['ended'] - attempt['started']:.0f} s" if "ended" in attempt else started


def _show_picks(registry: Any) -> None:
    """Say how good the large losses of each epoch were as a detector of false negatives, where that is known."""
    from trainer.report.facts import epochs
    from trainer.run.events import read_events, step_history

    for epoch in epochs(step_history(read_events(registry.url))):
        if epoch.precision is not None:
            shares = (
                f"{_percent(epoch.precision)} % truly positive, {_percent(epoch.recall)} % of the false negatives"
            )
            print(f"picks       epoch {epoch.number}: {epoch.picks} large losses, {shares}")


def overview(registry: Any) -> dict[str, Any]:
    """Return state, step, epoch, loss, best validation mAP and test mAP of a run."""
    from trainer.run.events import read_events, step_history
    from trainer.watch.timing import TimeSplit

    config, result = registry.config(), registry.result()
    steps = step_history(read_events(registry.url))
    scores = [r["map"] for r in registry.evaluations(config.dataset.validation).values() if r.get("map") is not None]
    recent = steps[-50:]
    seconds = sum(e["seconds"] + e["waited"] for e in recent)
    last: dict[str, Any] = steps[-1] if steps else {"step": -1, "epoch": 0, "loss": None}
    return {
        "state": registry.state(),
        "step": last["step"] + 1,
        "epoch": last["epoch"],
        "loss": last["loss"],
        "rate": sum(e["samples"] for e in recent) / seconds if recent else None,
        "step_seconds": seconds / len(recent) if recent else None,
        "time": TimeSplit.of(recent),
        "steps_per_epoch": registry.description()["steps_per_epoch"],
        "best": max(scores, default=None),
        "test": ((result or {}).get("test") or {}).get("map"),
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
