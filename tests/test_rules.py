"""Recording rules and alerts: Prometheus reads them, each alert fires and is silent when it should.

What they go by is what the server gives, and each alert has its section in the runbook.
"""

import re
import subprocess
from functools import cache

import pytest
import yaml
from processes import ROOT
from scraped import labels_of_series, need, parts, unknown

FOLDER = ROOT / "deploy" / "prometheus"
TESTS = ("rules.test.yaml", "rules.days.test.yaml")
RUNBOOK = "docs/operations.md"
RULES = [
    rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]  # fmt: skip
RECORDED = [rule["record"] for rule in RULES if "record" in rule]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
every_alert = pytest.mark.parametrize("name", ALERTS)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    need("promtool")
    return subprocess.run(["promtool", *arguments], cwd=FOLDER, text=True, capture_output=True)


@cache
def cases() -> dict[str, list[bool]]:
    """For each alert whether it is expected to fire, case after case."""
    found: dict[str, list[bool]] = {}
    for file in TESTS:
        for group in yaml.safe_load((FOLDER / file).read_text())["tests"]:
            for test in group["alert_rule_test"]:
                found.setdefault(test["alertname"], []).append(bool(test["exp_alerts"]))
    return found


def test_promtool_accepts_the_rules():
    done = promtool("check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TESTS)
def test_alerts_fire_and_are_silent_when_they_should(file):
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_goes_by_what_the_server_gives(rule):
    assert unknown(rule["expr"], RECORDED) == []


def test_what_no_server_gives_is_found():
    assert unknown("sum(packshot_redy)") == ["packshot_redy"]
    assert unknown('packshot_ready{pot="a"}') == ["packshot_ready: pot"]
    assert unknown('packshot_images_dropped_total{reason="exspired"}')
    assert unknown('packshot_top_probability_bucket{le="0.55"}')
    with pytest.raises(ValueError, match="unclosed"):
        parts("sum(packshot_ready")


def test_no_rule_names_a_job_or_a_place():
    text = (FOLDER / "rules.yaml").read_text()
    assert not re.search(r"\b(job|namespace|instance|pod|cluster)\s*(=|!)", text)


def test_recording_rules_are_named_level_metric_operation():
    for name in RECORDED:
        assert re.fullmatch(r"namespace_job(_model)?:(packshot|grpc_server)_\w+:\w+", name), name
    metrics = {one.removesuffix("_bucket") for one in labels_of_series()}
    assert not metrics & set(RECORDED)


@every_alert
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name):
    assert {True, False} <= set(cases()[name])


def test_no_case_is_of_an_alert_that_is_not_there():
    assert cases().keys() == ALERTS.keys()


@every_alert
def test_an_alert_tells_what_it_means_and_where_to_read_on(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    told = rule["annotations"]
    assert told.keys() == {"summary", "description", "runbook_url"}
    assert told["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", runbook(), re.MULTILINE | re.DOTALL)
    assert section, f"{RUNBOOK} has no section on {name}"
    for word in ("**What it means.**", "**How to look.**", "**What to do.**"):
        assert word in section[1], f"{name}: {word}"


def test_the_runbook_has_no_section_on_an_alert_that_is_not_there():
    alerts = runbook().split("## Alerts")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)$", alerts, re.MULTILINE) == list(ALERTS)


def test_expressions_of_the_runbook_go_by_what_the_server_gives():
    queries = re.findall(r"^    (\S.*)$", runbook(), re.MULTILINE)
    asked = [one for one in queries if re.match(r"(sum|rate|histogram|packshot_|grpc_|up)", one)]
    assert len(asked) > 10
    for expr in asked:
        assert unknown(expr, RECORDED) == [], expr


def test_every_recorded_series_is_in_the_runbook():
    assert [name for name in RECORDED if name.rsplit(":", 1)[0] not in runbook()] == []


def test_the_rules_and_the_dashboard_agree_on_what_failed():
    from deploy.grafana.panels import FAILED

    rules = (FOLDER / "rules.yaml").read_text()
    assert set(re.findall(r'grpc_code=~"[^"]+"', rules)) == {FAILED}


def runbook() -> str:
    return (ROOT / RUNBOOK).read_text() + "\n## "
