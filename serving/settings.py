"""What the server is told: flags, environment and file become one record, checked once."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, cast
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from packshot.compiled_folder import DEFAULT_FOLDER
from packshot.errors import InvalidInput
from packshot.limits import LEAST_MESSAGE_BYTES
from serving.sources import PREFIX, ConfigFile, Environment, Origins, is_missing

ENGINE_NAMES = ("tensorrt", "cuda", "openvino-int8", "openvino-bf16", "int8", "fp32")


class Group(NamedTuple):
    """Options that `--help` shows together."""

    title: str


SERVED = Group("what is served")
NETWORK = Group("network")
LIMITS = Group("limits")
SECURITY = Group("security")
LIFE = Group("reload and drain")
SEEN = Group("logs and traces")
COMMAND = Group("this command")


def _names(given: object) -> object:
    """ "a,b", or several such texts, as names without repetition."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return given
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


def _without_brackets(given: object) -> object:
    """An IPv6 address may come as in a URL."""
    return given.removeprefix("[").removesuffix("]") if isinstance(given, str) else given


Host = Annotated[str, BeforeValidator(_without_brackets)]


class Effective(NamedTuple):
    """A value in force. `source`: flag, environment, file or default."""

    name: str
    value: object
    source: str

    def __str__(self) -> str:
        text = ",".join(self.value) if isinstance(self.value, tuple) else self.value
        return f"{self.name}={text}" + (f" ({self.source})" if self.source != "default" else "")


class Settings(BaseSettings):
    """A flag wins over `PACKSHOT_<NAME>`, that over the file of `config`, that over the default.

    Raises InvalidInput, naming option, value and range, if a value makes no sense.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", enable_decoding=False)

    models: Annotated[Path, SERVED] = Field(
        description="folder of bundles, as the exporter writes them, or of one version"
    )
    model: Annotated[Names, SERVED] = Field(
        (), description="names of the models to serve, with commas; none: every one there"
    )
    default_model: Annotated[str | None, SERVED] = Field(
        None, description="model that answers requests that name none"
    )
    engines: Annotated[Names, SERVED] = Field(
        ENGINE_NAMES,
        min_length=1,
        description="engines to try, in order, with commas",
    )
    require: Annotated[str | None, SERVED] = Field(
        None, description="do not serve with any other engine than this one"
    )
    lanes: Annotated[int, SERVED] = Field(
        0,
        ge=0,
        le=256,
        description="batches run at the same time, one thread each; 0: one per core",
    )
    max_batch: Annotated[int, SERVED] = Field(
        8, ge=1, le=256, description="images per run of the engine"
    )
    compiled_models: Annotated[Path, SERVED] = Field(
        DEFAULT_FOLDER,
        description="folder that keeps what OpenVINO compiled for this CPU, for the next start; "
        "where it cannot be written, each start compiles",
    )
    cache_bytes: Annotated[int, SERVED] = Field(
        0, ge=0, le=1 << 40, description="memory for answers to images seen before; 0: none"
    )

    host: Annotated[Host, NETWORK] = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 for all, :: for IPv6's too"
    )
    port: Annotated[int, NETWORK] = Field(
        8001, ge=0, le=65535, description="gRPC port; 0 takes a free one"
    )
    http_port: Annotated[int, NETWORK] = Field(
        8002, ge=0, le=65535, description="port of metrics and probes; 0 takes a free one"
    )
    max_connection_age_seconds: Annotated[float, NETWORK] = Field(
        120.0,
        ge=0,
        le=86_400,
        description="then a client is asked to connect anew, which finds servers that came since; "
        "calls in progress go on; 0: never",
    )

    max_queued_images: Annotated[int, LIMITS] = Field(
        256, ge=1, le=100_000, description="images taken in at a time; more are refused"
    )
    max_queued_bytes: Annotated[int, LIMITS] = Field(
        512 * 1024 * 1024,
        ge=1 << 20,
        le=1 << 40,
        description="bytes of images taken in at a time; more are refused",
    )
    max_images_per_request: Annotated[int, LIMITS] = Field(
        32, ge=1, le=1024, description="more are refused"
    )
    max_image_bytes: Annotated[int, LIMITS] = Field(
        20 * 1024 * 1024, ge=1, le=1 << 30, description="per encoded image"
    )
    max_image_pixels: Annotated[int, LIMITS] = Field(
        50_000_000,
        ge=1,
        le=89_000_000,  # above this Pillow has a limit of its own
        description="width times height; decoding takes up to 16 bytes a pixel, on every core",
    )
    max_message_bytes: Annotated[int, LIMITS] = Field(
        64 * 1024 * 1024, ge=LEAST_MESSAGE_BYTES, le=1 << 30, description="per request"
    )
    max_memory_bytes: Annotated[int | None, LIMITS] = Field(
        None,
        ge=1 << 28,
        le=1 << 50,
        description="of the server; without it the container's or the machine's; when 0.4 of what "
        "the models leave is in use, no request is read",
    )
    default_timeout_ms: Annotated[int, LIMITS] = Field(
        10_000, ge=1, le=3_600_000, description="for requests without a deadline"
    )
    hang_seconds: Annotated[float, LIMITS] = Field(
        30.0, ge=0.1, le=86_400, description="a server whose engine runs longer is not alive"
    )

    tls_cert: Annotated[Path | None, SECURITY] = Field(
        None, description="PEM file of the server's certificate and those between it and its root"
    )
    tls_key: Annotated[Path | None, SECURITY] = Field(
        None, description="PEM file of the certificate's private key"
    )
    tls_client_ca: Annotated[Path | None, SECURITY] = Field(
        None, description="PEM file of authorities: only clients with their certificates get in"
    )
    token_file: Annotated[Path | None, SECURITY] = Field(
        None, description="file of bearer tokens, one a line: only calls with one of them get in"
    )

    reload_seconds: Annotated[float, LIFE] = Field(
        2.0, ge=0, le=86_400, description="look for another version this often; 0: on SIGHUP only"
    )
    drain_delay_seconds: Annotated[float, LIFE] = Field(
        0.0,
        ge=0,
        le=3600,
        description="on SIGTERM, go on accepting this long after reporting not ready",
    )
    drain_timeout_seconds: Annotated[float, LIFE] = Field(
        20.0, ge=0, le=3600, description="then wait at most this long for requests in flight"
    )

    log_format: Annotated[Literal["auto", "json", "human"], SEEN] = Field(
        "auto", description="auto: human on a terminal, else json"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], SEEN] = Field(
        "info", description="least severe that is logged"
    )
    access_log_per_second: Annotated[float, SEEN] = Field(
        10.0, ge=0, le=1_000_000, description="requests logged a second, at most; 0: none"
    )
    otlp_endpoint: Annotated[str | None, SEEN] = Field(
        None, description="URL of an OTLP collector (gRPC); without it there are no traces"
    )
    trace_ratio: Annotated[float, SEEN] = Field(
        0.01,
        ge=0,
        le=1,
        description="share of requests traced; a client that sends traceparent decides for its own",
    )

    config: Annotated[Path | None, COMMAND] = Field(None, description="TOML file of settings")
    check: Annotated[bool, COMMAND] = Field(
        False, description="load and prove the models, say so, and exit"
    )
    print_config: Annotated[bool, COMMAND] = Field(
        False, description="print the settings in force and where each comes from, and exit"
    )

    origins: dict[str, str] = Field(default_factory=dict, repr=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        in_file = [name for name, option in options().items() if option.group != COMMAND]
        flags = cast(InitSettingsSource, init_settings)
        environment = Environment(settings_cls, [*in_file, "config"])
        config = {**environment(), **flags()}.get("config")
        file = ConfigFile(settings_cls, Path(config) if config else None, in_file)
        return flags, environment, file, Origins(settings_cls)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, given: Any, validated: Callable[[Any], Self]) -> Self:
        try:
            return validated(given)
        except ValidationError as error:
            raise InvalidInput("; ".join(_reason(one, given) for one in error.errors())) from None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Each value alone is right; together they must make sense too."""
        self._check_files()
        self._check_security()
        self._check_choices()
        self._check_limits()
        return self

    def effective(self) -> list[Effective]:
        """Every value in force but those of the command itself. None of them is a secret."""
        return [
            Effective(name, getattr(self, name), self.origins.get(name, "default"))
            for name, option in options().items()
            if option.group != COMMAND
        ]

    def _check_files(self) -> None:
        for name in ("tls_cert", "tls_key", "tls_client_ca", "token_file"):
            path = getattr(self, name)
            if path is not None and is_missing(path):
                raise InvalidInput(f"{self._spelled(name)} {path}: there is no such file")

    def _check_security(self) -> None:
        for name, other in (
            ("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"),
        ):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise InvalidInput(
                    f"{self._spelled(name)} is given without {_flag(other)}: give both"
                )

        if self.otlp_endpoint is not None and "@" in urlsplit(self.otlp_endpoint).netloc:
            raise InvalidInput(
                f"{self._spelled('otlp_endpoint')} has a user or a password in it, which the log "
                "would show: give what the collector wants in OTEL_EXPORTER_OTLP_HEADERS"
            )

    def _check_choices(self) -> None:
        if self.model and self.default_model not in (None, *self.model):
            raise InvalidInput(
                f"{self._spelled('default_model')} is {self.default_model!r}, which is not among "
                f"{self._spelled('model')} {','.join(self.model)}: add it there"
            )
        if unknown := [name for name in self.engines if name not in ENGINE_NAMES]:
            raise InvalidInput(
                f"{self._spelled('engines')} names {', '.join(unknown)}, which packshot has not: "
                f"it has {', '.join(ENGINE_NAMES)}"
            )
        if self.require not in (None, *self.engines):
            raise InvalidInput(
                f"{self._spelled('require')} is {self.require!r}, which is not among "
                f"{self._spelled('engines')} {','.join(self.engines)}: add it there"
            )
        if self.port == self.http_port != 0:
            raise InvalidInput(
                f"{self._spelled('port')} and {self._spelled('http_port')} are both {self.port}: "
                "give each a port of its own"
            )

    def _check_limits(self) -> None:
        for part, whole, why in (
            ("max_images_per_request", "max_queued_images", "such a request"),
            ("max_image_bytes", "max_message_bytes", "such an image"),
            ("max_image_bytes", "max_queued_bytes", "such an image"),
        ):
            if getattr(self, part) > getattr(self, whole):
                raise InvalidInput(
                    f"{self._spelled(part)} is {getattr(self, part)}, above {self._spelled(whole)} "
                    f"{getattr(self, whole)}: {why} could never be taken; lower the first or raise "
                    "the second"
                )

    def _spelled(self, name: str) -> str:
        return _spelled(name, self.origins, self.config)


class Option(NamedTuple):
    """A setting as the command line knows it."""

    flag: str
    group: Group
    field: FieldInfo


def options() -> dict[str, Option]:
    """Settings by name, group after group."""
    found = {}
    for name, field in Settings.model_fields.items():
        for group in (one for one in field.metadata if isinstance(one, Group)):
            found[name] = Option(_flag(name), group, field)
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _spelled(name: str, origins: dict[str, str], config: object) -> str:
    """The name as its giver wrote it."""
    match origins.get(name):
        case "environment":
            return f"{PREFIX}{name.upper()}"
        case "file":
            return f"{name} in {config}"
    return _flag(name)


def _reason(error: Any, given: dict[str, Any]) -> str:
    """One of pydantic's errors in our words."""
    name = str(error["loc"][0])
    spelled = _spelled(name, given.get("origins", {}), given.get("config"))
    if error["type"] == "missing":
        return f"{spelled} is missing: {Settings.model_fields[name].description}"
    if error["type"] == "too_short":
        return f"{spelled} is empty; it must name one or more"
    if error["type"] == "literal_error":
        return f"{spelled} is {given[name]}; it must be {error['ctx']['expected']}"
    span = _range(Settings.model_fields[name])
    return (
        f"{spelled} is {given[name]}; it must be {span}" if span else f"{spelled}: {error['msg']}"
    )


def _range(field: FieldInfo) -> str:
    """ "from 1 to 256", or nothing."""
    low = [rule.ge for rule in field.metadata if isinstance(rule, Ge)]
    high = [rule.le for rule in field.metadata if isinstance(rule, Le)]
    return f"from {low[0]} to {high[0]}" if low and high else ""
