"""A serving engine to read: batching strategies, caches and attention behind small interfaces."""
