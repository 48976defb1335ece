"""`ecluse model sign` and `verify`: whose signature stands in the store, and another in its place when keys change."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from console.model_routes import download
from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, say, settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ecluse.contract.records import Release
    from ecluse.settings import Settings

_VersionArgument = Annotated[int, typer.Argument(min=1, help="A released version.", show_default=False)]


def sign(
    version: _VersionArgument,
    unsigned: Annotated[
        bool,
        typer.Option(
            "--unsigned", help="Sign it also where no trusted key has signed it: you vouch for what the store holds."
        ),
    ] = False,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Sign a version with model.signing_key, in the place of the signature that it has: to change keys.

    Its files must be those of the release, and signed by a trusted key; nothing of it is loaded.
    """
    from ecluse.model import signing
    from ecluse.model.artefact import fetched
    from ecluse.model.manifest import SIGNATURE
    from ecluse.model.store import ModelStore
    from retrain.publish import require_key

    settings = settings_of(config, servers)
    key, production, trusted = require_key(settings), settings.model.production, settings.model.trusted_keys
    digest = _release(settings, version).manifest_sha256
    with download(version) as progress, fetched(settings, version, digest, progress) as folder:
        if not unsigned:
            _require_signed(folder, trusted, production=production)
        fingerprint = signing.sign(folder, key, production=production)
        ModelStore.of(settings).sign(settings.model_name, version, (folder / SIGNATURE).read_bytes())
    if trusted and fingerprint not in signing.fingerprints(trusted, production=production):
        say("None of model.trusted_keys is its public key: workers with this configuration will refuse it.")
    if json:
        print_json(
            {"model": settings.model_name, "version": version, "signed_by": str(key), "fingerprint": fingerprint}
        )
        return
    _print(f"Version {version} of model {settings.model_name} is signed with {key} (public key {fingerprint[:16]}…).")


def verify(
    version: _VersionArgument,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Check a version in the store as a worker would before it loads it, and say which trusted key signed it.

    Exit code 1: it would be refused.
    """
    from ecluse.model import signing
    from ecluse.model.artefact import verified_in_store

    settings = settings_of(config, servers)
    fingerprints = signing.fingerprints(settings.model.trusted_keys, production=settings.model.production)
    release = _release(settings, version)
    with download(version) as progress:
        manifest, key = verified_in_store(settings, version, release, progress)
    fingerprint = next(name for name, trusted_key in fingerprints.items() if trusted_key == key)
    if json:
        found = {"signed_by": str(key), "fingerprint": fingerprint, "manifest_sha256": release.manifest_sha256}
        print_json({"model": manifest.name, "version": version, **found, "files": manifest.files})
        return
    size = decimal(sum(manifest.sizes.values()))
    _print(f"Version {version} of model {manifest.name} is as it was released and signed.")
    _print(
        f"  release    its manifest has the SHA-256 {release.manifest_sha256[:16]}… that {settings.names.models} names"
    )
    _print(
        f"  files      {len(manifest.files)} ({', '.join(sorted(manifest.files))}), {size}: each as listed, no other"
    )
    _print(f"  signature  by {key} (public key {fingerprint[:16]}…), over every file")


def _require_signed(folder: "Path", trusted: "Sequence[Path]", *, production: bool) -> None:
    """Who can write to the topic and the store, and has no key, must not have ours sign what is there.

    Raises:
        ModelRefused: no trusted key signed it.
    """
    from ecluse.errors import ModelRefused
    from ecluse.model import signing

    try:
        signing.verify(folder, trusted, production=production)
    except ModelRefused as error:
        raise ModelRefused(
            f"{error} If what the store holds is yours all the same, sign it with --unsigned."
        ) from error


def _release(settings: "Settings", version: int) -> "Release":
    from ecluse.model.registry import read_registry
    from ecluse.model.routes import require_release

    return require_release(read_registry(settings), settings.model_name, version)


def _print(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
