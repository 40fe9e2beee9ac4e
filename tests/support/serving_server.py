"""A server of the teaching engine as a user starts it: by its command line."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
START_SECONDS = 120
COMMAND = (sys.executable, "-m", "serving_from_scratch.cli")


def write_tokenizer(folder):
    """Writes a tokenizer of 512 tokens over bytes, with ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [__doc__, os.__doc__, subprocess.__doc__, psutil.__doc__] * 2,
        trainer,
    )
    assert tokenizer.get_vocab_size() == 512
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)


@dataclass
class Running:
    """A running server."""

    popen: subprocess.Popen
    process: psutil.Process
    url: str
    log: object
    client: httpx.Client

    @property
    def worker(self) -> psutil.Process:
        """The process that computes."""
        [worker] = self.process.children()
        return worker

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def generate(self, prompt, max_tokens=16, **other):
        reply = self.post(
            "/generate",
            prompt=prompt,
            max_tokens=max_tokens,
            ignore_eos=True,
            **other,
        )
        assert reply.status_code == 200, reply.text
        return reply.json()["answers"]

    def metric(self, name):
        lines = self.client.get("/metrics").text.splitlines()
        start = f"serving_from_scratch_{name} "
        return float(next(line for line in lines if line.startswith(start)).split()[1])

    def idle(self):
        return self.metric("requests_running") == self.metric("requests_waiting") == 0

    def wait_until(self, condition, seconds=60.0):
        return wait_until(condition, seconds)

    def healthy(self):
        return self.client.get("/health").status_code == 200

    def exit_code(self, seconds=30):
        return self.popen.wait(seconds)


def wait_until(condition, seconds=60.0):
    """Waits for a condition, and returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


def gone(process):
    """Whether a process has ended; a zombie has, only nobody has asked yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@contextmanager
def running(folder, log, *options, key="", name="tiny", precision="float32"):
    """Starts a server on a free port, and ends it by SIGTERM unless the test has ended it."""
    fixed = f"--port 0 --name {name} --precision {precision}".split()
    variables = {"SERVING_FROM_SCRATCH_API_KEY": key}
    with started(log, variables, "serve", str(folder), *fixed, *options) as server:
        yield server


@contextmanager
def started(log, variables, *command):
    """Starts a command that says its address; its API key is in `variables`."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, *command], stdout=output, stderr=output, env=variables
        )
    try:
        url = wait_for_url(process, log)
        key = variables["SERVING_FROM_SCRATCH_API_KEY"]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
            yield Running(process, psutil.Process(process.pid), url, log, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


def wait_for_url(process, log, before=" at "):
    """Waits until the log names an address, and returns it."""
    deadline = time.monotonic() + START_SECONDS
    while f"{before}http" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return log.read_text().split(before)[1].split()[0]
