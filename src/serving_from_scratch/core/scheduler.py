"""Decides which request runs, waits, loses its place, or has ended."""

from collections.abc import Collection

from serving_from_scratch.core.batching import BatchingStrategy, Budget, Plan
from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.limits import check_length
from serving_from_scratch.core.memory import Memory
from serving_from_scratch.core.proposers import UNKNOWN, NoProposer, Proposer
from serving_from_scratch.core.request import FinishReason, Request, Sequence, Status
from serving_from_scratch.core.step import Chunk, Outcome, Step, StepResult
from serving_from_scratch.core.stopping import finish_reason

NO_PROPOSER = NoProposer()


class Scheduler:
    """Turns requests into steps, and the results of steps into answers.

        scheduler.submit(request)
        while step := scheduler.schedule(now):
            for sequence in scheduler.update(step, executor.step(step)):
                ...  # has a new token, or has ended

    Only one thread may use it. `finish` may be called between a step and its update.

    Args:
        strategy: decides who computes next.
        memory: gives places in the cache.
        places: how many sequences may run at once.
        step_tokens: how many tokens a step should compute.
        eos: the end-of-sequence tokens.
        proposer: guesses tokens of decoding sequences.
    """

    def __init__(
        self,
        strategy: BatchingStrategy,
        memory: Memory,
        places: int,
        step_tokens: int = 8192,
        eos: Collection[int] = (),
        proposer: Proposer = NO_PROPOSER,
    ) -> None:
        if strategy.chunks and not memory.keeps:
            raise ServingError(
                f"{type(strategy).__name__} splits prompts; {type(memory).__name__} keeps nothing.",
                "Take a cache, or a strategy that computes prompts whole.",
            )
        self.strategy = strategy
        self.memory = memory
        self.places = places
        self.step_tokens = step_tokens
        self.eos = frozenset(eos)
        self.proposer = proposer
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def submit(self, request: Request) -> Sequence:
        """Queues a request; raises InvalidRequest if the cache cannot hold it."""
        check_length(request, self.memory.capacity)
        sequence = Sequence(request)
        self.waiting.append(sequence)
        return sequence

    def schedule(self, now: float = 0.0) -> Step | None:
        """Plans the next step; None if nothing runs or the strategy prefers to wait."""
        budget = Budget(self.places - len(self.running), self.step_tokens, now)
        plan = self.strategy.plan(tuple(self.waiting), tuple(self.running), budget)
        joining = [sequence for sequence in plan if sequence.status is Status.WAITING]
        chosen = self._grow_running(plan)
        if chosen.keys() | joining == plan.keys():  # nobody overtakes a preempted sequence
            self._admit_waiting(plan, joining, chosen)
        chunks, room = [], self._limit - sum(chosen.values())
        for sequence, tokens in chosen.items():
            chunks.append(self._chunk(sequence, tokens, room))
            room -= chunks[-1].guesses
        return Step(tuple(chunks), self.memory.take_copies()) if chunks else None

    def update(self, step: Step, result: StepResult) -> list[Sequence]:
        """Takes a step's result; returns the sequences that have a new token or have ended."""
        running = {sequence.request.id: sequence for sequence in self.running}
        changed = []
        for chunk, outcome in zip(step.chunks, result.outcomes, strict=True):
            sequence = running.get(chunk.request)  # None if it ended during the step
            if sequence is not None and self._take(sequence, chunk, outcome):
                changed.append(sequence)
        return changed

    def finish(self, request_id: str, reason: FinishReason) -> Sequence | None:
        """Ends a request at once: its client left, or its text contains a stop text."""
        for sequence in (*self.running, *self.waiting):
            if sequence.request.id == request_id:
                self._end(sequence, reason)
                return sequence
        return None

    def expire(self, now: float) -> list[Sequence]:
        """Ends the requests whose deadline has passed, and returns them."""
        late = [s for s in (*self.running, *self.waiting) if s.request.deadline <= now]
        for sequence in late:
            self._end(sequence, FinishReason.DEADLINE)
        return late

    def restart(self) -> None:
        """Preempts all running requests, because the cache was lost."""
        while self.running:
            self._preempt(self.running[-1])
        self.memory.forget()

    @property
    def _limit(self) -> int:
        """How many tokens a step may compute, guesses included."""
        return min(self.step_tokens, getattr(self.strategy, "tokens", self.step_tokens))

    def _grow_running(self, plan: Plan) -> Plan:
        """Makes room for running sequences; if there is none, preempts the youngest."""
        chosen: Plan = {}
        for sequence, tokens in plan.items():
            while sequence.status is Status.RUNNING:
                if self.memory.grow(sequence, tokens):
                    chosen[sequence] = tokens
                    break
                chosen.pop(self.running[-1], None)
                self._preempt(self.running[-1])
        return chosen

    def _admit_waiting(self, plan: Plan, joining: list[Sequence], chosen: Plan) -> None:
        """Admits waiting sequences in the plan's order, until there is no place for one."""
        for sequence in joining:
            if not self.memory.admit(sequence, plan[sequence]):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.status = Status.RUNNING
            chosen[sequence] = min(plan[sequence], sequence.pending)

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a sequence's place; the sequence then waits in front and computes again."""
        self.running.remove(sequence)
        self.memory.release(sequence)
        if not sequence.decoding:
            sequence.prompt_logprobs.clear()
        sequence.status = Status.WAITING
        sequence.preemptions += 1
        self.waiting.insert(0, sequence)

    def _chunk(self, sequence: Sequence, tokens: int, room: int) -> Chunk:
        request, start = sequence.request, sequence.computed
        end = start + tokens
        whole = end == len(sequence.tokens)
        guesses = self._guess(sequence, room) if whole and sequence.decoding else ()
        wanted = request.sampling.prompt_logprobs is not None
        missing = len(sequence.prompt_logprobs) <= start  # else known from before a preemption
        return Chunk(
            request=request.id,
            slot=sequence.slot,
            start=start,
            tokens=(*sequence.tokens[start:end], *guesses),
            sample=whole and not request.embed and request.sampling.max_tokens > 0,
            sampling=request.sampling,
            seed=sequence.seed,
            targets=request.prompt[start + 1 : end + 1] if wanted and missing else (),
            blocks=tuple(sequence.blocks),
            embed=whole and request.embed,
            guesses=len(guesses),
            answer=tuple(sequence.generated) if request.sampling.grammar else (),
            text=tuple(sequence.tokens) if UNKNOWN in guesses else (),
        )

    def _guess(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        """Guesses tokens, at most as many as answer, step and cache have room for."""
        left = sequence.request.sampling.max_tokens - len(sequence.generated) - 1
        most = max(0, min(left, room))
        if not most or sequence.guessing.rests():
            return ()
        guesses = tuple(self.proposer.propose(sequence.tokens))[:most]
        return guesses if self.memory.grow(sequence, sequence.pending + len(guesses)) else ()

    def _take(self, sequence: Sequence, chunk: Chunk, outcome: Outcome) -> bool:
        """Adds an outcome to its sequence; returns whether the client gets anything new."""
        if outcome.error:
            sequence.error = outcome.error
            self._end(sequence, FinishReason.ERROR)
            return True
        sequence.prompt_logprobs.extend(outcome.prompt_logprobs)
        if chunk.end < len(sequence.tokens):  # inside its prompt
            self.memory.advance(sequence, chunk.end)
            return False
        sequence.embedding = outcome.embedding
        right = max(0, len(outcome.tokens) - 1)
        if chunk.guesses:
            sequence.guessing.learn(chunk.guesses, right, self.proposer.cost)
        reason = self._append(sequence, outcome)
        self.memory.advance(sequence, chunk.end - chunk.guesses + right)
        if reason:
            self._end(sequence, reason)
        return True

    def _append(self, sequence: Sequence, outcome: Outcome) -> FinishReason | None:
        """Adds new tokens up to the end of the answer; returns why it ends, or None."""
        reason = FinishReason.STOP if sequence.request.embed else None
        before = len(sequence.tokens)
        for token in outcome.tokens:
            sequence.tokens.append(token)
            if reason := finish_reason(sequence, self.eos):
                break
        sequence.logprobs.extend(outcome.logprobs[: len(sequence.tokens) - before])
        return reason or finish_reason(sequence, self.eos)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.memory.release(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason
