"""`carzero app`: where it listens, what it says, how it fails."""

from __future__ import annotations

import builtins
import socket
import sys
import threading

import pytest

from carzero.app import server, view
from carzero.cli import main


class Fake:
    url, closed = "http://somewhere:1/", False

    def close(self):
        self.closed = True


@pytest.fixture
def started(monkeypatch):
    """What the command serves instead of a page; it is interrupted at once."""
    fake, asked = Fake(), {}

    def serve(desk, **options):
        asked.update(options)
        return fake

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    return fake, asked


def test_only_this_machine_unless_asked(weights, started, capsys):
    assert main(["app", "--weights", str(weights)]) == 0
    fake, asked = started
    assert asked == {"host": "127.0.0.1", "port": 7860}
    assert fake.closed
    said = capsys.readouterr()
    assert said.out == "carzero app: http://somewhere:1/ (Ctrl+C ends it). Not a medical device.\n"
    assert "warning" not in said.err


def test_another_host_is_warned_of(weights, started, capsys):
    assert main(["app", "--weights", str(weights), "--host", "0.0.0.0"]) == 0
    assert started[1]["host"] == "0.0.0.0"
    assert "every machine that reaches this one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.2", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback(host, loopback):
    assert server.is_loopback(host) is loopback


def test_the_page_says_where_radiographs_go(desk):
    local, open_to_all = view.header(desk, local=True), view.header(desk, local=False)
    assert "Nothing leaves this machine." in local
    assert "Nothing leaves" not in open_to_all
    assert "Served to the network." in open_to_all
    for shown in (local, open_to_all):
        assert "Not a medical device." in shown


def test_wrong_input_is_one_sentence(weights, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gradio", reason="browser: gradio is not installed: pip install 'carzero[app]'")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (["--weights", str(weights), "--port", port], f"The port {port} of 127.0.0.1 cannot be listened on"),
            (["--weights", str(weights), "--host", "203.0.113.7", "--port", "0"], "203.0.113.7 cannot be listened on"),
            (["--weights", str(weights), "--port", "70000"], "--port lies between 0 and 65535"),
            (["--weights", str(tmp_path / "no")], "there is no folder or file"),
            (["--weights", str(weights), "--reference", str(tmp_path / "no.json")], "There is no reference of scores"),
            (["--weights", str(weights), "--device", "tpu9"], "device"),
        ]
        for arguments, sentence in cases:
            assert main(["app", *arguments]) == 2, arguments
            said = capsys.readouterr()
            assert sentence in said.err
            assert said.err.startswith("carzero app: ")
            assert "Traceback" not in said.err
            assert said.out == ""


def test_without_gradio_the_way_out_is_said(weights, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "gradio":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    assert main(["app", "--weights", str(weights)]) == 2
    assert "pip install 'carzero[app]'" in capsys.readouterr().err
