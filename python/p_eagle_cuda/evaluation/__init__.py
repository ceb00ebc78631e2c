"""Acceptance on a running vLLM server: `p-eagle-cuda eval`."""
