"""`ecluse model sign` and `verify`: keys change without a new model, and a check says who signed and what was looked at."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import Result

from ecluse.contract.records import Release
from ecluse.errors import EcluseError, ModelNotFound, ModelRefused, SettingsError
from ecluse.model import routes
from ecluse.model.artefact import load_model
from ecluse.model.manifest import MANIFEST, ONNX, SIGNATURE
from ecluse.model.signing import make_development_keys
from ecluse.settings import Settings
from tests.cli import ecluse, json_of
from tests.unit.artefacts import FILES, home, store, with_model


@pytest.fixture
def release(stream: Settings) -> Release:
    """Of a sound version 1, stored and released."""
    release = store(stream)
    routes.announce(stream, release)
    return release


def refused(result: Result, kind: type[EcluseError]) -> str:
    """The sentence with which a command ended."""
    assert result.exit_code == 1
    assert type(result.exception) is kind, result.exception
    return str(result.exception)


def test_verify_says_who_signed_and_what_was_checked(stream: Settings, release: Release) -> None:
    shown = ecluse(stream, "model", "verify", "1")
    assert shown.exit_code == 0, shown.output
    for said in ("as it was released and signed", str(stream.model.trusted_keys[0]), "model.onnx, samples.json"):
        assert said in shown.stdout
    assert release.manifest_sha256[:16] in shown.stdout
    found = json_of(ecluse(stream, "model", "verify", "1", "--json"))
    assert (found["signed_by"], found["version"]) == (str(stream.model.trusted_keys[0]), 1)
    assert found["manifest_sha256"] == release.manifest_sha256
    assert isinstance(found["files"], dict) and found["files"].keys() == FILES.keys()


def test_verify_looks_into_the_store_whatever_the_cache_holds(stream: Settings, release: Release) -> None:
    load_model(stream, 1, release)
    (home(stream) / ONNX).write_bytes(b"another")
    assert "was changed" in refused(ecluse(stream, "model", "verify", "1"), ModelRefused)
    load_model(stream, 1, release)


def test_verify_refuses_what_a_worker_would_refuse(stream: Settings, release: Release) -> None:
    (home(stream) / SIGNATURE).unlink()
    assert "is not signed" in refused(ecluse(stream, "model", "verify", "1"), ModelRefused)
    unreleased = refused(ecluse(stream, "model", "verify", "2"), ModelNotFound)
    assert "never released" in unreleased
    production = with_model(stream, production=True)
    assert "is a development key" in refused(ecluse(production, "model", "verify", "1"), SettingsError)
    assert release.version == 1


def test_keys_change_while_both_are_trusted_and_then_the_old_one_goes(
    stream: Settings, release: Release, tmp_path: Path
) -> None:
    old, new = stream.model.trusted_keys[0], make_development_keys(tmp_path / "new")
    both = with_model(stream, trusted_keys=(old, new[1]), signing_key=new[0])
    only_new = with_model(both, trusted_keys=(new[1],))
    assert "No trusted key signed" in refused(ecluse(only_new, "model", "verify", "1"), ModelRefused)
    load_model(both, 1, release)
    signed = ecluse(both, "model", "sign", "1")
    assert signed.exit_code == 0, signed.output
    assert f"is signed with {new[0]}" in signed.stdout and "will refuse it" not in signed.output
    for settings in (both, only_new):
        assert json_of(ecluse(settings, "model", "verify", "1", "--json"))["signed_by"] == str(new[1])
        assert load_model(settings, 1, release).version == 1
    assert "No trusted key signed" in refused(ecluse(stream, "model", "verify", "1"), ModelRefused)


def test_a_signature_that_nobody_here_trusts_is_told(stream: Settings, release: Release, tmp_path: Path) -> None:
    stranger = with_model(stream, signing_key=make_development_keys(tmp_path / "new")[0])
    signed = ecluse(stranger, "model", "sign", str(release.version), "--json")
    assert signed.exit_code == 0
    assert json_of(signed)["version"] == 1
    assert "None of model.trusted_keys is its public key" in signed.stderr


def test_what_no_trusted_key_signed_is_signed_only_by_who_vouches_for_it(
    stream: Settings, release: Release, tmp_path: Path
) -> None:
    (home(stream) / SIGNATURE).unlink()
    why = refused(ecluse(stream, "model", "sign", "1"), ModelRefused)
    assert "is not signed" in why and "sign it with --unsigned" in why
    assert not (home(stream) / SIGNATURE).exists()
    stranger = make_development_keys(tmp_path / "stranger")
    theirs = with_model(stream, signing_key=stranger[0], trusted_keys=(stranger[1],))
    assert ecluse(theirs, "model", "sign", "1", "--unsigned").exit_code == 0
    assert "No trusted key signed" in refused(ecluse(stream, "model", "sign", "1"), ModelRefused)
    assert ecluse(stream, "model", "sign", "1", "--unsigned").exit_code == 0
    assert load_model(stream, 1, release).version == 1


def test_what_is_not_what_was_released_is_never_signed(stream: Settings, release: Release) -> None:
    before = (home(stream) / SIGNATURE).read_bytes()

    def refuses(sentence: str, kind: type[EcluseError] = ModelRefused, version: int = release.version) -> None:
        assert sentence in refused(ecluse(stream, "model", "sign", str(version)), kind)
        assert (home(stream) / SIGNATURE).read_bytes() == before

    (home(stream) / "notes.txt").write_bytes(b"")
    refuses("which its manifest does not name")
    (home(stream) / "notes.txt").unlink()
    onnx = (home(stream) / ONNX).read_bytes()
    (home(stream) / ONNX).write_bytes(onnx[:-1] + b"?")
    refuses("was changed")
    store(stream, memory_bytes=7, signed=False)
    (home(stream) / SIGNATURE).write_bytes(before)
    refuses("changed after its release")
    shutil.copytree(home(stream), home(stream, 2))
    refuses("never released", ModelNotFound, 2)
    assert (home(stream) / MANIFEST).exists()


def test_signing_needs_a_key_that_production_allows(stream: Settings, release: Release) -> None:
    assert release.version == 1
    without = with_model(stream, signing_key=None)
    assert "model.signing_key is not set" in refused(ecluse(without, "model", "sign", "1"), SettingsError)
    production = with_model(stream, production=True)
    assert "is a development key" in refused(ecluse(production, "model", "sign", "1"), SettingsError)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_keys_that_openssl_made_sign_in_production(stream: Settings, release: Release, tmp_path: Path) -> None:
    """By the commands of docs/models.md."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for line in page.splitlines() if line.startswith("openssl ")]
    assert len(lines) == 2
    for line in lines:
        subprocess.run(line.split(), cwd=tmp_path, check=True, capture_output=True)
    private, public = tmp_path / "models-2026.key.pem", tmp_path / "models-2026.pub.pem"
    settings = with_model(stream, production=True, signing_key=private, trusted_keys=(public,))
    assert (
        ecluse(settings, "model", "sign", "1", "--unsigned").exit_code == 0
    )  # the development key is not trusted here
    found = json_of(ecluse(settings, "model", "verify", "1", "--json"))
    printed = subprocess.run(["sha256sum", public], check=True, capture_output=True, text=True).stdout
    assert printed.startswith(str(found["fingerprint"])), "the fingerprint is that of the file"
    assert load_model(settings, 1, release).version == 1
