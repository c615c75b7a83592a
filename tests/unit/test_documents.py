"""What the documents point at exists: files, commands, make targets, presets."""

from __future__ import annotations

import importlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import typer

from cluster.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

pytestmark = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text())
    assert not [link for link in links if not (document.parent / link).exists()]


def test_commands_exist(document):
    for command, following in re.findall(r"\bboostlu ([a-z][a-z-]*)(?: ([a-z][a-z-]+))?", _code(document)):
        assert command in COMMANDS, f"boostlu {command}"
        module, attribute, _ = COMMANDS[command]
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer) and following:
            names = {c.name or c.callback.__name__.replace("_", "-") for c in found.registered_commands}
            assert following in names, f"boostlu {command} {following}"


def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", _code(document), re.MULTILINE)) <= targets


def test_named_tests_exist(document):
    assert not [
        name for name in re.findall(r"`(tests/[\w/]+\.py)`", document.read_text()) if not (ROOT / name).exists()
    ]


def test_presets_exist(document):
    assert not [
        name for name in re.findall(r"configs/[a-z0-9_/-]+\.yaml", document.read_text()) if not (ROOT / name).exists()
    ]


def test_pictures_are_well_formed(document):
    for name in re.findall(r"\]\(([^)\s]+\.svg)\)", document.read_text()):
        root = ElementTree.parse(document.parent / name).getroot()  # noqa: S314 — our own file
        assert root.tag.endswith("svg")


def _code(document: Path) -> str:
    """Return what the document shows as code, blocks and spans."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), re.DOTALL)).replace("`", "")
