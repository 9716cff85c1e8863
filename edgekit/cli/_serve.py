"""``edgekit serve | route | collector``: the processes that stay up."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated

import typer

from edgekit.cli._access import (
    Certificate,
    ClientCa,
    CloudCa,
    CloudCertificate,
    CloudKey,
    CloudTokenFile,
    EdgeCa,
    EdgeCertificate,
    EdgeKey,
    EdgeTokenFile,
    Key,
    TokenFile,
    access_of,
    credentials_of,
    servers,
)
from edgekit.cli._addresses import address, optional_address, serving_addresses, stop_on_signals, wait_for_stop
from edgekit.cli._engine import Accelerator, EngineCache, Hint, Threads, engine_options
from edgekit.cli._models import byte_limit
from edgekit.cli._output import settings, show
from edgekit.cli._watch import watch as watch_router
from edgekit.errors import UsageError

__all__ = ["register"]

Collector = Annotated[str, typer.Option(metavar="URL", help="Where telemetry goes, for example http://127.0.0.1:4318.")]
DeviceId = Annotated[str, typer.Option("--device-id", metavar="ID", help="Name of this device in telemetry; the host name by default.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("serve")(serve)
    app.command("route", short_help="Answer from the device, and from the cloud in time.")(route)
    app.command("collector")(collector)


def serve(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Bundles, or folders of bundles.")] = [],  # noqa: B006
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="HTTP address, unix:/path, or off.")] = "127.0.0.1:8000",
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC address, unix:/path, or off.")] = "127.0.0.1:8001",
    collector: Collector = "",
    device_id: DeviceId = "",
    repository: Annotated[
        str, typer.Option(metavar="DIR", help="Serve the versions installed here (edgekit models), and follow changes.")
    ] = "",
    lazy: Annotated[bool, typer.Option("--lazy", help="Load a version when it is first asked for.")] = False,
    memory_quota: Annotated[
        str,
        typer.Option(metavar="SIZE", help="What loaded versions may take, for example 512MB; the least recently used go. 0 for no limit."),
    ] = "0",
    result_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="Keep answers for equal requests in this much memory, for example 64MB; 0 keeps none.")
    ] = "0",
    result_cache_ttl: Annotated[float, typer.Option(metavar="SECONDS", help="How long an answer is kept.")] = 1800.0,
    result_cache_redis: Annotated[str, typer.Option(metavar="URL", help="A Redis server that shares answers between devices.")] = "",
    instances: Annotated[int, typer.Option(metavar="N", help="Batches that each model runs at once; 0 learns how many are worth it.")] = 0,
    max_batch: Annotated[
        int, typer.Option(metavar="ROWS", help="Rows that run together at most; how many are worth it is learned. 1 keeps requests apart.")
    ] = 32,
    max_sequences: Annotated[
        int, typer.Option(metavar="N", help="Sequences of requests that share a state, open at once; more are refused.")
    ] = 1024,
    sequence_memory: Annotated[str, typer.Option(metavar="SIZE", help="What their states may take.")] = "256MiB",
    sequence_idle: Annotated[float, typer.Option(metavar="SECONDS", help="How long a sequence stays open without a request.")] = 60.0,
    threads: Threads = 0,
    accelerator: Accelerator = "",
    hint: Hint = "latency",
    engine_cache: EngineCache = "",
    tls_certificate: Certificate = "",
    tls_key: Key = "",
    tls_client_ca: ClientCa = "",
    token_file: TokenFile = "",
    trace_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Where clients may have the times of requests written (Triton's trace settings).")
    ] = "",
) -> None:
    """Serve bundles over the Open Inference Protocol v2."""
    from edgekit.runtime import CacheOptions, RepositoryOptions, SequenceLimits, serve_bundles
    from edgekit.telemetry import start_telemetry

    http_at, grpc_at = serving_addresses(http, grpc)
    access = access_of(tls_certificate, tls_key, tls_client_ca, token_file)
    models = RepositoryOptions(folder=repository, lazy=lazy, memory_bytes=byte_limit(memory_quota, "--memory-quota"))
    cache = CacheOptions(byte_limit(result_cache, "--result-cache"), result_cache_ttl, result_cache_redis)
    telemetry = start_telemetry("edgekit-runtime", "edge", collector_url=collector or None, device_id=device_id or None)
    try:
        server = serve_bundles(
            paths,
            http=http_at,
            grpc=grpc_at,
            telemetry=telemetry,
            repository=models,
            cache=cache,
            access=access,
            options=engine_options(threads, accelerator, hint, engine_cache),
            instances=instances,
            max_batch=max_batch,
            sequences=SequenceLimits(max_sequences, byte_limit(sequence_memory, "--sequence-memory"), sequence_idle),
            trace_folder=trace_dir or None,
        )
        try:
            _announce("serving", {"http": server.http_port or _unix(http), "grpc": server.grpc_port or _unix(grpc)})
            wait_for_stop()
        finally:
            server.stop()
    finally:
        telemetry.close()


def route(
    edge: Annotated[str, typer.Option(metavar="TARGET", help="A bundle (runs in this process), or the URL of an edge server.")],
    sla_ms: Annotated[float, typer.Option("--sla-ms", metavar="X", help="Deadline of a request that brings none.")],
    cloud: Annotated[list[str], typer.Option(metavar="URL", help="Triton endpoint: http(s)://, grpc(s)://; repeat for several.")] = [],  # noqa: B006
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="HTTP address, unix:/path, or off.")] = "127.0.0.1:8100",
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC address, unix:/path, or off.")] = "127.0.0.1:8101",
    policy: Annotated[
        str, typer.Option(metavar="FILE", help="The operator's policy, followed while the router runs: docs/policy.md.")
    ] = "",
    budget_state: Annotated[
        str,
        typer.Option(
            "--budget-state", metavar="FILE", help="Where the policy's budgets are kept; by default a file in EdgeKit's state folder."
        ),
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Show decisions, estimates, breakers and budgets, every second.")] = False,
    collector: Collector = "",
    device_id: DeviceId = "",
    tls_certificate: Certificate = "",
    tls_key: Key = "",
    tls_client_ca: ClientCa = "",
    token_file: TokenFile = "",
    edge_ca: EdgeCa = "",
    edge_certificate: EdgeCertificate = "",
    edge_key: EdgeKey = "",
    edge_token_file: EdgeTokenFile = "",
    cloud_ca: CloudCa = "",
    cloud_certificate: CloudCertificate = "",
    cloud_key: CloudKey = "",
    cloud_token_file: CloudTokenFile = "",
) -> None:
    """Answer from the device, and from the cloud when the device would miss the deadline."""
    from edgekit.router import Tally, serve_router
    from edgekit.telemetry import start_telemetry

    if sla_ms <= 0:
        raise UsageError("--sla-ms", f"{sla_ms:g}", "a positive number of milliseconds")
    if watch and settings.json:
        raise UsageError("--watch", "given with --json", "one of them", "scripts read the collector, or the header x-edgekit-decision")
    if budget_state and not policy:
        raise UsageError("--budget-state", "given without --policy", "a policy that has budgets", "give --policy FILE too")
    http_at, grpc_at = serving_addresses(http, grpc)
    access = access_of(tls_certificate, tls_key, tls_client_ca, token_file)
    to_edge = credentials_of("edge", edge_ca, edge_certificate, edge_key, edge_token_file)
    to_cloud = credentials_of("cloud", cloud_ca, cloud_certificate, cloud_key, cloud_token_file)
    with contextlib.ExitStack() as opened:
        (device,) = opened.enter_context(servers([edge], "edge", to_edge))
        clouds = opened.enter_context(servers(cloud, "cloud", to_cloud))
        telemetry = start_telemetry("edgekit-router", "edge", collector_url=collector or None, device_id=device_id or None)
        opened.callback(telemetry.close)
        tally = Tally() if watch else None
        server = serve_router(
            device,
            clouds,
            sla_ms,
            http=http_at,
            grpc=grpc_at,
            telemetry=telemetry,
            access=access,
            policy=policy or None,
            budget_state=budget_state or None,
            tally=tally,
        )
        opened.callback(server.stop)
        ports = {"http": server.http_port or _unix(http), "grpc": server.grpc_port or _unix(grpc)}
        if tally is None:
            _announce("routing", ports)
            wait_for_stop()
        else:
            watch_router(tally, _told("routing", ports), stop_on_signals())


def collector(
    store: Annotated[
        str, typer.Option(metavar="PATH_OR_URL", help="Folder of the embedded store, or the URL of a ClickHouse server.")
    ] = "",
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="OTLP over HTTP, and the fleet page.")] = "127.0.0.1:4318",
    otlp_grpc: Annotated[str, typer.Option("--otlp-grpc", metavar="HOST:PORT", help="OTLP over gRPC, or off.")] = "127.0.0.1:4317",
) -> None:
    """Take telemetry in, keep it, show the fleet."""
    from edgekit.cloud.collector import start_collector

    host, port = address(http, "--http")
    running = start_collector(store, http=(host, port), otlp_grpc=optional_address(otlp_grpc, "--otlp-grpc"))
    try:
        _announce("collecting", {"http": running.http_port, "otlp_grpc": running.grpc_port}, page=f"http://{host}:{running.http_port}/")
        wait_for_stop()
    finally:
        running.stop()


def _unix(text: str) -> str | None:
    """The address of a unix socket, which has no port."""
    return text if text.startswith("unix:") else None


def _announce(doing: str, ports: Mapping[str, int | str | None], page: str = "") -> None:
    """The ports that were really bound, so that a script can use port 0."""
    show({"status": doing, **ports, **({"page": page} if page else {})}, [_told(doing, ports) + (f"; fleet page {page}" if page else "")])


def _told(doing: str, ports: Mapping[str, int | str | None]) -> str:
    return f"{doing} on {', '.join(f'{name} {port}' for name, port in ports.items() if port)}"
