"""`ecluse config show`: the configuration as it is after file, environment and flags."""

import json as jsonlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, settings_of
from ecluse.settings import shown

app = typer.Typer(help="The configuration.", no_args_is_help=True)

_BARE_KEY = re.compile(r"^[A-Za-z0-9_-]+$")


@app.command()
def show(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Print the merged configuration as TOML, defaults included; secrets are stars."""
    merged = shown(settings_of(config, servers))
    if json:
        print_json(merged)
    else:
        out.print(as_toml(merged), markup=False, soft_wrap=True, end="")


def as_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of plain values as TOML; a table of tables (the stream's fields) has a section of its own."""
    return "\n".join("\n".join(lines) + "\n" for lines in _sections(sections))


def _sections(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for section, values in sections.items():
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        yield [f"[{section}]", *_lines(plain)]
        for key, value in values.items():
            if isinstance(value, dict):
                yield [f"[{section}.{key}]", *_lines(value)]


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in values.items()]


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else _value(key)


def _value(value: Any) -> str:
    """One value. JSON's literals are TOML's, but for objects."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return jsonlib.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
