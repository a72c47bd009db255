"""The Grafana dashboard: `python -m deploy.grafana.dashboard > deploy/grafana/packshot.json`."""

import json
import sys
from collections.abc import Callable, Iterable

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as modes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.panels import JOB, ROWS, Panel, Query

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
GREEN, ORANGE, RED = "green", "orange", "red"

Drawn = timeseries.Panel | stat.Panel | heatmap.Panel


def build() -> models.Dashboard:
    drawn = (
        dashboard.Dashboard("packshot")
        .uid("packshot")
        .title("packshot")
        .description("Classification of product images: what users get, and where time goes.")
        .tags(["packshot", "generated"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .with_variable(_variable("namespace", "packshot_live"))
        .with_variable(_variable("job", 'packshot_live{namespace=~"$namespace"}'))
        .with_variable(_variable("instance", f"packshot_live{{{JOB}}}"))
        .with_variable(_variable("model", f"packshot_images_in_progress{{{JOB}}}"))
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .icon_color(RED)
            .expr('ALERTS{alertname=~"Packshot.+", alertstate="firing"}')
        )
    )
    ids = iter(range(1, 1000))
    for title, panels in ROWS.items():
        drawn.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            drawn.with_panel(_drawn(panel, next(ids)))
    return drawn.build()


def _variable(label: str, series: str) -> dashboard.QueryVariable:
    """The values of a label; several may be chosen, and all are at first."""
    return (
        dashboard.QueryVariable(label)
        .label(label.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({series}, {label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")  # where there is no such label, too
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _drawn(panel: Panel, number: int) -> Drawn:
    kinds: dict[str, Callable[[Panel], Drawn]] = {
        "timeseries": _timeseries, "stat": _stat, "heatmap": _heatmap,
    }  # fmt: skip
    drawn = (
        kinds[panel.kind](panel)
        .id(number)
        .title(panel.title)
        .description(panel.about)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.columns)
        .height(HEIGHT // 2 if panel.kind == "stat" else HEIGHT)
    )
    for query, letter in zip(panel.queries, "ABCDEFG", strict=False):
        drawn.with_target(_target(query, letter, heat=panel.kind == "heatmap"))
    return drawn


def _target(query: Query, letter: str, *, heat: bool) -> prometheus.Dataquery:
    shape = PromQueryFormat.HEATMAP if heat else PromQueryFormat.TIME_SERIES
    return (
        prometheus.Dataquery()
        .datasource(SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .format(shape)
        .range()
        .ref_id(letter)
    )


def _timeseries(panel: Panel) -> timeseries.Panel:
    drawn = (
        timeseries.Panel()
        .min(0)
        .fill_opacity(30 if panel.whole else 0)
        .show_points(modes.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(modes.LegendDisplayMode.TABLE)
            .placement(modes.LegendPlacement.BOTTOM)
            .calcs(["mean", "max", "lastNotNull"])
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(modes.TooltipDisplayMode.MULTI)
            .sort(modes.SortOrder.DESCENDING)
        )
    )
    if panel.top is not None:
        drawn.max(panel.top)
    if panel.whole:
        drawn.stacking(common.StackingConfig().mode(modes.StackingMode.NORMAL))
    if panel.bad:
        drawn.thresholds(_thresholds(zip(panel.bad, [RED], strict=True)))
        drawn.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(modes.GraphThresholdsStyleMode.DASHED)
        )
    return drawn


def _stat(panel: Panel) -> stat.Panel:
    drawn = (
        stat.Panel()
        .graph_mode(modes.BigValueGraphMode.AREA)
        .color_mode(modes.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("no requests")
    )
    return drawn.thresholds(_thresholds(zip(panel.bad, [ORANGE, RED], strict=False)))


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Blues"))
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_values(heatmap.CellValues().unit(units.CountsPerSecond))
    )


def _thresholds(steps: Iterable[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    all_steps = [models.Threshold(value=None, color=GREEN)]
    all_steps += [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(all_steps)


def page() -> str:
    """deploy/grafana/packshot.json."""
    return json.dumps(build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
