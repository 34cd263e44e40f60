"""A whole node as a person starts it: `unetx-opt serve` in processes of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetx_opt.bundle.write import staged_bundle, write_bundle
from unetx_opt.node.deliveries import count_deliveries
from unetx_opt.node.journal import JOURNAL_NAME, connect_journal


def write_threshold_bundle(path: Path) -> Path:
    """A bundle whose mask is a threshold of the image; made as the tests of the runtime make theirs."""
    source = Path(__file__).resolve().parent.parent / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tests_toolkit_runtime_conftest", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = module.threshold_graph().SerializeToString()
    with staged_bundle(path) as directory:
        records = [module._write_engine(directory, "onnxruntime-cpu", data)]
        write_bundle(directory, module._manifest(records, 1, None))
    return path


@dataclass
class ServedNode:
    """`unetx-opt serve`, its configuration, and what it logged.

    Attributes
    ----------
    folder : pathlib.Path
        Of configuration, state and log.
    bundle : pathlib.Path
        What it segments with.
    port, http_port : int
        What it listens to.
    destinations : str
        TOML of its destinations.
    extra : str
        More TOML, before them.
    """

    folder: Path
    bundle: Path
    port: int
    http_port: int
    destinations: str
    extra: str = ""
    ae_title: str = "NODE"
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, *, wait: bool = True, peers: Any = None) -> None:
        """Start it; wait until it takes images."""
        config = self.folder / "node.toml"
        config.write_text(
            f'state = "state"\nae_title = "{self.ae_title}"\nport = {self.port}\n'
            'calling_ae_titles = ["CR1", "PACS"]\npeer_addresses = ["127.0.0.1"]\n'
            f"{self.extra}\n[http]\nport = {self.http_port}\npage = true\n{self.destinations}",
            encoding="utf-8",
        )
        before = self.log.count('"message": "NODE listens') if (self.folder / "log").exists() else 0
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "unetx_opt.cli.main", "serve", str(self.bundle), "--config", str(config)],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        if wait:
            peers.wait_until(
                lambda: self.log.count('"message": "NODE listens') > before or self.process.poll() is not None,
                "the node listens",
                60.0,
            )
            assert self.process.poll() is None, self.log

    def stop(self) -> int:
        """End it as a service manager does; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.process = None
        return code

    def kill(self) -> None:
        """End it as nothing should."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def get(self, path: str) -> Any:
        """What it answers over HTTP, as JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def receipts(self) -> list[tuple[str, str, str]]:
        """SOP Instance UID, state and reason of every receipt."""
        with contextlib.closing(connect_journal(self.state / JOURNAL_NAME)) as journal:
            return journal.execute(
                "SELECT sop_instance_uid, state, reason FROM receipts ORDER BY received_at"
            ).fetchall()

    def state_of(self, sop_instance_uid: str) -> str | None:
        """State of the receipt of an image; None where there is none."""
        return {uid: state for uid, state, _ in self.receipts()}.get(sop_instance_uid)

    def children(self, role: str) -> list[int]:
        """Process ids of its processes of one kind."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        found = [int(number) for number in listed.split()]
        return [one for one in found if f'"{role}"' in Path(f"/proc/{one}/cmdline").read_text()]

    def states(self) -> dict[tuple[str, str], int]:
        """How many deliveries there are by destination and state."""
        with contextlib.closing(connect_journal(self.state / JOURNAL_NAME)) as journal:
            return dict(count_deliveries(journal))
