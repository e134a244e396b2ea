"""The manifests of examples/kubernetes: they fit the schemas of their kinds, and their commands start a server.

The schemas in tests/data/crds are those of KServe's and KubeRay's custom resource definitions, without what the
manifests have no part of. ``python tests/serving/test_manifests.py KSERVE KUBERAY`` writes them anew from two
checkouts.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "examples" / "kubernetes"
SCHEMAS = ROOT / "tests" / "data" / "crds"
DEFINITIONS = {
    "ServingRuntime": "config/crd/full/serving.kserve.io_servingruntimes.yaml",
    "InferenceService": "config/crd/full/serving.kserve.io_inferenceservices.yaml",
    "RayService": "ray-operator/config/crd/bases/ray.io_rayservices.yaml",
}


def documents() -> dict[str, Any]:
    """All manifests by kind."""
    import yaml

    found = [one for path in sorted(MANIFESTS.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text("utf-8"))]
    return {one["kind"]: one for one in found}


def errors(kind: str, document: Any) -> list[str]:
    from jsonschema import Draft202012Validator

    stored = json.loads((SCHEMAS / f"{kind}.json").read_text("utf-8"))
    assert document["apiVersion"] == stored["apiVersion"]
    return [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(stored["schema"]).iter_errors(document)
    ]


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_manifest_fits_the_schema_of_its_kind(kind):
    assert errors(kind, documents()[kind]) == []


def test_the_schemas_refuse_what_kubernetes_would():
    runtime, service = (documents()[kind] for kind in ("ServingRuntime", "InferenceService"))
    runtime["spec"]["containers"][0]["readinesProbe"] = {}
    del runtime["spec"]["containers"][0]["name"]
    assert [error.partition(":")[0] for error in errors("ServingRuntime", runtime)] == ["$.spec.containers[0]"] * 2
    service["spec"]["predictor"]["minReplicas"] = "2"
    assert errors("InferenceService", service) == ["$.spec.predictor.minReplicas: '2' is not of type 'integer'"]


def test_the_command_of_the_kserve_manifest_starts_a_server(start_server, nano_artifact):
    pytest.importorskip("kserve")
    (container,) = documents()["ServingRuntime"]["spec"]["containers"]
    service = documents()["InferenceService"]["metadata"]["name"]
    filled = [
        word.replace("{{.Name}}", service).replace("/mnt/models", str(nano_artifact("cls").parent))
        for word in container["args"]
    ]
    assert filled.pop(0) == "serve"
    server = start_server(*filled)
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Lakeside Motors."]}]}
    url = f"{server.address}/v2/models/{service}/infer".replace("0.0.0.0", "127.0.0.1")
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as response:
        assert json.load(response)["model_name"] == service
    for probe in ("readinessProbe", "livenessProbe"):
        path = container[probe]["httpGet"]["path"]
        with urllib.request.urlopen(f"{server.address}{path}".replace("0.0.0.0", "127.0.0.1"), timeout=60) as response:
            assert response.status == 200


def test_the_ray_manifest_builds_an_application(nano_artifact):
    import yaml

    serve = pytest.importorskip("ray.serve.schema")
    config = serve.ServeDeploySchema.model_validate(yaml.safe_load(documents()["RayService"]["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    assert build({**application.args, "model": str(nano_artifact("cls").parent)})


def trimmed(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The schema for these values, which refuses unknown fields; of fields that no value has, the type alone."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {key: schema[key] for key in ("type", "required", "enum", "pattern", "minimum", "maximum") if key in schema}
    if "properties" in schema:
        kept["properties"] = {
            name: trimmed(part, found)
            if (found := [value[name] for value in values if name in value])
            else shallow(part)
            for name, part in sorted(schema["properties"].items())
        }
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(schema.get("additionalProperties"), dict):
        found = [one for value in values for one in value.values()]
        kept["additionalProperties"] = trimmed(schema["additionalProperties"], found)
    elif "items" in schema:
        kept["items"] = trimmed(schema["items"], [one for value in values for one in value])
    return kept


def shallow(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": schema["type"]} if "type" in schema else {}


def main(checkouts: list[str]) -> None:
    import yaml

    SCHEMAS.mkdir(exist_ok=True)
    for kind, place in DEFINITIONS.items():
        checkout = Path(next(one for one in checkouts if (Path(one) / place).is_file()))
        definition = yaml.safe_load((checkout / place).read_text("utf-8"))
        document = documents()[kind]
        group, _, wanted = document["apiVersion"].partition("/")
        assert (definition["spec"]["group"], definition["spec"]["names"]["kind"]) == (group, kind)
        schema = next(
            one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == wanted
        )
        describe = ["git", "-C", str(checkout), "describe", "--tags", "--always"]
        revision = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
        source = f"{place} of {revision}"
        stored = {"source": source, "apiVersion": document["apiVersion"], "schema": trimmed(schema, [document])}
        (SCHEMAS / f"{kind}.json").write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
