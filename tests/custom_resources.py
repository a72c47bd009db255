"""The fields that deploy/ uses of other projects' custom resources, as JSON schemas.

Compared by hand, in 2026, with the projects' references and types. What is not listed is refused,
so that a field that is added here has been looked up.
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


# prometheus-operator, its API reference of monitoring.coreos.com/v1
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

# KEDA 2.17 and later (fallback.behavior), its ScaledObject specification
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

# KServe, the types of its main branch: containers and their fields are Kubernetes' own
CONTAINERS = several({"type": "object", "required": ["name", "image"]})
SERVING_RUNTIME = record(
    {"containers": CONTAINERS, "supportedModelFormats": several(
        record({"name": TEXT}, version=TEXT, autoSelect={"type": "boolean"})
    )},
    annotations=TEXTS,
    protocolVersions=several(one_of("v1", "v2", "grpc-v1", "grpc-v2")),
)  # fmt: skip
INFERENCE_SERVICE = record(
    {
        "predictor": record(
            {
                "model": record(
                    {"modelFormat": record({"name": TEXT}, version=TEXT), "storageUri": TEXT},
                    runtime=TEXT,
                    protocolVersion=one_of("v1", "v2", "grpc-v1", "grpc-v2"),
                )
            },
            minReplicas=COUNT,
            maxReplicas=COUNT,
            scaleTarget=COUNT,
            scaleMetric=one_of("cpu", "memory", "concurrency", "rps"),
            canaryTrafficPercent=COUNT,
        )
    }
)

# Kubeflow Trainer 2.0 to 2.2, trainer.kubeflow.org/v1alpha1: pods and their fields are Kubernetes'
POD_TEMPLATE = record({"metadata": record({"labels": TEXTS}), "spec": {"type": "object"}})
TRAINING_RUNTIME = record(
    {
        "mlPolicy": record({"numNodes": COUNT, "torch": record({})}),
        "template": record(
            {
                "spec": record(
                    {
                        "replicatedJobs": several(
                            record(
                                {
                                    "name": TEXT,
                                    "template": record(
                                        {
                                            "metadata": record({"labels": TEXTS}),
                                            "spec": record({"template": POD_TEMPLATE}),
                                        }
                                    ),
                                }
                            )
                        )
                    },
                    failurePolicy=record({"maxRestarts": COUNT}),
                )
            }
        ),
    }
)
TRAIN_JOB = record(
    {
        "runtimeRef": record({"name": TEXT}, apiGroup=TEXT, kind=TEXT),
        "trainer": record({"numNodes": COUNT}, args={"type": "array", "items": TEXT}),
    }
)

SCHEMAS = {
    "PodMonitor": ("monitoring.coreos.com/v1", POD_MONITOR),
    "PrometheusRule": ("monitoring.coreos.com/v1", PROMETHEUS_RULE),
    "ScaledObject": ("keda.sh/v1alpha1", SCALED_OBJECT),
    "ServingRuntime": ("serving.kserve.io/v1alpha1", SERVING_RUNTIME),
    "InferenceService": ("serving.kserve.io/v1beta1", INFERENCE_SERVICE),
    "TrainingRuntime": ("trainer.kubeflow.org/v1alpha1", TRAINING_RUNTIME),
    "TrainJob": ("trainer.kubeflow.org/v1alpha1", TRAIN_JOB),
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
