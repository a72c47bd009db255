"""What the server is told: flags, environment and file become one record, checked once."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
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
from serving.agreement import check_agreement
from serving.sources import ConfigFile, Environment, Origins
from serving.wording import flag, reason, spelled

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


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in ENGINE_NAMES]:
        raise ValueError(
            f"names {', '.join(unknown)}, which packshot has not: it has {', '.join(ENGINE_NAMES)}"
        )
    return names


Engines = Annotated[Names, AfterValidator(_known)]


def _without_brackets(given: object) -> object:
    """An IPv6 address may come as in a URL."""
    return given.removeprefix("[").removesuffix("]") if isinstance(given, str) else given


Host = Annotated[str, BeforeValidator(_without_brackets)]


LEAST_RELOAD_SECONDS = 0.005  # looking at one model then takes a tenth of a core


def _never_or_seldom(seconds: float) -> float:
    if 0 < seconds < LEAST_RELOAD_SECONDS:
        raise ValueError(f"is {seconds}; it must be 0 or at least {LEAST_RELOAD_SECONDS}")
    return seconds


ReloadSeconds = Annotated[float, AfterValidator(_never_or_seldom)]


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
    engines: Annotated[Engines, SERVED] = Field(
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
        30.0,
        ge=1,  # a slow batch, or a pause of a busy machine, would pass for a hang
        le=86_400,
        description="a server whose engine runs longer is not alive",
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

    reload_seconds: Annotated[ReloadSeconds, LIFE] = Field(
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
            raise InvalidInput(_reasons(error, given)) from None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        check_agreement(self)
        return self

    def effective(self) -> list[Effective]:
        """Every value in force but those of the command itself. None of them is a secret."""
        return [
            Effective(name, getattr(self, name), self.origins.get(name, "default"))
            for name, option in options().items()
            if option.group != COMMAND
        ]


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
            found[name] = Option(flag(name), group, field)
    return found


def _reasons(error: ValidationError, given: dict[str, Any]) -> str:
    """All of them, each with the name as its giver wrote it."""
    found = []
    for one in error.errors():
        name = str(one["loc"][0])
        how = spelled(name, given.get("origins", {}), given.get("config"))
        found.append(reason(one, how, given.get(name), Settings.model_fields[name]))
    return "; ".join(found)
