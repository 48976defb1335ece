"""`ecluse model show`: what a version says about itself, and what its signature and the route say of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from console.model_routes import download, form_of, state_of
from console.output import ConfigOption, JsonOption, ServersOption, fail, out, print_json, settings_of
from console.reading import clock_time, printable
from ecluse.errors import ModelError, ModelNotFound

if TYPE_CHECKING:
    from ecluse.contract.records import Release
    from ecluse.model.manifest import Manifest
    from ecluse.settings import Settings


def show(
    version: Annotated[
        int | None, typer.Argument(min=1, help="Which; the champion where not given.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Show a version's manifest, after its files and its signature were checked. Exit code 1: workers would refuse it."""
    from ecluse.model.registry import read_registry

    settings = settings_of(config, servers)
    name, registry = settings.model_name, read_registry(settings)
    routed = registry.routes.get(name)
    if version is None:
        if routed is None:
            raise ModelNotFound(f"No version of model {name} is champion: name one (`ecluse model list`).")
        version = routed.route.champion.version
    manifest, signed_by, fault = _examined(settings, version, registry.releases.get((name, version)))
    state = state_of(registry, name, version, stored=True)
    if json:
        key = None if signed_by is None else str(signed_by)
        print_json({"manifest": manifest, "state": state, "signed_by": key, "fault": fault})
    else:
        revision = routed.revision if routed is not None and state == "champion" else None
        _print(manifest, state if revision is None else f"{state} by revision {revision}", signed_by)
    if fault:
        fail(f"Version {version} of model {name} must not be used: {fault}")


def _examined(settings: "Settings", version: int, release: "Release | None") -> tuple["Manifest", Path | None, str]:
    """A version's manifest, the trusted key that signed it, and what is wrong with it; of a bad one no key is told.

    Raises:
        ModelError: not even its manifest can be read.
    """
    from ecluse.model import signing
    from ecluse.model.artefact import verified
    from ecluse.model.store import ModelStore

    try:
        with download(version) as progress:
            manifest, folder = verified(settings, version, release, progress)
        key = signing.verify(folder, settings.model.trusted_keys, production=settings.model.production)
    except ModelError as error:
        return ModelStore.of(settings).manifest(settings.model_name, version), None, str(error)
    return manifest, key, ""


def _print(manifest: "Manifest", state: str, signed_by: Path | None) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    before = ""
    for name, text in _lines(manifest):
        table.add_row(name if name != before else "", printable(text, 2000))
        before = name
    table.add_row("signature", f"by {signed_by}" if signed_by else "does not hold")
    table.add_row("state", state)
    out.print(table, markup=False)


def _lines(manifest: "Manifest") -> list[tuple[str, object]]:
    """The manifest for people, line by line. What it holds may be a stranger's."""
    limits = manifest.thresholds
    return [
        ("model", f"{manifest.name}, version {manifest.version}"),
        ("created", f"{clock_time(manifest.created_at)} UTC"),
        ("form", f"{form_of(manifest)}, {decimal(manifest.memory_bytes)} of memory"),
        *(("feature", f"{each.name}: {each.transform} of {each.field}") for each in manifest.features),
        ("review from", f"{limits.review:.4f}"),
        ("block from", f"{limits.block:.4f}"),
        *(("metric", f"{name}: {value:,.6g}") for name, value in manifest.metrics.items()),
        *(("policy", f"{name}: {_words(value)}") for name, value in manifest.policy.items()),
        *(("training", f"{name}: {_words(value)}") for name, value in manifest.training.items()),
        *(
            ("ONNX", f"{name}: {value:,.3g}" if value < 1 else f"{name}: {value:,.0f}")
            for name, value in manifest.onnx.items()
        ),
        *(("library", f"{name} {value}") for name, value in manifest.libraries.items()),
        *(
            ("file", f"{name}, {decimal(manifest.sizes.get(name, 0))}, SHA-256 {digest}")
            for name, digest in manifest.files.items()
        ),
    ]


def _words(value: object) -> str:
    """A value of the manifest for people: lists and tables without Python's marks."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_words(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return "none" if value is None else str(value)
