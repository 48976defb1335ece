"""The documentation holds: its commands exist, its links lead somewhere, its settings are settings."""

import ast
import importlib
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from console.main import app
from ecluse.settings import Settings
from tests.docs.pages import PAGES, ROOT, anchors, blocks, commands, inline, links

COMMANDS = sorted({command for page in PAGES for command in commands(page, "ecluse")})
SCRIPTS = [(page, block) for page in PAGES for block in blocks(page, "python")]


def resolve(command: str) -> tuple[list[str], Any]:
    """The nouns and verbs of a shown call, and the command that they lead to."""
    node: Any = typer.main.get_command(app)
    path: list[str] = []
    for word in command.split()[1:]:
        if not hasattr(node, "commands") or word.startswith("-"):
            break
        assert word in node.commands, f"there is no `ecluse {' '.join([*path, word])}`"
        node = node.commands[word]
        path.append(word)
    return path, node


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_exists_with_its_options(command: str) -> None:
    path, node = resolve(command)
    known = {option for parameter in node.params for option in parameter.opts} | {"--help"}
    assert {word.split("=")[0] for word in command.split() if word.startswith("-")} <= known
    assert CliRunner().invoke(app, [*path, "--help"]).exit_code == 0


def test_every_command_is_shown_somewhere() -> None:
    top = typer.main.get_command(app)
    shown = {command.split()[1] for command in COMMANDS} | {"demo"}
    assert set(getattr(top, "commands", {})) <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_something_that_is_there(page: Any) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize(("page", "block"), SCRIPTS, ids=lambda value: getattr(value, "name", "block"))
def test_a_python_block_parses_and_imports_what_is_installed(page: Any, block: Any) -> None:
    tree = ast.parse(block.text, filename=str(page))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_setting_that_is_named_is_a_setting(page: Any) -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    for text in inline(page):
        named = re.match(r"(\w+)\.(\w+)(?:$| = )", text)
        if named and named[1] in sections and not text.endswith((".py", ".json")):
            assert named[2] in sections[named[1]].model_fields, f"{page.name} names {text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_make_target_that_is_shown_exists(page: Any) -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {command.split()[1] for command in commands(page, "make")} <= targets


def test_the_readme_begins_with_the_two_commands_that_do_everything() -> None:
    assert [line.split()[:2] for line in blocks(ROOT / "README.md")[0].lines] == [["make", "demo"], ["make", "test"]]


def test_the_picture_tells_the_path_in_the_order_of_the_design() -> None:
    picture = ET.parse(ROOT / "docs" / "path.svg").getroot()
    said = " ".join((picture.findtext("{http://www.w3.org/2000/svg}desc") or "").split())
    steps = [
        "consumes",
        "decodes and validates",
        "features and scores",
        "decides",
        "alerts with reasons",
        "encodes",
        "produces",
    ]
    places = [said.index(step) for step in [*steps, "confirmation", "ledger commits the contiguous prefix"]]
    assert places == sorted(places)
