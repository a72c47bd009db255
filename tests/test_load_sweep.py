"""The load tester's sweep: which rates it tries, and what it tells of them."""

import asyncio
from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from load_records import load_report, plan_at, tally_of

from packshot.load.arrivals import due_times
from packshot.load.caution import doubts_told
from packshot.load.report import Doubt, LoadReport, report_of
from packshot.load.sweep import sweep, sweep_of
from packshot.load.tally import Recorder, Window
from packshot.load_plan import LoadPlan


def test_of_a_rate_that_was_measured_twice_the_second_one_counts():
    closed = report_of(plan_at(rate=None), tally_of([0.02] * 9), None)
    rate = report_of(plan_at(rate=50.0), tally_of([0.02] * 9), None)
    again = msgspec.structs.replace(rate, in_time=3)
    found = sweep_of([closed, closed, rate, again], "why")
    assert (found.points, found.cut_short) == ((again,), "why")


class Queue:
    """Answers in 20 ms what it can, 80 images a second, and refuses the rest."""

    CAPACITY = 80.0
    SECONDS = 0.02

    def __init__(self) -> None:
        self.plans: list[LoadPlan] = []

    async def run(self, plan: LoadPlan) -> LoadReport:
        self.plans.append(plan)
        rate = plan.rate or min(self.CAPACITY, plan.concurrency / self.SECONDS)
        answered = round(min(rate, self.CAPACITY) * plan.seconds)
        failed = round(rate * plan.seconds) - answered
        slo_seconds = (plan.slo_ms or float("inf")) / 1000
        tally = tally_of([self.SECONDS] * answered, failed=failed, slo_seconds=slo_seconds)
        return report_of(plan, tally, None)


def swept(**changes: object):
    queue, told = Queue(), []
    plan = plan_at(rate=None, **changes)
    return asyncio.run(sweep(queue, plan, told.append)), told  # type: ignore[arg-type]


def test_a_sweep_finds_saturation_and_the_highest_rate_within_the_slo():
    found, told = swept(slo_ms=100)
    assert (found.alone.plan.concurrency, found.alone.plan.rate) == (1, None)
    assert found.saturation == pytest.approx(80, rel=0.02)
    # 99 % of the requests: at 80.8 a second one in a hundred is refused.
    assert found.within_slo == pytest.approx(80, rel=0.05)
    assert found.kept_up_with == pytest.approx(80, rel=0.06)
    rates = [run.plan.rate for run in found.points]
    assert rates == sorted(rates)
    assert len(told) == len(found.runs) > 10
    told_programs = msgspec.to_builtins(found.found())
    assert None not in told_programs.values()
    assert all(getattr(found, name) == value for name, value in told_programs.items())


def test_a_rate_that_fails_below_one_that_passes_is_measured_again():
    class Disturbed(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            if len(self.plans) != 4:  # the second step of the ladder, the first time
                return report
            return msgspec.structs.replace(report, in_time=report.in_time // 2)

    queue = Disturbed()
    found = asyncio.run(sweep(queue, plan_at(rate=None, slo_ms=100), lambda _: None))
    assert queue.plans[3].rate in [plan.rate for plan in queue.plans[4:]]
    assert found.within_slo == pytest.approx(80, rel=0.05)


class Drawn(Queue):
    """As many are due as the arrivals of a plan have in its window."""

    CAPACITY = 60.0

    async def run(self, plan: LoadPlan) -> LoadReport:
        report = await super().run(plan)
        if plan.rate is None:
            return report
        due = len(list(due_times(plan, 0.0, plan.seconds, number=0, senders=1)))
        answered = min(due, round(self.CAPACITY * plan.seconds))
        tally = tally_of([self.SECONDS] * answered, failed=due - answered)
        return report_of(plan, tally, None)


@pytest.mark.parametrize("seed", range(20))
def test_the_bisection_goes_on_whatever_chance_draws(seed):
    """1.5 s of 67.5 a second, between steps of the ladder: about the 100 that it takes to tell."""
    queue = Drawn()
    plan = plan_at(rate=None, slo_ms=100, seconds=1.5, seed=seed)
    asyncio.run(sweep(queue, plan, lambda _: None))
    rates = [one.rate for one in queue.plans[2:]]
    assert max(Counter(rates).values()) <= 2, "once, and once again where a higher one passed"
    assert all(one != before for before, one in pairwise(rates))


@pytest.mark.parametrize("seed", range(8))
def test_what_failed_is_told_above_what_passed_whatever_chance_draws(seed):
    plan = plan_at(rate=None, slo_ms=100, seconds=10, seed=seed)
    found = asyncio.run(sweep(Drawn(), plan, lambda _: None))
    assert found.within_slo < found.beyond_slo
    assert found.kept_up_with < found.not_kept_up_with
    tried = {run.plan.rate for run in found.points}
    assert {found.within_slo, found.beyond_slo, found.kept_up_with} <= tried


class InTurn(Queue):
    """Refuses nothing: what comes faster than it answers waits, and all that come after it."""

    CAPACITY = 60.0

    async def run(self, plan: LoadPlan) -> LoadReport:
        if plan.rate is None:
            return await super().run(plan)
        latencies, free = [], 0.0
        for number in range(round(plan.rate * plan.seconds)):
            due = number / plan.rate
            free = max(free, due) + 1 / self.CAPACITY
            latencies.append(free - due)
        assert plan.slo_ms is not None
        return report_of(plan, tally_of(latencies, slo_seconds=plan.slo_ms / 1000), None)


def test_a_backlog_that_grows_for_less_than_the_slo_does_not_meet_it():
    found = asyncio.run(sweep(InTurn(), plan_at(rate=None, slo_ms=5000), lambda _: None))
    assert found.points[-1].in_time < found.points[-1].sent, "after 5 s of it the SLO is missed"
    assert found.within_slo == pytest.approx(60, rel=0.06)


def test_every_run_of_a_sweep_draws_with_a_seed_of_its_own_and_so_again():
    def seeds(seed: int) -> list[int]:
        queue = Queue()
        asyncio.run(sweep(queue, plan_at(rate=None, seed=seed), lambda _: None))
        assert [plan.seed for plan in queue.plans[:2]] == [seed, seed], "as asked for"
        return [plan.seed for plan in queue.plans[2:]]

    assert len({*seeds(0), *seeds(1)}) == len(seeds(0)) + len(seeds(1))
    assert seeds(0) == seeds(0)


def test_a_sweep_without_an_slo_climbs_the_ladder_only():
    found, _ = swept()
    assert (len(found.points), found.within_slo) == (8, None)
    assert (found.found().within_slo, found.found().beyond_slo) == (None, None)


def test_a_sweep_climbs_on_where_its_requests_in_flight_do_not_saturate_the_server():
    class Far(Queue):
        CAPACITY = 400.0
        SECONDS = 0.3

    found = asyncio.run(sweep(Far(), plan_at(rate=None, slo_ms=1000), lambda _: None))
    assert found.closed.images_per_second == pytest.approx(16 / 0.3, rel=0.05)
    assert found.saturation == pytest.approx(400, rel=0.05)
    assert found.within_slo == pytest.approx(400, rel=0.05)


def test_a_sweep_over_some_files_that_are_no_images_knows_what_the_server_keeps_up_with():
    class Half(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            half = msgspec.structs.replace(report.answers, mean=report.answers.mean / 2)
            errors = {"not_an_image": report.answered // 2}
            return msgspec.structs.replace(report, answers=half, image_errors=errors)

    found = asyncio.run(sweep(Half(), plan_at(rate=None, slo_ms=100), lambda _: None))
    assert found.kept_up_with == pytest.approx(80, rel=0.06)
    assert found.within_slo == pytest.approx(80, rel=0.05)


def test_rates_at_which_no_image_could_be_used_may_meet_the_slo():
    class Unlucky(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            if plan.rate is None:
                return report
            none = msgspec.structs.replace(report.answers, mean=0.0)
            errors = {"not_an_image": report.answered}
            return msgspec.structs.replace(report, answers=none, image_errors=errors)

    found = asyncio.run(sweep(Unlucky(), plan_at(rate=None, slo_ms=100), lambda _: None))
    assert found.kept_up_with is None
    assert found.within_slo == pytest.approx(80, rel=0.05)


def test_a_sweep_that_never_meets_its_slo_ends_where_it_could_not_tell_any_more():
    found, told = swept(slo_ms=10)
    assert found.within_slo is None
    assert found.points[0].plan.rate * 10 >= 50
    assert len(told) < 16


def test_unusable_images_are_no_reason_to_end_a_climb_but_a_busy_client_is():
    class Far(Queue):
        CAPACITY, SECONDS = 400.0, 0.3

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            return msgspec.structs.replace(report, doubts=(Doubt(kind=self.kind, text="so"),))

    def highest(kind: str) -> float:
        found = asyncio.run(sweep(Far(kind), plan_at(rate=None), lambda _: None))
        return found.points[-1].plan.rate

    assert highest("unusable") == highest("server_unseen") > 400
    assert highest("client_busy") == pytest.approx(2 * 16 / 0.3, rel=0.05)


def all_expired(plan: LoadPlan) -> LoadReport:
    sent = round((plan.rate or 1) * plan.seconds)
    tally = msgspec.structs.replace(tally_of([], failed=sent), errors={"DEADLINE_EXCEEDED": sent})
    return report_of(plan, tally, None)


def test_a_server_that_hangs_at_a_rate_which_it_had_answered_ends_the_sweep():
    class Hanging(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            return report if len(self.plans) < 5 else all_expired(plan)

    found = asyncio.run(sweep(Hanging(), plan_at(rate=None, slo_ms=100), lambda _: None))
    assert [run.answered > 0 for run in found.points] == [True, True, False]
    assert found.cut_short == (
        f"at {found.points[-1].plan.mode}, no more than was answered before, no request was "
        f"answered: {found.points[-1].sent} DEADLINE_EXCEEDED; the server hangs, or is busy with "
        "what expired at higher rates: then give it a longer --timeout"
    )


def test_that_all_come_too_late_at_a_rate_above_all_others_is_overload():
    class Late(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            return report if (plan.rate or 0) <= 81 else all_expired(plan)

    found = asyncio.run(sweep(Late(), plan_at(rate=None, slo_ms=100), lambda _: None))
    assert found.cut_short is None
    assert found.within_slo == pytest.approx(80, rel=0.05)


def test_a_run_of_which_nothing_is_answered_in_time_or_refused_has_a_doubt():
    for plan in (plan_at(timeout_seconds=0.5), plan_at(timeout_seconds=0.5, rate=None)):
        (doubt,) = all_expired(plan).doubts
        assert (doubt.kind, doubt.of_client) == ("silent", False)
        assert "no request was answered within its deadline of 0.5 s" in doubt.text


def test_a_server_that_answers_or_refuses_some_does_not_hang():
    answering, refusing = (Recorder(Window(0.0, 10.0), in_time_seconds=1.0) for _ in range(2))
    answering.answered(1.0, 1.1, images=1, image_errors={})
    refusing.not_answered(1.0, "RESOURCE_EXHAUSTED")
    for recorder in (answering, refusing):
        recorder.not_answered(2.0, "DEADLINE_EXCEEDED")
        assert report_of(plan_at(), recorder.tally(cpu_seconds=1.0), None).doubts == ()


def test_only_what_the_server_refused_for_overload_is_no_fault():
    recorder = Recorder(Window(0.0, 10.0), in_time_seconds=1.0)
    for status in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "NOT_SENT", "TOO_MANY_IN_FLIGHT"):
        recorder.not_answered(1.0, status, "all is well")
    overloaded = report_of(plan_at(), recorder.tally(cpu_seconds=1.0), None)
    assert "failed" not in [doubt.kind for doubt in overloaded.doubts]
    for status in ("UNAVAILABLE", "INTERNAL", "INTERNAL", "MESSAGE_TOO_LARGE"):
        recorder.not_answered(1.0, status, "all is lost")
    report = report_of(plan_at(), recorder.tally(cpu_seconds=1.0), None)
    (doubt,) = (doubt for doubt in report.doubts if doubt.kind == "failed")
    assert (doubt.size, doubt.of_client) == (4, False)
    assert doubt.text == (
        "4 requests failed, which is no overload: 1 UNAVAILABLE (all is lost), 2 INTERNAL "
        "(all is lost), 1 MESSAGE_TOO_LARGE (all is lost)"
    )


def test_what_grpc_cancels_may_be_overload_and_is_told_apart_from_what_is_not():
    recorder = Recorder(Window(0.0, 10.0), in_time_seconds=1.0)
    recorder.not_answered(1.0, "UNAVAILABLE", "all is lost")
    for _ in range(2):
        recorder.not_answered(1.0, "CANCELLED", "CANCELLED")
    report = report_of(plan_at(), recorder.tally(cpu_seconds=1.0), None)
    failed, cancelled = report.doubts
    assert failed.text == "1 request failed, which is no overload: 1 UNAVAILABLE (all is lost)"
    assert (cancelled.kind, cancelled.size, cancelled.of_client) == ("cancelled", 2, False)
    assert cancelled.text.startswith("2 requests were ended as CANCELLED, but not by this client")
    assert report.faults == {"UNAVAILABLE": 1, "CANCELLED": 2}, "for the exit status"


def test_no_rate_is_tried_that_no_client_can_send():
    class Fast(Queue):
        CAPACITY, SECONDS = 60_000.0, 0.0001

    found = asyncio.run(sweep(Fast(), plan_at(rate=None, seconds=0.1), lambda _: None))
    assert found.points[-1].plan.rate == pytest.approx(90_000, rel=0.05)


def test_a_sweep_of_images_that_cannot_be_used_has_no_rate_to_try():
    class Unusable(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            none = msgspec.structs.replace(report.answers, mean=0.0)
            errors = {"not_an_image": report.answered}
            return msgspec.structs.replace(report, answers=none, image_errors=errors)

    found = asyncio.run(sweep(Unusable(), plan_at(rate=None), lambda _: None))
    assert (found.points, found.cut_short) == (
        (),
        "no image that was sent can be used: not_an_image",
    )


def test_of_several_doubts_of_a_kind_the_worst_is_told():
    runs = [load_report([50.0] * 200, rate=rate, lag_ms=ms) for rate, ms in ((20, 90), (40, 30))]
    (told,) = doubts_told(runs)
    assert told.startswith("at 20 requests/s (poisson): one request in a hundred was sent 90 ms")
    assert told.endswith("(and at 1 other rate)")


def test_a_rate_is_held_between_what_passed_and_what_failed():
    found, _ = swept(slo_ms=100)
    assert found.within_slo < found.beyond_slo <= found.within_slo * 1.06
    assert found.kept_up_with < found.not_kept_up_with
    low, high = found.saturation_interval
    assert low < found.saturation < high
    slow, _ = swept(slo_ms=10)
    assert slow.beyond_slo == min(run.plan.rate for run in slow.points)
