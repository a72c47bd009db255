"""The fields that deploy/ uses of other projects' custom resources, as JSON schemas.

Compared by hand with the projects' own definitions, in the versions that are named. What is not
listed is refused, so that a field that is added here has been looked up.
"""

from typing import Any

import jsonschema

Schema = dict[str, Any]

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"}


def record(required: Schema, **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def several(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


# prometheus-operator, monitoring.coreos.com/v1
POD_MONITOR = record(
    {
        "selector": record({"matchLabels": TEXTS}),
        "podMetricsEndpoints": several(record({"port": TEXT}, path=TEXT, interval=DURATION)),
    }
)
RULE = record(
    {"expr": TEXT},
    record=TEXT, alert=TEXT, labels=TEXTS, annotations=TEXTS,
    **{"for": DURATION, "keep_firing_for": DURATION},
)  # fmt: skip
PROMETHEUS_RULE = record(
    {"groups": several(record({"name": TEXT, "rules": several(RULE)}, interval=DURATION))}
)

# KEDA, keda.sh/v1alpha1
POLICY = record({"type": one_of("Percent", "Pods"), "value": COUNT, "periodSeconds": COUNT})
SCALING = record({}, stabilizationWindowSeconds=COUNT, policies=several(POLICY), selectPolicy=TEXT)
BEHAVIOR = record({}, scaleUp=SCALING, scaleDown=SCALING)
SCALED_OBJECT = record(
    {
        "scaleTargetRef": record({"name": TEXT}),
        "triggers": several(
            record(
                {"type": one_of("prometheus"), "metadata": TEXTS},
                metricType=one_of("AverageValue", "Value"),
            )
        ),
    },
    minReplicaCount=COUNT,
    maxReplicaCount=COUNT,
    pollingInterval=COUNT,
    fallback=record(
        {"failureThreshold": COUNT, "replicas": COUNT},
        behavior=one_of(
            "static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"
        ),
    ),
    advanced=record({}, horizontalPodAutoscalerConfig=record({}, behavior=BEHAVIOR)),
)

SCHEMAS = {
    "PodMonitor": ("monitoring.coreos.com/v1", POD_MONITOR),
    "PrometheusRule": ("monitoring.coreos.com/v1", PROMETHEUS_RULE),
    "ScaledObject": ("keda.sh/v1alpha1", SCALED_OBJECT),
}


def check_custom_resource(one: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError."""
    version, spec = SCHEMAS[one["kind"]]
    jsonschema.validate(
        one,
        record(
            {
                "apiVersion": one_of(version),
                "kind": TEXT,
                "metadata": record({"name": TEXT}, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
                "spec": spec,
            }
        ),
    )
