"""Run the `<tests>` of tools on a Galaxy server with Galaxy's own test code.

    <Galaxy's python> tool_tests.py

The request comes on stdin as JSON (url, key, tools, parallel), so that no key stands on a command line; every result goes to
stdout as a line of JSON as soon as it is there. What Galaxy's code logs goes to stderr.
"""

import json
import logging
import os
import sys

# How long a test waits for a job; Galaxy's code would wait a day for one that is paused. It is read at import.
os.environ.setdefault("GALAXY_TEST_DEFAULT_WAIT", "600")

from galaxy.tool_util.verify.interactor import GalaxyInteractorApi
from galaxy.tool_util.verify.script import Results, TestReference, test_tools


class PrintedResults(Results):
    """Results that are told one by one."""

    def register_result(self, result):
        """Tell how a test went."""
        tool, _, version_and_index = result["id"].partition("/")
        data = result["data"]
        problems = data.get("output_problems") or [data.get("execution_problem")]
        tell(
            tool=tool,
            index=int(version_and_index.rpartition("-")[2]),
            status=data["status"],
            seconds=data.get("time_seconds"),
            problem=" ".join(str(problem) for problem in problems if problem),
            job=(data.get("job") or {}).get("stderr") or "",
        )

    def register_exception(self, test_exception):
        """Tell what went wrong before a test could say it itself."""
        if not test_exception.was_recorded:
            tell(
                tool=test_exception.tool_id,
                index=-1,
                status="error",
                seconds=None,
                problem=str(test_exception),
                job="",
            )

    def write(self):
        """Nothing more: all was told."""


def tell(**result):
    """Write a line of JSON to stdout."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main():
    """Read the request and run the tests that it names."""
    request = json.load(sys.stdin)
    log = logging.getLogger("tool_tests")
    logging.basicConfig(level=logging.INFO)
    server = GalaxyInteractorApi(
        galaxy_url=request["url"],
        api_key=request["key"],
        master_api_key=None,
        keep_outputs_dir=None,
        download_attempts=3,
        download_sleep=1,
    )
    references = [
        TestReference(tool, test.get("tool_version"), index)
        for tool in request["tools"]
        for index, test in enumerate(server.get_tool_tests(tool))
    ]
    tell(total=len(references))
    test_tools(
        server,
        references,
        PrintedResults("KBrain", "-", galaxy_url=request["url"]),
        log=log,
        parallel_tests=request["parallel"],
        history_name="KBrain: tests of tools",
        no_history_reuse=True,
        verify_kwds={"quiet": True},
    )


if __name__ == "__main__":
    main()
