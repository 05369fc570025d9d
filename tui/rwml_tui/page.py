"""Web page that shows dashboards, with its access rules.

Any page that is open in a browser on this machine can send requests to this server, and so can any user of the machine. The
server answers a request only if all of these hold: the host is this server's own name (another name may have been made to
point here), the request does not come from a page of another origin, and it carries the token. Only the terminal in which the
server was started shows the token.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from string import Template

from aiohttp import hdrs, web
from textual_serve.server import Server
from typing_extensions import override

HOST = "127.0.0.1"
"""Bind address. Anyone who reaches the page can read the run and stop it, so only this machine can open it."""
NAMES = (HOST, "localhost", "[::1]")
_PAGE = Template((Path(__file__).parent / "page.html").read_text())
# This document loads the page. A redirect would lose the cookie if the link was clicked on another page.
_ENTERED = '<!DOCTYPE html><meta http-equiv="refresh" content="0; url=/"><title>rwml-tui</title>'


class Page(Server):
    """Serves dashboards to requests that carry the token; each browser tab gets a separate dashboard.

    Args:
        command: Shell command that starts a dashboard.
        port: Port of the page.
        token: Secret that a request must carry.
    """

    def __init__(self, command: str, port: int, token: str) -> None:
        super().__init__(command, host=HOST, port=port)
        self.token = token
        self.hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        self.cookie = f"rwml-tui-{port}"  # cookies are shared by all ports of a host

    @property
    def url(self) -> str:
        """Address with the token, for the user who started the server."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def refusal(self, request: web.Request) -> str | None:
        """Return the reason why a request is refused, in one line, or ``None`` if it is allowed."""
        if request.host not in self.hosts:
            return (
                f"this page is only available as localhost:{self.port}; to see it from another machine forward the same "
                f"port: ssh -L {self.port}:localhost:{self.port} HOST"
            )
        origin = request.headers.get(hdrs.ORIGIN)
        socket = request.headers.get(hdrs.UPGRADE) is not None
        if (origin is not None or socket) and origin != f"http://{request.host}":
            return "requests from a page of another origin are refused"
        given = self._token_of_address(request) or request.cookies.get(self.cookie, "")
        if not secrets.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
            return "open the address with the token that rwml-tui --serve printed; the token changes at each start"
        return None

    @override
    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard())
        app.on_response_prepare.append(self._restrict)
        return app

    @override
    async def on_startup(self, app: web.Application) -> None:
        """Print nothing: :func:`rwml_tui.serve.serve` prints the address with the token."""

    @override
    async def handle_index(self, request: web.Request) -> web.Response:
        """Return the page; a token in the address is moved to a cookie, so that it does not stay in the address."""
        if not self._token_of_address(request):
            return web.Response(text=_PAGE.substitute(host=request.host), content_type="text/html")
        response = web.Response(text=_ENTERED, content_type="text/html")
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="Strict")
        return response

    def _guard(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            refusal = self.refusal(request)
            if refusal is not None:
                raise web.HTTPForbidden(text=f"rwml-tui: {refusal}\n")
            return await handler(request)

        return guard

    async def _restrict(self, request: web.Request, response: web.StreamResponse) -> None:
        """Restrict what the browser may do with a response: load only from here, never frame it, never cache it."""
        response.headers.update(
            {
                # xterm.js writes style elements.
                "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
                "font-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                hdrs.CACHE_CONTROL: "no-store",
            }
        )

    @staticmethod
    def _token_of_address(request: web.Request) -> str:
        return request.query.get("token", "") if request.path == "/" else ""
