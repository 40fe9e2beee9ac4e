"""Makes one candidate in a process of its own, whose memory is free when the process ends.

    python -m model_serve_flow.compress.main JOB.json
    torchrun --nproc-per-node 4 -m model_serve_flow.compress.main JOB.json

The answer is a file that the job names. torchrun starts one process for each GPU. Each reads its
share of the calibration texts, and the first one saves and records the candidate.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from datasets import load_from_disk
from llmcompressor.logger import LoggerConfig, configure_logger

from model_serve_flow.compress.apart import Answer, Job
from model_serve_flow.compress.compression import adopt, assist, compress, generate_sample
from model_serve_flow.compress.quantise import is_first, join, with_texts
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system import interrupts, processes


def do(job: Job) -> Answer:
    """Makes or adopts the candidate; for the base, only asks for a sample."""
    flow = Flow(job.config, Workspace(job.workspace))
    if job.name == "base":
        trust = job.config.model.trust_remote_code
        folder = flow.workspace.model("base")
        return Answer(sample=generate_sample(folder, trust_remote_code=trust))
    if flow.config.candidate(job.name).recipe is None:
        adopt(flow, job.name)
        return Answer()
    quantise = with_texts(load_from_disk(job.dataset) if job.dataset else None)
    join()
    if is_first():
        compress(flow, job.name, quantise, job.calibration)
    else:
        assist(flow, job.name, quantise)
    return Answer()


def cause(error: BaseException) -> str:
    """Returns the first exception of a chain, and the last one if it is another."""
    chain = [error]
    while (earlier := chain[0].__cause__ or chain[0].__context__) is not None:
        chain.insert(0, earlier)
    texts = [f"{type(link).__name__}: {str(link).strip()}" for link in (chain[0], error)]
    return "\nThat led to: ".join(dict.fromkeys(texts))


def main(job_file: str) -> int:
    """Does the job; returns the exit status."""
    processes.end_when_orphaned()
    configure_logger(LoggerConfig(console_log_level="ERROR"))
    job = Job.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
    try:
        with interrupts.raised():
            answer = do(job)
    except FlowError as error:
        answer = Answer(problem=error.problem, hint=error.hint)
    except Exception as error:
        traceback.print_exc()
        answer = Answer(problem=f"{cause(error)}", unexpected=True)
    if answer.problem or is_first():
        answer.write(job.answer)
    return 1 if answer.problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
