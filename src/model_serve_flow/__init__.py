"""Benchmark a base LLM, compress it, measure again, decide with evidence, deploy."""
