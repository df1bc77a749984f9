"""A cluster of processes that run the commands with which people start schedulers and workers."""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from distributed import Client
from distributed.security import Security
from forked import Forked, run_dask
from search_path import SEARCH_PATH

LOOPBACK = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")


class RealCluster:
    """A scheduler and workers that only this object starts, and that end with it.

    Every process leads a group of its own, so that a nanny and its worker end together.

    Parameters
    ----------
    folder
        Where logs, scratch files and the scheduler's address go.
    security
        Certificates for every process and client, unless one is given its own.
    environment
        More variables for every process.
    interpreters
        Whether every process is an interpreter of its own, as at a command line. Else it is forked
        from one that has imported Dask and dbdask, which takes a tenth of the time.
    """

    def __init__(self, folder, security=None, environment=None, interpreters=False):
        self.folder, self.security = Path(folder), security or Security()
        self.environment, self.interpreters = environment or {}, interpreters
        self.processes = {}
        self.clients = []
        self.schedulers = self.workers = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            for client in self.clients:
                client.close(timeout=2)
        finally:
            for process in self.processes.values():
                signal_group(process, signal.SIGKILL)
                process.wait()

    def start_scheduler(self):
        """Start a scheduler on a free port; the workers started later go to it."""
        self.schedulers += 1
        self.address_file = self.folder / f"scheduler-{self.schedulers}.json"
        # Should the tests be killed, an idle scheduler ends, and its workers with it.
        self.start("scheduler", "--port", "0", "--no-show", "--idle-timeout", "3 minutes")
        until = time.monotonic() + 120
        while not self.address_file.exists():
            assert time.monotonic() < until, self.log("scheduler")
            time.sleep(0.02)

    def start_worker(self, *flags, nanny=False, security=None):
        """Start a worker of one thread; returns its name."""
        self.workers += 1
        name = f"worker-{self.workers}"
        scratch = ("--local-directory", str(self.folder / "scratch"), "--death-timeout", "60")
        kind = "--nanny" if nanny else "--no-nanny"
        mine = (kind, "--nthreads", "1", "--name", name, *scratch, *flags)
        self.start("worker", *mine, name=name, security=security)
        return name

    def start_workers(self, number, *flags, **options):
        """Start workers and connect a client, which waits until they have joined."""
        before = sum(name.startswith("worker") for name in self.running())
        names = [self.start_worker(*flags, **options) for _ in range(number)]
        client = self.client()
        client.wait_for_workers(before + number, timeout=60)
        return client, names

    def running(self):
        """Names of the processes that have not ended."""
        return [name for name, process in self.processes.items() if process.poll() is None]

    def start(self, command, *flags, name="", security=None):
        """Start `dask COMMAND` with what all have in common."""
        name = name or command
        environment = {"PYTHONPATH": SEARCH_PATH} | self.environment
        where = ("--scheduler-file", str(self.address_file))
        flags = (*LOOPBACK, *where, *tls_flags(security or self.security), *flags)
        run = run_interpreter if self.interpreters else run_forked
        self.processes[name] = run([command, *flags], environment, self.folder / f"{name}.log")

    def client(self):
        """Connect a client, which ends with the cluster."""
        client = Client(
            scheduler_file=str(self.address_file), security=self.security, set_as_default=False
        )
        self.clients.append(client)
        return client

    def kill(self, name):
        """SIGKILL a process and its children, and wait until it is gone."""
        signal_group(self.processes[name], signal.SIGKILL)
        self.processes[name].wait()

    def signal(self, name, number):
        """Send a signal to the process that the command line started, and to no other."""
        self.processes[name].send_signal(number)

    def sockets(self):
        """Every internet socket of every process: what psutil says of them."""
        found = []
        for name in self.running():
            process = psutil.Process(self.processes[name].pid)
            for one in (process, *process.children(recursive=True)):
                found += one.net_connections("inet")
        return found

    def log(self, name):
        """What a process wrote."""
        return (self.folder / f"{name}.log").read_text()


def run_interpreter(arguments, environment, log):
    """Run `dask` with some arguments in a new interpreter."""
    with open(log, "a") as written:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env=os.environ | environment,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )


def run_forked(arguments, environment, log):
    """Run `dask` with some arguments in a forked process."""
    return Forked(run_dask, arguments, environment=environment, log=str(log))


def signal_group(process, number):
    """Signal a process that leads a group, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class Authority:
    """Makes certificates that those who trust it accept."""

    def __init__(self, folder, name):
        self.folder, self.name = Path(folder), name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key.public_key(), is_authority=True)

    def _sign(self, name, public_key, is_authority=False):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(self.name))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def _write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def security(self, *trusted):
        """A certificate of this authority, for one that trusts it and others."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = self._sign("dask", key.public_key())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        name = f"{self.name}-{own.serial_number}"
        authorities = b"".join(pem(one.certificate) for one in (self, *trusted))
        files = {
            "ca_file": self._write(f"{name}-trusted.pem", authorities),
            "cert": self._write(f"{name}-cert.pem", pem(own)),
            "key": self._write(f"{name}-key.pem", private),
        }
        roles = {f"tls_{role}_{of}": files[of] for role in ROLES for of in ("cert", "key")}
        return Security(require_encryption=True, tls_ca_file=files["ca_file"], **roles)


ROLES = ("client", "worker", "scheduler")


def named(name):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def tls_flags(security):
    """The same certificates as flags of a command line."""
    if not security.require_encryption:
        return ()
    return (
        *("--protocol", "tls", "--tls-ca-file", security.tls_ca_file),
        *("--tls-cert", security.tls_worker_cert, "--tls-key", security.tls_worker_key),
    )
