"""Serving the page: to this machine alone unless asked, with a policy that keeps the browser from any other host."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carzero.app.radiograph import MAX_BYTES
from carzero.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

    from carzero.app.desk import Desk

#: gradio compiles its templates in the browser, hence the two "unsafe"; no other host is ever asked for anything.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)


@dataclass
class Served:
    """A page that is being served; `close` ends it and deletes all files.

    Args:
        url: its address.
        page: of gradio.
        folder: private, holds uploads until they are read, and downloads.
    """

    url: str
    page: gr.Blocks
    folder: tempfile.TemporaryDirectory

    def close(self) -> None:
        self.page.close(verbose=False)
        self.folder.cleanup()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(desk: Desk, *, host: str = "127.0.0.1", port: int = 7860) -> Served:
    """Start serving, in threads of their own.

    Args:
        desk: answers.
        host: to listen on.
        port: 0 takes a free one.

    Raises:
        UserError: gradio is missing, or the port is taken.
    """
    # before gradio is imported, which reads them: no statistics, no question to the model hub
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    folder = tempfile.TemporaryDirectory(prefix="carzero-app-")
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder.name, "gradio"))
    try:
        import gradio  # noqa: F401
    except ImportError:
        folder.cleanup()
        raise UserError("The page needs gradio, which is not installed: pip install 'carzero[app]'.") from None
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from carzero.app.page import build_page
    from carzero.app.theme import make_theme

    local = is_loopback(host)
    guards = [Middleware(_Policy)]
    if local:
        # a page of another host whose name was pointed here is turned away
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host]))
    page = build_page(desk, Path(folder.name), local=local)
    try:
        _, url, _ = page.queue(default_concurrency_limit=2).launch(
            server_name=host, server_port=port or _free_port(host), prevent_thread_lock=True, quiet=True, share=False,
            inbrowser=False, ssr_mode=False, footer_links=[], max_file_size=MAX_BYTES, theme=make_theme(),
            css_paths=Path(__file__).with_name("style.css"), app_kwargs={"middleware": guards},
            enable_monitoring=False, pwa=False, mcp_server=False,
        )  # fmt: skip
    except OSError:
        folder.cleanup()
        raise UserError(f"The port {port} of {host} cannot be listened on: name another with --port.") from None
    return Served(url, page, folder)


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return free.getsockname()[1]


class _Policy:
    """Adds the policy to every answer, as plain ASGI: streams pass through."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                extra = {
                    b"content-security-policy": POLICY.encode(),
                    b"referrer-policy": b"no-referrer",
                    b"x-content-type-options": b"nosniff",
                }
                message["headers"] = [*message.get("headers", []), *extra.items()]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)
