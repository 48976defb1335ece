"""Who may ask `ecluse serve`, and by which certificate it answers."""

import hashlib
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ecluse.errors import SettingsError
from scoring.serve.keys import Keys
from tests.conftest import MakeSettings
from tests.serving import FakeLive, features, said, served

ROW = features([100.0, 0.0, 9.0])


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    made = built.add_extension(names, critical=False).sign(key, hashes.SHA256())
    paths = folder / "tls.pem", folder / "tls.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


def test_only_who_has_a_key_may_ask_but_anyone_may_ask_for_health(
    make_settings: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys"
    file.write_text("# who may ask\n\n" + line("shop", "s3cret") + line("audit", "other"))
    settings = make_settings(serve={"port": 0, "keys_file": file})
    with served(settings) as server:
        for header in (None, "", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cret s3cret"):
            server.headers = {} if header is None else {"Authorization": header}
            answer = server.infer(ROW)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="ecluse"'), header
            assert server.ask("GET", "/metrics").status == server.ask("GET", "/nowhere").status == 401
            assert server.ask("GET", "/v2/health/ready").status == 200
        for key in ("s3cret", "other"):
            server.headers = {"Authorization": f"Bearer {key}"}
            assert server.infer(ROW).status == 200
        said(server, b"GET /v2 HTTP/1.1\r\nAuthorization: Bearer s3cret\r\n bad\x00header\r\n\r\n")
    assert "s3cret" not in caplog.text
    assert hashlib.sha256(b"s3cret").hexdigest() not in caplog.text


def test_without_a_key_nobody_learns_why_nothing_is_served(make_settings: MakeSettings, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line("shop", "s3cret"))
    settings = make_settings(serve={"port": 0, "keys_file": file})
    with served(settings, FakeLive(None, degraded="Version 2 does not serve: /inner/path is unsigned.")) as server:
        ready = server.ask("GET", "/v2/health/ready")
        assert (ready.status, ready.json) == (503, {"error": "No model is warm yet."})
        server.headers = {"Authorization": "Bearer s3cret"}
        assert "unsigned" in server.ask("GET", f"/v2/models/{settings.model_name}").json["error"]


def test_a_changed_file_of_keys_counts_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scoring.serve.keys.LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(line("shop", "one"))
    keys = Keys(file)
    assert keys.holds("Bearer one") and keys.holds("bearer one") and not keys.holds("Bearer two")
    file.write_text(line("shop", "two") + line("shop", "three"))
    assert keys.holds("Bearer two") and keys.holds("Bearer three") and not keys.holds("Bearer one")
    file.write_text("the key itself")
    assert keys.holds("Bearer two")
    assert "line 1" in caplog.text and "the key itself" not in caplog.text
    file.unlink()
    assert keys.holds("Bearer two")
    file.write_text("# nobody\n")
    assert not keys.holds("Bearer two")


def test_a_file_of_keys_that_could_not_be_read_is_tried_again_though_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scoring.serve.keys.LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(line("shop", "one"))
    keys = Keys(file)
    file.write_text(line("shop", "one") + line("shop", "two"))
    with monkeypatch.context() as patch:

        def denied(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied")

        patch.setattr(Path, "read_text", denied)
        assert keys.holds("Bearer one") and not keys.holds("Bearer two")
    assert caplog.text.count("Permission denied") == 1
    assert keys.holds("Bearer two")


@pytest.mark.parametrize("text", ["s3cret", "shop:s3cret", f"shop:{'A' * 64}", f"{'a' * 64}", "", "# nothing\n"])
def test_a_line_that_is_no_hash_refuses_the_start_and_is_not_shown(
    make_settings: MakeSettings, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused, served(make_settings(serve={"port": 0, "keys_file": file})):
        pass
    assert "serve.keys_file" in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_it_speaks_tls_with_the_certificate_of_the_settings(make_settings: MakeSettings, tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    settings = make_settings(serve={"port": 0, "tls_certfile": certificate, "tls_keyfile": key})
    with served(settings) as server:
        server.context = ssl.create_default_context(cafile=str(certificate))
        assert server.address.startswith("https://")
        assert server.infer(ROW).status == 200
        server.context = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            server.infer(ROW)
        assert said(server, b"GET /v2 HTTP/1.1\r\n\r\n") == b""


def test_a_certificate_that_cannot_be_used_refuses_the_start(make_settings: MakeSettings, tmp_path: Path) -> None:
    certificate, _ = certified(tmp_path)
    for key in (tmp_path / "absent.pem", certificate):
        settings = make_settings(serve={"port": 0, "tls_certfile": certificate, "tls_keyfile": key})
        with pytest.raises(SettingsError, match=r"serve\.tls_keyfile"), served(settings):
            pass
