"""Run Galaxy: its web server and, in the same process, the worker for its background tasks.

    <Galaxy's python> launcher.py PROCESS_FILE LISTENER LOCK

Started by `kbrain-galaxy start` in the environment that holds Galaxy, with the instance's folder as working directory and
GALAXY_CONFIG_FILE set. LISTENER and LOCK are open files that it inherits: a socket bound to the port, and the instance's
lock, which is let go when this process ends in whatever way. The worker sets the metadata of finished jobs, which would
otherwise import Galaxy once per job.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

HOUSEKEEPING_S = 3600


def main(process_file, listener_number, lock_number):
    """Serve on loopback until the process is told to end."""
    for number in (listener_number, lock_number):
        os.set_inheritable(number, False)  # jobs and workers may live longer than the server
    listener = socket.socket(fileno=listener_number)
    temporary = process_file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "port": listener.getsockname()[1]}))
    temporary.replace(process_file)
    logging.basicConfig(level=logging.WARNING)  # until Galaxy sets up its own log
    serve(listener)


def serve(listener):
    """Run Galaxy behind its doorkeeper, with the worker for its background tasks."""
    import uvicorn
    from celery.contrib.testing.worker import start_worker
    from doorkeeper import Doorkeeper
    from galaxy.celery import celery_app
    from galaxy.webapps.galaxy.fast_factory import build_galaxy_web_app

    with start_worker(
        celery_app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=30
    ):
        galaxy = build_galaxy_web_app(
            load_app_kwds={"config_file": os.environ["GALAXY_CONFIG_FILE"], "config_section": "galaxy"},
            register_shutdown_at_exit=False,
        )
        threading.Thread(target=keep_house, daemon=True).start()
        # uvicorn stops serving at this signal and then raises it again, for us to end Galaxy properly too
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        configuration = uvicorn.Config(
            Doorkeeper(galaxy.asgi_app),
            log_level="warning",
            proxy_headers=False,  # a header could pretend that a request came from somebody else
            timeout_graceful_shutdown=5,
        )
        with contextlib.suppress(SystemExit):
            uvicorn.Server(configuration).run(sockets=[listener])
        galaxy.galaxy_app.shutdown()  # while the worker is there, for whose answers some of Galaxy's threads wait
        logging.shutdown()
        os._exit(0)  # Python would take ten seconds to tear down what the kernel frees at once


def keep_house():
    """Import what the first upload needs before it comes; then remove old downloads and log entries now and then.

    Galaxy's own scheduler for the latter would be a process of its own.
    """
    from galaxy.celery import celery_app
    from galaxy.celery.tasks import cleanup_short_term_storage, prune_history_audit_table

    celery_app.fork_pool.submit(os.getpid, None)
    pause = threading.Event()
    while not pause.wait(HOUSEKEEPING_S):
        cleanup_short_term_storage.delay()
        prune_history_audit_table.delay()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
