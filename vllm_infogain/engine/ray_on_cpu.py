"""Let Ray place tensor-parallel workers on CPUs, so that the Ray path runs where there is no GPU: in tests and CI.

Why: vLLM's Ray executor counts a cluster's accelerators under the platform's `ray_device_key`. The CPU platform has
    none, and is refused ("current platform cpu does not support ray"); nothing else of it stands in the way.
How: an entry in `vllm.platform_plugins` gives the CPU platform with the key "GPU", for a cluster that was told of as
    many logical GPUs as it may run workers. A general plugin would be too late: Ray's actors ask for it first.
    The entry answers only where the environment variable VLLM_INFOGAIN_CPU_RAY is 1 and vLLM's build is for the CPU;
    it must be set for the cluster (`ray start`) as well as for vLLM.
Upstream: none.
Remove when: vLLM's CPU platform names a Ray resource.
"""

import os

SWITCH = "VLLM_INFOGAIN_CPU_RAY"


def platform() -> str | None:
    """Called by vLLM in every process: the class to use as platform, or None to leave vLLM's choice alone."""
    return f"{__name__}.RayCPUPlatform" if os.environ.get(SWITCH) == "1" and _is_cpu_build() else None


def _is_cpu_build() -> bool:
    from vllm.platforms import cpu_platform_plugin

    return cpu_platform_plugin() is not None


# Not without the switch: a platform's module is not for other platforms to import.
if os.environ.get(SWITCH) == "1":
    from vllm.platforms.cpu import CpuPlatform

    class RayCPUPlatform(CpuPlatform):
        """Ray knows no CPU as an accelerator that it hands out one by one; "GPU" it takes on its user's word."""

        ray_device_key = "GPU"
