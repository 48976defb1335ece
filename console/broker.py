"""The development broker: real Apache Kafka, one KRaft node, from plain jars; no Docker.

A running broker is described by ``broker.json`` in its data folder, so that any process can find and stop it.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from ecluse.errors import BrokerSetupError

#: Not newer: from 4.3.0 to 4.4.0 a killed node may lose the ends of transactions as it starts (KAFKA-20734), and readers of
#: committed records then stand still for ever.
KAFKA_VERSION = "4.2.2"
DEFAULT_DATA = Path(".ecluse/broker")
DEFAULT_PORT = 9092
#: One node, so every replication factor is 1; rebalances and timed-out transactions end without the waits of a cluster.
_NODE_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "auto.create.topics.enable": "false",
    "log.retention.check.interval.ms": "60000",
}
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A development broker that was started: its process, where it listens, and its data folder."""

    pid: int
    created: float
    port: int
    data: str

    @property
    def servers(self) -> str:
        """The value for KAFKA_BOOTSTRAP_SERVERS."""
        return f"127.0.0.1:{self.port}"

    def process(self) -> psutil.Process | None:
        """The broker's process; None where it has ended (another process with its pid does not count)."""
        try:
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.created) < 1.0
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


def start(data: Path = DEFAULT_DATA, port: int = DEFAULT_PORT, settings: dict[str, str] | None = None) -> RunningBroker:
    """Start the broker and wait until it answers; one that runs on `data` already is returned as it is.

    Args:
        data: its folder; topics of an earlier start are there again.
        port: where clients connect; 0 takes a free one.
        settings: Kafka broker settings over the usual ones.

    Raises:
        BrokerSetupError: Java or Maven is missing, the port is taken, or Kafka did not come up.
    """
    if broker := find(data):
        return broker
    java = _tool("java", "Install a Java 17 runtime (Debian: `apt-get install openjdk-17-jre-headless`).")
    jars = _install()
    port = port or _free_port()
    if not _is_free(port):
        raise BrokerSetupError(
            f"Port {port} is taken by another program; choose another with --port (0: any free one)."
        )
    data.mkdir(parents=True, exist_ok=True)
    config = _write_config(data.resolve(), port, settings or {})
    command = [java, "-Xms256m", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars}/*"]
    written_by = data / "kafka-version"
    if not (data / "logs" / "meta.properties").exists():
        _format(command, config)
        written_by.write_text(KAFKA_VERSION, encoding="utf-8")
    elif not written_by.exists() or _parts(written_by.read_text(encoding="utf-8")) > _parts(KAFKA_VERSION):
        raise BrokerSetupError(
            f"The topics in {data} were written by a newer Kafka than {KAFKA_VERSION}, which cannot read them. "
            "Remove the folder, or choose another with --data."
        )
    pid = _spawn([*command, "kafka.Kafka", str(config)], data / "broker.log")
    broker = RunningBroker(pid, psutil.Process(pid).create_time(), port, str(data.resolve()))
    (data / "broker.json").write_text(json.dumps(asdict(broker)), encoding="utf-8")
    try:
        _wait_until_it_answers(broker)
    except BaseException:
        stop(data)
        raise
    return broker


def find(data: Path = DEFAULT_DATA) -> RunningBroker | None:
    """The broker that runs on a data folder, if one does."""
    try:
        broker = RunningBroker(**json.loads((data / "broker.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return broker if broker.process() else None


def stop(data: Path = DEFAULT_DATA) -> bool:
    """Stop the broker on `data` and wait for its end; False where none ran."""
    broker = find(data)
    process = broker.process() if broker else None
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)
    (data / "broker.json").unlink(missing_ok=True)
    return True


def answers(servers: str, timeout: float = 2.0) -> bool:
    """Whether a broker answers a question about its cluster."""
    client = AdminClient({"bootstrap.servers": servers, "log_level": 0, "socket.timeout.ms": int(timeout * 1e3)})
    try:
        return bool(client.list_topics(timeout=timeout).brokers)
    except KafkaException:
        return False


def _spawn(command: list[str], log: Path) -> int:
    """Start a process in a session of its own, adopted by init, so that it outlives us and leaves no zombie; its pid."""
    shell = ["sh", "-c", 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!', "sh", str(log), *command]
    return int(subprocess.run(shell, capture_output=True, text=True, check=True, start_new_session=True).stdout)


def _wait_until_it_answers(broker: RunningBroker) -> None:
    def ready() -> bool:
        if broker.process() is None:
            raise BrokerSetupError(f"Kafka ended while it started; {broker.data}/broker.log says why.")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", broker.port)) != 0:
                return False
        return answers(broker.servers)

    waiting = Retrying(
        stop=stop_after_delay(_START_SECONDS), wait=wait_fixed(0.1), retry=retry_if_result(lambda up: not up)
    )
    try:
        waiting(ready)
    except RetryError as error:
        log = f"{broker.data}/broker.log"
        raise BrokerSetupError(f"Kafka did not answer within {_START_SECONDS:.0f} s; {log} says more.") from error


def _install() -> Path:
    """The folder with Kafka's jars, downloaded once per machine through Maven (43 MB)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ecluse"
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    maven = _tool("mvn", "Install Maven (Debian: `apt-get install maven`).")
    cache.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="kafka-", dir=cache))
    target = ["dependency:copy-dependencies", f"-DoutputDirectory={fresh}", "-DincludeScope=runtime"]
    done = subprocess.run([maven, "-q", "-B", "-f", str(_pom()), *target], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(fresh)
        raise BrokerSetupError(
            f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{(done.stdout + done.stderr).strip()[-2000:]}"
        )
    try:
        fresh.rename(jars)
    except OSError:  # another process was faster
        shutil.rmtree(fresh)
    return jars


def _pom() -> Path:
    """The pinned list of jars: beside this module in an installed package, under deploy/ in a checkout."""
    here = Path(__file__).parent
    packaged = here / "kafka-pom.xml"
    return packaged if packaged.exists() else here.parent / "deploy" / "kafka" / "pom.xml"


def _tool(name: str, advice: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BrokerSetupError(f"The development broker needs `{name}`, which is not on the PATH. {advice}")
    return found


def _write_config(data: Path, port: int, settings: dict[str, str]) -> Path:
    controller = _free_port()
    config = _NODE_SETTINGS | {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "log.dirs": str(data / "logs"),
    }
    path = data / "server.properties"
    path.write_text("".join(f"{key}={value}\n" for key, value in (config | settings).items()), encoding="utf-8")
    return path


def _format(command: list[str], config: Path) -> None:
    # As StorageTool's random-uuid makes it, without a second for another JVM. Behind "=", for it may begin with "-".
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    storage = [*command, "kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={cluster}"]
    done = subprocess.run([*storage, "-c", str(config)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokerSetupError(f"Kafka's storage could not be prepared: {(done.stdout + done.stderr).strip()[-1000:]}")


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
