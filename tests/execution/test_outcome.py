"""What the end of an attempt means: by its exit, its exception, its text, the kernel's count."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.execution.memory_kills import MemoryKills
from exo.gpu.execution.out_of_memory import Patterns
from exo.gpu.execution.outcome import Evidence, classify, oom_kills
from exo.gpu.vocabulary.job import Cause

DEVICE = Cause.OUT_OF_DEVICE_MEMORY
HOST = Cause.OUT_OF_HOST_MEMORY
LOST = Cause.DEVICE_LOST

PRINTED = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", DEVICE),
    ("torch.cuda.OutOfMemoryError: HIP out of memory. Tried to allocate 20.00 MiB", DEVICE),
    ("torch.OutOfMemoryError: XPU out of memory. Tried to allocate 4.66 GiB.", DEVICE),
    ("RuntimeError: MPS backend out of memory (MPS allocated: 12.74 GB, other", DEVICE),
    ("RuntimeError: CUDA error: out of memory", DEVICE),
    ("cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,589,934,592 bytes", DEVICE),
    ("jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while", DEVICE),
    ("RuntimeError: Resource exhausted: Out of memory while trying to allocate 12 bytes", DEVICE),
    ("ResourceExhaustedError: OOM when allocating tensor with shape[64,1024]", DEVICE),
    ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", DEVICE),
    ("failed call to cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory", DEVICE),
    ("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", DEVICE),
    ("error: hipErrorOutOfMemory (2) at main.cpp:12", DEVICE),
    ("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", DEVICE),
    ("ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory", DEVICE),
    ("vkAllocateMemory: VK_ERROR_OUT_OF_DEVICE_MEMORY", DEVICE),
    ("exo.gpu.vocabulary.errors.OutOfDeviceMemory: cuda:0 holds no more", DEVICE),
    ("vkAllocateMemory: VK_ERROR_OUT_OF_HOST_MEMORY", HOST),
    ("MemoryError", HOST),
    ("MemoryError: Unable to allocate", HOST),
    ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 EiB", HOST),
    ("terminate called after throwing an instance of 'std::bad_alloc'", HOST),
    ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", HOST),
    ("OSError: [Errno 12] Cannot allocate memory", HOST),
    ("fatal error: runtime: out of memory", HOST),
    ("memory allocation of 1073741824 bytes failed", HOST),
    ("Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot", LOST),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", LOST),
    ("RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution", LOST),
    ("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.", LOST),
    ("cudaErrorNoDevice: no CUDA-capable device is detected", LOST),
    ("HIP error: hipErrorNoDevice", LOST),
    ("vk::Queue::submit: ErrorDeviceLost", LOST),
    ("VK_ERROR_DEVICE_LOST", LOST),
    ("exo.gpu.vocabulary.errors.DeviceLost: cuda:0 is gone", LOST),
]

INNOCENT = [
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "KeyError: 'memory'",
    "OutOfMemoryBehaviour is not set",
    "cudaErrorNoDeviceFunctions",
    "torch.OutOfMemoryErrorHandler installed",
    "RESOURCE_EXHAUSTED: too many requests",
    "ConnectionError: device lost its connection to the broker",
    "my.package.MemoryErrors: 0",
    "",
]


@pytest.mark.parametrize(("line", "cause"), PRINTED)
def test_what_programs_print_is_known(line, cause):
    """The same words on standard error of a command and in the text of an exception."""
    text = f"loading\n  {line}\nsee the log for more\n"
    assert classify(Evidence(returncode=1, text=text)).cause is cause
    finding = classify(Evidence(exception=("builtins.RuntimeError",), text=line))
    assert finding.cause is cause
    assert line.strip() in finding.words


@pytest.mark.parametrize("line", INNOCENT)
def test_what_only_sounds_like_it_is_left_alone(line):
    assert classify(Evidence(returncode=1, text=line)).cause is Cause.EXIT_STATUS


@pytest.mark.parametrize(
    ("classes", "cause"),
    [
        (("torch.OutOfMemoryError", "builtins.RuntimeError"), DEVICE),
        (("cupy.cuda.memory.OutOfMemoryError", "builtins.MemoryError"), DEVICE),
        (("exo.gpu.vocabulary.errors.OutOfDeviceMemory", "builtins.MemoryError"), DEVICE),
        (("exo.gpu.vocabulary.errors.DeviceLost", "builtins.RuntimeError"), LOST),
        (("mine.Full", "builtins.MemoryError", "builtins.Exception"), HOST),
        (("builtins.MemoryError",), HOST),
        (("builtins.ValueError", "builtins.Exception"), Cause.EXCEPTION),
    ],
)
def test_an_exception_is_known_by_its_classes_too(classes, cause):
    assert classify(Evidence(exception=classes)).cause is cause


@pytest.mark.parametrize(
    ("returncode", "kills", "cause"),
    [
        (0, None, Cause.CLOSED),
        (None, None, Cause.CLOSED),
        (1, None, Cause.EXIT_STATUS),
        (-9, None, Cause.KILLED),
        (-9, 0, Cause.KILLED),
        (-9, 1, HOST),
        (137, 2, HOST),
        (137, 0, Cause.EXIT_STATUS),
        (-15, 3, Cause.KILLED),
        (-6, None, Cause.KILLED),
    ],
)
def test_an_exit_without_a_word(returncode, kills, cause):
    """The kernel's killer sends SIGKILL; only its own count tells it from anybody else."""
    assert classify(Evidence(returncode=returncode, oom_kills=kills)).cause is cause


def test_the_last_word_counts():
    text = "CUDA out of memory, trying a smaller batch\nRuntimeError: CUDA error: GPU is lost\n"
    assert classify(Evidence(returncode=1, text=text)).cause is LOST


@given(
    cause=st.sampled_from([Cause.TIMEOUT, Cause.CANCELLED, Cause.UNRESPONSIVE]),
    text=st.text(),
    returncode=st.none() | st.integers(-64, 255),
    kills=st.none() | st.integers(0, 3),
)
def test_what_we_ended_ourselves_is_never_blamed_on_anything_else(cause, text, returncode, kills):
    evidence = Evidence(returncode=returncode, text=text, ended_for=cause, oom_kills=kills)
    assert classify(evidence).cause is cause


@given(text=st.text(), returncode=st.none() | st.integers(-64, 255))
def test_whatever_was_printed_there_is_a_cause(text, returncode):
    assert classify(Evidence(returncode=returncode, text=text)).cause in Cause


def test_own_patterns_come_beside_the_known_ones():
    patterns = Patterns(out_of_memory=(r"^simulator: arena full",), device_lost=(r"\bE4711\b",))
    assert classify(Evidence(returncode=3, text="simulator: arena full"), patterns).cause is DEVICE
    assert classify(Evidence(returncode=3, text="E4711"), patterns).cause is LOST
    assert classify(Evidence(returncode=3, text="CUDA out of memory"), patterns).cause is DEVICE
    with pytest.raises(re.error):
        classify(Evidence(returncode=3, text="x"), Patterns(device_lost=("(",)))


def test_the_kernels_count_is_read_from_its_own_words():
    """The counter's files as kernels write them, before and after one kill."""
    before = "low 0\nhigh 0\nmax 4\noom 1\noom_kill 0\noom_group_kill 0\n"
    assert oom_kills(before) == 0
    assert oom_kills(before.replace("oom_kill 0", "oom_kill 2")) == 2
    assert oom_kills("low 0\nhigh 0\n") is None
    assert oom_kills("oom_kill many\n") is None


@pytest.mark.parametrize("in_cgroup", [True, False])
def test_a_step_of_the_count_is_seen_between_two_looks(tmp_path, in_cgroup):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/x\n0::/job/7\n")
    counter = tmp_path / "proc/vmstat"
    counter.write_text("pgfault 12\noom_kill 3\n")
    if in_cgroup:
        counter = tmp_path / "sys/fs/cgroup/job/7/memory.events"
        counter.parent.mkdir(parents=True)
        counter.write_text("oom 0\noom_kill 3\n")
    kills = MemoryKills(tmp_path)
    assert kills.since() is None
    kills.mark()
    assert kills.since() == 0
    counter.write_text("oom_kill 5\n")
    assert kills.since() == 2
    assert kills.since() == 0
    counter.unlink()
    assert kills.since() is None
