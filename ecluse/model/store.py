"""Where artefacts lie: a folder, or an object store by URL.

``<name>/<version>/`` holds an artefact's files, its manifest written last: a version without one is not there.
``<name>/claims/<version>`` is how versions are handed out: created only if absent, so two trainers never share one.
"""

from collections.abc import Mapping
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from ecluse.contract.topics import NAME
from ecluse.errors import ModelError, ModelNotFound, ModelRefused
from ecluse.model.manifest import MANIFEST, Manifest, sha256
from ecluse.settings import Settings


class ModelStore:
    """Artefacts by name and version. `location` is a folder, made if missing, or a URL (s3://…, gs://…, az://…).

    Raises:
        ModelError: the location cannot be used.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        try:
            self._store: ObjectStore = (
                from_url(location) if "://" in location else LocalStore(Path(location).expanduser(), mkdir=True)
            )
        except (BaseError, ValueError, OSError) as error:
            raise ModelError(f"The model store {location} cannot be used: {_reason(error)}") from error

    @classmethod
    def of(cls, settings: Settings) -> "ModelStore":
        """The store that the settings name."""
        return cls(settings.model.store)

    def claim(self, name: str, above: int = 0) -> int:
        """A version that nobody else has or will get: the lowest free one over all there are and over `above`."""
        version = max([above, *self._numbers(f"{_folder(name)}/claims/"), *self.versions(name)]) + 1
        while True:
            try:
                self._put(f"{_folder(name)}/claims/{version}", b"", create=True)
            except AlreadyExistsError:
                version += 1
            else:
                return version

    def write(self, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Store an artefact, files first and manifest last; returns the manifest's SHA-256.

        Raises:
            ModelRefused: the files are not those of the manifest, or the version is there already.
        """
        if {file: sha256(data) for file, data in files.items()} != manifest.files:
            raise ModelRefused("The files are not those that the manifest lists.")
        for file, data in files.items():
            self._put(_path(manifest.name, manifest.version, file), data)
        encoded = manifest.encode()
        try:
            self._put(_path(manifest.name, manifest.version, MANIFEST), encoded, create=True)
        except AlreadyExistsError as error:
            raise ModelRefused(f"Version {manifest.version} of model {manifest.name} is stored already.") from error
        return sha256(encoded)

    def versions(self, name: str) -> list[int]:
        """The versions that are complete, in rising order."""
        parts = [path.split("/") for path in self._paths(f"{_folder(name)}/") if path.endswith(f"/{MANIFEST}")]
        return sorted(int(part[-2]) for part in parts if part[-2].isdecimal())

    def manifest(self, name: str, version: int, digest: str | None = None) -> Manifest:
        """Read a manifest, and hold it against `digest` (SHA-256) where one is given.

        Raises:
            ModelNotFound: there is no such version.
            ModelRefused: its digest, name or version is another.
        """
        data = self._get(_path(name, version, MANIFEST), f"version {version} of model {name}")
        if digest is not None and sha256(data) != digest:
            raise ModelRefused(
                f"The manifest of version {version} of model {name} has the SHA-256 {sha256(data)}, but its release "
                f"says {digest}: the artefact was changed after its release."
            )
        manifest = Manifest.decode(data)
        if (manifest.name, manifest.version) != (name, version):
            raise ModelRefused(
                f"The artefact in the place of {name} version {version} calls itself {manifest.name} version "
                f"{manifest.version}."
            )
        return manifest

    def file(self, manifest: Manifest, file: str) -> bytes:
        """Read one of an artefact's files.

        Raises:
            ModelNotFound: the store does not hold it.
            ModelRefused: the manifest does not list it, or its digest is another.
        """
        which = f"{file} of version {manifest.version} of model {manifest.name}"
        if file not in manifest.files:
            raise ModelRefused(f"The manifest does not list {which}.")
        data = self._get(_path(manifest.name, manifest.version, file), which)
        if sha256(data) != manifest.files[file]:
            raise ModelRefused(f"The file {which} is not the one whose digest the manifest holds: it was changed.")
        return data

    def _numbers(self, prefix: str) -> list[int]:
        names = [path.rsplit("/", 1)[-1] for path in self._paths(prefix)]
        return [int(name) for name in names if name.isdecimal()]

    def _paths(self, prefix: str) -> list[str]:
        try:
            return [entry["path"] for entry in obstore.list(self._store, prefix=prefix).collect()]
        except (BaseError, OSError) as error:
            raise ModelError(f"The model store {self.location} cannot be read: {_reason(error)}") from error

    def _put(self, path: str, data: bytes, *, create: bool = False) -> None:
        try:
            obstore.put(self._store, path, data, mode="create" if create else "overwrite", use_multipart=not create)
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            raise ModelError(f"The model store {self.location} cannot be written: {_reason(error)}") from error

    def _get(self, path: str, which: str) -> bytes:
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError as error:
            raise ModelNotFound(f"The model store {self.location} holds no {which}.") from error
        except (BaseError, OSError) as error:
            raise ModelError(f"The model store {self.location} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The sentence of an error, without the dump of its source that obstore puts under it."""
    return str(error).partition("\n")[0]


def _folder(name: str) -> str:
    if not NAME.match(name):
        raise ModelRefused(f"'{name}' is no name for a model: lower-case letters, digits and hyphens, 64 at most.")
    return name


def _path(name: str, version: int, file: str) -> str:
    if Path(file).name != file or version < 1:
        raise ModelRefused(f"'{file}' of version {version} is no place in a model store.")
    return f"{_folder(name)}/{version}/{file}"
