"""Monitoring of a running server: Prometheus metrics and gRPC health checks, each on its own port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
from rich.markup import escape

from fedpeft.deployment.addresses import is_loopback, parse_address
from fedpeft.deployment.wire.channel import SERVICE
from fedpeft.errors import RunError, require_extra

if TYPE_CHECKING:
    from fedpeft.deployment.options import ServeOptions
    from fedpeft.deployment.server.federation import Federation
    from fedpeft.reporting.console import ServeObserver

MONITORS_AT_ONCE = 16
"""Most connections to each of the two ports; a monitor needs one, for a moment."""

SILENCE_SECONDS = 5.0
"""Seconds for which a connection to the metrics may be silent."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """A server with one thread per connection, a limit on their number, and a timeout for silent ones."""

    daemon_threads = True

    def __init__(self, *given: Any) -> None:
        """Reserve the places of connections, and start the server."""
        self._places = threading.BoundedSemaphore(MONITORS_AT_ONCE)
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, or close it if all places are taken."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class MetricsHandler(WSGIRequestHandler):
    """A handler that drops silent callers and writes no log."""

    timeout = SILENCE_SECONDS

    def log_message(self, *_: Any) -> None:
        """Write no log."""


class MetricsServer6(MetricsServer):
    """The metrics server at an IPv6 address."""

    address_family = socket.AF_INET6


class Operation:
    """Metrics and health checks while a server runs, if the options name their addresses."""

    def __init__(self, federation: Federation, observer: ServeObserver, options: ServeOptions) -> None:
        """Hold the federation and the options."""
        self._federation, self._observer, self._options = federation, observer, options
        self._metrics: Any = None
        self._health: grpc.Server | None = None

    def __enter__(self) -> Operation:
        """Start metrics and health checks, and warn if strangers can read them."""
        for what, address in (("metrics", self._options.metrics), ("health", self._options.health)):
            if address and not is_loopback(address):
                parse_address(address, what)
                self._observer.say(
                    f"[bold yellow]warning[/] whoever reaches {escape(address)} can read --{what}: it has neither TLS "
                    "nor names of callers; give 127.0.0.1, or close the port to others"
                )
        if self._options.metrics:
            self._metrics = self._start_metrics(*parse_address(self._options.metrics, "metrics"))
        if self._options.health:
            parse_address(self._options.health, "health")
            self._health = self._start_health(self._options.health)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Stop metrics and health checks."""
        if self._metrics is not None:
            server, thread = self._metrics
            server.shutdown()
            server.server_close()
            thread.join()
        if self._health is not None:
            self._health.stop(grace=None)

    def _start_metrics(self, host: str, port: int) -> Any:
        require_extra("prometheus_client", "server", "--metrics")
        import prometheus_client

        registry = prometheus_client.CollectorRegistry()
        registry.register(self)
        prometheus_client.ProcessCollector(registry=registry)
        try:
            kind = MetricsServer6 if ":" in host else MetricsServer
            server = make_server(host, port, prometheus_client.make_wsgi_app(registry), kind, MetricsHandler)
        except OSError as error:
            raise RunError(
                f"FP5078 metrics can't be served at {host}:{port}: {error.strerror}; choose another port with --metrics"
            ) from None
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        return server, thread

    def _start_health(self, address: str) -> grpc.Server:
        from concurrent.futures import ThreadPoolExecutor

        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        most = ("grpc.max_allowed_incoming_connections", MONITORS_AT_ONCE)
        server = grpc.server(ThreadPoolExecutor(2), options=(most,), maximum_concurrent_rpcs=MONITORS_AT_ONCE)
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        for service in ("", SERVICE):
            servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise RunError(
                f"FP5079 health checks can't be served at {address}: {error}; choose another port with --health"
            ) from None
        server.start()
        return server

    def collect(self) -> Iterator[Any]:
        """Yield the metrics at this moment, for Prometheus."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sessions = self._federation.gateway.list_sessions()
        last = self._observer.last
        gauges: dict[str, tuple[str, float]] = {
            "clients_connected": ("clients that are connected", sum(bool(s.connected) for s in sessions)),
            "clients_waited_for": ("clients whose report is outstanding", sum(bool(s.task) for s in sessions)),
            "round": ("the last finished round", last.round if last else 0),
            "rounds": ("rounds of the run", self._federation.config.rounds),
        }
        if last is not None:
            metric = self._observer.metric  # regression reports skill under the name of accuracy, for example
            share = {"perplexity": "next-token accuracy"}.get(metric, metric.replace("_", " "))
            named = {"train_loss": "train loss", "loss": "loss", "accuracy": share}
            optional = {"train_loss": last.train_loss, "loss": last.loss, "accuracy": last.accuracy}
            gauges |= {n: (f"{named[n]} of the last round", v) for n, v in optional.items() if v is not None}
            if last.seconds is not None:
                gauges["round_seconds"] = ("duration of the last round", last.seconds)
        if self._observer.epsilon is not None:
            gauges["epsilon"] = ("epsilon of the worst client so far", self._observer.epsilon)
        if self._federation.secret_cohort:
            del gauges["clients_waited_for"]
        for name, (description, value) in gauges.items():
            yield GaugeMetricFamily(f"fedpeft_{name}", description, value=value)
        received = CounterMetricFamily("fedpeft_received_bytes", "bytes from clients on the wire")
        sent = CounterMetricFamily("fedpeft_sent_bytes", "bytes to clients on the wire")
        if not self._federation.secret_cohort:  # sums only: membership of a federation can be a secret
            received.add_metric([], sum(s.received_bytes for s in sessions))
            sent.add_metric([], sum(s.sent_bytes for s in sessions))
        yield from (received, sent)
        yield CounterMetricFamily("fedpeft_refused", "calls refused", value=self._federation.gateway.admission.refused)
