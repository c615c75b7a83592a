"""``boostlu reproduce``: methods × seeds of a published table, ours beside theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.train import Address, Overrides
from sharding import storage
from sharding.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cluster.reproduction.tables import Contestant, Row


def reproduce(
    table: Annotated[str, typer.Argument(help="digits, voc, coco, nuswide, cub or openimages-v3.")],
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="The dataset; default: the preset's.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder for runs and results; default: reproduce/TABLE.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of initial weights and sample order.")] = "0,1,2",
    methods: Annotated[str | None, typer.Option(help="Some of the table's methods, separated by commas.")] = None,
    alphas: Annotated[str | None, typer.Option(help="Also train the methods that boost with these α: 2,3,7.")] = None,
    address: Address = None,
) -> None:
    """Train the methods of a published table and print our test mAP beside the published one.

    Example:  boostlu reproduce digits --methods an,ll-r,ll-r-boostlu --alphas 2,3,7 --seeds 0,1,2

    What is finished is kept, so the command can be stopped and given again.
    """
    from cluster.cli.train import finish_run
    from cluster.nodes.local import ray_cluster
    from cluster.reproduction.published import TABLES, TITLES
    from cluster.reproduction.tables import contestants, row

    if table not in TABLES:
        raise UserError(f"no table {table!r}", did_you_mean(table, TABLES))
    chosen = list(TABLES[table].methods) if methods is None else methods.split(",")
    for method in chosen:
        if method not in TITLES:
            raise UserError(f"no method {method!r}", did_you_mean(method, TITLES))
    lines = contestants(chosen, [] if alphas is None else [_alpha(text) for text in alphas.split(",")])
    folder = output or storage.join("reproduce", table)
    extra = [*([f"dataset.path={data}"] if data else []), *(overrides or [])]
    plan = {(c.name, seed): _config(table, c, seed, extra) for seed in map(_seed, seeds.split(",")) for c in lines}
    first = next(iter(plan.values()))
    workers, evaluator = first.workers, first.evaluate
    records: dict[str, list[dict[str, Any]]] = {c.name: [] for c in lines}
    cpus = workers.num * workers.cpus + evaluator.cpus
    with ray_cluster(address, cpus, workers.num * workers.gpus + evaluator.gpus):
        # Seed by seed, so that an interrupted reproduction has all methods of the seeds it came to.
        for (name, _), config in plan.items():
            records[name].append(finish_run(storage.join(folder, "runs"), config).result()["test"])
    _write([row(c, table, records[c.name]) for c in lines], table, folder)


def _seed(text: str) -> int:
    if not text.strip().isdigit():
        raise UserError(f"--seeds: {text!r} is no seed", "write whole numbers separated by commas: 0,1,2")
    return int(text)


def _alpha(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--alphas: {text!r} is no number", "write numbers separated by commas: 2,3,7") from None


def _config(table: str, contestant: Contestant, seed: int, overrides: list[str]) -> Any:
    from importlib.resources import files

    from cluster.reproduction.published import TABLES
    from trainer.config import load_config

    configs, entry = files("configs"), TABLES[table]
    preset, method = configs.joinpath(f"{entry.preset}.yaml"), configs.joinpath(f"methods/{contestant.method}.yaml")
    own = [f"name={contestant.name}-seed{seed}", f"seed={seed}", *entry.overrides.get(contestant.method, ())]
    return load_config(str(preset), [*own, *contestant.settings, *overrides], str(method))


def _write(rows: list[Row], table: str, folder: str) -> None:
    from rich.table import Table

    from cluster.cli.terminal import terminal
    from cluster.reproduction.tables import cells, comma_separated, header, markdown, plot

    shown = Table(*header(rows), header_style="bold")
    for one in rows:
        shown.add_row(*cells(one, rows))
    terminal().print(shown)
    for name, content in (("table.md", markdown(rows)), ("table.csv", comma_separated(rows))):
        storage.write_atomic(storage.join(folder, name), content.encode())
    storage.write_atomic(storage.join(folder, "plot.png"), plot(rows, table))
    print(f"table.md, table.csv and plot.png are in {folder}")
