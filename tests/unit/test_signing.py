"""Signatures: what is signed holds, in our hands and in others'; whatever else is refused with a sentence."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import example, given
from hypothesis import strategies as st
from model_signing import hashing, signing

from ecluse.errors import ModelRefused, SettingsError
from ecluse.model.manifest import MANIFEST, ONNX, SIGNATURE
from ecluse.model.signing import make_development_keys, require_keys, sign, verify
from tests.unit.artefacts import lay, manifest

Keys = tuple[Path, Path]


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    """A signed artefact."""
    lay(tmp_path / "1", manifest("cards"))
    sign(tmp_path / "1", keys[0], production=False)
    return tmp_path / "1"


def own_keys(folder: Path, curve: ec.EllipticCurve | None = None) -> Keys:
    """Keys as an operator makes them."""
    folder.mkdir()
    return written(folder, ec.generate_private_key(curve or ec.SECP256R1()))


def written(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> Keys:
    private, public = folder / "key.pem", folder / "pub.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def refusal(folder: Path, *trusted: Path, production: bool = False) -> str:
    with pytest.raises(ModelRefused) as refused:
        verify(folder, trusted, production=production)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_any_of_the_trusted_keys_may_have_signed(folder: Path, keys: Keys, tmp_path: Path) -> None:
    other = own_keys(tmp_path / "other")
    assert verify(folder, [keys[1]], production=False) == keys[1]
    assert verify(folder, [other[1], keys[1]], production=False) == keys[1]
    assert refusal(folder, other[1]).startswith("No trusted key signed the artefact: its signature names the key ")
    sign(folder, other[0], production=False)
    assert verify(folder, [keys[1], other[1]], production=False) == other[1]
    assert "No trusted key" in refusal(folder, keys[1])


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_key_may_be_of_any_curve_that_the_format_knows(folder: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = own_keys(tmp_path / "own", curve)
    sign(folder, private, production=True)
    assert verify(folder, [public], production=True) == public


def test_the_librarys_own_command_accepts_what_we_sign_and_we_what_it_signs(folder: Path, tmp_path: Path) -> None:
    private, public = own_keys(tmp_path / "own")
    sign(folder, private, production=True)
    signature = folder / SIGNATURE
    common = [str(folder), "--signature", str(signature), "--ignore-paths", str(signature)]
    tool = [sys.executable, "-m", "model_signing"]

    def run(*args: str) -> int:
        return subprocess.run([*tool, *args], capture_output=True, check=False).returncode

    assert run("verify", "key", *common, "--public_key", str(public)) == 0
    data = (folder / ONNX).read_bytes()
    (folder / ONNX).write_bytes(data[:-1])
    assert run("verify", "key", *common, "--public_key", str(public)) != 0
    (folder / ONNX).write_bytes(data)
    signature.unlink()
    assert run("sign", "key", *common, "--private_key", str(private)) == 0
    assert verify(folder, [public], production=True) == public


def test_the_command_in_the_docstring_is_the_one_that_is_tested() -> None:
    from ecluse.model import signing as module

    said = " ".join((module.__doc__ or "").split())
    assert (
        "python -m model_signing verify key FOLDER --signature FOLDER/model.sig --ignore-paths FOLDER/model.sig "
        "--public_key KEY" in said
    )


def test_development_keys_neither_sign_nor_verify_in_production(folder: Path, keys: Keys, tmp_path: Path) -> None:
    sentence = "is a development key, and model.production is true"
    with pytest.raises(SettingsError, match=sentence):
        sign(folder, keys[0], production=True)
    with pytest.raises(SettingsError, match=sentence):
        verify(folder, [keys[1]], production=True)
    with pytest.raises(SettingsError, match=sentence):
        verify(folder, [own_keys(tmp_path / "own")[1], keys[1]], production=True)


def test_development_keys_are_made_once_and_the_private_one_is_its_owners(tmp_path: Path) -> None:
    private, public = make_development_keys(tmp_path / "keys")
    before = private.read_bytes(), public.read_bytes()
    assert private.stat().st_mode & 0o777 == 0o600
    assert make_development_keys(tmp_path / "keys") == (private, public)
    public.unlink()
    make_development_keys(tmp_path / "keys")
    assert (private.read_bytes(), public.read_bytes()) == before, "the public one is made of the private one"
    private.write_bytes(b"")
    public.unlink()
    with pytest.raises(SettingsError, match="is no private key"):
        make_development_keys(tmp_path / "keys")
    with pytest.raises(SettingsError, match="cannot be written"):
        make_development_keys(private / "keys")


def test_keys_that_cannot_be_used_are_told_by_setting_and_name(folder: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "rsa").mkdir()
    (tmp_path / "ed").mkdir()
    others = [
        written(tmp_path / "rsa", rsa.generate_private_key(65537, 2048)),
        written(tmp_path / "ed", ed25519.Ed25519PrivateKey.generate()),
        own_keys(tmp_path / "k1", ec.SECP256K1()),
        (keys[1], keys[0]),  # one for the other
        (tmp_path / "1" / ONNX, tmp_path / "1" / ONNX),
    ]
    for private, public in others:
        with pytest.raises(SettingsError, match=r"^model\.signing_key: .* is not a private key of an elliptic curve"):
            sign(folder, private, production=False)
        with pytest.raises(SettingsError, match=r"^model\.trusted_keys: .* is not a public key of an elliptic curve"):
            verify(folder, [public], production=False)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        require_keys([tmp_path / "nowhere.pem"], production=False)
    with pytest.raises(SettingsError, match=r"model\.trusted_keys is empty"):
        verify(folder, [], production=False)


def test_a_key_with_a_password_is_refused_and_not_shown(folder: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    secret = tmp_path / "secret.pem"
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"correct-horse"),
        )
    )
    with pytest.raises(SettingsError, match="without password"):
        sign(folder, secret, production=False)


def test_a_changed_missing_or_additional_file_is_told(folder: Path, keys: Keys) -> None:
    data = (folder / ONNX).read_bytes()
    (folder / ONNX).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert refusal(folder, keys[1]) == "The file model.onnx was changed after the artefact was signed."
    (folder / ONNX).unlink()
    assert "Missing files" in refusal(folder, keys[1]) and ONNX in refusal(folder, keys[1])
    (folder / ONNX).write_bytes(data)
    for name in ("weights.bin", ".gitattributes"):
        (folder / name).write_bytes(b"")
        assert name in refusal(folder, keys[1])
        (folder / name).unlink()
    (folder / "sub").mkdir()
    assert "does not cover the file sub" in refusal(folder, keys[1])
    (folder / "sub" / "x").write_bytes(b"")
    assert "sub/x" in refusal(folder, keys[1])
    shutil.rmtree(folder / "sub")
    (folder / "link").symlink_to("/etc/passwd")
    assert "symlink" in refusal(folder, keys[1])
    (folder / "link").unlink()
    (folder / ONNX).unlink()
    (folder / ONNX).symlink_to(folder / MANIFEST)
    assert "symlink" in refusal(folder, keys[1])


def test_a_folder_with_a_link_is_not_signed(folder: Path, keys: Keys) -> None:
    """What a training process left there as a link might be any file of this machine."""
    before = (folder / SIGNATURE).read_bytes()
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(ModelRefused, match=r"cannot be signed: .*symlink"):
        sign(folder, keys[0], production=False)
    assert (folder / SIGNATURE).read_bytes() == before


def test_a_folder_without_signature_is_refused(folder: Path, keys: Keys) -> None:
    (folder / SIGNATURE).unlink()
    assert refusal(folder, keys[1]) == "The artefact is not signed: it has no model.sig."


def test_a_signature_that_leaves_out_a_file_is_refused_though_its_key_is_trusted(folder: Path, keys: Keys) -> None:
    """The library takes what to leave out from the signature itself."""
    leaving_out = hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE, folder / ONNX])
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(leaving_out)
    config.sign(folder, folder / SIGNATURE)
    (folder / ONNX).write_bytes(b"anything")
    assert refusal(folder, keys[1]) == "The signature does not cover the file model.onnx."


def test_a_signature_that_claims_another_key_does_not_hold(folder: Path, keys: Keys, tmp_path: Path) -> None:
    forger = own_keys(tmp_path / "forger")
    genuine = json.loads((folder / SIGNATURE).read_text())
    sign(folder, forger[0], production=False)
    forged = json.loads((folder / SIGNATURE).read_text())
    forged["verificationMaterial"] = genuine["verificationMaterial"]
    (folder / SIGNATURE).write_text(json.dumps(forged))
    assert refusal(folder, keys[1]) == f"The signature is not one that {keys[1]} made."


def test_a_signature_without_its_key_says_nothing_on_stdout(
    folder: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library would print a warning among a command's JSON."""
    bundle = json.loads((folder / SIGNATURE).read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    assert refusal(folder, keys[1]) == "model.sig is no signature of a model."
    assert capsys.readouterr().out == ""


def test_a_signature_has_one_form_only(folder: Path, keys: Keys) -> None:
    """Decoders pass over the bits that base64 leaves unused: one byte could change, and nobody would see it."""
    text = ""
    while not text.endswith("="):  # two of three signatures
        sign(folder, keys[0], production=False)
        bundle = json.loads((folder / SIGNATURE).read_text())
        text = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    last = text.rstrip("=")[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = text.rstrip("=")[:-1] + alphabet[alphabet.index(last) + 1] + "=" * text.count("=")
    assert base64.b64decode(other) == base64.b64decode(text)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = other
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    assert refusal(folder, keys[1]) == "model.sig is no signature of a model."


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> tuple[Path, bytes]:
    """A folder that stays the same but for its signature, and the genuine one."""
    folder = lay(tmp_path_factory.mktemp("signed"), manifest("cards"))
    sign(folder, keys[0], production=False)
    return folder, (folder / SIGNATURE).read_bytes()


DEEP = b'{"a":' * 100_000
PAYLOAD = base64.b64encode(DEEP).decode()


@given(st.binary() | st.tuples(st.integers(0, 3_000), st.binary(min_size=1, max_size=3)))
@example(DEEP)
@example(b"[]")
@example(json.dumps({"dsseEnvelope": {"payload": PAYLOAD}}).encode())
@example(
    json.dumps({"verificationMaterial": {"publicKey": {"hint": ["x"]}}, "dsseEnvelope": {"payload": "e30="}}).encode()
)
def test_whatever_stands_in_a_signature_it_holds_or_is_refused(
    signed: tuple[Path, bytes], keys: Keys, data: bytes | tuple[int, bytes]
) -> None:
    folder, genuine = signed
    if not isinstance(data, bytes):
        at, other = data[0] % len(genuine), data[1]
        data = genuine[:at] + other + genuine[at + len(other) :]
    (folder / SIGNATURE).write_bytes(data)
    try:
        verify(folder, [keys[1]], production=False)
    except ModelRefused as refused:
        assert str(refused).isprintable()
