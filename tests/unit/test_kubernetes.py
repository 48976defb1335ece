"""The manifests of deploy/kubernetes: against the published schemas, against our settings, and against what each needs to hold.

The schemas are those of the Kubernetes API and of KEDA's CRDs, as the models of cloudcoil carry them. The API server would
prune or refuse an unknown field; its published schemas allow it, and so they are made strict here.
"""

import copy
import functools
import json
import os
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from cloudcoil.models.kubernetes.apps.v1 import Deployment
from cloudcoil.models.kubernetes.policy.v1 import PodDisruptionBudget
from jsonschema import Draft202012Validator

from ecluse.sections import KafkaSettings
from ecluse.settings import Settings, load
from ecluse.transport.owner import FINISH_SECONDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
FILES = ("deployment.yaml", "disruption.yaml", "scaledobject.yaml")
MODELS = {
    ("apps/v1", "Deployment"): Deployment,
    ("policy/v1", "PodDisruptionBudget"): PodDisruptionBudget,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): TriggerAuthentication,
}
#: What KEDA's documentation of the kafka trigger names (2.20); the CRD allows any text there.
TRIGGER_KEYS = {
    *("bootstrapServers", "consumerGroup", "topic", "lagThreshold", "activationLagThreshold", "offsetResetPolicy"),
    *("allowIdleConsumers", "scaleToZeroOnInvalidOffset", "excludePersistentLag", "limitToPartitionsWithLag"),
    *("ensureEvenDistributionOfPartitions", "version", "partitionLimitation", "sasl", "saslTokenProvider", "tls"),
    *("unsafeSsl", "awsRegion"),
}


def manifests(secured: bool = False) -> dict[str, Any]:
    """The manifests by kind; `secured` takes in the lines that are for a cluster with a password."""
    texts = [(FOLDER / file).read_text(encoding="utf-8") for file in FILES]
    found = [
        document for text in texts for document in yaml.safe_load_all(text.replace("#| ", "") if secured else text)
    ]
    return {document["kind"]: document for document in found if document}


@functools.cache
def validator(api_version: str, kind: str) -> Draft202012Validator:
    """The published schema of a kind, made strict."""
    schema = strict(MODELS[api_version, kind].model_json_schema(by_alias=True))
    return Draft202012Validator(schema | {"required": ["apiVersion", "kind", "metadata", "spec"]})


def strict(node: Any) -> Any:
    """The schema without unknown fields, and without null for what is not set."""
    if isinstance(node, list):
        return [strict(item) for item in node if item != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    return made | {"additionalProperties": False} if isinstance(node.get("properties"), dict) else made


def faults(document: Any) -> list[str]:
    errors = validator(document["apiVersion"], document["kind"]).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def configured() -> Settings:
    return load(FOLDER / "ecluse.toml")


def pod() -> Any:
    return manifests()["Deployment"]["spec"]["template"]["spec"]


def container(secured: bool = False) -> Any:
    (only,) = manifests(secured)["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def environment(secured: bool = False) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container(secured)["env"]}


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ECLUSE_", "KAFKA_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("secured", [False, True], ids=["open", "secured"])
def test_every_manifest_holds_against_its_published_schema(secured: bool) -> None:
    found = manifests(secured)
    assert set(found) == {kind for _, kind in MODELS if secured or kind != "TriggerAuthentication"}
    assert {kind: faults(document) for kind, document in found.items()} == {kind: [] for kind in found}


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    """Sets one place of a manifest."""

    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


def rename(*path: str | int, to: str) -> Callable[[Any], None]:
    """Misspells one key of a manifest."""

    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[to] = document.pop(path[-1])

    return change


POD = ("spec", "template", "spec")
WORKER = (*POD, "containers", 0)
HPA = ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior")
WRONG = {
    "a minimum in words": ("ScaledObject", put("spec", "minReplicaCount", value="one")),
    "a maximum as text": ("ScaledObject", put("spec", "maxReplicaCount", value="16")),
    "a minimum left empty": ("ScaledObject", put("spec", "minReplicaCount", value=None)),
    "a misspelt maximum": ("ScaledObject", rename("spec", "maxReplicaCount", to="maxReplicas")),
    "a fallback without its replicas": ("ScaledObject", put("spec", "fallback", value={"failureThreshold": 3})),
    "a misspelt window": (
        "ScaledObject",
        rename(*HPA, "scaleDown", "stabilizationWindowSeconds", to="stabilisationWindowSeconds"),
    ),
    "a threshold as a number": ("ScaledObject", put("spec", "triggers", 0, "metadata", "lagThreshold", value=20000)),
    "a flag that is no text": (
        "ScaledObject",
        put("spec", "triggers", 0, "metadata", "allowIdleConsumers", value=False),
    ),
    "no triggers": ("ScaledObject", rename("spec", "triggers", to="trigger")),
    "the API of another version": ("ScaledObject", put("kind", value="ScaledObject"), "keda.sh/v1"),
    "a misspelt probe": ("Deployment", rename(*WORKER, "livenessProbe", to="livelinessProbe")),
    "a probe without its port": ("Deployment", rename(*WORKER, "livenessProbe", "httpGet", "port", to="Port")),
    "a grace period as text": ("Deployment", put(*POD, "terminationGracePeriodSeconds", value="60")),
    "an environment value that is no text": ("Deployment", put(*WORKER, "env", 2, "value", value=8082)),
    "an unknown field of the pod": ("Deployment", put(*POD, "enableServiceLink", value=False)),
    "a port as text": ("Deployment", put(*WORKER, "ports", 0, "containerPort", value="8082")),
    "a filesystem that is read-only in words": (
        "Deployment",
        put(*WORKER, "securityContext", "readOnlyRootFilesystem", value="yes"),
    ),
    "a selector that is missing": ("Deployment", rename("spec", "selector", to="selectors")),
    "a budget with an unknown field": ("PodDisruptionBudget", put("spec", "maxDisrupted", value=1)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_manifest_is_refused(wrong: tuple[Any, ...]) -> None:
    kind, change, *api = wrong
    document = copy.deepcopy(manifests()[kind])
    assert faults(document) == []
    check = validator(document["apiVersion"], kind)
    change(document)
    document["apiVersion"] = api[0] if api else document["apiVersion"]
    assert not check.is_valid(document)


def test_the_kustomization_names_every_file_and_the_configuration_that_the_pods_mount() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    (generated,) = kustomization["configMapGenerator"]
    assert sorted(kustomization["resources"]) == sorted(FILES)
    assert {file.name for file in FOLDER.iterdir()} == {*FILES, "kustomization.yaml", *generated["files"]}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    assert container()["args"] == ["worker", "--config", f"{mounts['config']}/{generated['files'][0]}"]
    assert set(mounts) == set(volumes)


def test_the_pods_have_the_trusted_key_and_a_place_for_the_cache() -> None:
    (generated,) = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["configMapGenerator"]
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container()["volumeMounts"]}
    model = configured().model
    assert [mounts["config"] / file for file in generated["files"][1:]] == list(model.trusted_keys)
    assert model.cache.is_relative_to(mounts["tmp"]), "nothing else can be written"
    assert model.production and model.signing_key is None


def test_the_image_is_the_one_that_the_dockerfile_makes_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (image,) = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["images"]
    assert (image["name"], image["newTag"]) == (container()["image"], project["version"])
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert f"--uid {pod()['securityContext']['runAsUser']} " in dockerfile
    assert f"EXPOSE {container()['ports'][0]['containerPort']}" in dockerfile


@pytest.mark.parametrize("secured", [False, True], ids=["open", "secured"])
def test_every_variable_of_the_pods_names_a_setting(secured: bool) -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    ours = [name for name in environment(secured) if name.startswith("ECLUSE_")]
    kafka = [name.removesuffix("_FILE") for name in environment(secured) if name.startswith("KAFKA_")]
    assert len(ours) + len(kafka) == len(environment(secured))
    for name in ours:
        section, key = name.removeprefix("ECLUSE_").lower().split("__")
        assert key in sections[section].model_fields, name
    assert {name.removeprefix("KAFKA_").lower() for name in kafka} <= set(KafkaSettings.model_fields)


@pytest.mark.parametrize("secured", [False, True], ids=["open", "secured"])
def test_a_pod_starts_with_the_settings_it_is_given(
    secured: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {name: entry.get("value") for name, entry in environment(secured).items()}
    values["ECLUSE_WORKER__SLOT"] = "ecluse-worker-6d4cf56db6-x7k2p"  # of the form that a Deployment gives
    if secured:
        password = tmp_path / Path(values["KAFKA_SASL_PASSWORD_FILE"]).name
        password.write_text("secret\n", encoding="utf-8")
        values |= {"KAFKA_SASL_USERNAME": "ecluse", "KAFKA_SASL_PASSWORD_FILE": str(password)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = configured()
    assert settings.worker.slot == values["ECLUSE_WORKER__SLOT"]
    assert settings.worker.metrics_host == "0.0.0.0"
    assert settings.worker.metrics_port == container()["ports"][0]["containerPort"]
    held = settings.kafka.sasl_password
    assert (held.get_secret_value() if held else None) == ("secret" if secured else None)


def test_a_pod_is_given_no_variable_that_the_settings_would_refuse() -> None:
    assert pod()["enableServiceLinks"] is False


def test_the_password_lies_where_its_variable_says() -> None:
    secured = manifests(secured=True)["Deployment"]["spec"]["template"]["spec"]
    volume = next(volume["secret"] for volume in secured["volumes"] if "secret" in volume)
    mount = next(mount["mountPath"] for mount in secured["containers"][0]["volumeMounts"] if mount["name"] == "kafka")
    (item,) = volume["items"]
    assert environment(secured=True)["KAFKA_SASL_PASSWORD_FILE"]["value"] == f"{mount}/{item['path']}"
    assert volume["defaultMode"] == 0o440
    (trigger,) = manifests(secured=True)["ScaledObject"]["spec"]["triggers"]
    authentication = manifests(secured=True)["TriggerAuthentication"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    references = authentication["spec"]["secretTargetRef"]
    assert {reference["name"] for reference in references} == {volume["secretName"]}
    assert {reference["parameter"] for reference in references} == {"sasl", "tls", "username", "password"}


def test_nothing_of_a_password_is_asked_of_an_open_cluster() -> None:
    assert "ecluse-kafka" not in json.dumps(manifests())


def test_the_probes_and_prometheus_ask_where_the_worker_listens() -> None:
    (port,) = container()["ports"]
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health/live",
        "liveness": "/health/live",
        "readiness": "/health/ready",
    }
    annotations = manifests()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == environment()["ECLUSE_WORKER__METRICS_PORT"]["value"]
    assert annotations["prometheus.io/path"] == "/metrics"
    assert container()["startupProbe"]["periodSeconds"] * container()["startupProbe"]["failureThreshold"] >= 300


def test_a_worker_that_is_told_to_stop_has_time_to_finish() -> None:
    assert pod()["terminationGracePeriodSeconds"] > 4 * FINISH_SECONDS


def test_a_worker_runs_with_no_rights_that_it_does_not_need() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod()["automountServiceAccountToken"] is False
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    assert {"name": volumes["/tmp"]}.items() <= next(v for v in pod()["volumes"] if "emptyDir" in v).items()


def test_a_rollout_never_waits_for_a_worker_that_can_get_no_partition() -> None:
    update = manifests()["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    share, partitions = int(update["maxUnavailable"].removesuffix("%")), configured().topics.partitions
    may_leave = [replicas * share // 100 for replicas in range(1, partitions + 1)]  # Kubernetes rounds down
    assert update["maxSurge"] == 1
    assert may_leave[:-2] == [0] * (partitions - 2)
    assert may_leave[-1] == 1


def test_labels_lead_from_the_deployment_and_the_budget_to_the_pods() -> None:
    deployment = manifests()["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifests()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == labels


def test_the_scaler_looks_at_the_lag_of_the_configured_stream() -> None:
    settings = configured()
    (trigger,) = manifests()["ScaledObject"]["spec"]["triggers"]
    assert trigger["type"] == "kafka"
    assert set(trigger["metadata"]) <= TRIGGER_KEYS
    assert {key: trigger["metadata"][key] for key in ("bootstrapServers", "consumerGroup", "topic")} == {
        "bootstrapServers": settings.kafka.bootstrap_servers,
        "consumerGroup": settings.group,
        "topic": settings.names.events,
    }
    assert int(trigger["metadata"]["lagThreshold"]) > 0


def test_the_scaler_keeps_a_warm_worker_scales_down_slowly_and_survives_an_outage_of_the_broker() -> None:
    spec = manifests()["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"] == {"name": manifests()["Deployment"]["metadata"]["name"]}
    assert "replicas" not in manifests()["Deployment"]["spec"]
    assert spec["minReplicaCount"] >= 1
    assert spec["maxReplicaCount"] == configured().topics.partitions
    assert spec["fallback"]["failureThreshold"] >= 1
    # A static fallback below the maximum would stop warm workers.
    assert spec["fallback"]["replicas"] == spec["maxReplicaCount"]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300
    assert all(policy["value"] <= 50 and policy["periodSeconds"] >= 60 for policy in down["policies"])
    metadata = spec["triggers"][0]["metadata"]
    assert (metadata["allowIdleConsumers"], metadata["ensureEvenDistributionOfPartitions"]) == ("false", "true")
    assert metadata["offsetResetPolicy"] == "earliest"  # where `ecluse topics create` places the group


def test_the_page_says_what_the_manifests_say() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    metadata = manifests()["ScaledObject"]["spec"]["triggers"][0]["metadata"]
    named = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    assert {key for key in metadata if key not in ("bootstrapServers", "consumerGroup", "topic", "version")} <= named
    assert {"fallback", "maxUnavailable", "minReplicaCount", "maxReplicaCount", "scaleDown"} <= named
    assert metadata["lagThreshold"] in page.replace(",", "")
    schemas = [version(f"cloudcoil.models.{name}").split(".")[:2] for name in ("kubernetes", "keda")]
    kubernetes, keda = (".".join(parts) for parts in schemas)
    assert f"published schemas (Kubernetes {kubernetes}, KEDA {keda})" in page
    assert "not run on a cluster here" in page
