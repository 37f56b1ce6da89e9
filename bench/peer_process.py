"""Peer: a child process that measures on command. Commands and answers are lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Peer:
    """A script of this folder that runs in its own process.

    Args:
      script: The file name of the script. It prints a line about itself, then one line for each line that it reads.
      arguments: The command-line arguments of the script.

    Attributes:
      told: The script's first line, parsed.
    """

    def __init__(self, script: str, *arguments: str):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.told = self._answer()

    def ask(self, command: object) -> dict[str, Any]:
        """Sends a command and returns the answer.

        Raises:
          RuntimeError: The process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self._process.args} ended with status {status}:\n{self._errors.read()[-2000:]}")
        return json.loads(line)
