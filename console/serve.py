"""`ecluse serve`."""

from console.output import ConfigOption, ServersOption, settings_of


def serve_command(config: ConfigOption = None, servers: ServersOption = None) -> None:
    """Score over HTTP with the champion until stopped (SIGTERM or Ctrl-C). RECORDS NOTHING.

    What is asked here leaves no prediction, no alert and no training data: callers who want the system to learn publish
    events. It speaks the Open Inference Protocol v2 at serve.host and serve.port; /openapi.json says how to ask. It follows the
    route like a worker, and waits, not ready, while no model is routed.
    """
    from scoring.serve.server import serve

    serve(settings_of(config, servers))
