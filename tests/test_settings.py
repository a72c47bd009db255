"""Settings: which source wins, what is refused and in which words, and what is printed."""

import os
import re
import tomllib

import pytest
from processes import program, serving
from pydantic import ValidationError
from tiny import jpeg

from packshot import Client
from packshot.errors import InvalidInput
from serving.command_line import parse_settings
from serving.engines.open import ENGINES
from serving.settings import ENGINE_NAMES, Settings, options


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PACKSHOT_")]:
        monkeypatch.delenv(name)


def settings(*arguments: object) -> Settings:
    return parse_settings(["--models", "models", *map(str, arguments)])


def refused(*arguments: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        settings(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "packshot.toml"


def sources(settings: Settings) -> dict[str, tuple[object, str]]:
    return {name: (value, source) for name, value, source in settings.effective()}


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(
    file, monkeypatch
):
    file.write_text("max_batch = 2\nlanes = 2\nport = 2\n")
    monkeypatch.setenv("PACKSHOT_MAX_BATCH", "3")
    monkeypatch.setenv("PACKSHOT_LANES", "3")
    effective = sources(settings("--config", file, "--max-batch", 4))
    assert effective["max_batch"] == (4, "flag")
    assert effective["lanes"] == (3, "environment")
    assert effective["port"] == (2, "file")
    assert effective["http_port"] == (8002, "default")


def test_the_file_may_be_named_in_the_environment(file, monkeypatch):
    file.write_text('models = "elsewhere"\nengines = ["int8"]\nreload_seconds = 0.5\n')
    monkeypatch.setenv("PACKSHOT_CONFIG", str(file))
    given = parse_settings([])
    assert (str(given.models), given.engines, given.reload_seconds) == ("elsewhere", ("int8",), 0.5)


@pytest.mark.parametrize(
    "arguments", [["--model", "a,b"], ["--model", "a", "--model", "b"], ["--model", " a ,,b,a"]]
)
def test_names_come_with_commas_or_one_by_one(arguments):
    assert settings(*arguments).model == ("a", "b")


def test_names_in_the_environment(monkeypatch):
    monkeypatch.setenv("PACKSHOT_ENGINES", "int8,fp32")
    monkeypatch.setenv("PACKSHOT_MODEL", "")
    assert settings().engines == ("int8", "fp32")
    assert sources(settings())["model"] == ((), "default")


def test_a_wrong_value_is_named_as_its_giver_wrote_it(file, monkeypatch):
    limits = "it must be from 1 to 256"
    assert refused("--max-batch", "many") == f"--max-batch is many; {limits}"
    file.write_text("max_batch = 300\n")
    assert refused("--config", file) == f"max_batch in {file} is 300; {limits}"
    file.write_text("max_batch = true\n")
    assert refused("--config", file) == f"max_batch in {file} is true; {limits}"
    monkeypatch.setenv("PACKSHOT_MAX_BATCH", "1.5")
    assert refused() == f"PACKSHOT_MAX_BATCH is 1.5; {limits}"


NUMBERS = [option.flag for option in options().values() if option.field.annotation in (int, float)]


@pytest.mark.parametrize("flag", NUMBERS)
def test_every_number_has_a_range_that_is_kept_at_both_ends(flag):
    found = re.fullmatch(rf"{flag} is nan; it must be from (\S+) to (\S+)", refused(flag, "nan"))
    low, high = map(float, found.groups())
    for value in (f"{low - 1:.0f}", f"{high + 1:.0f}"):
        assert f"{flag} is {value}; it must be from" in refused(f"{flag}={value}")


def test_the_store_is_looked_at_never_or_not_too_often():
    assert refused("--reload-seconds", 0.0001) == (
        "--reload-seconds is 0.0001; it must be 0 or at least 0.005"
    )
    assert settings("--reload-seconds", 0.005).reload_seconds == 0.005
    assert settings("--reload-seconds", 0).reload_seconds == 0


def test_no_engine_hangs_within_a_second():
    assert refused("--hang-seconds", 0.5) == "--hang-seconds is 0.5; it must be from 1 to 86400"
    assert settings("--hang-seconds", 1).hang_seconds == 1


def test_other_wrong_values():
    assert refused("--log-format", "xml") == (
        "--log-format is xml; it must be 'auto', 'json' or 'human'"
    )
    assert refused("--engines", ",") == "--engines is empty; it must name one or more"
    with pytest.raises(InvalidInput, match=r"^--models is missing: folder of bundles"):
        parse_settings([])


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        settings().port = 1


def test_a_typo_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("PACKSHOT_MAX_BACH", "4")
    assert refused() == (
        "environment variable PACKSHOT_MAX_BACH is not known: is PACKSHOT_MAX_BATCH meant?"
    )


def test_what_others_put_into_the_environment_is_let_be(monkeypatch):
    monkeypatch.setenv("PACKSHOT_TOKEN", "the client's")
    links = {
        "PACKSHOT_SERVICE_HOST": "10.0.0.1", "PACKSHOT_SERVICE_PORT": "8001",
        "PACKSHOT_SERVICE_PORT_GRPC": "8001", "PACKSHOT_PORT": "tcp://10.0.0.1:8001",
        "PACKSHOT_PORT_8001_TCP": "tcp://10.0.0.1:8001", "PACKSHOT_PORT_8001_TCP_ADDR": "10.0.0.1",
        "PACKSHOT_HTTP_PORT": "tcp://10.0.0.2:8002", "PACKSHOT_CANARY_PORT": "tcp://10.0.0.3:1",
    }  # fmt: skip
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    given = settings()
    assert (given.port, given.http_port) == (8001, 8002)
    assert given.origins == {"models": "flag"}


@pytest.mark.parametrize("key", ["max_bach", "check", "config", "origins"])
def test_a_key_that_the_file_may_not_have_is_named(file, key):
    file.write_text(f"{key} = 4\n")
    assert refused("--config", file).startswith(f"{key!r} in {file} is not known")


def test_a_file_that_cannot_be_used_is_named(file):
    assert refused("--config", file) == f"--config {file}: there is no such file"
    file.write_text("max_batch 4\n")
    assert refused("--config", file).startswith(f"--config {file} cannot be read: Expected '='")
    too_long = "a" * 300
    assert f"--config {too_long} cannot be read: " in refused("--config", too_long)


def test_contradictions_are_refused_with_the_remedy(tmp_path, monkeypatch):
    pem = tmp_path / "a.pem"
    pem.touch()
    assert refused("--tls-cert", pem) == "--tls-cert is given without --tls-key: give both"
    assert refused("--tls-key", pem) == "--tls-key is given without --tls-cert: give both"
    assert (
        refused("--tls-client-ca", pem) == "--tls-client-ca is given without --tls-cert: give both"
    )
    for option in ("--tls-cert", "--tls-key", "--tls-client-ca", "--token-file"):
        missing = tmp_path / "missing"
        assert refused(option, missing) == f"{option} {missing}: there is no such file"
    assert refused("--model", "mugs", "--default-model", "shoes") == (
        "--default-model is 'shoes', which is not among --model mugs: add it there"
    )
    assert settings("--default-model", "shoes").default_model == "shoes"
    monkeypatch.setenv("PACKSHOT_ENGINES", "int8,fp32")
    assert refused("--require", "cuda") == (
        "--require is 'cuda', which is not among PACKSHOT_ENGINES int8,fp32: add it there"
    )
    assert refused("--engines", "int8,tpu,npu") == (
        "--engines names tpu, npu, which packshot has not: it has tensorrt, cuda, openvino-int8, "
        "openvino-bf16, int8, fp32"
    )
    assert (*ENGINES,) == ENGINE_NAMES
    assert "s3cret" not in refused("--otlp-endpoint", "http://user:s3cret@collector:4317")
    assert refused("--otlp-endpoint", "http://user:s3cret@collector:4317").startswith(
        "--otlp-endpoint has a user or a password in it"
    )
    assert refused("--otlp-endpoint", "http://user:s3cret@[::1") == (
        "--otlp-endpoint is no URL; it must be like http://127.0.0.1:4317"
    )
    assert refused("--port", 9, "--http-port", 9) == (
        "--port and --http-port are both 9: give each a port of its own"
    )
    assert settings("--port", 0, "--http-port", 0).port == 0
    assert refused("--max-queued-images", 8) == (
        "--max-images-per-request is 32, above --max-queued-images 8: such a request could never "
        "be taken; lower the first or raise the second"
    )
    assert refused("--max-message-bytes", 100_000).startswith(
        "--max-image-bytes is 20971520, above --max-message-bytes 100000: such an image"
    )
    assert refused("--max-queued-bytes", 1_048_576).startswith(
        "--max-image-bytes is 20971520, above --max-queued-bytes 1048576: such an image"
    )


def test_help_tells_every_option_and_its_default():
    done = program("serving", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for option in options().values():
        assert f"{option.flag} " in text
        assert option.field.description in text
    assert "(default: tensorrt,cuda,openvino-int8,openvino-bf16,int8,fp32)" in text
    assert "(default: 8001)" in text


def test_what_is_printed_can_be_read_again(file):
    folder = 'm\x01o\x7fd"e\\ls'
    done = program("serving", "--models", folder, "--max-batch", 4, "--print-config")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.match(r"max_batch = 4 +# flag$", lines[6])
    assert "# tls_key is not set" in lines
    assert len(tomllib.loads(done.stdout)) == len([line for line in lines if line[0] != "#"])
    file.write_text(done.stdout)
    again = parse_settings(["--config", str(file)])
    given = settings("--max-batch", 4, "--models", folder)
    assert [one[:2] for one in again.effective()] == [one[:2] for one in given.effective()]
    assert {source for _, value, source in again.effective() if value is not None} == {"file"}


@pytest.mark.parametrize(("flag", "setting"), [("--models", "models"), ("--model", "model")])
def test_what_no_settings_file_can_hold_is_not_printed(flag, setting):
    done = program("serving", "--models", "m", flag, os.fsdecode(b"shop\xff"), "--print-config")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{flag} is not UTF-8, so no settings file can hold it: {setting} = " in done.stderr
    assert r"shop\xff" in done.stderr


def test_a_wrong_value_ends_the_server_with_one_line(monkeypatch):
    monkeypatch.setenv("PACKSHOT_LANES", "-1")
    done = program("serving", "--models", "models")
    assert done.returncode == 1
    assert done.stderr == (
        "packshot: cannot serve: PACKSHOT_LANES is -1; it must be from 0 to 256\n"
    )


def test_the_server_logs_its_settings_once(store):
    with serving("--models", store, "--model", "colours", "--max-batch", 2) as server:
        (line,) = [line for line in server.lines if "settings: " in line]
        assert f"models={store} (flag) model=colours (flag)" in line
        assert "max_batch=2 (flag)" in line
        assert "max_queued_images=256 max_queued_bytes" in line
        with Client(server.target) as client:
            assert client.classify(jpeg((255, 0, 0)))[0].model == "colours"


def test_an_engine_that_is_required_or_none(store):
    engines = ("--engines", "int8,fp32")
    ports = ("--port", 0, "--http-port", 0)
    done = program("serving", "--models", store, *ports, *engines, "--require", "int8")
    assert done.returncode == 1
    assert "int8: not in the bundle: it was not exported; by --require nothing may" in done.stderr
    with serving("--models", store, *engines, "--require", "fp32") as server:
        assert "engine fp32, on" in server.log
