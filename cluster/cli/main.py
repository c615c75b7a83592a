"""The ``boostlu`` command: its sub-commands, and how errors reach the user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from sharding.errors import UserError

#: Sub-command → (module, attribute, one line of help), in the order that help shows. Modules are imported when
#: their command is used, so that ``boostlu --help`` does not wait for torch and ray.
COMMANDS = {
    "demo": ("cluster.cli.demo", "demo", "The whole road on generated digit scenes: shards, training, report."),
    "shards": ("cluster.cli.shards", "app", "Build, verify and describe datasets of WebDataset shards."),
    "train": ("cluster.cli.train", "train", "Start a run."),
    "resume": ("cluster.cli.train", "resume", "Go on with a run that was stopped or died."),
    "submit": ("cluster.cli.jobs", "submit", "Train on a Ray cluster from outside, as a job."),
    "jobs": ("cluster.cli.jobs", "app", "List, follow and stop the jobs of a Ray cluster."),
    "cluster": ("cluster.cli.cluster", "app", "Look at a Ray cluster."),
    "evaluate": ("cluster.cli.evaluate", "evaluate", "Evaluate a checkpoint of a run."),
    "explain": ("cluster.cli.explain", "explain", "Draw class-activation maps over an image."),
    "analyze": ("cluster.cli.analyze", "analyze", "Compare the explanations of two runs."),
    "reproduce": (
        "cluster.cli.reproduce",
        "reproduce",
        "Train the methods of a published table, ours beside theirs.",
    ),
    "runs": ("cluster.cli.runs", "app", "List and show runs."),
    "report": ("cluster.cli.report", "report", "Write one HTML page about one or more runs."),
    "checkpoints": ("cluster.cli.checkpoints", "app", "List, verify, prune and export a run's checkpoints."),
    "config": ("cluster.cli.config", "app", "Show or check a configuration."),
    "deploy": ("cluster.cli.deploy", "app", "Write what runs a configuration on Compose, Kubernetes or a cloud."),
    "bench": ("cluster.cli.bench", "app", "Measure speed and memory against a peer in the same run."),
}


class LazyGroup(TyperGroup):
    """A command group that knows its commands' names and imports them on use."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # what a misspelt name is compared with

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 — click's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found = getattr(importlib.import_module(module), attribute)
        app = found if isinstance(found, typer.Typer) else _single(found)
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])


def _single(function: Any) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=function.__doc__)(function)
    return app


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def root() -> None:
    """Train multi-label image classifiers on partial labels: BoostLU with large-loss modification.

    Start with:  boostlu demo
    """


def main() -> None:
    """Run the command line; ``--debug`` anywhere shows tracebacks."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    guarded(app, debug)


def guarded(command: Callable[[], Any], debug: bool = False) -> None:
    """Run ``command``: a UserError becomes one line and exit status 2, a stop 130, any other exception 1."""
    try:
        command()
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if debug:
            raise
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        name = type(error).__name__
        print(f"error: {name}: {error} (this may be a defect; --debug shows the traceback)", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
