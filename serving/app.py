"""The running server: wiring, and the order of start and drain."""

import asyncio
import logging
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from packshot.channel import is_loopback
from packshot.cores import available_cores
from packshot.errors import InvalidInput
from packshot.image import ImageLimits
from packshot.v1 import classifier_pb2_grpc
from serving.api.answering import Calls
from serving.api.classifier import Classifier
from serving.certificates import Certificates, TlsFiles
from serving.decoding import DecodePool
from serving.metrics import Metrics
from serving.model import choose_bundle, start_model, verify
from serving.pipeline import Pipeline
from serving.reload import Reloader
from serving.settings import Settings
from serving.signals import StopSignals
from serving.tokens import TokenInterceptor, Tokens

log = logging.getLogger("packshot.app")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SENDING_SECONDS = 0.5
OTHER_CALLS = 64  # health, reflection and model queries beside the classifying ones


class App:
    """One server process: gRPC, metrics, and the model behind them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        limits = ImageLimits(
            max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels
        )
        self._decoders = DecodePool(available_cores(), limits, self._metrics)
        self._pipeline = Pipeline(
            self._decoders,
            self._metrics,
            max_images_per_request=settings.max_images_per_request,
            default_timeout_seconds=settings.default_timeout_ms / 1000,
        )
        self._reloader = Reloader(self._pipeline, settings, self._metrics)
        self._calls = Calls()
        self._health = health.HealthServicer()
        self._certificates = _certificates(settings, self._metrics)
        self._server = _new_server(settings, _interceptors(settings, self._metrics))

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Raises PackshotError if it cannot start."""
        stop = StopSignals()
        log.info("settings: %s", " ".join(map(str, self._settings.effective())))
        port, http_port = await self._listen()
        try:
            if not await stop.run_until(self._load_model()):
                log.info("stopped while loading")
                return
            await self._set_ready(True)
            self._log_ready(port, http_port)
            self._reloader.start()
            await stop.wait()
            log.info("draining")
            await self._set_ready(False)
            # Balancers and endpoints take seconds to notice: go on accepting meanwhile.
            await stop.sleep(self._settings.drain_delay_seconds)
        finally:
            await self._close(stop)
        log.info("drained")

    async def _listen(self) -> tuple[int, int]:
        """Takes the ports first: a taken one is found before seconds of loading."""
        host, settings = self._settings.host, self._settings
        http_port = self._metrics.serve(host, settings.http_port)
        try:
            port = self._add_port(f"{host}:{settings.port}")
        except RuntimeError as error:
            raise InvalidInput(
                f"--port {settings.port} on {host} cannot be used: {error}"
            ) from error
        classifier = Classifier(self._pipeline, self._metrics, self._calls)
        classifier_pb2_grpc.add_ClassifierServicer_to_server(classifier, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (Classifier.service, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._health.set("", SERVING)  # alive, though not ready yet
        await self._set_ready(False)
        await self._server.start()
        return port, http_port

    def _add_port(self, address: str) -> int:
        if self._certificates is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._certificates.credentials())

    async def _load_model(self) -> None:
        settings = self._settings
        named = settings.default_model or next(iter(settings.model), None)
        folder = choose_bundle(settings.models, named)
        verified = await asyncio.to_thread(verify, folder, self._settings)
        self._pipeline.model = start_model(verified, self._settings, self._metrics)

    async def _set_ready(self, ready: bool) -> None:
        self._metrics.ready.set(ready)
        await self._health.set(Classifier.service, SERVING if ready else NOT_SERVING)

    async def _close(self, stop: StopSignals) -> None:
        # Stop accepting before flushing: a late request would find no engine.
        await self._stop_accepting(stop)
        await self._reloader.stop()
        if self._pipeline.model is not None:
            await self._pipeline.model.scheduler.close()
        self._decoders.close()

    async def _stop_accepting(self, stop: StopSignals) -> None:
        """Until the calls in progress are answered, `drain_timeout_seconds` at most.

        Streams that never end (health's Watch) do not hold it up; a second signal cuts it short.
        """
        stopping = asyncio.create_task(self._server.stop(self._settings.drain_timeout_seconds))
        answered = asyncio.create_task(self._calls.none())
        hurried = asyncio.create_task(stop.wait_for_second())
        await asyncio.wait({stopping, answered, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if self._calls.in_progress:
            log.error("%d requests were cut off", self._calls.in_progress)
        # A shorter grace takes the place of the longer one; replies still have to be sent.
        await self._server.stop(0 if stop.hurried else SENDING_SECONDS)
        await stopping
        answered.cancel()
        hurried.cancel()

    def _log_ready(self, port: int, http_port: int) -> None:
        model = self._pipeline.current()
        log.info(
            "ready: model %s version %d, engine %s, on %s:%d, metrics on http://%s:%d/metrics",
            model.manifest.model, model.manifest.version, model.engine,
            self._settings.host, port, self._settings.host, http_port,
        )  # fmt: skip


def _certificates(settings: Settings, metrics: Metrics) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    files = TlsFiles(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
    return Certificates(files, metrics)


def _interceptors(settings: Settings, metrics: Metrics) -> list[grpc.aio.ServerInterceptor]:
    if settings.token_file is None:
        return []
    if settings.tls_cert is None and not is_loopback(settings.host):
        log.warning(
            "TOKENS TRAVEL IN PLAIN TEXT on %s: give --tls-cert and --tls-key, unless something in "
            "front of this server, such as a mesh, ends TLS",
            settings.host,
        )
    return [TokenInterceptor(Tokens(settings.token_file), metrics)]


def _new_server(
    settings: Settings, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=interceptors,
        options=[
            ("grpc.so_reuseport", 0),  # else two servers would silently share the port
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # Clients that ping to keep idle connections open are welcome.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
        # A request has one image or more: further ones would only be refused, after being received.
        maximum_concurrent_rpcs=settings.max_queued_images + OTHER_CALLS,
    )
