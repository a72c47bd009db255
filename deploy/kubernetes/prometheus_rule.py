"""Wraps deploy/prometheus/rules.yaml as a PrometheusRule, which kustomize itself cannot do.

python deploy/kubernetes/prometheus_rule.py     after each change of the rules; a test compares
"""

from pathlib import Path

DEPLOY = Path(__file__).parent.parent
RULES = DEPLOY / "prometheus" / "rules.yaml"
WRAPPED = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Written by prometheus_rule.py from deploy/prometheus/rules.yaml: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: packshot
spec:
"""


def wrapped(rules: str) -> str:
    """The text of the manifest, comments included."""
    lines = (f"  {line}" if line else "" for line in rules.splitlines())
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    WRAPPED.write_text(wrapped(RULES.read_text(encoding="utf-8")), encoding="utf-8")
