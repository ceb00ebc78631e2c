"""The emulator of CUDA GPUs, and its build."""
