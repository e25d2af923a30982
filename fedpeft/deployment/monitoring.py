"""What keeps a server running well: Prometheus metrics and gRPC health checks, each on a port of its own."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from fedpeft.errors import ConfigError, RunError, needs_extra

if TYPE_CHECKING:
    from fedpeft.deployment.federation import Federation
    from fedpeft.deployment.options import ServeOptions
    from fedpeft.run.console import ServeObserver

SERVICE = "fedpeft.v1.Federation"


def host_and_port(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT in two parts, or ConfigError."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) <= 65535):
        raise ConfigError(f"{option}={text!r} is not of the form HOST:PORT, such as 127.0.0.1:9470")
    return host.strip("[]"), int(port)


class Operation:
    """Metrics and health checks while a server runs; neither where the options say so."""

    def __init__(self, federation: Federation, observer: ServeObserver, options: ServeOptions) -> None:
        self._federation, self._observer, self._options = federation, observer, options
        self._metrics: Any = None
        self._health: grpc.Server | None = None

    def __enter__(self) -> Operation:
        if self._options.metrics:
            self._metrics = self._start_metrics(*host_and_port(self._options.metrics, "metrics"))
        if self._options.health:
            host_and_port(self._options.health, "health")
            self._health = self._start_health(self._options.health)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._metrics is not None:
            server, thread = self._metrics
            server.shutdown()
            server.server_close()
            thread.join()
        if self._health is not None:
            self._health.stop(grace=None)

    def _start_metrics(self, host: str, port: int) -> Any:
        try:
            import prometheus_client
        except ImportError:
            needs_extra("prometheus_client", "serve", "--metrics")
            raise
        registry = prometheus_client.CollectorRegistry()
        registry.register(self)
        prometheus_client.ProcessCollector(registry=registry)
        try:
            return prometheus_client.start_http_server(port, host, registry)
        except OSError as error:
            raise RunError(f"metrics can't be served at {host}:{port}: {error.strerror}") from None

    def _start_health(self, address: str) -> grpc.Server:
        from concurrent.futures import ThreadPoolExecutor

        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        server = grpc.server(ThreadPoolExecutor(2))
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        for service in ("", SERVICE):
            servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise RunError(f"health checks can't be served at {address}: {error}") from None
        server.start()
        return server

    def collect(self) -> Iterator[Any]:
        """The metrics at this moment, for Prometheus."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sessions = self._federation.gateway.sessions()
        last = self._observer.last
        gauges: dict[str, tuple[str, float]] = {
            "clients_connected": ("clients that are connected", sum(bool(s.connected) for s in sessions)),
            "clients_waited_for": ("clients whose report is outstanding", sum(bool(s.task) for s in sessions)),
            "round": ("the last finished round", last.round if last else 0),
            "rounds": ("rounds of the run", self._federation.config.rounds),
        }
        if last is not None:
            optional = {"train_loss": last.train_loss, "loss": last.loss, "accuracy": last.accuracy}
            gauges |= {n: (f"{n.replace('_', ' ')} of the last round", v) for n, v in optional.items() if v is not None}
            if last.seconds is not None:
                gauges["round_seconds"] = ("duration of the last round", last.seconds)
        if self._observer.epsilon is not None:
            gauges["epsilon"] = ("epsilon of the worst client so far", self._observer.epsilon)
        if self._federation.secret_cohort:
            del gauges["clients_waited_for"]
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(f"fedpeft_{name}", help, value=value)
        received = CounterMetricFamily("fedpeft_received_bytes", "bytes from clients on the wire", labels=["client"])
        sent = CounterMetricFamily("fedpeft_sent_bytes", "bytes to clients on the wire", labels=["client"])
        for session in sessions if not self._federation.secret_cohort else ():
            received.add_metric([session.member.name], session.received_bytes)
            sent.add_metric([session.member.name], session.sent_bytes)
        yield from (received, sent)
        yield CounterMetricFamily("fedpeft_refused", "calls refused", value=self._federation.gateway.refused)
