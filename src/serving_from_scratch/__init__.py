"""Serves language models: batching, caches and attention behind small interfaces, to read."""
