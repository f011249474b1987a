"""The tunnels and proxies that are compared, ours among them: how each is installed and started.

A tunnel's home end listens on `PUBLIC` for users and on `LINK` for the agent, its agent end connects to `ORIGIN`.
Nobody is tuned; whoever can be asked for certificates, keep-alive and reconnection is asked for them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import install
from given import Bench
from install import NotHere
from net import LINK, ORIGIN, PUBLIC, Stage


def port_of(tunnel: int) -> int:
    """Where users of this tunnel connect: of the first at `PUBLIC`, of others far from the bench's own ports."""
    return PUBLIC if tunnel == 0 else 10_000 + tunnel


class Peer(ABC):
    """One way from a port at home to the origin."""

    #: As the table says it.
    name: str
    #: Where load connects.
    port: ClassVar[int] = PUBLIC

    def install(self) -> None:  # noqa: B027  ours and the references come with the bench
        """Gets the program. Raises `NotHere`."""

    @abstractmethod
    def home(self, stage: Stage) -> None:
        """Starts the home end."""

    @abstractmethod
    def agent(self, stage: Stage) -> None:
        """Starts the agent end."""

    def up(self, stage: Stage) -> None:
        """Starts home and agent, and waits until an answer of the origin, which runs already, comes through."""
        self.home(stage)
        time.sleep(0.5)
        self.agent(stage)
        stage.wait_up(self.port)


class Direct(Peer):
    """No tunnel at all: what the machine can do."""

    name = "direct"
    port = ORIGIN

    def home(self, stage: Stage) -> None: ...

    def agent(self, stage: Stage) -> None: ...


class Copied(Peer):
    """Two relays that only copy, in one space."""

    name = "two plain relays"

    def __init__(self, bench: Bench) -> None:
        self.program = bench.program

    def home(self, stage: Stage) -> None:
        listen, to = f"0.0.0.0:{PUBLIC}", f"{stage.address}:{LINK}"
        stage.start("home", [self.program, "relay", "--listen", listen, "--to", to])

    def agent(self, stage: Stage) -> None:
        listen, to = f"0.0.0.0:{LINK}", f"127.0.0.1:{ORIGIN}"
        stage.start("agent", [self.program, "relay", "--listen", listen, "--to", to])


class Ours(Peer):
    """Both ends of a bare link, of so many lanes; of as many as is usual when it is not said."""

    def __init__(self, bench: Bench, tls: bool, lanes: int | None = None) -> None:
        self.name = ("glidepath tls" if tls else "glidepath") + (f", lanes: {lanes}" if lanes else "")
        self.tls = tls
        self.lanes = ["--lanes", lanes] if lanes else []
        self.program = bench.program

    def home(self, stage: Stage) -> None:
        argv = [self.program, "home", "--link", f"0.0.0.0:{LINK}", "--public", f"0.0.0.0:{PUBLIC}"]
        stage.start("home", [*argv, "--tls", Papers(stage).cert, Papers(stage).key] if self.tls else argv)

    def agent(self, stage: Stage) -> None:
        scheme = "wss" if self.tls else "ws"
        argv = [self.program, "agent", "--home", f"{scheme}://{stage.address}:{LINK}/link"]
        argv += ["--origin", f"127.0.0.1:{ORIGIN}", *self.lanes]
        stage.start("agent", [*argv, "--ca", Papers(stage).ca] if self.tls else argv)


class Rathole(Peer):
    def __init__(self, tls: bool) -> None:
        self.name = "rathole tls" if tls else "rathole"
        self.tls = tls

    def install(self) -> None:
        self.program = install.crate("rathole", install.RATHOLE, "rathole")

    def home(self, stage: Stage, tunnels: int = 1) -> None:
        told = f'[server]\nbind_addr = "0.0.0.0:{LINK}"\ndefault_token = "bench"\n'
        if self.tls:
            told += '[server.transport]\ntype = "tls"\n[server.transport.tls]\n'
            told += f'pkcs12 = "{Papers(stage).pkcs12}"\npkcs12_password = "bench"\n'
        for number in range(tunnels):
            told += f'[server.services.bench{number}]\nbind_addr = "0.0.0.0:{port_of(number)}"\n'
        stage.start("home", [self.program, "--server", stage.write("rathole-home.toml", told)])

    def agent(self, stage: Stage, tunnels: int = 1) -> None:
        told = f'[client]\nremote_addr = "{stage.address}:{LINK}"\ndefault_token = "bench"\n'
        if self.tls:
            told += '[client.transport]\ntype = "tls"\n[client.transport.tls]\n'
            told += f'trusted_root = "{Papers(stage).ca}"\nhostname = "localhost"\n'
        for number in range(tunnels):
            told += f'[client.services.bench{number}]\nlocal_addr = "127.0.0.1:{ORIGIN}"\n'
        stage.start("agent", [self.program, "--client", stage.write("rathole-agent.toml", told)])


class Bore(Peer):
    name = "bore"

    def install(self) -> None:
        self.program = install.crate("bore-cli", install.BORE, "bore")

    def home(self, stage: Stage) -> None:
        stage.start("home", [self.program, "server", "--min-port", 1024, "--bind-addr", "0.0.0.0"])

    def agent(self, stage: Stage) -> None:
        argv = [self.program, "local", ORIGIN, "--local-host", "127.0.0.1", "--to", stage.address, "--port", PUBLIC]
        stage.start("agent", argv)


class Wstunnel(Peer):
    def __init__(self, tls: bool) -> None:
        self.name = "wstunnel wss" if tls else "wstunnel ws"
        self.scheme = "wss" if tls else "ws"

    def install(self) -> None:
        found = shutil.which("wstunnel")
        if not found:
            raise NotHere("on no package registry; it is compared where a wstunnel is in the PATH")
        self.program = Path(found)

    def home(self, stage: Stage) -> None:
        stage.start("home", [self.program, "server", "--log-lvl", "ERROR", f"{self.scheme}://0.0.0.0:{LINK}"])

    def agent(self, stage: Stage, tunnels: int = 1) -> None:
        argv = [self.program, "client", "--log-lvl", "ERROR"]
        for number in range(tunnels):
            argv += ["-R", f"tcp://0.0.0.0:{port_of(number)}:127.0.0.1:{ORIGIN}"]
        stage.start("agent", [*argv, f"{self.scheme}://{stage.address}:{LINK}"])


class Ssh(Peer):
    """OpenSSH with its fastest cipher here. It does not come back by itself; asked to, a shell starts it again."""

    name = "OpenSSH aes128-gcm"

    def __init__(self, again: bool = False) -> None:
        self.again = again

    def install(self) -> None:
        self.program = install.debian("ssh", "openssh-client")
        self.server = install.debian("sshd", "openssh-server")

    def home(self, stage: Stage) -> None:
        for key in ("host", "user"):
            if not (stage.folder / f"ssh-{key}").exists():
                new = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stage.folder / f"ssh-{key}")]
                subprocess.run(new, check=True, timeout=30)
        keys = stage.write("ssh-authorized", (stage.folder / "ssh-user.pub").read_text())
        told = {
            "Port": LINK,
            "ListenAddress": "0.0.0.0",
            "HostKey": stage.folder / "ssh-host",
            "PidFile": "none",
            "AuthorizedKeysFile": keys,
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "GatewayPorts": "clientspecified",
            "AllowTcpForwarding": "yes",
            "MaxStartups": 1000,
            "MaxSessions": 1000,
            "ClientAliveInterval": 5,
            "ClientAliveCountMax": 3,
            "LogLevel": "ERROR",
        }
        Path("/run/sshd").mkdir(exist_ok=True)
        config = stage.write("sshd_config", "".join(f"{key} {value}\n" for key, value in told.items()))
        stage.start("home", [self.server, "-D", "-e", "-f", config])

    def agent(self, stage: Stage) -> None:
        told = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": stage.folder / "ssh-known",
            "ExitOnForwardFailure": "yes",
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 3,
            "LogLevel": "ERROR",
        }
        options = [word for key, value in told.items() for word in ("-o", f"{key}={value}")]
        argv = [self.program, "-N", "-T", "-F", "none", "-i", stage.folder / "ssh-user", "-p", LINK, *options]
        argv += ["-c", "aes128-gcm@openssh.com", "-R", f"0.0.0.0:{PUBLIC}:127.0.0.1:{ORIGIN}", f"root@{stage.address}"]
        loop = f"while :; do {shlex.join(map(str, argv))}; sleep 1; done"
        stage.start("agent", ["sh", "-c", loop] if self.again else argv)


class Chisel(Peer):
    """Encrypted by SSH even without TLS."""

    def __init__(self, tls: bool) -> None:
        self.name = "chisel wss" if tls else "chisel ws"
        self.tls = tls

    def install(self) -> None:
        self.program = install.chisel()

    def home(self, stage: Stage) -> None:
        argv = [self.program, "server", "--host", "0.0.0.0", "--port", LINK, "--reverse"]
        papers = ["--tls-key", Papers(stage).key, "--tls-cert", Papers(stage).cert] if self.tls else []
        stage.start("home", [*argv, *papers])

    def agent(self, stage: Stage) -> None:
        scheme, trust = ("https", ["--tls-skip-verify"]) if self.tls else ("http", [])
        argv = [self.program, "client", "--keepalive", "5s", *trust, f"{scheme}://{stage.address}:{LINK}"]
        stage.start("agent", [*argv, f"R:0.0.0.0:{PUBLIC}:127.0.0.1:{ORIGIN}"])


class Penguin(Peer):
    """Has no reverse forwarding: measured the other way round and in one space, the end at the origin listens."""

    def __init__(self, tls: bool) -> None:
        self.name = "penguin wss" if tls else "penguin ws"
        self.tls = tls

    def install(self) -> None:
        self.program = install.crate("rusty-penguin", install.PENGUIN, "penguin")

    def home(self, stage: Stage) -> None:
        argv = [self.program, "server", "--host", "0.0.0.0", "--port", LINK, "-q"]
        papers = ["--tls-key", Papers(stage).key, "--tls-cert", Papers(stage).cert] if self.tls else []
        stage.start("agent", [*argv, *papers])

    def agent(self, stage: Stage) -> None:
        scheme, trust = ("wss", ["--tls-skip-verify"]) if self.tls else ("ws", [])
        argv = [self.program, "client", "-q", *trust, f"{scheme}://{stage.address}:{LINK}/ws"]
        stage.start("home", [*argv, f"0.0.0.0:{PUBLIC}:127.0.0.1:{ORIGIN}"])


class Chp(Peer):
    """configurable-http-proxy in front of the origin: one hop and no tunnel."""

    name = "configurable-http-proxy"

    def install(self) -> None:
        if "GLIDEPATH_PROXY" not in os.environ:
            raise NotHere("GLIDEPATH_PROXY does not say where it is; scripts/setup installs it")
        self.program = os.environ["GLIDEPATH_PROXY"]

    def home(self, stage: Stage) -> None:
        argv = [self.program, "--ip", "127.0.0.1", "--port", PUBLIC, "--api-ip", "127.0.0.1", "--api-port", PUBLIC + 1]
        argv += ["--default-target", f"http://127.0.0.1:{ORIGIN}", "--log-level", "error"]
        stage.start("home", argv, CONFIGPROXY_AUTH_TOKEN="bench")

    def agent(self, stage: Stage) -> None: ...


class Traefik(Peer):
    """traefik in front of the origin: one hop and no tunnel."""

    name = "traefik"

    def install(self) -> None:
        self.program = install.traefik()

    def home(self, stage: Stage) -> None:
        routes = f"""http:
  routers:
    all: {{rule: "PathPrefix(`/`)", service: origin, entryPoints: [users]}}
  services:
    origin: {{loadBalancer: {{servers: [{{url: "http://127.0.0.1:{ORIGIN}"}}]}}}}
"""
        told = stage.write("traefik-routes.yaml", routes)
        argv = [self.program, f"--entryPoints.users.address=127.0.0.1:{PUBLIC}", f"--providers.file.filename={told}"]
        argv += ["--log.level=ERROR", "--global.checkNewVersion=false", "--global.sendAnonymousUsage=false"]
        stage.start("home", argv)

    def agent(self, stage: Stage) -> None: ...


def with_tls() -> list[Peer]:
    """Tunnels to be ahead of when the line is encrypted."""
    return [Rathole(True), Wstunnel(True), Ssh(), Chisel(True), Penguin(True)]


def without_tls() -> list[Peer]:
    """Tunnels to be ahead of when it is not."""
    return [Rathole(False), Bore(), Wstunnel(False), Chisel(False), Penguin(False)]


def installed(peers: list[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Those that are here, and why the others are not."""
    here, missing = [], {}
    for peer in peers:
        try:
            peer.install()
            here.append(peer)
        except NotHere as reason:
            missing[peer.name] = str(reason)
    return here, missing


class Papers:
    """A certificate for home, made in the folder of the stage when it is first asked for."""

    def __init__(self, stage: Stage) -> None:
        self.ca, self.key, self.cert, self.pkcs12 = (
            stage.folder / name for name in ("ca.pem", "key.pem", "cert.pem", "cert.p12")
        )
        if self.pkcs12.exists():
            return
        openssl = str(install.debian("openssl", "openssl"))
        addresses = ",".join(f"IP:{address}" for address in sorted(stage.known_by))
        told = f"subjectAltName=DNS:localhost,{addresses}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
        extensions = stage.write("extensions.cnf", told)
        ca_key, request = stage.folder / "ca.key", stage.folder / "cert.csr"
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        signed = ["-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "30", "-extfile", extensions]
        packed = ["-inkey", self.key, "-in", self.cert, "-certfile", self.ca, "-passout", "pass:bench"]
        for words in (
            ["req", "-x509", *new_key, "-keyout", ca_key, "-out", self.ca, "-days", "30", "-subj", "/CN=bench ca"],
            ["req", *new_key, "-keyout", self.key, "-out", request, "-subj", "/CN=localhost"],
            ["x509", "-req", "-in", request, "-out", self.cert, *signed],
            ["pkcs12", "-export", "-out", self.pkcs12, *packed],
        ):
            subprocess.run([openssl, *map(str, words)], check=True, capture_output=True, timeout=30)
