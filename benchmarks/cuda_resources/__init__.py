"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, occupancy, the width of memory accesses.

python -m benchmarks.cuda_resources --help
"""
