"""Tests that run CUDA kernels on the emulator."""
