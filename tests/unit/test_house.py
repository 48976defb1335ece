"""The rules of the house: sizes, docstrings, imports, versions, the lock, and what the wheel holds."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from console.broker import KAFKA_VERSION

ROOT = Path(__file__).parents[2]
ROOMS = ("ecluse", "ingest", "scoring", "retrain", "console")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BIN = Path(sys.executable).parent


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def test_files_stay_under_400_lines() -> None:
    assert [str(file) for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) >= 400] == []


def test_functions_stay_under_50_lines() -> None:
    functions = [
        (f"{name}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node))
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(name, lines) for name, lines in functions if lines >= 50] == []


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Documentation does not make a function long."""
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []


def test_imports_point_down() -> None:
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_answers_without_loading_what_only_some_commands_need() -> None:
    heavy = {"faust", "onnx", "onnxruntime", "polars", "skl2onnx", "sklearn"}
    script = f"import console.main, sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_changelog_tells_of_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", PROJECT["project"]["version"]]


@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/requirements.lock"])
def test_the_lock_satisfies_the_ranges_and_has_a_hash_for_everything(lock: str) -> None:
    pinned = pins(lock)
    groups = PROJECT["dependency-groups"].values() if lock == "requirements.lock" else []
    for text in [*PROJECT["project"]["dependencies"], *(text for group in groups for text in group)]:
        wanted = Requirement(text)
        version = pinned.get(canonicalize_name(wanted.name))
        assert version is not None, f"{text} is not in {lock}"
        assert version in wanted.specifier, f"{lock} has {version} for {text}"
    entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text(encoding="utf-8").strip())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_image_runs_on_the_versions_that_were_tested() -> None:
    assert pins("deploy/requirements.lock").items() <= pins("requirements.lock").items()
    assert "pytest" not in pins("deploy/requirements.lock")


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {canonicalize_name(name): version for name, version in re.findall(r"^(\S+?)==(\S+)", text, re.MULTILINE)}


def test_the_wheel_holds_all_that_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "-w", tmp_path, ROOT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entry_points = archive.read(metadata).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert {str(file.relative_to(ROOT)) for file in FILES} <= held
    assert {f"{room}/py.typed" for room in ROOMS} <= held
    assert "console/kafka-pom.xml" in held
    assert {name.split("/")[0] for name in held} == set(ROOMS)
    assert "rdkafka" in entry_points


def test_the_broker_has_one_version_everywhere() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert compose["services"]["broker"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    pom = (ROOT / "deploy" / "kafka" / "pom.xml").read_text(encoding="utf-8")
    assert re.search(rf"<artifactId>kafka_2\.13</artifactId>\s*<version>{re.escape(KAFKA_VERSION)}</version>", pom)


def test_the_image_and_compose_carry_this_version_and_know_each_other() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    ours = [service for name, service in compose["services"].items() if name != "broker"]
    assert {service["image"] for service in ours} == {f"ecluse:{PROJECT['project']['version']}"}
    assert all((ROOT / service["build"]["dockerfile"]).is_file() for service in ours)


def test_the_image_copies_only_what_is_let_through() -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(ROOMS) <= set(let_through)
    assert [path for path in let_through if not (ROOT / path).exists()] == []
