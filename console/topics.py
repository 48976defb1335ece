"""`ecluse topics`: the stream's topics, made and checked."""

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, settings_of
from ecluse import cluster

app = typer.Typer(help="The stream's topics.", no_args_is_help=True)


@app.command()
def create(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Make the topics that are missing, and give the workers' group its start."""
    settings = settings_of(config, servers)
    made = cluster.create_topics(settings)
    if json:
        print_json({"created": made, "topics": [spec.name for spec in settings.topic_specs]})
        return
    for spec in settings.topic_specs:
        state = "made" if spec.name in made else "was there"
        out.print(f"{spec.name}: {state}, {spec.partitions} partitions", markup=False, soft_wrap=True)


@app.command()
def check(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Hold the topics against what the stream needs. Exit code 1: they are not as they must be."""
    settings = settings_of(config, servers)
    problems = cluster.check_topics(settings)
    if json:
        print_json({"ok": not problems, "problems": problems})
    else:
        out.print(
            "\n".join(problems)
            or f"The {len(settings.topic_specs)} topics of {settings.stream.name} are as they must be.",
            markup=False,
            soft_wrap=True,
        )
    if problems:
        raise typer.Exit(1)
