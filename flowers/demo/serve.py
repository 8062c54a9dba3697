"""The demo job: load the model, listen, serve until interrupted."""

import importlib.util
import itertools
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path

from flowers import console
from flowers.config.demo import DemoConfig
from flowers.data.paths import readable
from flowers.data.scan import scan_images
from flowers.demo.answer import Oracle
from flowers.demo.page import CSS, KEEP_S, build_page
from flowers.demo.uploads import UploadLimit
from flowers.errors import DataError, FlowersError, ImageError, UsageError, system_reason
from flowers.reports.photos import thumbnail

FIRST_PORT, PORTS = 7860, 100
_EXAMPLES = 8
_LOCAL = ("127.0.0.1", "localhost", "::1")


def demo(config: DemoConfig) -> int:
    """Serve the page until SIGINT or SIGTERM.

    Returns:
        0.

    Raises:
        UsageError: gradio is not installed, or the port is taken.
        FlowersError: no model, no such address, ...
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the demo needs gradio: pip install gradio")
    port = find_port(config.host, config.port)
    if config.port is None and port != FIRST_PORT:
        console.say(f"port {FIRST_PORT} is taken, this is on {port}")
    examples = find_examples(config.examples)
    oracle = Oracle(config.checkpoint, config.class_names, config.engine, config.precision)
    try:
        with tempfile.TemporaryDirectory(prefix="flowers-demo-") as uploads:
            _serve(config, oracle, examples, port, Path(uploads))
    finally:
        oracle.close()
    return 0


def _serve(config: DemoConfig, oracle: Oracle, examples: list[tuple[Path, bytes]], port: int, uploads: Path) -> None:
    # gradio reads its environment when it is imported: nothing is reported to anyone, or kept.
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(uploads),
    }
    # It asks itself whether it is there; a proxy, as clusters have, would not know.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
        [*filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY")]), *_LOCAL, config.host]
    )
    import gradio
    from starlette.middleware import Middleware

    max_bytes = int(config.max_upload * 2**20)
    most = 2 * config.max_waiting + len(examples)
    limit = Middleware(UploadLimit, folder=uploads, max_bytes=max_bytes, most=most, keep_s=KEEP_S)
    page = build_page(oracle, examples, config.max_upload, config.max_waiting)
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # gradio's own would come from Google
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        page.launch(
            server_name=config.host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=max_bytes,
            app_kwargs={"middleware": [limit]},
            theme=gradio.themes.Default(font=fonts[0], font_mono=fonts[1]),
            css_paths=CSS,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            strict_cors=True,
        )
    except OSError as error:  # somebody took the port since it was found free
        raise FlowersError(f"cannot listen on {config.host}:{port}: {error.strerror or error}") from None
    console.say(f"engine: {console.plain(oracle.description)}")
    host = f"[{config.host}]" if ":" in config.host else config.host
    console.say(f"open [bold]http://{host}:{port}[/] in a browser; Ctrl-C ends it")
    if config.host not in _LOCAL:
        console.warn(f"everyone who can reach {config.host}:{port} can use this page; there is no password")
    stopped.wait()
    page.close(verbose=False)
    console.say("ended")


def find_port(host: str, port: int | None) -> int:
    """Return the port to listen on: the one asked for, any free one for 0, or the first free one from ``FIRST_PORT``.

    Raises:
        UsageError: it is taken, none is free, or the address is not one of this machine.
    """
    wanted = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise UsageError(
            f"--host {host}: no such address; 127.0.0.1 is this machine only, 0.0.0.0 all networks"
        ) from None
    reason = ""
    for number in wanted:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just given up is free
            try:
                probe.bind((address[0], number))
                return probe.getsockname()[1]
            except OSError as error:
                reason = system_reason(error)
    shown = f"--port {port}" if port is not None else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise UsageError(f"{shown} on {host}: {reason}; choose another --port, or 0 for any that is free")


def find_examples(folder: Path | None) -> list[tuple[Path, bytes]]:
    """List the first photos of a folder by name, each with a small JPEG.

    Raises:
        DataError: it cannot be read, or there are none.
    """
    if folder is None:
        return []
    examples = []
    for path in itertools.islice(scan_images(folder), _EXAMPLES):
        try:
            examples.append((folder / path, thumbnail(folder / path)))
        except ImageError as error:
            console.warn(f"--examples {readable(path)}: {error}; not shown")
    if not examples:
        raise DataError(f"--examples {readable(folder)}: no photos there")
    return examples
