"""Where artefacts lie: a folder, or an object store by URL.

``<name>/<version>/`` holds an artefact's files, its manifest written last: a version without one is not there.
``<name>/claims/<version>`` is how versions are handed out: created only if absent, so two trainers never share one.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from ecluse.contract.topics import NAME
from ecluse.errors import ModelError, ModelNotFound, ModelRefused, cause
from ecluse.model.manifest import MANIFEST, SIGNATURE, Manifest, sha256, sha256_of
from ecluse.settings import Settings

if TYPE_CHECKING:
    from obstore import GetOptions

_PART_BYTES = 4 * 1024 * 1024
#: The most that is read of a manifest or a signature.
_SMALL_BYTES = 16 * 1024 * 1024
#: What a file of an artefact may be called: no way out of its folder, and nothing that a tool passes over.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


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
            raise ModelError(f"The model store {location} cannot be used: {cause(error)}.") from error

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

    def write(self, folder: Path) -> str:
        """Store the artefact that lies in a folder, its manifest last; returns the manifest's SHA-256.

        Raises:
            ModelRefused: the files are not those that the manifest lists, or the version is there already.
        """
        encoded = (folder / MANIFEST).read_bytes()
        manifest, present = Manifest.decode(encoded), {file.name for file in folder.iterdir()}
        require_listed(manifest, present)
        if changed := [name for name, digest in manifest.files.items() if sha256_of(folder / name) != digest]:
            raise ModelRefused(f"{changed[0]} is not the file whose digest the manifest holds.")
        for name in sorted(present - {MANIFEST}):
            self._put(_path(manifest.name, manifest.version, name), folder / name)
        try:
            self._put(_path(manifest.name, manifest.version, MANIFEST), encoded, create=True)
        except AlreadyExistsError as error:
            raise ModelRefused(f"Version {manifest.version} of model {manifest.name} is stored already.") from error
        return sha256(encoded)

    def sign(self, name: str, version: int, signature: bytes) -> None:
        """Put a signature in the place of the one that a version has."""
        self._put(_path(name, version, SIGNATURE), signature)

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
        return require_released(self._get(_path(name, version, MANIFEST), name, version), name, version, digest)

    def fetch(
        self, name: str, version: int, digest: str | None, into: Path, progress: Callable[[int, int], None] | None
    ) -> Manifest:
        """Download a version's files into a folder; each has the digest that the manifest holds. The signature is copied.

        Args:
            name: the model's.
            version: which.
            digest: of the manifest, where its release is known.
            into: an empty folder.
            progress: told of the bytes that are there, and of all.

        Raises:
            ModelNotFound: the store does not hold it whole.
            ModelRefused: it was changed, calls itself otherwise, or holds a file that its manifest does not name.
            ModelError: the store cannot be read, or the disk is full.
        """
        encoded = self._get(_path(name, version, MANIFEST), name, version)
        manifest = require_released(encoded, name, version, digest)
        folder = f"{_folder(name)}/{version}/"
        present = {path.removeprefix(folder) for path in self._paths(folder)}
        require_listed(manifest, present)
        total, done = sum(manifest.sizes.values()), 0
        if (free := shutil.disk_usage(into).free) < total:
            raise ModelError(f"{into} has {free:,} bytes free, and version {version} of {name} takes {total:,}.")
        (into / MANIFEST).write_bytes(encoded)
        if SIGNATURE in present:
            (into / SIGNATURE).write_bytes(self._get(f"{folder}{SIGNATURE}", name, version))
        for file, expected in manifest.files.items():
            sha, size = hashlib.sha256(), 0
            with (into / file).open("wb") as out:
                for part in self._stream(f"{folder}{file}", name, version):
                    sha.update(part)
                    if (size := size + len(part)) > manifest.sizes[file]:
                        break  # or a stranger could fill the disk
                    out.write(part)
                    if progress is not None:
                        progress(done + size, total)
            done += size
            if sha.hexdigest() != expected:
                raise ModelRefused(
                    f"The file {file} of version {version} of model {name} is not the one whose digest the manifest "
                    "holds: it was changed."
                )
        return manifest

    def _numbers(self, prefix: str) -> list[int]:
        names = [path.rsplit("/", 1)[-1] for path in self._paths(prefix)]
        return [int(name) for name in names if name.isdecimal()]

    def _paths(self, prefix: str) -> list[str]:
        try:
            return [entry["path"] for entry in obstore.list(self._store, prefix=prefix).collect()]
        except (BaseError, OSError) as error:
            raise ModelError(f"The model store {self.location} cannot be read: {cause(error)}.") from error

    def _put(self, path: str, data: bytes | Path, *, create: bool = False) -> None:
        try:
            obstore.put(self._store, path, data, mode="create" if create else "overwrite", use_multipart=not create)
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            raise ModelError(f"The model store {self.location} cannot be written: {cause(error)}.") from error

    def _get(self, path: str, name: str, version: int) -> bytes:
        """A small object's bytes."""
        found = bytearray()
        for part in self._stream(path, name, version):
            found += part
            if len(found) > _SMALL_BYTES:
                raise ModelRefused(
                    f"{path} in the model store is larger than {_SMALL_BYTES:,} bytes: that is no such file."
                )
        return bytes(found)

    def _stream(self, path: str, name: str, version: int) -> Iterator[bytes]:
        """An object's bytes, part by part. What breaks off goes on where it broke, as long as each try brings something:
        object stores' clients give up a transfer after minutes, however well it goes."""
        done = before = 0
        try:
            while True:
                rest: GetOptions = {"range": {"offset": done}} if done else {}
                try:
                    for part in obstore.get(self._store, path, options=rest).stream(min_chunk_size=_PART_BYTES):
                        done += len(part)
                        yield bytes(part)
                    return
                except BaseError:
                    if done == before:
                        raise
                    before = done
        except FileNotFoundError as error:
            what = path.rsplit("/", 1)[-1]
            which = f"version {version} of model {name}"
            raise ModelNotFound(
                f"The model store {self.location} holds no {which}{'' if what == MANIFEST else f' ({what} is missing)'}."
            ) from error
        except (BaseError, OSError) as error:
            raise ModelError(f"The model store {self.location} cannot be read: {cause(error)}.") from error


def require_released(encoded: bytes, name: str, version: int, digest: str | None) -> Manifest:
    """The manifest, if it is the one that was released (`digest`, where known) and that of this name and version.

    Raises:
        ModelRefused: it is not.
    """
    if digest is not None and sha256(encoded) != digest:
        raise ModelRefused(
            f"The manifest of version {version} of model {name} has the SHA-256 {sha256(encoded)}, but its release "
            f"says {digest}: the artefact was changed after its release."
        )
    manifest = Manifest.decode(encoded)
    if (manifest.name, manifest.version) != (name, version):
        raise ModelRefused(
            f"The artefact in the place of {name} version {version} calls itself {manifest.name} version "
            f"{manifest.version}."
        )
    return manifest


def require_listed(manifest: Manifest, present: Set[str]) -> None:
    """Hold the files of an artefact's folder against those that its manifest names; the signature may be missing.

    Raises:
        ModelRefused: one is missing or not named, or a name leads out of the folder.
    """
    which = f"version {manifest.version} of model {manifest.name}"
    if tricks := [name for name in manifest.files if not _FILE.fullmatch(name) or name in (MANIFEST, SIGNATURE)]:
        raise ModelRefused(f"The manifest of {which} names {tricks[0]!r:.99}, which can be no file of its folder.")
    if manifest.sizes.keys() != manifest.files.keys():
        raise ModelRefused(f"The manifest of {which} does not give the size of each of its files.")
    if extra := sorted(present - {*manifest.files, MANIFEST, SIGNATURE}):
        raise ModelRefused(f"The folder of {which} holds {extra[0]!r:.99}, which its manifest does not name.")
    if missing := sorted(manifest.files.keys() - present):
        raise ModelNotFound(f"The folder of {which} does not hold '{missing[0]}', which its manifest names.")


def _folder(name: str) -> str:
    if not NAME.match(name):
        raise ModelRefused(f"'{name}' is no name for a model: lower-case letters, digits and hyphens, 64 at most.")
    return name


def _path(name: str, version: int, file: str) -> str:
    if Path(file).name != file or version < 1:
        raise ModelRefused(f"'{file}' of version {version} is no place in a model store.")
    return f"{_folder(name)}/{version}/{file}"
