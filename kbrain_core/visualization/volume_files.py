"""Static files as volumes need them: chunks stored as `name.gz`, no listing, Zarr's hidden files, no type a browser runs."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.types import Scope

# What the page is made of; everything else is data. Data never gets a type that a browser would run.
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".wasm": "application/wasm",
}
ZARR_FILES = frozenset({".zattrs", ".zgroup", ".zarray", ".zmetadata"})
PRIVATE_FILES = frozenset({"kneuroviz.json"})  # tells where on this machine the data lie


class VolumeFiles(StaticFiles):
    """Files of a page or a volume, read only; `html=True` for a page, whose `/` is its index.html."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer GET, HEAD and OPTIONS; a chunk that is there only as `name.gz` is sent with its encoding."""
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS"})
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            # A range of a compressed file is not a range of its content: shards are never looked for as .gz.
            if error.status_code != 404 or path.endswith((".shard", ".gz")):
                raise
        response = await super().get_response(f"{path}.gz", scope)
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        response.headers["content-encoding"] = "gzip"
        response.headers["accept-ranges"] = "none"
        return response

    async def check_config(self) -> None:
        """A folder that vanishes while it is served is no failure of the server: its files are answered with 404."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Find a file; hidden ones are not there, but for Zarr's."""
        parts = PurePath(path).parts
        if any(part.startswith(".") and part not in ZARR_FILES for part in parts) or path in PRIVATE_FILES:
            return "", None
        return super().lookup_path(path)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Send a file; browsers keep it and ask whether it has changed, as a stage may have written it anew."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        data = not self.html or "data" in PurePath(scope["path"]).parts[1:2]
        kind = PAGE_TYPES.get(PurePath(full_path).suffix)
        response.headers["content-type"] = "application/octet-stream" if data or kind is None else kind
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response
