"""Signatures of artefacts: OpenSSF model signing with elliptic-curve keys, over every file of the folder.

Anyone can check one without Écluse: ``python -m model_signing verify key FOLDER --signature FOLDER/model.sig
--ignore-paths FOLDER/model.sig --public_key KEY``. The format is a Sigstore bundle with a DSSE envelope, in which an in-toto
statement names the files and their SHA-256.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from ecluse.errors import ModelRefused, SettingsError, cause
from ecluse.model.manifest import SIGNATURE

#: Stands before a development key; what reads PEM passes over it.
_DEVELOPMENT = b"Development key, made by Ecluse: not for production.\n"
_MISMATCH = re.compile(r"Hash mismatch for \\?'([A-Za-z0-9._-]+)")
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def make_development_keys(folder: Path) -> tuple[Path, Path]:
    """The private and the public development key in a folder; made where they are missing.

    Raises:
        SettingsError: they cannot be written there, or what is there is no key.
    """
    private, public = folder / "development.key.pem", folder / "development.pub.pem"
    try:
        if not private.exists():
            folder.mkdir(parents=True, exist_ok=True)
            private.touch(mode=0o600)
            private.write_bytes(_DEVELOPMENT + _private_pem(ec.generate_private_key(ec.SECP256R1())))
        if not public.exists():
            key = serialization.load_pem_private_key(private.read_bytes(), None)
            public.write_bytes(_DEVELOPMENT + _public_pem(key.public_key()))
    except OSError as error:
        raise SettingsError([f"The development keys cannot be written to {folder}: {error.strerror}."]) from error
    except ValueError as error:
        raise SettingsError([f"{private} is no private key: delete it, and another is made."]) from error
    return private, public


def require_keys(keys: Sequence[Path], *, production: bool) -> None:
    """Make sure that keys can be read and may be used.

    Raises:
        SettingsError: one cannot be read, or is a development key in production.
    """
    for key in keys:
        if _read(key).startswith(_DEVELOPMENT) and production:
            raise SettingsError(
                [f"{key} is a development key, and model.production is true: make keys of your own (docs/models.md)."]
            )


def fingerprints(keys: Sequence[Path], *, production: bool) -> dict[str, Path]:
    """The trusted keys by their SHA-256, as signatures name them.

    Raises:
        SettingsError: no key is trusted, one cannot be read or used, or one is a development key in production.
    """
    if not keys:
        raise SettingsError(["model.trusted_keys is empty: without a key to trust, no model can be loaded."])
    require_keys(keys, production=production)
    return {_fingerprint(key): key for key in keys}


def sign(folder: Path, key: Path, *, production: bool) -> str:
    """Sign an artefact's folder: digests only, nothing is loaded. Writes its signature file.

    Returns:
        The SHA-256 of the public key, as `fingerprints` gives it.

    Raises:
        SettingsError: the key cannot be read or used, or is a development key in production.
        ModelRefused: the folder cannot be signed: it holds a link, or cannot be read.
    """
    require_keys([key], production=production)
    folder = folder.resolve()
    target = folder / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_hashing(target))
    except Exception as error:  # a key of another kind is an AttributeError
        raise SettingsError(
            [
                f"model.signing_key: {key} is not a private key of an elliptic curve (P-256, P-384 or P-521), as PEM without "
                "password."
            ]
        ) from error
    try:
        config.sign(folder, target)
    except (ValueError, OSError) as error:
        raise ModelRefused(f"The artefact cannot be signed: {cause(error)}.") from error
    return _claims(target)[0]


def verify(folder: Path, keys: Sequence[Path], *, production: bool) -> Path:
    """The trusted key that signed all files of an artefact's folder, and nothing else.

    Raises:
        SettingsError: no key is trusted, one cannot be read or used, or one is a development key in production.
        ModelRefused: it is not signed, or by none of the keys, or it was changed.
    """
    trusted = fingerprints(keys, production=production)
    folder = folder.resolve()
    target = folder / SIGNATURE
    if not target.is_file():
        raise ModelRefused(f"The artefact is not signed: it has no {SIGNATURE}.")
    signer, signed = _claims(target)
    if signer not in trusted:
        raise ModelRefused(
            f"No trusted key signed the artefact: its signature names the key {signer[:16]}…, and trusted are "
            f"{', '.join(f'{key} ({name[:16]}…)' for name, key in trusted.items())}."
        )
    key = trusted[signer]
    try:
        config = verifying.Config().set_hashing_config(_hashing(target))
        config.use_elliptic_key_verifier(public_key=key).verify(folder, target)
    except InvalidSignature as error:
        raise ModelRefused(f"The signature is not one that {key} made.") from error
    except OSError:
        raise
    except Exception as error:  # what a stranger's bytes make the library raise has no common base
        if changed := _MISMATCH.search(str(error)):
            raise ModelRefused(f"The file {changed[1]} was changed after the artefact was signed.") from error
        raise ModelRefused(f"The artefact and its signature do not belong together: {cause(error)}.") from error
    # A signature may say that files are left out of it: ours leave out nothing.
    if unsigned := {file.name for file in folder.iterdir()} - signed - {SIGNATURE}:
        raise ModelRefused(f"The signature does not cover the file {min(unsigned)}.")
    return key


def _claims(signature: Path) -> tuple[str, set[str]]:
    """The key that a signature says it is by (SHA-256 of its PEM), and the files that it says it covers."""
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        envelope = bundle["dsseEnvelope"]
        statement = json.loads(_exactly(envelope["payload"]))
        _exactly(envelope["signatures"][0]["sig"])
        signer = bytes.fromhex(bundle["verificationMaterial"]["publicKey"]["hint"])
        return signer.hex(), {file["name"] for file in statement["predicate"]["resources"]}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{SIGNATURE} is no signature of a model.") from error


def _exactly(text: str) -> bytes:
    """Base64 in its one proper form: decoders read past stray characters and unused bits, each in its own way.

    Raises:
        ValueError: it is in another.
    """
    data = base64.b64decode(text)
    if base64.b64encode(data) != text.encode():
        raise ValueError("this is not how the bytes are encoded")
    return data


def _fingerprint(key: Path) -> str:
    """A public key's SHA-256, as a signature names it.

    Raises:
        SettingsError: it is no public key that could have signed.
    """
    try:
        public = serialization.load_pem_public_key(_read(key))
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _CURVES:
        raise SettingsError(
            [f"model.trusted_keys: {key} is not a public key of an elliptic curve (P-256, P-384 or P-521), as PEM."]
        )
    return hashlib.sha256(_public_pem(public)).hexdigest()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Any) -> bytes:
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise SettingsError([f"The key {key} cannot be read: {error.strerror}."]) from error


def _hashing(signature: Path) -> hashing.Config:
    return hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
