"""Health and metrics over HTTP, once per command.

| path | answer |
|---|---|
| `/livez` | 200, or 503 when the process should be started anew |
| `/readyz` | 200, or 503 when no work should be sent to it now |
| `/metrics` | Prometheus text |
| `/healthz` | JSON: `live`, `ready` and the detail; status as `/readyz` |
"""

import errno
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson
import structlog
from aiohttp import web

from ingest.runtime.errors import UsageError
from ingest.runtime.metrics import CONTENT_TYPE

log = structlog.get_logger(__name__)

_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a command is.

    Attributes:
        live: the process works; starting it anew would not help.
        ready: it can take work now.
        detail: what else is worth knowing; JSON values.
    """

    live: bool
    ready: bool
    detail: Mapping[str, object] = field(default_factory=dict)


class AdminServer:
    """Serves the admin paths until stopped.

    Args:
        host: address to listen on.
        port: port; 0 means a free one.
        explicit: whether someone chose the port. A taken one is then a `UsageError`, else a free one is used.
        health: how the command is, at each request.
        metrics: the Prometheus text, at each request.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        explicit: bool,
        health: Callable[[], Health | Awaitable[Health]],
        metrics: Callable[[], bytes],
    ) -> None:
        self._host = host
        self._port = port
        self._explicit = explicit
        self._health = health
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Begin to serve and return the port, which is logged too.

        Raises:
            UsageError: an explicit port is taken, or the address cannot be listened on.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics_text),
                web.get("/healthz", self._healthz),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S)
        await self._runner.setup()
        try:
            port = await self._listen(self._runner)
        except BaseException:
            await self.stop()
            raise
        log.info("admin listens", host=self._host, port=port)
        return port

    async def stop(self) -> None:
        """End serving. Calling it twice, or before `start`, is harmless."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> int:
        for port in (self._port, 0):
            try:
                await web.TCPSite(runner, self._host, port).start()
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                if taken and not self._explicit and port:
                    log.warning("admin port is taken, using a free one", port=port)
                    continue
                wrong = f"cannot be listened on (DLR_ADMIN_HOST, DLR_ADMIN_PORT): {error.strerror}"
                why = "is taken (DLR_ADMIN_PORT)" if taken else wrong
                raise UsageError(f"admin port {self._host}:{port} {why}") from None
            break
        return int(runner.addresses[0][1])

    async def _now(self) -> Health:
        health = self._health()
        return await health if inspect.isawaitable(health) else health

    async def _livez(self, _request: web.Request) -> web.Response:
        return _verdict((await self._now()).live)

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict((await self._now()).ready)

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, _request: web.Request) -> web.Response:
        health = await self._now()
        body = orjson.dumps({"live": health.live, "ready": health.ready, **health.detail})
        return web.Response(body=body, status=_status(health.ready), content_type="application/json")


def _status(well: bool) -> HTTPStatus:  # noqa: FBT001
    return HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE


def _verdict(well: bool) -> web.Response:  # noqa: FBT001
    return web.Response(text="ok" if well else "no", status=_status(well))
