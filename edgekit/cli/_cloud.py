"""``edgekit cloud …``: the Triton tier."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli._addresses import address, stop_on_signals, wait_for_stop
from edgekit.cli._output import say, show, table
from edgekit.errors import UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    cloud = typer.Typer(help="The Triton cloud tier.", no_args_is_help=True, rich_markup_mode=None)
    cloud.command("repository")(repository)
    cloud.command("up")(up)
    cloud.command("report")(report)
    app.add_typer(cloud, name="cloud")


def repository(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Bundles that carry an ONNX form.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="The repository to write.")],
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="For GPU nodes, or for a machine without a GPU.")] = False,
    instances: Annotated[int, typer.Option(metavar="N", help="Instances per model and GPU.")] = 1,
    max_batch: Annotated[int, typer.Option("--max-batch", metavar="N", help="Largest dynamic batch.")] = 16,
    threads: Annotated[int, typer.Option(metavar="T", help="ONNX Runtime threads per CPU instance; 0 for one a core.")] = 1,
) -> None:
    """Write a Triton model repository."""
    from edgekit.cloud.triton import write_repository

    models = write_repository(bundles, output, "gpu" if gpu else "cpu", instances=instances, max_batch=max_batch, threads=threads)
    rows = [(m.config.name, m.version, m.config.backend, m.config.max_batch_size, m.config.instance_kind) for m in models]
    lines = [f"{output}: {len(models)} model(s)", *table(rows, ("model", "version", "back end", "max batch", "instances on"))]
    plans = [m for m in models if m.plan_command]
    lines += [f"  {m.config.name}/{m.version}: run build_plan.sh on the GPU node; its TensorRT engine is not built here" for m in plans]
    document = [
        {
            "name": m.config.name,
            "version": m.version,
            "backend": m.config.backend,
            "max_batch_size": m.config.max_batch_size,
            "plan_command": m.plan_command,
        }
        for m in models
    ]
    show({"repository": output, "models": document}, lines)


def up(
    directory: Annotated[str, typer.Option("-r", "--repository", metavar="DIR", help="Model repository.")],
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="HTTP address.")] = "127.0.0.1:9000",
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC address; its host must be that of --http.")] = "127.0.0.1:9001",
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="Prometheus address.")] = "127.0.0.1:9002",
    install: Annotated[bool, typer.Option("--install", help="First install Triton into an environment of its own.")] = False,
) -> None:
    """Run a real Triton on this machine, for development."""
    from edgekit.cloud.triton import TritonServer, install_environment

    host, http_port = address(http, "--http")
    ports = [address(text, flag) for text, flag in ((grpc, "--grpc"), (metrics, "--metrics"))]
    if any(other != host for other, _ in ports):
        raise UsageError("--grpc and --metrics", f"hosts {', '.join(other for other, _ in ports)}", f"{host}, as --http has")
    if install:
        say("installing Triton (once)")
        install_environment()
    with TritonServer(directory, host=host, http_port=http_port, grpc_port=ports[0][1], metrics_port=ports[1][1]) as server:
        document = {"status": "serving", "http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}
        show(document, [f"Triton is ready on http {server.http_port}, grpc {server.grpc_port}, metrics {server.metrics_port}"])
        wait_for_stop()


def report(
    triton: Annotated[str, typer.Option(metavar="URL", help="Triton's HTTP address, or its metrics page (ending in /metrics).")],
    collector: Annotated[str, typer.Option(metavar="URL", help="Where telemetry goes.")],
    interval: Annotated[float, typer.Option(metavar="S", help="Seconds between reports.")] = 5.0,
    device_id: Annotated[str, typer.Option("--device-id", metavar="ID", help="Name of this server in telemetry.")] = "",
) -> None:
    """Send the cloud tier's telemetry to the collector."""
    from edgekit.cloud import report_triton

    if interval <= 0:
        raise UsageError("--interval", f"{interval:g}", "a positive number of seconds")

    def started() -> None:
        show({"status": "reporting", "triton": triton, "collector": collector}, [f"reporting {triton} to {collector} every {interval:g} s"])

    report_triton(triton, collector, interval_s=interval, stop_event=stop_on_signals(), device_id=device_id or None, started=started)
