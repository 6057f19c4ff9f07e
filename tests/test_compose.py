"""compose.yaml without Docker: what the documentation promises of it, and every server command run for real."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from asynclock.testing.executables import find_executable
from asynclock.testing.ports import HeldPort, hold_ports
from asynclock.testing.resp import encode_command, read_reply

pytestmark = pytest.mark.serverless

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]


def command_of(service: dict[str, Any]) -> list[str]:
    """Split as Compose does it, which reads ``$$`` as ``$``."""
    command = service["command"]
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    return [word.replace("$$", "$") for word in words]


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return dict(service.get("environment", {}))


def port_of(service: dict[str, Any]) -> int:
    words = command_of(service)
    if "--port" in words:
        return int(words[words.index("--port") + 1])
    return int(environment_of(service).get("PORT", 6379))


def published(service: dict[str, Any]) -> list[tuple[str, range, range]]:
    """Address, ports of the host, ports of the container."""

    def span(text: str) -> range:
        first, _, last = text.partition("-")
        return range(int(first), int(last or first) + 1)

    split = [entry.split(":") for entry in service.get("ports", [])]
    return [(address, span(outside), span(inside)) for address, outside, inside in split]


def servers(profile: str | None = None) -> dict[str, dict[str, Any]]:
    return {
        name: service
        for name, service in SERVICES.items()
        if any("valkey-server" in word for word in command_of(service))
        and (profile is None or service["profiles"] == [profile])
    }


def test_the_profiles_are_those_that_the_documents_name() -> None:
    profiles = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert profiles == {"single", "independent", "cluster", "sentinel"}
    texts = [COMPOSE, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for text in texts for name in re.findall(r"docker compose --profile ([\w-]+)", text.read_text())}
    assert named <= profiles
    in_docs = [(ROOT / "docs" / "deployments" / f"{profile}.md").read_text() for profile in sorted(profiles)]
    for profile, page in zip(sorted(profiles), in_docs, strict=True):
        command = "docker compose up" if profile == "single" else f"docker compose --profile {profile} up"
        assert f"`{command}`" in page
    # "single" is the default:
    assert "COMPOSE_PROFILES=single\n" in (ROOT / ".env").read_text()


def test_everything_is_published_on_loopback_only() -> None:
    taken: list[int] = []
    for name, service in SERVICES.items():
        for address, outside, inside in published(service):
            assert address == "127.0.0.1", name
            assert len(outside) == len(inside), name
            taken += outside
        assert service.get("network_mode", "service:").startswith("service:"), name  # not the host's
    assert len(taken) == len(set(taken))  # the profiles can run side by side


@pytest.mark.parametrize("profile", ["cluster", "sentinel"])
def test_addresses_that_are_told_are_right_inside_and_outside(profile: str) -> None:
    network = f"{profile}-network"
    ports = {port_of(service) for service in servers(profile).values()}
    assert len(ports) == 6
    for _, outside, inside in published(SERVICES[network]):
        assert outside == inside
        ports -= set(outside)
    assert not ports, "not published"
    for name, service in SERVICES.items():
        if service["profiles"] == [profile] and name != network:
            assert service["network_mode"] == f"service:{network}", name


def test_the_cluster_is_made_of_all_its_nodes() -> None:
    create = SERVICES["cluster-create"]
    nodes = servers("cluster")
    told = re.findall(r"127\.0\.0\.1:(\d+)", " ".join(command_of(create)))
    assert [int(port) for port in told] == [port_of(service) for service in nodes.values()]
    assert set(create["depends_on"]) == set(nodes)


def test_health_is_asked_at_each_server_s_own_port() -> None:
    for name, service in servers().items():
        how, *words = service["healthcheck"]["test"]
        if how == "CMD-SHELL":
            words = words[0].split()
        assert words[0] == "valkey-cli", name
        assert (int(words[words.index("-p") + 1]) if "-p" in words else 6379) == port_of(service), name


def test_a_real_server_takes_each_command(tmp_path: Path) -> None:
    """All of them at once, under other ports: 16 servers that answer for a moment."""
    program = tmp_path / "bin" / "valkey-server"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(find_executable("valkey-9.1"))} "$@" --bind 127.0.0.1\n')
    program.chmod(0o755)
    with contextlib.ExitStack() as stack:
        held: dict[str, HeldPort] = {}
        for name in servers():  # a cluster's nodes need two ports each
            held[name], bus = hold_ports()
            stack.callback(held[name].close)
            stack.callback(bus.close)
        for name, service in servers().items():
            ports = {str(port_of(other)): held[by] for by, other in servers(*service["profiles"]).items()}
            if service["profiles"] == ["independent"]:  # 6379 each, in a container of its own
                ports = {"6379": held[name]}

            def moved(text: str, ports: dict[str, HeldPort] = ports) -> str:
                return re.sub(
                    r"\b\d{4,5}\b", lambda port: str(ports[port[0]].number if port[0] in ports else port[0]), text
                )

            words = [moved(word) for word in command_of(service)]
            if words[0] == "valkey-server" and "--port" not in words:
                words += ["--port", str(held[name].number)]
            data = tmp_path / name
            data.mkdir()
            with (data / "server.log").open("wb") as log:
                process = subprocess.Popen(
                    words,
                    cwd=data,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={
                        "PATH": f"{program.parent}:/usr/bin:/bin",
                        **{key: moved(value) for key, value in environment_of(service).items()},
                    },
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
        for name in servers():
            role = role_of(held[name].number, tmp_path / name / "server.log")
            assert role == (
                "sentinel" if re.fullmatch(r"sentinel-\d", name) else "slave" if "replica" in name else "master"
            )


def role_of(port: int, log: Path) -> str:
    end = time.monotonic() + 10  # a server starts within a fraction of a second, on an idle machine
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection, connection.makefile("rb") as stream:
                connection.sendall(encode_command("ROLE"))
                reply = read_reply(stream)
            assert isinstance(reply, list) and isinstance(reply[0], bytes)
            return reply[0].decode()
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
