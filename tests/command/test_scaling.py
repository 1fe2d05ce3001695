"""docs/scaling.md and docs/deploy/: several servers behind a proxy, as they are said to be."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import yaml
from running import eventually, free_port, need, package, ready, serving

from pyllamafile.ops import export

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
PAGE = (DEPLOY.parent / "scaling.md").read_text()
PROXIES = ("nginx", "haproxy")
NAME = "chat.example.com"
KEY = "a-key-of-mine"
FILE = "/opt/llamafile/phi3.llamafile"
HELLO = {"messages": [{"role": "user", "content": "Name three colors."}], "temperature": 0}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate of the test's own, as both proxies want it."""
    folder = tmp_path_factory.mktemp("certificate")
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", "privkey.pem", "-out", "fullchain.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    parts = [(folder / name).read_text() for name in ("fullchain.pem", "privkey.pem")]
    (folder / "llamafile.pem").write_text("".join(parts))
    return folder


def replaced(name: str, changes: dict[str, str]) -> str:
    """A file of docs/deploy/, with what its reader has to change."""
    text = (DEPLOY / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def configured(
    proxy: str, folder: Path, certificate: Path, port: int, servers: tuple[int, int]
) -> list[str]:
    """The command that starts a proxy with the file of docs/deploy/."""
    ours = {f"127.0.0.1:{8081 + at}": f"127.0.0.1:{port}" for at, port in enumerate(servers)}
    if proxy == "nginx":
        ours |= {"listen 443": f"listen 127.0.0.1:{port}", "/etc/ssl/llamafile": str(certificate)}
        (folder / "llamafile.conf").write_text(replaced("nginx.conf", ours))
        main = f"pid {folder}/pid; error_log {folder}/errors; daemon off; events {{}}\n"
        main += f"http {{ access_log off; include {folder}/llamafile.conf; }}\n"
        (folder / "nginx.conf").write_text(main)
        return [need("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    ours |= {"bind :443": f"bind 127.0.0.1:{port}", "/etc/haproxy": str(certificate)}
    (folder / "haproxy.cfg").write_text(replaced("haproxy.cfg", ours))
    return [need("haproxy"), "-f", str(folder / "haproxy.cfg")]


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_file_is_right(proxy: str, tmp_path: Path, certificate: Path) -> None:
    command = configured(proxy, tmp_path, certificate, 8443, (8081, 8082))
    command.append({"nginx": "-t", "haproxy": "-c"}[proxy])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()


def test_the_units_are_right(tmp_path: Path) -> None:
    service = (DEPLOY.parent / "service.md").read_text()
    (unit,) = re.findall(r"^```ini\n(\[Unit\].*?)^```$", service, re.M | re.S)
    (drop_in,) = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.M | re.S)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name, text in {"phi3@.service": unit, "phi3@.service.d/many.conf": drop_in}.items():
        assert FILE in text
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace(FILE, str(program)))
    command = [need("systemd-analyze", "systemd"), "verify", "--man=no"]
    command.append(str(tmp_path / "phi3@8081.service"))
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if "Failed to" in done.stderr and "manager" in done.stderr:
        pytest.skip(f"systemd-analyze can't work here: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    grace, limit = (int(re.findall(each, drop_in)[0]) for each in (r"--grace (\d+)", r"Sec=(\d+)"))
    assert grace < limit


# Kubernetes


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """What `kubectl kustomize` makes of docs/deploy/kubernetes/, by kind."""
    beside = str(Path(sys.executable).parent)  # where the wheel puts it
    kubectl = shutil.which("kubectl", path=f"{beside}:{os.environ['PATH']}")
    if kubectl is None:
        pytest.skip("kubectl is missing: pip install '.[deploy]'")
    command = [kubectl, "kustomize", str(DEPLOY / "kubernetes")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "warn" not in done.stderr.lower()
    return {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}


@pytest.mark.parametrize("version", ["1.30", None])
def test_kubernetes_takes_it(objects: dict[str, Any], version: str | None) -> None:
    schemas = package("kubernetes_validate", "deploy")
    assert len(objects) == 4
    for item in objects.values():
        schemas.validate(item, version or schemas.latest_version(), strict=True)
        item = {**item, "spec": {**item["spec"], "mistake": 1}}
        with pytest.raises(schemas.ValidationError, match="mistake"):
            schemas.validate(item, version or schemas.latest_version(), strict=True)


def test_what_kubernetes_is_given_fits_together(objects: dict[str, Any]) -> None:
    deployment = objects["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    chosen = [
        deployment["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    assert all(chosen)
    assert all(each.items() <= labels for each in chosen)
    (container,) = pod["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": export.PORT}]
    assert container["image"] == "registry.example/phi3:1"
    arguments = container["args"]
    grace = int(arguments[arguments.index("--grace") + 1])
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace + before < pod["terminationGracePeriodSeconds"]


# Prometheus and Grafana


def expressions() -> dict[str, list[str]]:
    """What the dashboard's panels show, by their titles."""
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    return {panel["title"]: [each["expr"] for each in panel["targets"]] for panel in panels}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "llamafile.rules.yml").read_text())["groups"]
    return group["rules"]


def named(expression: str) -> set[str]:
    """The metrics of the server that an expression names."""
    return set(re.findall(r"llamacpp:\w+", expression))


def lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """The places of what is in the one and not in the other."""
    if isinstance(given, dict):
        for key, value in given.items():
            inside = kept.get(key) if isinstance(kept, dict) else None
            yield from lost(value, inside, f"{where}/{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for at, (value, inside) in enumerate(zip(given, kept, strict=True)):
            yield from lost(value, inside, f"{where}/{at}")
    elif given != kept:
        yield where


def test_grafana_knows_all_of_the_dashboard() -> None:
    dashboard = package("grafana_foundation_sdk.models.dashboard", "deploy")
    encoder = package("grafana_foundation_sdk.cog.encoder", "deploy")
    package("grafana_foundation_sdk.cog.plugins", "deploy").register_default_plugins()

    def forgotten(text: dict[str, Any]) -> list[str]:
        kept = encoder.JSONEncoder().encode(dashboard.Dashboard.from_json(text))
        return list(lost(text, json.loads(kept)))

    text = json.loads((DEPLOY / "grafana.json").read_text())
    assert forgotten(text) == []
    text["panels"][3]["targets"][0]["mistake"] = 1
    assert forgotten(text) == ["/panels/3/targets/0/mistake"]
    names = [variable["name"] for variable in text["templating"]["list"]]
    assert set(re.findall(r"\$\{(\w+)", json.dumps(text))) == set(names)
    assert len({panel["id"] for panel in text["panels"]}) == len(text["panels"])


def prometheus(folder: Path, key: Path, servers: tuple[int, int], interval: str = "15s") -> Path:
    """The file of docs/deploy/ for servers that there are."""
    changes = {"/etc/prometheus": str(folder), "/etc/llamafile/key": str(key), "15s": interval}
    changes |= {f"127.0.0.1:{8081 + at}": f"127.0.0.1:{port}" for at, port in enumerate(servers)}
    (folder / "prometheus.yml").write_text(replaced("prometheus.yml", changes))
    (folder / "llamafile.rules.yml").write_text(replaced("llamafile.rules.yml", {}))
    return folder / "prometheus.yml"


ALERTS = """
rule_files: [llamafile.rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="llamafile", instance="gone"}', values: '1x5 0x20'}
      - {series: 'up{job="llamafile", instance="there"}', values: '1x30'}
      - {series: 'llamacpp:requests_deferred{job="llamafile", instance="full"}', values: '3x30'}
      - {series: 'llamacpp:requests_deferred{job="llamafile", instance="there"}', values: '0x30'}
      - {series: 'llamacpp:requests_processing{job="llamafile", instance="hung"}', values: '1x30'}
      - {series: 'llamacpp:n_decode_total{job="llamafile", instance="hung"}', values: '7x30'}
      - {series: 'llamacpp:requests_processing{job="llamafile", instance="there"}', values: '1x30'}
      - {series: 'llamacpp:n_decode_total{job="llamafile", instance="there"}', values: '0+9x30'}
      - {series: 'llamacpp:requests_processing{job="llamafile", instance="idle"}', values: '0x30'}
      - {series: 'llamacpp:n_decode_total{job="llamafile", instance="idle"}', values: '7x30'}
    alert_rule_test:
      - {eval_time: 2m, alertname: LlamafileGone, exp_alerts: []}
      - eval_time: 20m
        alertname: LlamafileGone
        exp_alerts:
          - exp_labels: {job: llamafile, instance: gone}
            exp_annotations: {summary: "gone doesn't answer, or still loads its model"}
      - eval_time: 20m
        alertname: LlamafilePeopleWait
        exp_alerts:
          - exp_labels: {job: llamafile, instance: full}
            exp_annotations: {summary: "full: 3 requests wait for a slot"}
      - eval_time: 20m
        alertname: LlamafileStands
        exp_alerts:
          - exp_labels: {job: llamafile, instance: hung}
            exp_annotations: {summary: "hung has requests, and computes nothing"}
"""


def test_prometheus_takes_it(tmp_path: Path) -> None:
    promtool = need("promtool", "prometheus")
    key = tmp_path / "key"
    key.write_text(KEY)
    config = prometheus(tmp_path, key, (8081, 8082))
    shown = [each.replace("$__rate_interval", "1m") for of in expressions().values() for each in of]
    group = {"name": "shown", "rules": [{"record": "shown", "expr": each} for each in shown]}
    (tmp_path / "shown.yml").write_text(json.dumps({"groups": [group]}))
    (tmp_path / "alerts.yml").write_text(ALERTS)
    for words in (["check", "config", config.name], ["check", "rules", "shown.yml"]):
        done = subprocess.run([promtool, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    command = [promtool, "test", "rules", "alerts.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Servers that run


def get(port: int, path: str, *, host: str = "", key: str = KEY) -> tuple[int, str]:
    """Status and text of an answer, asked for without a proxy."""
    headers = {"Authorization": f"Bearer {key}"} | ({"Host": host} if host else {})
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            return answer.status, answer.read().decode()


class Server:
    """A llamafile's server as docs/scaling.md starts it; `name` is what it calls its model."""

    def __init__(self, llamafile: Path, name: str, port: int | None = None, *, wait: bool = True):
        self.name, self.port = name, port or free_port()
        command = [str(llamafile), "--server", "--nobrowser", "--port", str(self.port)]
        command += ["--api-key", KEY, "--allow-host", NAME, "--alias", name, "--metrics"]
        command += ["-np", "2", "--grace", "60"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if wait:
            ready(self.process)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()

    def health(self) -> int:
        """What /health answers, or 0 if nobody does."""
        try:
            return get(self.port, "/health")[0]
        except OSError:
            return 0

    def metrics(self) -> dict[str, float]:
        text = get(self.port, "/metrics")[1]
        return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", text, re.M)}

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """It runs for one of ten milliseconds."""
        over = threading.Event()

        def toggle() -> None:
            while not over.wait(0.01):
                self.process.send_signal(signal.SIGSTOP)
                over.wait(0.09)
                self.process.send_signal(signal.SIGCONT)

        thread = threading.Thread(target=toggle)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Proxy:
    """One that runs, in front of two servers."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self.trust = ssl.create_default_context(cafile=str(certificate / "fullchain.pem"))

    @contextmanager
    def request(
        self, path: str, body: dict[str, Any] | None = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer as it begins, which must be one."""
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=120, context=self.trust
        )
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"Host": NAME, "Authorization": f"Bearer {KEY}", "Connection": "close"}
        text = None if body is None else json.dumps(body)
        with closing(connection):
            connection.request("GET" if body is None else "POST", path, text, headers)
            with connection.getresponse() as answer:
                assert answer.status == 200, (answer.status, answer.read())
                yield answer

    def listens(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port)):
            return True

    def whose(self, **headers: str) -> str:
        """The name of the server that a request comes to."""
        with self.request("/v1/models", **headers) as answer:
            return json.load(answer)["data"][0]["id"]

    def chat(self, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        with self.request("/v1/chat/completions", {**HELLO, **body}, **headers) as answer:
            return json.load(answer)

    def stream(self, tokens: int, **headers: str) -> Iterator[str]:
        """What stands behind each "data:" of an answer, as it comes."""
        body = {**HELLO, "stream": True, "max_tokens": tokens, "ignore_eos": True}
        with self.request("/v1/chat/completions", body, **headers) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ").strip().decode()

    def sessions(self) -> dict[str, str]:
        """By the name of each server, a session that comes to it."""
        found: dict[str, str] = {}
        for number in range(100):
            found.setdefault(self.whose(X_Session_Id=f"session {number}"), f"session {number}")
            if len(found) == 2:
                return found
        raise AssertionError(f"all come to {found}")


@contextmanager
def proxied(proxy: str, folder: Path, certificate: Path, *servers: Server) -> Iterator[Proxy]:
    """A proxy in front of servers that run."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    ports = (servers[0].port, servers[1].port)
    process = subprocess.Popen(configured(proxy, folder, certificate, port, ports))
    try:
        front = Proxy(port, certificate)
        eventually(front.listens)
        yield front
    finally:
        process.terminate()
        assert process.wait(timeout=30) in (0, 143, -signal.SIGTERM)


@pytest.fixture(scope="module")
def two(llamafile: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers for all tests that leave them as they are."""
    with Server(llamafile, "one") as one, Server(llamafile, "two") as two:
        yield one, two


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_stream_comes_as_it_is_made(
    proxy: str, two: tuple[Server, Server], tmp_path: Path, certificate: Path
) -> None:
    with proxied(proxy, tmp_path, certificate, *two) as front:
        session = front.sessions()["one"]
        with two[0].slowed():
            events = front.stream(12, X_Session_Id=session)  # too few to fill any buffer
            next(events)
            assert two[0].metrics()["llamacpp:requests_processing"] == 1
        rest = list(events)
        assert rest[-1] == "[DONE]"
        assert len(rest) > 12
        with pytest.raises(AssertionError, match="404"), front.request("/metrics"):
            pass


@pytest.mark.native
def test_a_server_is_well_while_people_wait(
    two: tuple[Server, Server], tmp_path: Path, certificate: Path
) -> None:
    with proxied("haproxy", tmp_path, certificate, *two) as front:
        session = front.sessions()["one"]
        streams = [front.stream(24, X_Session_Id=session) for _ in range(12)]
        ended: list[str] = []
        readers = [
            threading.Thread(target=lambda each=each: ended.append(list(each)[-1]))
            for each in streams
        ]
        for thread in readers:
            thread.start()
        eventually(lambda: two[0].metrics()["llamacpp:requests_deferred"] > 4)
        assert two[0].health() == 200
        for thread in readers:
            thread.join()
        assert ended == ["[DONE]"] * 12


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_session_stays_at_its_server(
    proxy: str, two: tuple[Server, Server], tmp_path: Path, certificate: Path
) -> None:
    with proxied(proxy, tmp_path, certificate, *two) as front:
        sessions = [f"session {number}" for number in range(24)]
        first = {session: front.whose(X_Session_Id=session) for session in sessions}
        assert set(first.values()) == {"one", "two"}
        for _ in range(3):
            assert {session: front.whose(X_Session_Id=session) for session in sessions} == first
        # and there the beginning of the conversation is still known
        for session in list(front.sessions().values()):
            story = "Once upon a time there was a miller who had three sons. " * 10 + session
            said = [{"role": "user", "content": story}]
            answer = front.chat({"messages": said, "max_tokens": 8}, X_Session_Id=session)
            said += [answer["choices"][0]["message"], {"role": "user", "content": "Go on."}]
            second = front.chat({"messages": said, "max_tokens": 8}, X_Session_Id=session)
            assert second["model"] == answer["model"]
            assert second["timings"]["cache_n"] >= answer["usage"]["prompt_tokens"] - 8


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_browser_stays_at_its_server(
    proxy: str, two: tuple[Server, Server], tmp_path: Path, certificate: Path
) -> None:
    with proxied(proxy, tmp_path, certificate, *two) as front:
        used = set()
        for _ in range(24):
            with front.request("/v1/models") as answer:
                cookie = answer.headers["Set-Cookie"]
            assert {"httponly", "secure", "samesite=lax"} <= set(cookie.lower().split("; "))
            came = {front.whose(Cookie=cookie.split(";")[0]) for _ in range(4)}
            assert len(came) == 1
            used |= came
        assert used == {"one", "two"}


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_server_dies(proxy: str, llamafile: Path, tmp_path: Path, certificate: Path) -> None:
    with (
        Server(llamafile, "one") as one,
        Server(llamafile, "two") as two,
        proxied(proxy, tmp_path, certificate, one, two) as front,
    ):
        session = front.sessions()["one"]
        one.process.kill()
        long = {"max_tokens": 1, "user": "x" * 200_000}  # and a long request, too
        assert front.chat(long, X_Session_Id=session)["model"] == "two"
        for number in range(20):
            assert front.whose(X_Session_Id=f"session {number}") == "two"


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_server_that_ends(proxy: str, llamafile: Path, tmp_path: Path, certificate: Path) -> None:
    with (
        Server(llamafile, "one") as one,
        Server(llamafile, "two") as two,
        proxied(proxy, tmp_path, certificate, one, two) as front,
    ):
        session = front.sessions()["one"]
        events = front.stream(200, X_Session_Id=session)
        next(events)
        one.process.terminate()
        eventually(lambda: one.health() == 503)
        # before the proxy can have seen it
        assert front.chat({"max_tokens": 1}, X_Session_Id=session)["model"] == "two"
        assert front.whose(X_Session_Id=session) == "two"
        rest = list(events)
        assert rest[-1] == "[DONE]"
        assert len(rest) > 150
        assert one.process.wait(timeout=60) == 0


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_server_that_loads_is_not_asked(
    proxy: str, two: tuple[Server, Server], llamafile: Path, tmp_path: Path, certificate: Path
) -> None:
    with Server(llamafile, "late", wait=False) as late:
        with late.slowed():
            eventually(lambda: late.health() == 503)
            with proxied(proxy, tmp_path, certificate, two[0], late) as front:
                asked = 0
                while late.health() == 503:
                    answer = front.chat({"max_tokens": 1}, X_Session_Id=f"session {asked}")
                    if answer["model"] == "one":
                        asked += 1
                assert asked > 4, "it was loaded too soon to say anything"
        ready(late.process)
        with proxied(proxy, tmp_path, certificate, two[0], late) as front:
            eventually(lambda: set(front.sessions()) == {"one", "late"})


@pytest.mark.native
@pytest.mark.parametrize("proxy", PROXIES)
def test_servers_are_replaced_and_no_request_is_lost(
    proxy: str, llamafile: Path, tmp_path: Path, certificate: Path
) -> None:
    (pause,) = re.findall(r"^ +sleep (\d+)", PAGE, re.M)
    over = threading.Event()
    lost: list[BaseException] = []
    models: list[str] = []

    def client(front: Proxy, number: int) -> None:
        session = f"session {number}"
        try:
            while not over.is_set():
                answer = front.chat({"max_tokens": 4}, X_Session_Id=session)
                assert answer["usage"]["completion_tokens"] == 4
                models.append(answer["model"])
                events = list(front.stream(16, X_Session_Id=session))
                assert events[-1] == "[DONE]"
                assert len(events) > 16
        except BaseException as error:
            lost.append(error)

    servers = [Server(llamafile, "old"), Server(llamafile, "old")]
    try:
        with proxied(proxy, tmp_path, certificate, *servers) as front:
            clients = [threading.Thread(target=client, args=(front, at)) for at in range(6)]
            for thread in clients:
                thread.start()
            for at, server in enumerate(servers):
                server.process.terminate()
                assert server.process.wait(timeout=90) == 0
                server.process.stdout.close()
                servers[at] = Server(llamafile, "new", server.port)
                time.sleep(int(pause))
            before = len(models)
            eventually(lambda: len(models) > before + 12 or bool(lost))
            over.set()
            for thread in clients:
                thread.join()
    finally:
        over.set()
        for server in servers:
            server.__exit__()
    assert lost == []
    assert set(models[:6]) == {"old"}
    assert set(models[-6:]) == {"new"}


@pytest.mark.native
def test_what_kubernetes_starts(objects: dict[str, Any], llamafile: Path) -> None:
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    probes = {container[each]["httpGet"]["path"] for each in container if each.endswith("Probe")}
    assert probes == {"/health"}
    command = [llamafile, "--nobrowser", "--port", str(free_port()), *container["args"]]
    with serving(*command, env={**os.environ, variable["name"]: KEY}) as url:
        port = int(url.split(":")[2].split("/")[0])
        for host in (objects["Service"]["metadata"]["name"], NAME, f"127.0.0.1:{port}"):
            assert get(port, "/health", host=host)[0] == 200
            assert get(port, "/metrics", host=host)[0] == 200
        assert get(port, "/metrics", key="")[0] == 401
        assert get(port, "/health", host="another.example")[0] == 403


@pytest.mark.native
def test_all_that_is_shown_is_there(two: tuple[Server, Server], tmp_path: Path) -> None:
    there = set(two[0].metrics())
    named_anywhere = set().union(*(named(each) for of in expressions().values() for each in of))
    named_anywhere |= set().union(*(named(rule["expr"]) for rule in rules()))
    assert len(named_anywhere) > 10
    assert named_anywhere <= there
    # by Prometheus itself, with the servers' key
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    config = prometheus(tmp_path, key, (two[0].port, two[1].port), "1s")
    port = free_port()
    command = [need("prometheus"), f"--config.file={config}", "--log.level=error"]
    command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(command)

    def values(expression: str) -> list[float]:
        query = urllib.parse.urlencode({"query": expression.replace("$__rate_interval", "1m")})
        result = json.loads(get(port, f"/api/v1/query?{query}")[1])["data"]["result"]
        return [float(each["value"][1]) for each in result]

    try:
        eventually(lambda: get(port, "/-/ready")[0] == 200)
        eventually(lambda: values('sum(up{job="llamafile"})') == [2.0])
        for title, shown in expressions().items():
            for expression in shown:
                eventually(lambda expression=expression: values(expression) != []), title
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
