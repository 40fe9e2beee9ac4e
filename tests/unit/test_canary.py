import base64
import json
import subprocess
import sys
import time
import urllib.parse

import psutil
import pytest
from support.canary import ProcessWatch, files_with

CANARY = 'canary/ä+"secret" token-8f3a\\end'  # with what JSON, URLs and base64 write otherwise


def test_a_command_line_with_the_canary_is_found():
    code = "import time; time.sleep(30)"
    with (
        ProcessWatch(CANARY, 0.05) as watch,
        subprocess.Popen([sys.executable, "-c", code, f"--key={CANARY}"]) as child,
    ):
        deadline = time.monotonic() + 10
        while not watch.found and time.monotonic() < deadline:
            time.sleep(0.05)
        child.kill()
    assert list(watch.found) == [child.pid]
    assert watch.found[child.pid][-1] == f"--key={CANARY}"


def test_a_canary_in_the_environment_is_no_find_and_the_watch_saw_the_process():
    code = "import time; print('ready', flush=True); time.sleep(30)"
    with (
        ProcessWatch(CANARY, 0.05) as watch,
        subprocess.Popen(
            [sys.executable, "-c", code], env={"KEY": CANARY}, stdout=subprocess.PIPE
        ) as child,
    ):
        child.stdout.readline()
        before = watch.samples
        while watch.samples < before + 2:
            time.sleep(0.02)
        child.kill()
    assert not watch.found
    assert child.pid in watch.seen


def test_a_watch_that_fails_is_no_clean_run(monkeypatch):
    def broken():
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil, "process_iter", broken)
    with pytest.raises(psutil.AccessDenied), ProcessWatch(CANARY):
        pass


@pytest.mark.parametrize(
    "content",
    [
        f"before {CANARY} behind",
        json.dumps({"key": CANARY}),
        json.dumps({"key": CANARY}, ensure_ascii=False),
        json.dumps({"cell": json.dumps({"key": CANARY})}),
        urllib.parse.urlencode({"key": CANARY}),
        urllib.parse.quote(f"/{CANARY}/"),
        *(
            base64.b64encode(("x" * before + CANARY + "behind").encode()).decode()
            for before in range(6)
        ),
        *(base64.b64encode(("x" * before + CANARY).encode()).decode() for before in range(3)),
        *(
            base64.urlsafe_b64encode(("x" * before + CANARY + "?>").encode()).decode()
            for before in range(3)
        ),
    ],
)
def test_every_form_of_the_canary_is_found(tmp_path, content):
    for name, text in {
        "with.txt": f"line\n{content}\n",
        "without.txt": "canary/ secret token-8f3a",
        "empty": "",
    }.items():
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / name).write_text(text)
    assert files_with(tmp_path, CANARY.encode()) == [tmp_path / "deep" / "with.txt"]


def test_binary_files_are_searched_to_their_last_byte(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(3_000_000) + CANARY.encode())
    (tmp_path / ".hidden").write_bytes(b"\xff\xfe" + CANARY.encode() + b"\xff")
    (tmp_path / "most").write_bytes(bytes(100) + CANARY.encode()[:-1])
    assert files_with(tmp_path, CANARY.encode()) == [tmp_path / ".hidden", tmp_path / "weights"]


def test_a_file_name_is_searched(tmp_path):
    (tmp_path / "key-0123456789abcdef.log").write_text("nothing")
    assert files_with(tmp_path, b"0123456789abcdef") == [tmp_path / "key-0123456789abcdef.log"]


def test_a_short_canary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 6 bytes"):
        files_with(tmp_path, b"secret")
