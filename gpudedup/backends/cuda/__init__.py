"""The CUDA backend: sign, match and verify on one NVIDIA GPU, bit for bit as on the CPU."""
