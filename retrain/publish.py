"""From a draft, a folder whose manifest has no version yet, to a signed release. Digests only: nothing of it is loaded."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ecluse.contract.records import Arm, Release
from ecluse.errors import ModelRefused, SettingsError
from ecluse.model import signing
from ecluse.model.manifest import MANIFEST, Manifest, sha256_of
from ecluse.model.registry import read_registry
from ecluse.model.routes import announce
from ecluse.model.store import ModelStore, require_listed
from ecluse.settings import Settings

#: The version of a draft.
DRAFT = 0


def require_key(settings: Settings) -> Path:
    """The key that signs; asked before anything long begins.

    Raises:
        SettingsError: there is no key, or it is a development key in production.
    """
    if settings.model.signing_key is None:
        raise SettingsError(
            [
                "model.signing_key is not set, and workers load only what is signed: docs/models.md says how to make keys."
            ]
        )
    signing.require_keys([settings.model.signing_key], production=settings.model.production)
    return settings.model.signing_key


def publish(settings: Settings, draft: Path, *, champion: bool) -> tuple[Manifest, int | None]:
    """Give a draft its version, sign it, store it and write its release; with `champion`, make it the champion too.

    Returns:
        The manifest, and the revision of the route; None where no route was written (see `routes.announce`).

    Raises:
        ModelRefused: the draft's manifest is not that of this stream's model, or does not name its files.
        SettingsError: it cannot be signed.
        ModelError, BrokerError: the store or the topic could not be written.
    """
    manifest, release = store_draft(settings, draft, read_registry(settings).newest(settings.model_name))
    arm = Arm("champion", manifest.version, manifest.thresholds) if champion else None
    return manifest, announce(settings, release, arm)


def store_draft(
    settings: Settings, draft: Path, above: int, lineage: Mapping[str, Any] | None = None
) -> tuple[Manifest, Release]:
    """Give a draft a version over `above`, sign it and store it. Nobody knows of it before its release is written.

    Args:
        settings: the stream's.
        draft: the folder.
        above: the newest version that is released.
        lineage: what the manifest's `training` says beside what the draft says.

    Raises: as `publish`, but for the topic.
    """
    drafted = Manifest.decode((draft / MANIFEST).read_bytes())
    if (drafted.name, drafted.version) != (settings.model_name, DRAFT):
        raise ModelRefused(f"The draft calls itself {drafted.name} version {drafted.version}.")
    require_listed(drafted, {file.name for file in draft.iterdir()})
    store = ModelStore.of(settings)
    version = store.claim(settings.model_name, above)
    files = {name: draft / name for name in drafted.files}
    manifest = msgspec.structs.replace(
        drafted,
        version=version,
        created_at=time.time(),
        training=drafted.training | dict(lineage or {}),
        files={name: sha256_of(file) for name, file in files.items()},
        sizes={name: file.stat().st_size for name, file in files.items()},
    )
    (draft / MANIFEST).write_bytes(manifest.encode())
    signing.sign(draft, require_key(settings), production=settings.model.production)
    digest = store.write(draft)
    return manifest, Release(manifest.name, version, manifest.created_at, digest, sum(manifest.sizes.values()))
