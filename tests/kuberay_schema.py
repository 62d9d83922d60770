"""What KubeRay's custom resource definitions say about a manifest; tests/kuberay/README.md says where they come from.

    python tests/kuberay_schema.py FOLDER_OF_THE_CRDS VERSION

trims the published definitions and writes them into tests/kuberay.
"""

import json
import lzma
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).resolve().parent / "kuberay"
VERSIONS = ("1.5.1", "1.7.0")
"""The oldest KubeRay that knows every field of the manifests, and the newest one that is checked."""
KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def mistakes(version: str, manifest: dict[str, Any]) -> list[str]:
    """What this version of KubeRay, and Kubernetes, would not accept in a manifest: `place: what is wrong`.

    Rules in the language CEL (`x-kubernetes-validations`) are not checked.
    """
    validator = Draft202012Validator(_schema(version, manifest["kind"]))
    return sorted(f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest))


@cache
def _published(version: str) -> dict[str, Any]:
    loaded = json.loads(lzma.decompress((FOLDER / f"crds-{version}.json.xz").read_bytes()))
    assert isinstance(loaded, dict)
    return loaded


@cache
def _schema(version: str, kind: str) -> dict[str, Any]:
    """The strict schema of a kind. Those of Kubernetes' own kinds are parts of KubeRay's."""
    published = _published(version)
    if kind in published:
        return _resource(kind, published[kind]["properties"]["spec"])
    cluster = published["RayCluster"]["properties"]["spec"]["properties"]
    pod = cluster["headGroupSpec"]["properties"]["template"]["properties"]["spec"]["properties"]
    if kind == "PersistentVolumeClaim":
        ephemeral = pod["volumes"]["items"]["properties"]["ephemeral"]["properties"]
        return _resource(kind, ephemeral["volumeClaimTemplate"]["properties"]["spec"])
    if kind == "NetworkPolicy":
        rules = _published(VERSIONS[-1])["RayCluster"]["properties"]["spec"]["properties"]["networkPolicy"]
        head = rules["properties"]["head"]["properties"]
        selector = head["ingressRules"]["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
        types = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}}
        spec = {"podSelector": selector, "policyTypes": types, "ingress": head["ingressRules"]}
        return _resource(
            kind,
            {
                "type": "object",
                "properties": {**spec, "egress": head["egressRules"]},
                "required": ["podSelector"],
            },
        )
    raise KeyError(kind)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string"}
    names = {"type": "object", "additionalProperties": text}
    metadata = {"type": "object", "properties": {"name": text, "labels": names, "annotations": names}}
    properties = {"apiVersion": text, "kind": {"const": kind}, "metadata": metadata, "spec": spec}
    return _strict({"type": "object", "properties": properties, "required": [*properties]})


def _strict(schema: Any) -> Any:
    """With unknown fields as errors: the API server drops them, and `kubectl apply` refuses them."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields")
    strict = {name: _strict(part) for name, part in schema.items()}
    return {"additionalProperties": False, **strict} if closed and schema.get("type") == "object" else strict


def _trimmed(schema: Any) -> Any:
    """Without descriptions."""
    if isinstance(schema, list):
        return [_trimmed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _trimmed(part) for name, part in schema.items() if not (name == "description" and isinstance(part, str))
    }


def _write(crds: Path, version: str) -> None:
    schemas = {}
    for kind, name in KINDS.items():
        versions = yaml.safe_load((crds / name).read_text())["spec"]["versions"]
        schema = next(each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")
        schemas[kind] = _trimmed({**schema, "properties": {"spec": schema["properties"]["spec"]}})
    text = json.dumps(schemas, separators=(",", ":"), sort_keys=True)
    (FOLDER / f"crds-{version}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2])
