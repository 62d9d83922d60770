"""The manifests of cluster/kuberay: what KubeRay publishes about their fields, least privilege, and what they share."""

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_schema import VERSIONS, mistakes

from orchestrator.cli import parser
from orchestrator.sweep.sweep import Sweep

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster" / "kuberay"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CLUSTERS = ("raycluster", "rayjob")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""Those that the Pod Security Standard "restricted" allows."""


def manifest(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def cluster(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    found = spec["rayClusterSpec"] if name == "rayjob" else spec
    assert isinstance(found, dict)
    return found


def templates(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(group, pod template) of a cluster."""
    spec = cluster(name)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


ALL_TEMPLATES = [pytest.param(t, id=f"{name}-{group}") for name in CLUSTERS for group, t in templates(name)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_kuberay_accepts_every_field(name: str, version: str) -> None:
    assert mistakes(version, manifest(name)) == []


HEAD = ("spec", "headGroupSpec", "template", "spec")
JOB_HEAD = ("spec", "rayClusterSpec", *HEAD[1:])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "place", "key", "value", "said"),
    [
        ("raycluster", ("spec",), "enableInTreeAutoscalling", True, "'enableInTreeAutoscalling' was unexpected"),
        ("raycluster", (*HEAD, "securityContext"), "runAsNonroot", True, "'runAsNonroot' was unexpected"),
        ("raycluster", (*HEAD, "containers", 0, "securityContext"), "priviledged", False, "'priviledged' was unexp"),
        ("raycluster", ("spec", "workerGroupSpecs", 1), "maxReplicas", "16", "'16' is not of type 'integer'"),
        ("raycluster", ("spec", "authOptions"), "mode", "tokens", "'tokens' is not one of"),
        ("raycluster", ("spec",), "headGroupSpec", None, "None is not of type 'object'"),
        ("rayjob", ("spec",), "backOffLimit", 5, "'backOffLimit' was unexpected"),
        ("rayjob", ("spec",), "ttlSecondsAfterFinished", "300", "'300' is not of type 'integer'"),
        ("rayjob", (*JOB_HEAD, "volumes", 0, "emptyDir"), "sizelimit", "1Gi", "'sizelimit' was unexpected"),
        ("rayjob", (*JOB_HEAD, "containers", 0, "env"), "RAY", "1", "is not of type 'array'"),
        ("network", ("spec",), "policyType", ["Ingress"], "'policyType' was unexpected"),
        ("network", ("spec", "ingress", 0, "from", 0, "podSelector"), "matchLabel", {}, "'matchLabel' was unexpected"),
        ("network", ("spec", "egress", 1, "ports", 0), "protocol", 17, "17 is not of type 'string'"),
        ("shared", ("spec",), "accessMode", ["ReadWriteMany"], "'accessMode' was unexpected"),
        ("shared", (), "spce", {}, "'spce' was unexpected"),
    ],
)
def test_a_planted_mistake_is_found(
    version: str, name: str, place: tuple[str | int, ...], key: str, value: object, said: str
) -> None:
    planted = copy.deepcopy(manifest(name))
    at: Any = planted
    for step in place[:-1]:
        at = at[step]
    if place and isinstance(at[place[-1]], list):
        at[place[-1]] = {key: value}
    else:
        (at[place[-1]] if place else at)[key] = value
    assert [text for text in mistakes(version, planted) if said in text], mistakes(version, planted)


@pytest.mark.parametrize("name", CLUSTERS)
def test_numbers_of_pods_are_within_their_limits(name: str) -> None:
    for group in cluster(name)["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("template", ALL_TEMPLATES)
def test_pods_have_the_least_privilege(template: dict[str, Any]) -> None:
    """The Pod Security Standard "restricted", and a root that cannot be written."""
    pod = template["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= VOLUMES
    for container in pod["containers"]:
        least_privilege(container["securityContext"])
        assert all("hostPort" not in port for port in container.get("ports", []))


def test_the_autoscaler_has_the_least_privilege() -> None:
    options = cluster("raycluster")["autoscalerOptions"]
    least_privilege(options["securityContext"])
    assert [mount["mountPath"] for mount in options["volumeMounts"]] == ["/tmp"]


def least_privilege(context: dict[str, Any]) -> None:
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_only_the_autoscaler_may_ask_the_api_server() -> None:
    allowed = [
        (name, group)
        for name in CLUSTERS
        for group, template in templates(name)
        if template["spec"].get("automountServiceAccountToken", True)
    ]
    assert allowed == [("raycluster", "head")]
    assert cluster("raycluster")["enableInTreeAutoscaling"] is True


@pytest.mark.parametrize("template", ALL_TEMPLATES)
def test_what_is_written_is_on_volumes_that_exist(template: dict[str, Any]) -> None:
    pod = template["spec"]
    claim = manifest("shared")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    for container in pod["containers"]:
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {"/tmp": "tmp", "/shared": "shared"}
        assert set(mounts.values()) == set(volumes)
        folders = [entry["value"] for entry in container["env"] if entry.get("value", "").startswith("/")]
        assert folders
        assert all(folder.startswith(("/tmp/", "/shared/")) for folder in folders)


def test_the_head_alone_knows_the_password_of_the_record() -> None:
    readme = (ROOT / "docs" / "cluster.md").read_text()
    for name in CLUSTERS:
        for group, template in templates(name):
            entries = [entry for each in template["spec"]["containers"] for entry in each["env"]]
            secrets = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in entries if "valueFrom" in entry}
            assert list(secrets) == (["MLFLOW_TRACKING_URI"] if group == "head" else []), (name, group)
            for secret in secrets.values():
                assert f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}=" in readme


def test_the_policy_covers_every_pod_and_lets_the_operator_in() -> None:
    policy = manifest("network")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    selected = policy["podSelector"]
    for name in CLUSTERS:
        for group, template in templates(name):
            assert template["metadata"]["labels"].items() >= selected["matchLabels"].items(), (name, group)
    assert {"from": [{"podSelector": selected}]} in policy["ingress"]
    assert {"to": [{"podSelector": selected}]} in policy["egress"]
    [operator] = [rule for rule in policy["ingress"] if "ports" in rule]
    heads = [template["spec"]["containers"][0] for name in CLUSTERS for _, template in templates(name)]
    dashboards = {port["containerPort"] for head in heads for port in head.get("ports", []) if "dash" in port["name"]}
    assert {port["port"] for port in operator["ports"]} == dashboards
    assert all("from" in rule for rule in policy["ingress"])
    assert all("to" in rule or "ports" in rule for rule in policy["egress"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_and_the_lasting_workers_avoid_every_kind_of_spot_node(name: str) -> None:
    pods = {group: template["spec"] for group, template in templates(name)}

    def terms(group: str) -> list[list[dict[str, Any]]]:
        affinity = pods[group]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return [term["matchExpressions"] for term in affinity["nodeSelectorTerms"]]

    spot = [expression for [expression] in terms("spot")]
    assert all(expression["operator"] == "In" for expression in spot)
    for group in ("head", "cpu"):
        assert terms(group) == [[{**expression, "operator": "NotIn"} for expression in spot]]
    taints = {(each["key"], each["value"]) for each in pods["spot"]["tolerations"]}
    assert taints <= {(expression["key"], *expression["values"]) for expression in spot}
    assert pods["spot"]["terminationGracePeriodSeconds"] > 30, "Ray drains a node for 30 s"


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_gpu_worker_gets_a_gpu_and_the_image_that_can_use_it(name: str) -> None:
    pod = dict(templates(name))["gpu"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert re.search(rf"docker build .* -t {container['image']} ", (ROOT / "cluster" / "Dockerfile").read_text())


def test_the_sweep_of_the_job_keeps_everything_on_the_shared_folder() -> None:
    words = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    arguments = parser().parse_args(words[3:])
    file = ROOT / Path(arguments.file).relative_to("/home/ray/phasefront")
    sweep = Sweep.load(file, arguments.overrides)
    kept = [sweep.resources.checkpoints, sweep.tracking.artifacts, str(sweep.output)]
    assert all(folder and folder.startswith("/shared/") for folder in kept), kept
    assert len(set(kept)) == len(kept)
    assert arguments.allow_failures, "a failed trial would be tried on a new cluster, again and again"


def test_the_job_is_not_taken_to_have_ended_by_a_lost_connection() -> None:
    spec = manifest("rayjob")["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert not {"submitterPodTemplate", "submitterConfig", "activeDeadlineSeconds"} & spec.keys()


def test_the_documented_commands_name_files_that_exist() -> None:
    named = re.findall(r"cluster/kuberay/([a-z]+)\.yaml", (ROOT / "docs" / "cluster.md").read_text())
    assert set(named) == set(FILES)
