"""The running server: wiring, and the order of start and drain."""

import asyncio
import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from packshot.channel import endpoint
from packshot.compiled_folder import home_expanded
from packshot.cores import available_cores
from packshot.image import ImageLimits
from packshot.oip.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from packshot.v1.classifier_pb2_grpc import add_ClassifierServicer_to_server
from serving.access_log import AccessLog
from serving.api.calls import Calls
from serving.api.classifier import Classifier
from serving.api.open_inference import OpenInference
from serving.api.parsing import Registrar
from serving.api.probes import Probes
from serving.api.receiving import Receiving
from serving.api.reflection import SERVICE_NAME, Reflection
from serving.api.refusing import NoSuchMethod
from serving.cache import Cache
from serving.check import table
from serving.decoding import DecodePool
from serving.engines.open import EngineChoice
from serving.health import Health
from serving.http import HttpPort
from serving.listening import Listening, add_port, new_server
from serving.liveness import Liveness
from serving.loading import Loader, Room
from serving.logs import count_lost_lines
from serving.memory import Memory, memory_bytes
from serving.metrics import Metrics
from serving.models import Models
from serving.pipeline import Pipeline
from serving.reload import Reloader
from serving.scheduler import HANGS_SECONDS
from serving.settings import Settings
from serving.signals import StopSignals
from serving.tidying import keep_tidy

if TYPE_CHECKING:
    from serving.traces import Traces

log = logging.getLogger("packshot.app")

SERVICES = (Classifier.service, OpenInference.service)
OTHERS = 32  # calls that ask about models, beside the classifying ones
SENDING_SECONDS = 2.0  # of answers that their clients read slowly; a Watch lasts as long, too
UPLOAD_SECONDS = 5.0  # for requests that are being sent when a drain begins
NEVER_SECONDS = 3600.0
HEARING_SECONDS = 0.2  # a GOAWAY is on its way to a client, and a request of his to us


class App:
    """One server process: gRPC, the HTTP port, and the models behind them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = metrics = Metrics()
        limits = ImageLimits(
            max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels
        )
        self._decoders = DecodePool(available_cores(), limits)
        self._models = Models()
        self._loader = Loader(settings.models, _choice(settings), _room(settings), metrics)
        self._reloader = Reloader(
            self._models,
            self._loader,
            metrics,
            names=settings.model,
            default=settings.default_model,
            seconds=settings.reload_seconds,
        )
        cache = Cache(settings.cache_bytes, metrics)
        self._pipeline = Pipeline(
            self._decoders,
            cache,
            limits,
            max_images_per_request=settings.max_images_per_request,
            default_timeout_seconds=settings.default_timeout_ms / 1000,
        )
        self._traces = _traces(settings)
        self._memory = Memory(
            settings.max_memory_bytes or memory_bytes(),
            loading=lambda: self._loader.opening or self._models.draining,
            kept=lambda: cache.held_bytes,
        )
        self._calls = self._new_calls(settings)
        hang_seconds = settings.hang_seconds
        self._liveness = Liveness(
            partial(self._models.trouble, hang_seconds), hang_seconds=hang_seconds
        )
        self._health = health = Health(
            self._models, self._decoders, self._liveness, hang_seconds=hang_seconds
        )
        self._listening = _listening(settings)
        self._no_such = NoSuchMethod(self._calls)
        self._server = new_server(self._listening, self._calls, self._no_such)
        count_lost_lines(metrics.log_lines_lost.inc)
        metrics.saturation.set_function(health.saturation)
        metrics.live.set_function(health.live)
        metrics.ready.set_function(health.ready)
        metrics.rejected_versions.set_function(partial(_rejected, self._models))

    def _new_calls(self, settings: Settings) -> Calls:
        # A request has one image or more: further ones would only be refused, after being received.
        images = self._loader.count(settings.model) * settings.max_queued_images
        return Calls(
            self._metrics,
            AccessLog(settings.access_log_per_second, self._metrics),
            self._traces,
            Receiving(self._memory, self._metrics, idle=self._models.idle),
            most=images + OTHERS,
        )

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Raises PackshotError if it cannot start."""
        stop = StopSignals()
        self._liveness.start()
        http, port = await self._listen()
        tidying = asyncio.create_task(keep_tidy(self._models.idle, self._is_silent, self._memory))
        try:
            if not await stop.run_until(self._reloader.load_all()):
                log.info("stopped while loading")
                return
            self._memory.settle()
            self._health.enter("accepting")
            self._log_ready(port, http.port)
            self._reloader.start()
            await stop.wait()
            log.info("draining")
            self._health.enter("draining")
            # Balancers and endpoints take seconds to notice: go on accepting meanwhile.
            await stop.sleep(self._settings.drain_delay_seconds)
        finally:
            await self._stop_accepting(stop)
            await self._close()
            tidying.cancel()
            http.close()
        log.info("drained")

    async def check(self) -> tuple[str, bool]:
        """Takes the ports, loads and proves every model, lets go.

        A table of them, and whether all that there are can be served.
        """
        http, _ = await self._listen()
        try:
            await self._reloader.load_all()
            return table(self._models), not any(self._models.rejected.values())
        finally:
            await self._server.stop(SENDING_SECONDS)  # nobody was told that it is ready
            await self._close()
            http.close()

    @property
    def left_behind(self) -> bool:
        """An engine hangs in a thread that cannot be ended."""
        return self._models.left_behind

    @property
    def still_loading(self) -> bool:
        """A thread loads what nobody waits for any more, and cannot be ended."""
        return self._loader.opening

    def _is_silent(self) -> bool:
        """Health's calls and reflection's are not in progress; what they read is memory, too."""
        return not (self._calls.in_progress or self._calls.receiving.reading)

    async def _listen(self) -> tuple[HttpPort, int]:
        """Takes the ports first: a taken one is found before seconds of loading."""
        host, settings = self._settings.host, self._settings
        http = HttpPort(
            host,
            settings.http_port,
            self._metrics.registry,
            self._health.why_not_live,
            self._health.why_not_ready,
        )
        port = add_port(self._server, self._listening, self._metrics)
        self._add_services()
        await self._server.start()
        return http, port

    def _add_services(self) -> None:
        # Generated code takes more than servers, which not all of its annotations know.
        registrar: Any = Registrar(self._server, self._calls.receiving)
        parts = (self._models, self._pipeline, self._calls)
        classifier = Classifier(*parts, max_message_bytes=self._settings.max_message_bytes)
        add_ClassifierServicer_to_server(classifier, registrar)
        oip = OpenInference(*parts, self._health)
        add_GRPCInferenceServiceServicer_to_server(oip, registrar)
        probes = Probes(self._calls.receiving, self._health, SERVICES)
        health_pb2_grpc.add_HealthServicer_to_server(probes, registrar)
        names = (*SERVICES, "grpc.health.v1.Health", SERVICE_NAME)
        reflection = Reflection(names, self._calls.receiving)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
            reflection, registrar
        )
        self._server.add_generic_rpc_handlers((self._no_such,))

    async def _close(self) -> None:
        """Once nothing is accepted any more: a late request would find no engine."""
        await self._reloader.stop()
        await self._loader.close()
        # A run that takes longer counts as hung: it is left behind.
        await self._models.close(min(self._settings.hang_seconds, HANGS_SECONDS))
        self._decoders.close()
        self._liveness.stop()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    async def _stop_accepting(self, stop: StopSignals) -> None:
        """Until the calls in progress are answered, `drain_timeout_seconds` at most.

        Streams that never end (health's Watch) do not hold it up; a second signal cuts it short.
        """
        self._calls.draining.set()
        timeout = self._settings.drain_timeout_seconds
        # It never ends by its own grace: gRPC crashes if two end at once.
        stopping = asyncio.create_task(self._server.stop(timeout + NEVER_SECONDS))
        unsent = asyncio.create_task(self._end_uploads())
        answered = asyncio.create_task(self._until_quiet())
        hurried = asyncio.create_task(stop.wait_for_second())
        ends = {stopping, answered, hurried}
        await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._calls.in_progress:
            log.error("%d requests were cut off", self._calls.in_progress)
        # A shorter grace takes the place of the longer one; replies still have to be sent.
        await self._server.stop(0 if stop.hurried else SENDING_SECONDS)
        await stopping
        for waiting in (answered, hurried, unsent):
            waiting.cancel()

    async def _end_uploads(self) -> None:
        """A client that sends no more would hold up every drain."""
        await asyncio.sleep(UPLOAD_SECONDS)
        self._calls.receiving.close()

    async def _until_quiet(self) -> None:
        """All is answered, also what clients sent before they heard that this server stops."""
        while True:
            await self._calls.none()
            await asyncio.sleep(HEARING_SECONDS)
            if not self._calls.in_progress:
                return

    def _log_ready(self, port: int, http_port: int) -> None:
        host = self._settings.host
        served = ", ".join(
            f"model {model.name} version {model.version}, engine {model.engine}"
            for model in self._models
        )
        log.info(
            "ready: %s, on %s, metrics on http://%s/metrics",
            served, endpoint(host, port), endpoint(host, http_port),
        )  # fmt: skip


def _rejected(models: Models) -> Counter[tuple[str, ...]]:
    """How many versions stay out, by model and reason; asked by threads that scrape."""
    return Counter(
        (name, one.reason)
        for name, versions in list(models.rejected.items())
        for one in list(versions.values())
    )


def _traces(settings: Settings) -> "Traces | None":
    if settings.otlp_endpoint is None:
        return None
    from serving.traces import Traces  # OpenTelemetry is optional

    return Traces(settings.otlp_endpoint, ratio=settings.trace_ratio)


def _choice(settings: Settings) -> EngineChoice:
    # What is required is all that is tried: a fallback would have to be refused anyway.
    order = (settings.require,) if settings.require else settings.engines
    return EngineChoice(
        order=order,
        required=settings.require is not None,
        lanes=settings.lanes or available_cores(),
        max_batch=settings.max_batch,
        compiled_folder=home_expanded(settings.compiled_models),
    )


def _room(settings: Settings) -> Room:
    return Room(max_images=settings.max_queued_images, max_bytes=settings.max_queued_bytes)


def _listening(settings: Settings) -> Listening:
    return Listening(
        host=settings.host,
        port=settings.port,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
        tls_client_ca=settings.tls_client_ca,
        token_file=settings.token_file,
        max_message_bytes=settings.max_message_bytes,
        max_connection_age_seconds=settings.max_connection_age_seconds,
    )
