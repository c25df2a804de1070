"""A Galaxy job runner on this machine whose jobs outlive the server: after a restart they are found again and finished.

Loaded by Galaxy (not by KBrain) from the job configuration: `load: job_runner:DetachedJobRunner`. Galaxy's own local runner
ends its jobs with the server and reports them as failed.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import galaxy.jobs
from galaxy import model
from galaxy.jobs.runners import AsynchronousJobRunner, AsynchronousJobState
from sqlalchemy import or_, select

__all__ = ("DetachedJobRunner",)

# A job's process waits here until the database knows it. When the server dies before, the pipe closes and nothing was run.
GATE = 'read -r go && exec "$0" </dev/null'
UPLOAD = "__DATA_FETCH__"
STOP_GRACE_S = 10
log = logging.getLogger(__name__)
SERVER_VARIABLES = ("PYTHONPATH", "PYTHONUNBUFFERED", "GALAXY_CONFIG_FILE")
NO_EXIT_CODE = (
    "The job ended without an exit code: it was killed (often for want of memory), or this computer was switched off. "
    "Run it again; with less memory at hand, choose a smaller box or fewer workers."
)


class DetachedJobRunner(AsynchronousJobRunner[AsynchronousJobState]):
    """Run every job as a session of its own and follow it by its process id and the file with its exit code."""

    runner_name = "DetachedRunner"

    def __init__(self, app, nworkers, **kwargs):
        super().__init__(app, nworkers, **kwargs)
        self._processes = {}  # of this server's life, so that ended jobs leave no zombies

    def start(self):
        """Start the threads, and take over the uploads that the end of the last server cut off.

        Galaxy runs uploads as tasks in its own memory (a process of their own would import Galaxy for ten seconds each).
        What is left of them in the database becomes a job of this runner.
        """
        super().start()
        states, job = model.Job.states, model.Job
        unfinished = job.state.in_((states.NEW, states.QUEUED, states.RUNNING))
        in_memory = or_(job.job_runner_name.is_(None), job.job_runner_name == "celery")
        with self.app.model.session() as session, session.begin():
            for upload in session.scalars(select(job).where(job.tool_id == UPLOAD, unfinished, in_memory)):
                upload.handler = self.app.config.server_name
                upload.job_runner_name = upload.job_runner_external_id = None
                upload.set_state(states.NEW)

    def queue_job(self, job_wrapper):
        """Write a job's script and start it."""
        shutil.rmtree(
            job_wrapper.working_directory
        )  # a preparation that was cut off left what another fails on
        job_wrapper._setup_working_directory()
        if not self.prepare_job(job_wrapper, include_metadata=False):
            return
        state = _state(job_wrapper, None)
        slots = int(job_wrapper.job_destination.params.get("local_slots", 1))
        script = self.get_job_file(
            job_wrapper,
            exit_code_path=state.exit_code_file,
            shell=job_wrapper.shell,
            slots_statement=f'GALAXY_SLOTS="{slots}"; export GALAXY_SLOTS; GALAXY_SLOTS_CONFIGURED="1"; '
            "export GALAXY_SLOTS_CONFIGURED;",
            # Galaxy's own tools need its environment; others must find theirs
            galaxy_virtual_env=sys.prefix if _is_galaxys(job_wrapper) else "None",
        )
        self.write_executable_script(state.job_file, script, job_io=job_wrapper.job_io)
        self._launch(state)

    def _launch(self, state):
        """Run a job's script once the database knows its process, so that no restart can start it a second time."""
        wrapper = state.job_wrapper
        keep = () if not _is_galaxys(wrapper) else ("PYTHONPATH",)  # Galaxy's tools load our datatypes
        environment = {k: v for k, v in os.environ.items() if k not in SERVER_VARIABLES or k in keep}
        with Path(state.output_file).open("wb") as stdout, Path(state.error_file).open("wb") as stderr:
            process = subprocess.Popen(
                ["/bin/sh", "-c", GATE, state.job_file],
                cwd=wrapper.working_directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        with process.stdin as gate:
            self._processes[process.pid] = process
            state.job_id = _identity(process.pid)
            wrapper.set_external_id(state.job_id)
            if wrapper.get_state() not in (model.Job.states.DELETED, model.Job.states.STOPPED):
                wrapper.change_state(model.Job.states.RUNNING)
                gate.write(b"go\n")
        state.running = True
        self.monitor_job(state)

    def check_watched_item(self, job_state):
        """Keep watching a job that runs; hand one that has ended to the threads that collect its outputs."""
        if _alive(job_state.job_id):
            return job_state
        process = self._processes.pop(_pid(job_state.job_id), None)
        if process is not None:
            process.wait()
        if job_state.job_wrapper.get_state() == model.Job.states.DELETING:
            return job_state  # until Galaxy has noted it as deleted: it would note a failure instead
        if _has_exit_code(job_state):
            self.work_queue.put((self._collect, job_state))
        else:
            job_state.fail_message = NO_EXIT_CODE
            self.mark_as_failed(job_state)  # a job that a person deleted is only cleaned up there
        return None

    def _collect(self, job_state):
        self._handle_metadata_externally(job_state.job_wrapper, resolve_requirements=True)
        self.finish_job(job_state)

    def stop_job(self, job_wrapper):
        """End a job that a person deleted, with everything it started; not here, where Galaxy holds its database locked."""
        external_id = job_wrapper.get_job().get_job_runner_external_id()
        if external_id and _alive(external_id):
            threading.Thread(target=_end_group, args=(_pid(external_id),), daemon=True).start()

    def recover(self, job, job_wrapper):
        """After a restart of the server: follow a job that was started before.

        One that is gone without an exit code went down with this computer. It is run once more: every stage of KBrain
        goes on where it stopped, and other tools begin anew.
        """
        state = _state(job_wrapper, job.get_job_runner_external_id())
        again = Path(state.job_file).with_suffix(".again")
        gone = not _alive(state.job_id) and not _has_exit_code(state)
        if gone and Path(state.job_file).is_file() and not again.exists():
            log.warning("(%s) Job %s is gone without an exit code: run again", job.id, state.job_id)
            again.touch()
            self.work_queue.put((self._launch, state))
        else:
            state.running = True
            self.monitor_job(state)


def _state(job_wrapper, external_id):
    return AsynchronousJobState(
        job_wrapper=job_wrapper,
        job_destination=job_wrapper.job_destination,
        files_dir=job_wrapper.working_directory,
        job_id=external_id,
    )


def _end_group(group):
    """Ask a job's processes to end, and end them when they do not."""
    try:
        os.killpg(group, signal.SIGTERM)
        for _ in range(STOP_GRACE_S * 10):
            time.sleep(0.1)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:  # nobody of the group is left
        return


def _is_galaxys(job_wrapper):
    """Whether a tool comes with Galaxy, like uploads and converters: those need Galaxy's python, all others their own."""
    tool = job_wrapper.tool
    brought = Path(galaxy.jobs.__file__).parents[1] in Path(tool.config_file or "").parents
    return brought or tool.requires_galaxy_python_environment


def _has_exit_code(state):
    """Whether a job ran to its end; a file that is empty was cut off when the computer went down."""
    file = Path(state.exit_code_file)
    return file.is_file() and file.stat().st_size > 0


def _identity(pid):
    """A process id, when it began (in the kernel's ticks) and since which boot: ids are given away again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] == "Z":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{pid}:{fields[19]}:{boot}"


def _pid(external_id):
    return int(external_id.split(":")[0])


def _alive(external_id):
    return _identity(_pid(external_id)) == external_id
