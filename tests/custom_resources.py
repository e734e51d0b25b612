"""The custom resources of the manifests: the fields of their documentation that are in use, as JSON Schemas.

- PodMonitor, ServiceMonitor: the API reference of the Prometheus operator. Azure Managed Prometheus has the same kinds
  in the group azmonitoring.coreos.com, and asks for the three limits
  (learn.microsoft.com/azure/azure-monitor/containers/prometheus-metrics-scrape-crd).
- CiliumLocalRedirectPolicy: docs.cilium.io/en/stable/network/kubernetes/local-redirect-policy.

A field that is not here is refused, because a cluster drops or refuses what it does not know.
"""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]

Json = dict[str, Any]


def _object(required: str = "", **properties: Any) -> Json:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_SELECTOR = _object(
    matchLabels=_TEXTS,
    matchExpressions={
        "type": "array",
        "items": _object(
            "key operator",
            key=_TEXT,
            operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            values={"type": "array", "items": _TEXT},
        ),
    },
)
_ENDPOINTS = {
    "type": "array",
    "minItems": 1,
    "items": _object("port path", port=_TEXT, path=_TEXT, interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}),
}
_LIMITS = {name: {"type": "integer"} for name in ("labelLimit", "labelNameLengthLimit", "labelValueLengthLimit")}
_PORTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": 1,  # several would need names
    "items": _object("port protocol", port={"type": "string", "pattern": "^[0-9]{1,5}$"}, protocol={"enum": ["TCP"]}),
}

_SPECS = {
    "PodMonitor": _object(
        "selector podMetricsEndpoints",
        namespaceSelector=_object(any={"const": True}),
        selector=_SELECTOR,
        podTargetLabels={"type": "array", "items": _TEXT},
        podMetricsEndpoints=_ENDPOINTS,
        **_LIMITS,
    ),
    "ServiceMonitor": _object("selector endpoints", selector=_SELECTOR, endpoints=_ENDPOINTS, **_LIMITS),
    "CiliumLocalRedirectPolicy": _object(
        "redirectFrontend redirectBackend",
        redirectFrontend=_object(
            "addressMatcher", addressMatcher=_object("ip toPorts", ip={"format": "ipv4", **_TEXT}, toPorts=_PORTS)
        ),
        redirectBackend=_object("localEndpointSelector toPorts", localEndpointSelector=_SELECTOR, toPorts=_PORTS),
        skipRedirectFromBackend={"type": "boolean"},
    ),
}
_VERSIONS = {
    "PodMonitor": ["monitoring.coreos.com/v1", "azmonitoring.coreos.com/v1"],
    "ServiceMonitor": ["monitoring.coreos.com/v1", "azmonitoring.coreos.com/v1"],
    "CiliumLocalRedirectPolicy": ["cilium.io/v2"],
}
KINDS = frozenset(_SPECS)


def validate(document: Json) -> None:
    """Raise jsonschema's ValidationError if a custom resource is not as its documentation has it."""
    kind = document["kind"]
    schema = _object(
        "apiVersion kind metadata spec",
        apiVersion={"enum": _VERSIONS[kind]},
        kind={"const": kind},
        metadata=_object("name namespace", name=_TEXT, namespace=_TEXT, labels=_TEXTS),
        spec=_SPECS[kind],
    )
    jsonschema.Draft202012Validator(schema).validate(document)
    if document["apiVersion"].startswith("azmonitoring"):
        assert document["spec"].keys() >= _LIMITS.keys(), "Azure Managed Prometheus drops targets without its limits"
