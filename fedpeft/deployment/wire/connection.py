"""The client's side of the wire: a channel to the server, tasks that come in, reports that go out."""

from __future__ import annotations

import random
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509

from fedpeft import __version__
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.identity.certificates import check_authority
from fedpeft.deployment.identity.credentials import Credentials, check_time
from fedpeft.deployment.transcript.signed_log import UnwrittenError
from fedpeft.deployment.transcript.transcript import Transcript
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import KEEPALIVE, NAME_KEY, WIRE
from fedpeft.deployment.wire.parcel import ParcelStream, decode_statement, split_into_parts
from fedpeft.deployment.wire.v2_pb2_grpc import FederationStub
from fedpeft.errors import PayloadError, RunError

ANSWER_SECONDS = 30.0
"""Seconds within which a unary call must be answered."""

UPLOAD_SECONDS, SLOWEST = 600.0, 10_000.0
"""Seconds that a report's upload may take, and the slowest accepted rate in bytes per second, which adds to them."""

OUTSIDE_ITS_TIME = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

OTHER_NAME = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

INSTRUCTION_LIMIT = 1 << 26
"""Most bytes of a task's payloads if the model is unknown."""

FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0
"""Seconds between attempts to connect.

They double each time. Each wait is drawn at random below that, so that a thousand clients do not return at once.
"""

FATAL = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""gRPC codes of failures that another attempt would not fix."""


class LostError(Exception):
    """The server is out of reach for now."""


class UnkeptError(LostError):
    """The server is there, but this machine can't store its messages now, for example because its disk is full."""


def _explain_error(error: grpc.RpcError) -> Exception:
    code, details = error.code(), error.details() or ""
    if code in FATAL:
        return RunError(f"FP5044 the server refuses this client: {details}")
    if code == grpc.StatusCode.ABORTED:
        return RunError(
            f"FP5045 another process uses this client's name: {details}; this process ends, so stop the other one "
            "before you start it again, or make another certificate with fedpeft certs --clients NAME"
        )
    return LostError(shorten_details(details) or code.name.lower())


def shorten_details(details: str) -> str:
    """Return the cause in gRPC's description of a failed connection, its last part; other texts are unchanged."""
    is_chain = details.startswith(("failed to connect to all addresses", "DNS resolution failed", "errors resolving"))
    if is_chain:
        details = details.rstrip("]")
    return re.sub(r" \(\d+\)$", "", details.rpartition(": ")[2]) if is_chain else details


def yield_waits() -> Iterator[float]:
    """Yield the seconds to wait before each new attempt."""
    longest = FIRST_WAIT
    while True:
        yield longest * (0.5 + random.random() / 2)
        longest = min(LONGEST_WAIT, 2 * longest)


@dataclass(frozen=True)
class Link:
    """How to reach the server.

    Attributes:
        address: HOST:PORT.
        name: of the client.
        credentials: None: no TLS.
    """

    address: str
    name: str
    credentials: Credentials | None

    def open(self) -> Connection:
        """Return a new connection; nothing is sent yet."""
        options = [*KEEPALIVE, ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        if self.credentials is None:
            return Connection(grpc.insecure_channel(self.address, options), self.name)
        own = self.credentials
        secret = grpc.ssl_channel_credentials(own.authority, own.key, own.certificate)
        return Connection(grpc.secure_channel(self.address, secret, options), self.name)

    def diagnose(self) -> bool:
        """Explain a failed connection if another attempt would not help; return whether the server answered.

        gRPC reports a refused certificate as a closed socket; a separate TLS handshake reveals more.

        Raises:
            RunError: only one side uses TLS, the server's certificate is wrong, or the server refuses the client's,
                perhaps because it has expired.
        """
        if self.credentials is None:
            return self._diagnose_without_tls()
        try:
            with self._open_tls_connection(_create_client_context(self.credentials)) as secured:
                heard = secured.recv(1)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in OUTSIDE_ITS_TIME:
                check_authority(x509.load_pem_x509_certificate(self.credentials.authority))
                raise RunError(
                    f"FP5046 the certificate of {self.address} is refused: {error.verify_message}, by this machine's "
                    f"clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC); set the clock, or ask for a new server "
                    "certificate"
                ) from None
            names = self._read_server_names() if error.verify_code in OTHER_NAME else []
            reason = error.verify_message.rstrip(".") + (f" (it contains {', '.join(names)})" if names else "")
            raise RunError(
                f"FP5047 the certificate of {self.address} is refused: {reason}; it must be made by the "
                "authority in ca.pem, for the name that --server gives: give one of its names, or have the server "
                "make a new one with fedpeft certs --server NAMES --renew"
            ) from None
        except ssl.SSLError as error:
            if error.reason == "WRONG_VERSION_NUMBER":  # the answer is not TLS
                raise RunError(
                    f"FP5048 {self.address} does not speak TLS: the server runs with --insecure, or another program "
                    "listens there; check --server, and have the server run with --certs"
                ) from None
            return False
        except (OSError, ValueError):
            return False
        if not heard:
            check_time(x509.load_pem_x509_certificate(self.credentials.certificate), "client")
            raise RunError(
                f"FP5049 {self.address} refuses this client's certificate: it is not one of the server's authority, or "
                "has expired; ask for a new one, unless the server's clock is wrong"
            )
        return True

    def _read_server_names(self) -> list[str]:
        """Return the names in the server's certificate, which the authority must have signed; empty: unknown."""
        context = _create_client_context(self.credentials) if self.credentials else _create_probe_context()
        context.check_hostname = False
        try:
            with self._open_tls_connection(context) as secured:
                certificate: dict[str, Any] = secured.getpeercert() or {}
        except (OSError, ValueError):
            return []
        return [str(value) for _, value in certificate.get("subjectAltName", ())]

    def _diagnose_without_tls(self) -> bool:
        try:
            with self._open_tls_connection(_create_probe_context()):
                pass
        except ssl.SSLError:  # the other side answers without TLS
            return True
        except (OSError, ValueError):
            return False
        raise RunError(
            f"FP5050 {self.address} speaks TLS: leave --insecure out, and give --certs FOLDER, which whoever runs the "
            "server hands over"
        )

    def _open_tls_connection(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Return a separate TLS connection to the server, after the handshake."""
        host, _, port = self.address.rpartition(":")
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        try:
            return context.wrap_socket(plain, server_hostname=host.strip("[]"))
        except BaseException:
            plain.close()
            raise


def _create_probe_context() -> ssl.SSLContext:
    """Return a context for a TLS handshake that only tests whether the other side answers; nothing is sent then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _create_client_context(own: Credentials) -> ssl.SSLContext:
    """Return a context for a TLS handshake as the client; raise an OSError if there is no room for a temporary file."""
    context = ssl.create_default_context(cadata=own.authority.decode())
    context.set_alpn_protocols(["h2"])
    with tempfile.NamedTemporaryFile() as pair:  # mode 0600
        pair.write(own.certificate + own.key)
        pair.flush()
        context.load_cert_chain(pair.name)
    return context


class Connection:
    """A channel to the server, to be closed as a context manager."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        """Hold the channel, and the client's name as metadata."""
        self._channel = channel
        self._stub: Any = FederationStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = ((NAME_KEY, name),)

    def __enter__(self) -> Connection:
        """Return the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the channel."""
        self._channel.close()

    def describe(self) -> v2.Description:
        """Return the server's description of the federation.

        Raises:
            LostError: the server is out of reach.
            RunError: it refuses this client.
        """
        question = v2.Introduction(software=__version__, wire=WIRE)
        try:
            told: v2.Description = self._stub.Describe(question, timeout=ANSWER_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _explain_error(error) from None
        return told

    def iterate_tasks(
        self,
        registration: v2.Registration,
        limit: int = INSTRUCTION_LIMIT,
        transcript: Transcript | None = None,
        reached: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[str, Instruction]]:
        """Yield tasks with their names, until the server needs this client no more.

        Args:
            registration: the client's description of itself.
            limit: the most bytes that the payloads of a task may have together.
            transcript: checks and keeps the server's records of the rounds; None: nothing does (tests of the wire).
            reached: is called once the server has accepted this client, which may be long before there is a task.

        Raises:
            LostError: the connection was lost.
            UnkeptError: the server's records can't be stored now.
            RunError: the server refuses this client, contradicts itself, or sends what this version can't read.
        """
        if transcript is not None:
            registration.records = len(transcript)
        arriving = ParcelStream(Instruction, limit)
        stream = self._stub.Tasks(registration, metadata=self._metadata)
        try:
            if any(key == NAME_KEY for key, _ in stream.initial_metadata() or ()):
                reached()
            for part in stream:
                if part.HasField("finished"):
                    return
                if part.HasField("record") and transcript is not None:
                    transcript.receive(decode_statement(part.record))
                elif (whole := arriving.add(part)) is not None:
                    task, instruction, statement = whole
                    yield task, transcript.accept(instruction, statement) if transcript is not None else instruction
        except grpc.RpcError as error:
            raise _explain_error(error) from None
        except UnwrittenError as error:
            raise UnkeptError(str(error)) from None
        except PayloadError as error:
            raise RunError(f"FP5051 the server sent a task that can't be read: {error}") from None
        finally:
            stream.cancel()
        raise LostError("the server closed the connection")

    def submit(self, task: str, report: Report) -> str:
        """Send a report, and return the server's verdict: taken, known or late.

        Raises:
            LostError: the connection was lost; the report can be sent again.
            RunError: the server refuses this client.
        """
        try:
            timeout = UPLOAD_SECONDS + report.bytes / SLOWEST
            receipt = self._stub.Submit(split_into_parts(task, report), timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                raise LostError("the server was restarted") from None
            raise _explain_error(error) from None
        return str(v2.Receipt.Verdict.Name(receipt.verdict)).lower()
