"""What programs print when memory runs out or their device is gone: patterns, as data.

Each is a regular expression over one line, upper and lower case alike, beside where it is from.
"""

from __future__ import annotations

import re

import msgspec

# The order matters within a line only: a lost device is told before memory, host before device.
_DEVICE_LOST = (
    # NVML, nvmlErrorString(NVML_ERROR_GPU_IS_LOST); nvidia-smi prints it too.
    r"\bGPU is lost\b|NVML_ERROR_GPU_IS_LOST",
    # The kernel driver's words for XID 79, which vendors' tools repeat.
    r"GPU has fallen off the bus",
    # CUDA, cudaErrorECCUncorrectable (214): string of cudaGetErrorString, and both names.
    r"uncorrectable (?:NVLink|ECC) error|cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE",
    # CUDA, cudaErrorNvlinkUncorrectable (220).
    r"cudaErrorNvlinkUncorrectable|CUDA_ERROR_NVLINK_UNCORRECTABLE",
    # CUDA, cudaErrorNoDevice (100): a pinned process that saw its device before has lost it.
    r"no CUDA-capable device is detected|cudaErrorNoDevice\b|CUDA_ERROR_NO_DEVICE\b",
    # HIP, hip_runtime_api.h: hipErrorNoDevice (100) and its string.
    r"hipErrorNoDevice\b|no ROCm-capable device is detected",
    # HIP, hip_runtime_api.h: hipErrorECCNotCorrectable (214).
    r"hipErrorECCNotCorrectable",
    # Level Zero, ze_api.h: the device hung, was reset or removed.
    r"(?:ZE|UR)_RESULT_ERROR_DEVICE_LOST",
    # Vulkan 1.0, VkResult -4, as C, as vulkan.hpp and as wgpu print it.
    r"VK_ERROR_DEVICE_LOST|\bErrorDeviceLost\b|\bvk::DeviceLostError\b|\bParent device is lost\b",
    # exo.gpu.vocabulary.errors.
    r"\bexo\.gpu\.vocabulary\.errors\.DeviceLost\b",
    # Direct3D 12, winerror.h.
    r"DXGI_ERROR_DEVICE_(?:REMOVED|HUNG|RESET)",
)

_OUT_OF_HOST_MEMORY = (
    # Vulkan 1.0, VkResult -1, as C and as vulkan.hpp print it.
    r"VK_ERROR_OUT_OF_HOST_MEMORY|\bErrorOutOfHostMemory\b",
    # Level Zero and Unified Runtime, ze_api.h and ur_api.h.
    r"(?:ZE|UR)_RESULT_ERROR_OUT_OF_HOST_MEMORY",
    # PyTorch, c10/core/impl/alloc_cpu.cpp.
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)",
    # NumPy, numpy/_core/_exceptions.py.
    r"\b_ArrayMemoryError\b",
    # C++, what() of the exception in libstdc++ and libc++.
    r"\bstd::bad_alloc\b",
    # glibc, strerror(ENOMEM).
    r"\bCannot allocate memory\b",
    # CPython; a class of a module with this name of its own (a vendor's) is judged below.
    r"^(?:builtins\.)?MemoryError\b",
    # The Go runtime, runtime/malloc.go.
    r"^fatal error: (?:runtime: )?(?:cannot allocate memory|out of memory)",
    # Rust, library/std/src/alloc.rs.
    r"^memory allocation of \d+ bytes failed",
    # The Java virtual machine.
    r"java\.lang\.OutOfMemoryError",
)

_OUT_OF_DEVICE_MEMORY = (
    # PyTorch, c10/cuda/CUDACachingAllocator.cpp, the same for HIP, c10/xpu, and MPSAllocator.mm.
    r"\b(?:CUDA|HIP|XPU|MPS backend) out of memory\b",
    # PyTorch, the exception's class; before 2.5 in torch.cuda.
    r"\btorch(?:\.cuda)?\.OutOfMemoryError\b",
    # CuPy, cupy/cuda/memory.pyx.
    r"\bcupy[\w.]*\.OutOfMemoryError\b|Out of memory allocating [\d,]+ bytes",
    # XLA under JAX and TensorFlow, absl's status code with xla/service or BFC allocator's words.
    r"RESOURCE_EXHAUSTED: .*(?:memory|alloc|OOM)|Resource exhausted: .*(?:memory|OOM)",
    # TensorFlow, core/framework/op_kernel.cc.
    r"OOM when allocating tensor",
    # CUDA, cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY (2), names and string.
    r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|cudaMalloc failed: out of memory",
    r"\bCUDA(?: driver| runtime)? ?(?:error|failure)\b.*\bout of memory\b",
    # cuBLAS, cublas_api.h; cuDNN, cudnn_graph.h.
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    # HIP, hip_runtime_api.h: hipErrorOutOfMemory (2), also called hipErrorMemoryAllocation.
    r"hipErrorOutOfMemory|hipErrorMemoryAllocation|\bHIP error\b.*\bout of memory\b",
    # rocBLAS, rocblas-types.h.
    r"rocblas_status_memory_error",
    # Level Zero and Unified Runtime under SYCL, ze_api.h and ur_api.h.
    r"(?:ZE|UR)_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    # OpenCL, cl.h: CL_MEM_OBJECT_ALLOCATION_FAILURE (-4).
    r"CL_MEM_OBJECT_ALLOCATION_FAILURE",
    # Vulkan 1.0, VkResult -2, as C and as vulkan.hpp print it; ggml's own words.
    r"VK_ERROR_OUT_OF_DEVICE_MEMORY|\bErrorOutOfDeviceMemory\b",
    r"ggml_\w+: .*memory allocation of size \d+ failed",
    # Metal, MTLCommandBufferErrorOutOfMemory.
    r"kIOGPUCommandBufferCallbackErrorOutOfMemory",
    # exo.gpu.vocabulary.errors.
    r"\bexo\.gpu\.vocabulary\.errors\.OutOfDeviceMemory\b",
)


class Patterns(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for in a line, in this order; a program may print more than one of them."""

    device_lost: tuple[str, ...] = ()
    """Beside the known ones."""
    out_of_memory: tuple[str, ...] = ()
    """Of the device, beside the known ones."""

    def find(self, line: str) -> str | None:
        """``device_lost``, ``out_of_host_memory`` or ``out_of_device_memory``; None: none of them.

        Raises:
            re.error: for a pattern of its own that is no regular expression.

        """
        for kind, pattern in _compiled(self):
            if pattern.search(line):
                return kind
        return None


_KINDS = {
    "device_lost": _DEVICE_LOST,
    "out_of_host_memory": _OUT_OF_HOST_MEMORY,
    "out_of_device_memory": _OUT_OF_DEVICE_MEMORY,
}
_CACHE: dict[Patterns, tuple[tuple[str, re.Pattern[str]], ...]] = {}


def _compiled(patterns: Patterns) -> tuple[tuple[str, re.Pattern[str]], ...]:
    if patterns not in _CACHE:
        own = {
            "device_lost": patterns.device_lost,
            "out_of_device_memory": patterns.out_of_memory,
        }
        asked = [(kind, one) for kind in own for one in own[kind]]
        known = [(kind, one) for kind in _KINDS for one in _KINDS[kind]]
        _CACHE[patterns] = tuple(
            (kind, re.compile(one, re.IGNORECASE)) for kind, one in (*asked, *known)
        )
    return _CACHE[patterns]
