"""What commands print can stop nothing, and signals stop them well."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from lae_fast import console

HEAD = "import os, signal, sys\nfrom lae_fast import console\n"


def command(body):
    """Run `console.run` with this body, which is a few lines of Python."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = (
        f"{HEAD}def body():\n{lines}    return 0\nsys.exit(console.run(body, (ValueError,), 'stopped here'))"
    )
    return [sys.executable, "-c", code]


def run_apart(body, **options):
    return subprocess.run(command(body), capture_output=True, text=True, timeout=60, **options)


def test_a_closed_pipe_stops_nothing(tmp_path):
    """The reader goes after the first line; all work is done, and nobody complains."""
    read, write = os.pipe()
    gate, release = os.pipe()
    body = f"""
console.say("one")
os.read({gate}, 1)
for _ in range(99):
    console.say("x" * 9999)
open({str(tmp_path / "done")!r}, "w").close()
"""
    process = subprocess.Popen(
        command(body), stdout=write, stderr=subprocess.PIPE, pass_fds=[gate], text=True
    )
    os.close(write)
    with open(read, "rb", buffering=0) as pipe:
        assert pipe.readline() == b"one\n"
    os.write(release, b"x")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_takes_every_line(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    result = run_apart("console.say('5 ± 1')\nprint('→')", env=environment, encoding=encoding)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("5 \\xb1 1" if encoding == "ascii" else "5 ± 1")


def test_streams_are_left_as_they_were():
    code = f"{HEAD}console.run(lambda: 0, (), '')\nprint(sys.stdout.errors, sys.stderr.errors)"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:replace"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "replace backslashreplace\n"


def test_a_stream_of_one_s_own_is_escaped_too():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console.say("±", stream)
    assert stream.buffer.getvalue() == b"\\xb1\n"


def test_closed_and_missing_streams(monkeypatch):
    stream = io.StringIO()
    stream.close()
    console.say("nobody hears this", stream)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    console.say("nor this")
    console.complain("nor this")
    assert console.run(lambda: 0, (), "") == 0


def test_errors_are_one_line_and_faults_keep_their_traceback():
    result = run_apart("raise ValueError('two\\nlines')")
    assert (result.returncode, result.stderr) == (2, "error: two lines\n")
    assert "Traceback" in run_apart("raise KeyError('ours')").stderr


def test_a_text_that_nobody_reads_to_its_end_is_no_error():
    result = run_apart("raise BrokenPipeError(32, 'Broken pipe')")
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_codes_of_their_own(number, code):
    result = run_apart(f"os.kill(os.getpid(), {int(number)})\nsignal.pause()")
    assert (result.returncode, result.stderr) == (code, "stopped here\n")


def test_what_the_shell_ignores_stays_ignored():
    result = run_apart(
        "os.kill(os.getpid(), signal.SIGINT)\nprint(7)",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "7\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number):
    before = [signal.getsignal(s) for s in console.SIGNALS]

    def body():
        with console.Interrupt() as interrupt:
            assert interrupt.requested == 0
            os.kill(os.getpid(), number)
            assert interrupt.requested == number
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        return 128 + interrupt.requested

    assert console.run(body, (), "") == 128 + number
    assert [signal.getsignal(s) for s in console.SIGNALS] == before


def test_off_the_main_thread_there_are_no_handlers():
    codes = []

    def work():
        with console.Interrupt():
            codes.append(console.run(lambda: 7, (), ""))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [7]
