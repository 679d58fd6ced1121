"""Where Ray gives GPUs out, only what it gave us is seen, whatever the vendor and the driver."""

from __future__ import annotations

from exo.gpu.nodes.ray_grants import left_by_ray

GIVEN = {"HOME": "/home/ada", "CUDA_VISIBLE_DEVICES": "1"}


def test_where_ray_manages_none_everything_is_ours():
    assert left_by_ray(GIVEN, {}, managed=0, granted=0) == GIVEN


def test_of_managed_gpus_those_that_were_granted_are_seen_by_their_own_driver_only():
    """Rule: Vulkan, which knows no list of Ray's, would show the others' cards as well."""
    left = left_by_ray(GIVEN, {}, managed=4, granted=1)
    assert left["CUDA_VISIBLE_DEVICES"] == "1"
    assert left["VK_DRIVER_FILES"] == left["VK_ICD_FILENAMES"] == "/dev/null"


def test_without_a_grant_no_gpu_is_seen():
    left = left_by_ray(GIVEN, {}, managed=4, granted=0)
    assert left["CUDA_VISIBLE_DEVICES"] == ""
    assert {"HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR"} <= set(left)
    assert left["HOME"] == "/home/ada"


def test_what_ray_sets_for_its_own_workers_is_not_there_for_ours():
    """Rule: work has the environment with which Ray was started there, and all its threads."""
    of_ray = {"OMP_NUM_THREADS": "1", "RAY_JOB_ID": "ffffffff", "PYTHONBREAKPOINT": "ray.rpdb"}
    started_with = {"HOME": "/home/ada", "OMP_NUM_THREADS": "12", "RAY_AUTH_MODE": "token"}
    left = left_by_ray(GIVEN | of_ray, started_with, managed=0, granted=0)
    assert left == GIVEN | {"OMP_NUM_THREADS": "12", "RAY_AUTH_MODE": "token"}
